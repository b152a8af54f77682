"""Every notebook runs through papermill, in seconds, and in the order of its numbers."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from bnlib import InputError, campaign, report
from bnlib.config import resolve
from bnlib.grid import Runs

SECRET = "a-token-that-no-file-may-hold"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks in the smoke profile, executed from a copy of nothing but their own files."""
    root = tmp_path_factory.mktemp("project")
    for name in ("bnlib", "notebooks"):
        shutil.copytree(resolve(name), root / name)
    environment = os.environ | {"PYTHONPATH": str(root), "BNLIB_TEST_TOKEN": SECRET}
    done = subprocess.run([sys.executable, "-m", "bnlib", "reproduce", "--profile", "smoke"], cwd=root, text=True,
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", report.names())
def test_a_notebook_executes_in_the_smoke_profile(name, executed):
    notebook = nbformat.read(executed / f"build/smoke/{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs and not any(output.output_type in ("error", "stream") for output in outputs), outputs


def test_executed_notebooks_and_records_hold_no_trace_of_the_machine(executed):
    """Nor of who ran them: the fixture puts a secret into the environment, and no file may hold it."""
    names = [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4]   # `root` is also a word
    traces = [str(Path.home()), str(executed), sys.prefix, SECRET, *names]
    files = [f for f in (executed / "build/smoke").rglob("*") if f.suffix in (".ipynb", ".json", ".csv")]
    assert len(files) > 20
    assert not [(f.name, trace) for f in files for trace in traces if trace in f.read_text()]


def test_figures_are_written_as_svg_and_png(executed):
    files = sorted(f.name for f in (executed / "build/smoke/figures").iterdir())
    assert {"accuracy_by_depth.svg", "accuracy_by_depth.png", "summary_depth.svg"} <= set(files)
    assert {f[:-4] for f in files if f.endswith(".svg")} == {f[:-4] for f in files if f.endswith(".png")}


def test_a_fresh_call_is_gone_on_with_until_it_is_through(tmp_path, monkeypatch):
    """And a mistake in the words of the call removes nothing."""
    missing, own = [1], report.resolve
    monkeypatch.setattr(report, "resolve", lambda path: tmp_path / path if str(path).startswith("build") else own(path))
    monkeypatch.setattr(report, "run_all", lambda *_, **__: Runs([], list(missing)))
    monkeypatch.setattr(report, "_execute_all", lambda *_: None)
    trained = tmp_path / "build/smoke/trained"

    def fresh(**options):
        report.reproduce("smoke", ["01_depth"], fresh=True, **options)

    def train():
        trained.parent.mkdir(parents=True, exist_ok=True)
        trained.touch()
    train()
    for mistake in ({"budget": "soon"}, {"parameters": {"depths": 8}}):
        with pytest.raises(InputError):
            fresh(**mistake)
    assert trained.exists()
    fresh()
    assert not trained.exists()                                             # of an earlier call
    train()
    fresh()
    assert trained.exists()                                                 # of this one, which had not ended
    missing.clear()
    with monkeypatch.context() as patch, pytest.raises(InputError, match="a cell fails"):
        patch.setattr(report, "_execute_all", lambda *_: (_ for _ in ()).throw(InputError("a cell fails")))
        fresh()
    fresh()
    assert trained.exists()                                                 # nor had it then
    fresh()
    assert not trained.exists()


@pytest.mark.parametrize("name", report.names())
def test_parameters_are_typed_and_explained(name):
    import papermill
    parameters = papermill.inspect_notebook(str(resolve("notebooks") / f"{name}.ipynb"))
    assert parameters and all(p["inferred_type_name"] != "None" and p["help"] for p in parameters.values())


def test_an_unknown_parameter_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"parameter='dephts'.*did you mean 'depths'"):
        report.execute("01_depth", tmp_path / "x.ipynb", {"dephts": [14]})


@pytest.mark.parametrize(("notebook", "given", "said"), [
    ("08_beyond", {"first": 0.5}, r"08_beyond: first=0.5: must be a list, such as \[0.5\]"),
    ("08_beyond", {"norms": "group"}, r"norms='group': must be a list, such as \['group'\]"),
    ("01_depth", {"depths": []}, r"01_depth: depths=\[\]: must be a list of at least one"),
    ("01_depth", {"epochs": "ten"}, "01_depth: epochs='ten': must be a whole number"),
    ("01_depth", {"budget": "30m"}, "parameter='budget'"), ("01_depth", {"fresh": True}, "parameter='fresh'"),
    ("06_initialisation", {"starts": [{"foo": 1}]}, "06_initialisation: no grid comes of these parameters: .*'foo'")])
def test_a_parameter_of_another_type_is_an_error_before_anything_is_trained(notebook, given, said):
    with pytest.raises(InputError, match=said):
        report.reproduce("smoke", [notebook], parameters=given)


def test_a_grid_that_fails_is_named_by_its_notebook(tmp_path):
    file = resolve("notebooks") / "01_depth.ipynb"
    (tmp_path / file.name).write_text(file.read_text().replace('"configs = ', '"configs = nowhere + '))
    with pytest.raises(InputError, match=r"01_depth: no grid comes of these parameters: .*nowhere"):
        campaign.notebook_configs(tmp_path / file.name, profile_name="demo")


def test_the_environment_is_as_before_where_a_notebook_was_executed(monkeypatch, tmp_path):
    monkeypatch.setenv("BNLIB_PROGRESS", "1")
    monkeypatch.setattr("papermill.execute_notebook", lambda *given, **options: None)
    report.execute("01_depth", tmp_path / "x.ipynb", {})
    assert os.environ["BNLIB_PROGRESS"] == "1"


def test_the_readme_says_what_the_summary_found():
    said = report.found(resolve("notebooks/summary.ipynb"))
    assert report.FOUND.search(resolve("README.md").read_text())[0] == said and said.count("\n* ") >= 4


def test_the_summary_is_committed_with_its_outputs():
    cells = json.loads((resolve("notebooks") / "summary.ipynb").read_text())["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 4
