"""The notebooks, executed through papermill with checked parameters, and the report rendered from the records."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bnlib.config import InputError, choose, resolve
from bnlib.grid import campaign_configs, run_all
from bnlib.profiles import PROFILES

NOTEBOOKS, QUICKSTART, SUMMARY = "notebooks", "00_quickstart", "summary"
#: What a parameter's declared type takes, and how that is called.
KINDS = {"str": (str, "a text"), "int": (int, "a whole number"), "float": ((int, float), "a number"),
         "list": ((list, tuple, range), "a list")}
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
        of_kind, called = KINDS[kind]
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
    check_parameters(name, parameters)
    source = resolve(NOTEBOOKS) / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["BNLIB_PROGRESS"] = "0"                 # no progress bars in the notebooks' outputs
    began = time.time()
    try:
        papermill.execute_notebook(str(source), str(output), parameters, cwd=str(source.parent), progress_bar=False,
                                   kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    except papermill.PapermillExecutionError as error:
        where = f"{name}, cell {error.exec_count}"
        raise InputError(f"{where}: {error.ename}: {error.evalue} (all of it: {output})") from None
    finally:
        del os.environ["BNLIB_PROGRESS"]
        if output.exists():
            _without_traces(output)
    return time.time() - began


def reproduce(profile: str = "demo", notebooks: list[str] | None = None, budget: str | None = None,
              fresh: bool = False, cluster=None, **parameters) -> None:
    """Trains what the notebooks' grids lack, cheapest first, then executes them; copies go to `build/<profile>/`.

    budget: time for training; when it is spent, the notebooks show what is there. fresh: forgets `build/<profile>` and
    trains everything anew, into `build/<profile>/results`. cluster: as for `run_all`. Other parameters are set in those
    notebooks that declare them. Raises InputError for a parameter that none of them declares.
    """
    settings = PROFILES[choose("profile", profile, PROFILES)]
    folder = resolve("build") / profile
    results = f"build/{profile}/results" if fresh else settings["results"]
    chosen = [choose("notebook", name, names()) for name in notebooks or names()]
    for parameter in parameters:
        choose("parameter", parameter, sorted(set().union(*map(parameters_of, chosen)) - set(_OWN)))
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)

    grids = {name: {key: value for key, value in parameters.items() if key in parameters_of(name)} for name in chosen}
    for name, given in grids.items():
        check_parameters(name, given)
    configs = dict.fromkeys(c for name in chosen for c in campaign_configs(profile, [name], **grids[name]))
    missing = run_all(configs, missing="skip", results=results).missing
    print(f"profile {profile}: {len(configs)} runs, {len(missing)} of them to train", flush=True)
    runs = run_all(configs, budget=budget, cluster=cluster, results=results)
    if runs.missing:
        why = f"{len(runs.failed)} runs failed" if runs.failed else "the budget is spent"
        print(f"{why}; {len(runs.missing)} runs are still missing", flush=True)
    for name in chosen:
        wanted = {"profile_name": profile, "profiles": [profile], "results": results, "missing": "skip"}
        if name == QUICKSTART:                         # always seconds long, whatever the profile
            wanted = {"profile_name": profile} if profile in ("demo", "smoke") else {}
        _show(name, folder, {k: v for k, v in wanted.items() if k in parameters_of(name)} | grids[name])
    print(f"figures: {os.path.relpath(resolve(results).parent / 'figures')}")


def render(profile: str = "short") -> None:
    """Renders all notebooks and figures from the records there are, and trains nothing; then the site of them.

    Copies go to `build/report/`; the summary is rendered in its place, as it is committed with its outputs.
    Notebooks that keep no records, and so train whenever they run, are not executed.
    """
    choose("profile", profile, PROFILES)
    folder = resolve("build/report")
    for name in names():
        if "missing" in parameters_of(name):
            _show(name, folder, {"profile_name": profile, "missing": "skip", "results": "results"})
    _show(SUMMARY, folder, {})
    _keep_outputs(folder / f"{SUMMARY}.ipynb", resolve(NOTEBOOKS) / f"{SUMMARY}.ipynb")
    build_site(folder, resolve("build/site"))


def build_site(rendered: Path, place: Path) -> None:
    """A static site of the rendered notebooks, the summary in front, and with Chromium a PDF of it.

    Those that are not rendered are shown as they are, without outputs. Without Sphinx there is no site, and a line says
    so. Raises InputError where Sphinx fails.
    """
    try:
        from sphinx.cmd.build import build_main
    except ModuleNotFoundError:
        print("no site: it needs sphinx, myst-nb and furo, which `make setup` installs")
        return
    source = place.with_name("site-source")
    for folder in (source, place):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(resolve("docs/static"), source / "static")
    shutil.copy(resolve("docs/conf.py"), source)
    for name in names():
        executed = rendered / f"{name}.ipynb"
        _as_page(executed if executed.exists() else resolve(NOTEBOOKS) / executed.name, source / executed.name)
    if build_main(["-q", "-b", "html", "-d", str(place.with_name("site-cache")), str(source), str(place)]):
        raise InputError(f"{source}: Sphinx could not make the site; what it says is above")
    shutil.rmtree(place / "_sources", ignore_errors=True)
    shutil.copy(place / f"{SUMMARY}.html", place / "index.html")
    if (source / "figures").exists():                  # Sphinx knows of no links in what a cell has put out
        shutil.copytree(source / "figures", place / "figures")
    printed = _print_pdf(place / f"{SUMMARY}.html", place / f"{SUMMARY}.pdf")
    megabytes = sum(file.stat().st_size for file in place.rglob("*")) / 1e6
    print(f"site: {os.path.relpath(place)}/{SUMMARY}.html, {megabytes:.1f} MB, {printed}")


def _as_page(notebook: Path, page: Path) -> None:
    """A notebook as Sphinx takes it: figures with texts and SVGs; in the summary, code folded and links to all."""
    import nbformat
    content = nbformat.read(notebook, as_version=4)
    for svg in _linked(content, lambda svg: Path("figures", svg.name)):
        if (notebook.parent / svg).exists():
            (page.parent / "figures").mkdir(exist_ok=True)
            shutil.copy(notebook.parent / svg, page.parent / "figures")
    for cell in content.cells:
        for output in cell.get("outputs", ()):
            if "alt" in (image := output.get("metadata", {}).get("image/png", {})):
                cell.metadata["mystnb"] = {"image": {"alt": image["alt"]}}
        if page.stem == SUMMARY and cell.cell_type == "code":
            cell.metadata.setdefault("tags", []).append("hide-input" if cell.outputs else "remove-input")
    if page.stem == SUMMARY:
        pages = "\n".join(name for name in names() if name != SUMMARY)
        content.cells.append(nbformat.v4.new_markdown_cell(f"```{{toctree}}\n:hidden:\n\n{pages}\n```"))
    nbformat.write(content, page)


def _print_pdf(page: Path, pdf: Path) -> str:
    """Prints a page through headless Chromium; returns what became of it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        return "no PDF without Chromium"
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                               "--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.absolute().as_uri()],
                              capture_output=True, timeout=120)
    return f"with {pdf.name}" if done.returncode == 0 and pdf.exists() else "no PDF: Chromium failed"


def _linked(notebook, place: Callable[[Path], Path]) -> list[Path]:
    """The SVGs that the figures of an executed notebook link to; each link now leads to `place` of what it led to."""
    found = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        text = output.get("data", {}).get("text/markdown", "")
        if link := re.fullmatch(r"\[(.+\.svg)\]\((.+)\)", text):
            found.append(Path(link[2]))
            output.data["text/markdown"] = f"[{link[1]}]({place(found[-1]).as_posix()})"
    return found


def _moved(notebook, before: Path, after: Path) -> None:
    """Figures' links as they are right in another folder than the notebook was in."""
    _linked(notebook, lambda svg: Path(os.path.relpath(before / svg, after)))


def _show(name: str, folder: Path, parameters: dict) -> None:
    print(f"{name:16s}", end=" ", flush=True)
    took = execute(name, folder / f"{name}.ipynb", parameters)
    print(f"{took:6.1f} s   {os.path.relpath(folder / name)}.ipynb", flush=True)


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
