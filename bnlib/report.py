"""The notebooks, executed through papermill with checked parameters, and the report rendered from the records."""

import os
import shutil
import time
from pathlib import Path

from bnlib.config import PROFILES, InputError, choose, resolve
from bnlib.grid import seconds

NOTEBOOKS = "notebooks"


def names() -> list[str]:
    """The notebooks in the order in which they are read; the summary comes last."""
    return sorted(file.stem for file in resolve(NOTEBOOKS).glob("*.ipynb"))


def execute(name: str, output: Path, parameters: dict) -> float:
    """Executes a notebook with these parameters and writes it to `output`; returns the seconds it took.

    Raises InputError for a notebook or a parameter that is not there, which papermill would only warn of.
    """
    import papermill
    source = resolve(NOTEBOOKS) / f"{choose('notebook', name, names())}.ipynb"
    declared = papermill.inspect_notebook(str(source))
    for parameter in parameters:
        choose(f"{name}: parameter", parameter, list(declared))
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["BNLIB_PROGRESS"] = "0"                 # no progress bars in the notebooks' outputs
    began = time.time()
    papermill.execute_notebook(str(source), str(output), parameters, cwd=str(source.parent), progress_bar=False,
                               kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    return time.time() - began


def declared_of(name: str, wanted: dict) -> dict:
    """Those of the wanted parameters that the notebook declares and that are set."""
    import papermill
    declared = papermill.inspect_notebook(str(resolve(NOTEBOOKS) / f"{choose('notebook', name, names())}.ipynb"))
    return {key: value for key, value in wanted.items() if key in declared and value is not None}


def reproduce(profile: str = "demo", notebooks: list[str] | None = None, budget: str | None = None,
              fresh: bool = False) -> None:
    """Runs the notebooks with a profile, training what is missing; executed copies go to `build/<profile>/`.

    budget: time for all of them together. fresh: trains everything anew, into `build/<profile>/results`.
    """
    settings = PROFILES[choose("profile", profile, PROFILES)]
    folder = resolve("build") / profile
    results = f"build/{profile}/results" if fresh else settings["results"]
    deadline = None if budget is None else time.time() + seconds(budget)
    chosen = [choose("notebook", name, names()) for name in notebooks or names()]
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    for name in chosen:
        left = None if deadline is None else f"{max(0.0, deadline - time.time()):.0f}s"
        wanted = {"profile_name": profile, "profiles": [profile], "budget": left, "results": results}
        print(f"{name:16s}", end=" ", flush=True)
        took = execute(name, folder / f"{name}.ipynb", declared_of(name, wanted))
        print(f"{took:6.1f} s   {os.path.relpath(folder / name)}.ipynb", flush=True)
    print(f"figures: {os.path.relpath(resolve(results).parent / 'figures')}")


def render(profile: str = "short") -> None:
    """Renders all notebooks and figures from the records there are, and trains nothing.

    Copies go to `build/report/`; the summary is rendered in its place, as it is committed with its outputs.
    """
    folder = resolve("build/report")
    for name in names():
        print(f"{name:16s}", end=" ", flush=True)
        wanted = {"profile_name": profile, "missing": "skip", "results": "results"}
        took = execute(name, folder / f"{name}.ipynb", declared_of(name, wanted) if name != "summary" else {})
        print(f"{took:6.1f} s   {os.path.relpath(folder / name)}.ipynb", flush=True)
    _keep_outputs(folder / "summary.ipynb", resolve(NOTEBOOKS) / "summary.ipynb")


def _keep_outputs(executed: Path, kept: Path) -> None:
    """Writes an executed notebook without the traces of its making: times, paths, kernel's version."""
    import nbformat
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            raise InputError(f"{executed}: holds an error; nothing was kept")
    nbformat.write(notebook, kept)
