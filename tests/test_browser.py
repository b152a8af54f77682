"""The site and JupyterLab as a reader meets them, in Chromium. `make test-browser` runs this; `make test` does not."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from bnlib import report
from bnlib.config import resolve
from bnlib.site import SET_UP

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(os.environ.get("BNLIB_BROWSER") != "1", reason="only on request: make test-browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def site():
    """The site of the records as they are."""
    report.render("short")
    return resolve("build/site")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser, page, width: int = 1600, **options):
    """A page of the site, with the errors of its console and the requests that left the machine."""
    shown = browser.new_context(viewport={"width": width, "height": 1000}, **options).new_page()
    faults: list[str] = []
    shown.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
    shown.goto(page.as_uri())
    shown.wait_for_load_state("networkidle")
    return shown, faults


@pytest.mark.parametrize("width", [400, 1600])
def test_every_page_loads_without_an_error_or_a_request_elsewhere_and_fits_the_window(site, browser, width):
    pages = sorted(site.glob("*.html"))
    assert {f"{name}.html" for name in report.names()} <= {page.name for page in pages}
    for page in pages:
        shown, faults = opened(browser, page, width)
        assert not faults, page.name
        assert shown.evaluate("document.documentElement.scrollWidth") <= width, page.name
        shown.context.close()


def test_every_figure_has_a_size_and_a_text(site, browser):
    shown, _ = opened(browser, site / "summary.html")
    figures = shown.evaluate("""[...document.querySelectorAll('.cell_output img')].map(
        i => ({alt: i.alt, width: i.naturalWidth, height: i.getBoundingClientRect().height}))""")
    assert len(figures) >= 8
    assert all(len(f["alt"]) >= 20 and f["width"] > 300 and f["height"] > 50 for f in figures)


def test_every_figure_links_to_its_svg(site):
    shown = re.findall(r'href="(figures/[\w]+\.svg)"', (site / "summary.html").read_text())
    assert len(shown) >= 12 and all((site / link).read_text().lstrip().startswith("<?xml") for link in shown)


def test_every_link_within_the_site_leads_somewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        for target, anchor in re.findall(r'href="([\w./-]*)(?:#([^"]*))?"', text):
            aim = page if not target else page.parent / target
            assert aim.exists(), f"{page.name}: {target}"
            if anchor and aim.suffix == ".html":
                assert f'id="{urllib.parse.unquote(anchor)}"' in aim.read_text(), f"{page.name}: {target}#{anchor}"


def test_an_experiments_page_folds_its_parameters_and_opens_them_on_a_click(site, browser):
    shown, _ = opened(browser, site / "01_depth.html")
    code, fold = shown.get_by_text("profile_name: str"), shown.get_by_text(SET_UP).first
    assert not code.is_visible()
    fold.click()
    assert code.is_visible()


def test_a_figure_is_enlarged_by_a_click_and_shrinks_again(site, browser):
    shown, _ = opened(browser, site / "summary.html", 1200)
    figure = shown.locator(".cell_output img").first
    before = figure.bounding_box()["width"]
    figure.click()
    assert figure.bounding_box()["width"] > 1.2 * before
    shown.keyboard.press("Escape")
    assert figure.bounding_box()["width"] == before


def test_the_search_finds_a_word_of_the_report(site, browser):
    shown, faults = opened(browser, site / "summary.html")
    shown.fill("input.sidebar-search", "threshold")
    shown.press("input.sidebar-search", "Enter")
    shown.wait_for_selector("#search-results li", timeout=20_000)
    assert not faults and "05_dead_features" in shown.inner_html("#search-results")


def test_the_site_is_small_and_has_a_pdf(site):
    assert sum(file.stat().st_size for file in site.rglob("*")) < 20e6
    assert (site / "summary.pdf").read_bytes().startswith(b"%PDF")


# ------------------------------------------------------------------------------------------- JupyterLab

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks; address with its token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, token = tmp_path_factory.mktemp("lab") / "notebooks", secrets.token_hex(16)
    shutil.copytree(resolve("notebooks"), folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "2"})
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api?token={token}", timeout=5)
            break
        except OSError:
            time.sleep(1)
    yield lambda notebook: f"{address}/lab/tree/{notebook}?token={token}&reset"
    server.terminate()
    server.wait(30)


def test_jupyterlab_shows_the_summary_with_its_figures(lab, browser):
    shown = browser.new_page()
    shown.goto(lab("summary.ipynb"))
    shown.wait_for_selector(".jp-Notebook img", timeout=120_000)
    shown.get_by_role("heading", name="What was found").wait_for(timeout=120_000)
    shown.wait_for_function("""() => {
        const ids = [...document.querySelectorAll("[data-jupyter-id]")].map(each => each.dataset.jupyterId)
        const links = [...document.querySelectorAll('.jp-Notebook a[href^="#"]')]
        return links.length && links.every(each => ids.includes(each.getAttribute("href").slice(1)))
    }""", timeout=60_000)                            # once all are drawn, each leads to a heading
    shown.close()


def test_the_quickstart_runs_to_its_end_and_again_with_a_parameter_changed(lab, browser):
    shown = browser.new_page()
    shown.goto(lab("00_quickstart.ipynb"))
    parameters = shown.locator(".jp-CodeCell", has_text="# parameters").locator(".cm-content")
    parameters.wait_for(timeout=120_000)
    for model in ("resnet8", "resnet8x2"):
        parameters.click()
        shown.keyboard.press("Control+a")
        shown.keyboard.insert_text("# parameters\nprofile_name, model, trainable, epochs, seed, results = "
                                   f"'smoke', '{model}', 'bn', 1, 0, None")
        shown.get_by_role("button", name="Restart the kernel and run all cells").click()
        shown.locator(".jp-Dialog .jp-mod-accept").click()
        shown.wait_for_function(f"document.querySelector('.jp-Notebook').innerText.includes('digits-{model}-bn-s0')",
                                timeout=180_000)
        shown.wait_for_selector(".jp-OutputArea-output img", timeout=180_000)
        assert "Error" not in shown.inner_text(".jp-Notebook")
    shown.close()
