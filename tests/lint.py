"""What ruff does not see: notebooks in their shape, no traces of a machine, results and figures within their size, and
files that import only from those before them in the README's chain."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from bnlib.names import parse_model

ROOT = Path(__file__).resolve().parent.parent
MEGABYTES, RUN_KILOBYTES, CELL_LINES = 40, 80, 15


def notebook_faults(file: Path) -> list[str]:
    cells = json.loads(file.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    faults = [f"{file.name}: a cell of {n} lines; at most {CELL_LINES}, logic lives in bnlib"
              for c in code if (n := len("".join(c["source"]).splitlines())) > CELL_LINES]
    if not any("parameters" in c["metadata"].get("tags", ()) for c in code):
        faults.append(f"{file.name}: no cell tagged `parameters`")
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    headings = {found.replace(" ", "-") for text in texts for found in re.findall(r"^#+ (.+)$", text, re.M)}
    faults += [f"{file.name}: no heading for the link #{link}, as Jupyter names them, or not in ASCII"
               for text in texts for link in re.findall(r"\]\(#(.+?)\)", text)
               if link not in headings or not link.isascii()]
    if any(o.get("output_type") == "error" for c in code for o in c.get("outputs", ())):
        faults.append(f"{file.name}: holds an error")
    if file.name != "summary.ipynb" and any(c.get("outputs") for c in code):
        faults.append(f"{file.name}: holds outputs; `make report` keeps those of the summary alone")
    return faults


def trace_faults(file: Path) -> list[str]:
    """Paths of home folders, which executed notebooks and records must not hold."""
    found = re.search(r"(/home/|/root/|/Users/|/tmp/)[\w.]", file.read_text(errors="replace"))
    return [f"{file.relative_to(ROOT)}: holds the path {found[0]}…"] if found else []


def size_faults() -> list[str]:
    faults, runs = [], []
    files = [f for folder in ("results", "figures") for f in (ROOT / folder).rglob("*") if f.is_file()]
    total = sum(f.stat().st_size for f in files)
    if total > MEGABYTES * 1e6:
        faults.append(f"results/ and figures/ take {total / 1e6:.1f} MB; at most {MEGABYTES}")
    for record in (ROOT / "results/runs").glob("*/run.json"):
        config = json.loads(record.read_text())["config"]
        if parse_model(config["model"]).depth <= 110:
            runs.append(sum(f.stat().st_size for f in record.parent.iterdir()))
    if runs and sum(runs) / len(runs) > RUN_KILOBYTES * 1000:
        faults.append(f"a record takes {sum(runs) / len(runs) / 1000:.0f} kB on average; at most {RUN_KILOBYTES}")
    return faults


def import_faults() -> list[str]:
    chain = re.findall(r"`(\w+)/?`", next(
        row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| `bnlib/` |")))[1:]
    faults = []
    for file in (ROOT / "bnlib").rglob("*.py"):
        own = file.relative_to(ROOT / "bnlib").parts[0].removesuffix(".py")
        before = chain[:chain.index(own) + 1] if own in chain else chain
        imports = [node for node in ast.walk(ast.parse(file.read_text()))
                   if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bnlib"]
        used = [name for node in imports
                for name in (node.module.split(".")[1:2] or [each.name for each in node.names])]
        faults += [f"{file.relative_to(ROOT)}: imports {name}, which comes after it in the README's chain"
                   for name in used if name in set(chain) - set(before)]
    return faults


def main() -> int:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    faults = size_faults() + import_faults() + [f for n in notebooks for f in notebook_faults(n)]
    faults += [f for n in [*notebooks, *ROOT.glob("results/runs/*/run.json")] for f in trace_faults(n)]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.split("\0")
    faults += [f"{name}: {size / 1e6:.1f} MB; at most 5" for name in tracked
               if name and (ROOT / name).is_file() and (size := (ROOT / name).stat().st_size) > 5e6]
    print("\n".join(faults) or f"lint: {len(notebooks)} notebooks, all in shape")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
