"""The notebooks: executed through papermill with checked parameters, for `reproduce` and for the report."""

import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from bnlib import site, store
from bnlib.campaign import profile_configs
from bnlib.config import resolve
from bnlib.device import cores
from bnlib.grid import Runs, run_all, seconds
from bnlib.names import InputError, choose
from bnlib.profiles import PROFILES
from bnlib.worker import environment

NOTEBOOKS, QUICKSTART, SUMMARY = "notebooks", "00_quickstart", "summary"
#: Where in the README stands what was found.
FOUND = re.compile(r"(?<=<!-- by `make report` -->\n\n).*?(?=\n<!-- -->)", re.S)
#: What a parameter's declared type takes, and how that is called.
KINDS = {"str": (str, "a text"), "int": (int, "a whole number"), "float": ((int, float), "a number"),
         "bool": (bool, "true or false"), "list": ((list, tuple, range), "a list")}
_OWN = ("profile_name", "profiles", "results", "missing", "budget", "cluster")      # parameters that `reproduce` sets


def names() -> list[str]:
    """The notebooks in the order in which they are read; the summary comes last."""
    return sorted(file.stem for file in resolve(NOTEBOOKS).glob("*.ipynb"))


def parameters_of(name: str) -> dict[str, str]:
    """The parameters that a notebook declares, each with its type."""
    import papermill
    declared = papermill.inspect_notebook(str(resolve(NOTEBOOKS) / f"{choose('notebook', name, names())}.ipynb"))
    return {parameter: about["inferred_type_name"] for parameter, about in declared.items()}


def check_parameters(name: str, parameters: dict) -> None:
    """Raises InputError for a parameter that a notebook does not declare, or declares as of another type."""
    declared = parameters_of(name)
    for parameter, value in parameters.items():
        kind = declared[choose(f"{name}: parameter", parameter, sorted(declared))]
        of_kind, called = KINDS.get(kind, (object, "a value"))         # of a type that is not checked
        if value is None or (isinstance(value, of_kind) and (kind != "list" or len(value))):
            continue
        example = " of at least one" if kind == "list" and value == [] else f", such as [{value!r}]" * (kind == "list")
        raise InputError(f"{name}: {parameter}={value!r}: must be {called}{example}")


def execute(name: str, output: Path, parameters: dict) -> float:
    """Executes a notebook with these parameters and writes it to `output`; returns the seconds it took.

    Raises InputError for a notebook or a parameter that is not there, of which papermill would only warn, and for a
    cell that fails.
    """
    import papermill
    from traitlets.config import Config
    check_parameters(name, parameters)
    source = resolve(NOTEBOOKS) / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    try:
        # no progress bars in the notebooks' outputs; sockets of its own, since of kernels that start side by side two
        # may choose the same port, and one of them never answers (papermill's issue 511)
        with environment({"BNLIB_PROGRESS": "0"}), tempfile.TemporaryDirectory(prefix="bnlib-") as sockets:
            papermill.execute_notebook(
                str(source), str(output), parameters, cwd=str(source.parent), progress_bar=False, kernel_name="python3",
                extra_arguments=["--log-level=CRITICAL"],
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}))
    except papermill.PapermillExecutionError as error:
        where = f"{name}, cell {error.exec_count}"
        raise InputError(f"{where}: {error.ename}: {error.evalue} (all of it: {output})") from None
    finally:
        if output.exists():
            _without_traces(output)
    return time.time() - began


def reproduce(profile: str = "demo", notebooks: list[str] | None = None, budget: str | None = None,
              fresh: bool = False, cluster=None, parameters: dict | None = None) -> Runs:
    """Trains what the notebooks' grids lack, cheapest first, then executes them; copies go to `build/<profile>/`.

    budget: time for training; when it is spent, the notebooks show what is there. fresh: trains everything anew, into
    `build/<profile>/results`, and forgets what is there unless such a call left it unfinished. cluster: as for
    `run_all`. parameters: set in those notebooks that declare them. Returns the runs. Raises InputError for a budget
    that is no time and for a parameter that none of the notebooks declares.
    """
    parameters = parameters or {}
    settings = PROFILES[choose("profile", profile, PROFILES)]
    folder = resolve("build") / profile
    results = f"build/{profile}/results" if fresh else settings["results"]
    chosen = [choose("notebook", name, names()) for name in notebooks or names()]
    for parameter in parameters:
        choose("parameter", parameter, sorted(set().union(*map(parameters_of, chosen)) - set(_OWN)))
    if budget is not None:
        seconds(budget)
    grids = {name: _declared(name, parameters) for name in chosen}
    for name, given in grids.items():
        check_parameters(name, given)
    unfinished = folder / "unfinished"                 # of a call with `fresh`, which the next goes on with
    if fresh and unfinished.exists():
        print(f"goes on with the fresh call that was left unfinished in {os.path.relpath(folder)}", flush=True)
    elif fresh:
        shutil.rmtree(folder, ignore_errors=True)
        store.put(unfinished, b"")
    configs = dict.fromkeys(c for name in chosen for c in profile_configs(profile, [name], **grids[name]))
    missing = run_all(configs, missing="skip", results=results).missing
    print(f"profile {profile}: {len(configs)} runs, {len(missing)} of them to train", flush=True)
    runs = run_all(configs, budget=budget, cluster=cluster, results=results)
    if runs.missing:
        failed = [f"{len(runs.failed)} runs failed"] * bool(runs.failed)
        print("; ".join([*failed, f"{len(runs.missing)} runs are still missing"]), flush=True)
    for name in chosen:
        wanted = {"profile_name": profile, "profiles": [profile], "results": results, "missing": "skip"}
        if name == QUICKSTART:                         # always seconds long, whatever the profile
            wanted = {"profile_name": profile} if profile in ("demo", "smoke") else {}
        grids[name] = _declared(name, wanted) | grids[name]
    _execute_all(grids, folder)
    if fresh and not set(runs.missing) - set(runs.failed):
        unfinished.unlink()
    print(f"figures: {os.path.relpath(resolve(results).parent / 'figures')}")
    return runs


def render(profile: str = "short") -> None:
    """Renders all notebooks and figures from the records there are; then the site of them.

    Copies go to `build/report/`; the summary is rendered in its place, as it is committed with its outputs, and what it
    found goes into the README. Nothing is trained but by the notebooks that read no records, which show the `demo`: a
    minute or two.
    """
    choose("profile", profile, PROFILES)
    folder = resolve("build/report")
    shown = {"profile_name": profile, "missing": "skip", "results": PROFILES[profile]["results"]}
    given = {name: {} if name == SUMMARY else shown if _reads_records(name) else {"profile_name": "demo"}
             for name in names()}
    _execute_all({name: _declared(name, parameters) for name, parameters in given.items()}, folder)
    _keep_outputs(folder / f"{SUMMARY}.ipynb", resolve(NOTEBOOKS) / f"{SUMMARY}.ipynb")
    readme = resolve("README.md")
    readme.write_text(FOUND.sub(lambda _: found(resolve(NOTEBOOKS) / f"{SUMMARY}.ipynb"), readme.read_text()))
    site.build([folder / f"{name}.ipynb" for name in names()], resolve("build/site"), front=SUMMARY)


def found(summary: Path) -> str:
    """What the executed summary says first: its answer, and how far that goes; a line a sentence."""
    import nbformat
    outputs = [output.get("data", {}) for cell in nbformat.read(summary, as_version=4).cells
               for output in cell.get("outputs", ())]
    return "".join(data["text/markdown"] + "\n" for data in [d for d in outputs if "text/markdown" in d][:2])


def _declared(name: str, parameters: dict) -> dict:
    """Those of the parameters that a notebook has."""
    return {key: value for key, value in parameters.items() if key in parameters_of(name)}


def _moved(notebook, before: Path, after: Path) -> None:
    """Figures' links as they are right in another folder than the notebook was in."""
    site.figure_links(notebook, lambda svg: Path(os.path.relpath(before / svg, after)))


def _execute_all(parameters: dict[str, dict], folder: Path) -> None:
    """Executes notebooks in their order, each with its parameters, into `folder`; those that only read records at the
    same time, up to four of them. Others measure or train and are left alone, or are the summary of what was kept."""
    workers = min(4, cores())
    with ProcessPoolExecutor(workers, get_context("spawn"), _share_cores, [workers]) as pool:
        for side_by_side, group in groupby(parameters, _reads_records):
            group = list(group)
            took = (pool.map if side_by_side else map)(
                execute, group, [folder / f"{name}.ipynb" for name in group], [parameters[name] for name in group])
            for name, each in zip(group, took, strict=True):
                print(f"{name:20s} {each:6.1f} s   {os.path.relpath(folder / name)}.ipynb", flush=True)


def _share_cores(workers: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(cores() // workers))         # of the notebooks' kernels


def _reads_records(name: str) -> bool:
    """Whether a notebook shows what a grid has left, and can go without what is missing of it."""
    return "missing" in parameters_of(name)


def _without_traces(file: Path) -> None:
    """Takes from an executed notebook what tells of its making: times, paths of this machine, the kernel's version."""
    import nbformat
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", {}):
                output.data.pop("text/plain", None)          # an object's address, another one each time
    _moved(notebook, resolve(NOTEBOOKS), file.parent)        # it ran there
    text = nbformat.writes(notebook)
    for place, name in ((resolve("."), "."), (Path(sys.prefix), "python"), (Path.home(), "~")):
        if place != Path("/"):                               # a home that some containers have
            text = text.replace(str(place), name)
    file.write_text(text + "\n")


def _keep_outputs(executed: Path, kept: Path) -> None:
    """Copies an executed notebook to its place, unless it holds an error."""
    import nbformat
    notebook = nbformat.read(executed, as_version=4)
    if any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", ())):
        raise InputError(f"{executed}: holds an error; nothing was kept")
    _moved(notebook, executed.parent, kept.parent)
    nbformat.write(notebook, kept)
