"""The report as a static site, by Sphinx with myst-nb: executed notebooks in, pages that work offline and a PDF out."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bnlib.config import resolve
from bnlib.names import InputError

TABLES = "results/tables"            # what notebooks link to beside pages and figures
SET_UP = "Parameters and list of runs"        # what stands for the code above an experiment's figures


def build(notebooks: Sequence[Path], place: Path, front: str) -> None:
    """A static site of executed notebooks, that of the name `front` first, and with Chromium a PDF of that one.

    Without Sphinx there is no site, and a line says so. Raises InputError where Sphinx fails.
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
    shutil.copytree(resolve(TABLES), source / "tables")
    for notebook in notebooks:
        others = [other.stem for other in notebooks if other.stem != front] if notebook.stem == front else None
        _as_page(notebook, source, others)
    if build_main(["-q", "-b", "html", "-d", str(place.with_name("site-cache")), str(source), str(place)]):
        raise InputError(f"{source}: Sphinx could not make the site; what it says is above")
    shutil.rmtree(place / "_sources", ignore_errors=True)
    if (source / "figures").exists():                  # Sphinx knows of no links in what a cell has put out
        shutil.copytree(source / "figures", place / "figures")
    printed = _print_pdf(place / f"{front}.html", place / f"{front}.pdf")
    shutil.copy(place / f"{front}.html", place / "index.html")
    megabytes = sum(file.stat().st_size for file in place.rglob("*")) / 1e6
    print(f"site: {os.path.relpath(place)}/{front}.html, {megabytes:.1f} MB, {printed}")


def figure_links(notebook, place: Callable[[Path], Path]) -> list[Path]:
    """The SVGs that the figures of an executed notebook link to; each link now leads to `place` of what it led to."""
    found = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        text = output.get("data", {}).get("text/markdown", "")
        if link := re.fullmatch(r"\[(.+)\]\((.+\.svg)\)", text):
            found.append(Path(link[2]))
            output.data["text/markdown"] = f"[{link[1]}]({place(found[-1]).as_posix()})"
    return found


def _as_page(notebook: Path, source: Path, others: list[str] | None) -> None:
    """A notebook as Sphinx takes it, with its figures. others: on the front page, where all code is folded, the pages
    that it leads to."""
    import nbformat
    content = nbformat.read(notebook, as_version=4)
    for svg in figure_links(content, lambda svg: Path("figures", svg.name)):
        if (notebook.parent / svg).exists():
            (source / "figures").mkdir(exist_ok=True)
            shutil.copy(notebook.parent / svg, source / "figures")
    if others is None:
        content.cells = _set_up_as_one(content.cells)
    for cell in content.cells:
        if cell.cell_type == "markdown":               # Sphinx copies what a page links to
            cell.source = cell.source.replace(f"(../{TABLES}/", "(tables/")
            cell.source = re.sub(r"\]\(#(.+?)\)", lambda link: f"](#{link[1].lower()})", cell.source)     # as MyST
        for output in cell.get("outputs", ()):
            if "alt" in (image := output.get("metadata", {}).get("image/png", {})):
                cell.metadata["mystnb"] = {"image": {"alt": image["alt"]}}
        if others is not None and cell.cell_type == "code":
            cell.metadata.setdefault("tags", []).append("hide-input" if cell.outputs else "remove-input")
    if others is not None:
        pages = "\n".join(others)
        content.cells.append(nbformat.v4.new_markdown_cell(f"```{{toctree}}\n:hidden:\n\n{pages}\n```"))
    nbformat.write(content, source / notebook.name)


def _set_up_as_one(cells: list) -> list:
    """The cells with those that put nothing out (imports, parameters, the list of runs) joined to their neighbours and
    folded: a reader looks for the figure, and for them only then."""
    joined: list = []
    for cell in cells:
        quiet = cell.cell_type == "code" and not cell.outputs
        if quiet and joined and "hide-input" in joined[-1].metadata.get("tags", ()):
            joined[-1].source += f"\n\n{cell.source}"
            continue
        if quiet:
            cell.metadata["tags"] = ["hide-input"]
            cell.metadata["mystnb"] = dict.fromkeys(("code_prompt_show", "code_prompt_hide"), SET_UP)
        joined.append(cell)
    return joined


def _print_pdf(page: Path, pdf: Path) -> str:
    """Prints a page through headless Chromium and links to that from the page; returns what became of it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        return "no PDF without Chromium"
    html, printed = page.read_text(), page.with_name("print.html")
    # in a PDF a link to another page would name its place on this machine
    printed.write_text(re.sub(r'(<a [^>]*)href="(?!https?:|#)[^"]*"', r"\1", html))
    with tempfile.TemporaryDirectory() as profile, contextlib.suppress(subprocess.SubprocessError):
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                        "--no-pdf-header-footer", f"--print-to-pdf={pdf}", printed.absolute().as_uri()],
                       capture_output=True, timeout=120, check=True)
    printed.unlink()
    if not pdf.exists():
        return "no PDF: Chromium failed"
    page.write_text(html.replace("</h1>", f'</h1>\n<p><a href="{pdf.name}">This page as a PDF</a></p>', 1))
    return f"with {pdf.name}"
