"""The two ways to install give the same versions, and importing costs only what training needs."""

import re
import subprocess
import sys
import tomllib

from packaging.markers import Marker

from bnlib.config import resolve


def locked() -> dict[str, str]:
    """Package → version, for Python 3.11."""
    found = {}
    for line in resolve("requirements.lock").read_text().splitlines():
        pin = re.match(r"([\w.-]+)==([\w.]+)(?: ; (.*?))? \\", line)
        if pin and (not pin[3] or Marker(pin[3]).evaluate({"python_version": "3.11", "python_full_version": "3.11.9"})):
            found[pin[1]] = pin[2]
    return found


def required() -> set[str]:
    project = tomllib.loads(resolve("pyproject.toml").read_text())["project"]
    lines = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.match(r"[\w-]+", line)[0] for group in lines for line in group}


def test_environment_yml_has_the_locked_versions_of_all_that_is_required():
    conda = dict(re.findall(r"- ([\w-]+)==([\w.]+)", resolve("environment.yml").read_text()))
    assert set(conda) == required()
    assert conda == {name: locked()[name] for name in conda}


def test_every_locked_package_has_hashes_and_no_index_is_named():
    text = resolve("requirements.lock").read_text()
    pins = re.findall(r"^[\w.-]+==.*?(?=^[\w.-]+==|\Z)", text, re.M | re.S)
    assert len(pins) > 50 and all("--hash=sha256:" in pin for pin in pins)
    assert "://" not in text and "--index" not in text


def test_all_that_is_not_python_is_packed_with_bnlib():
    patterns = tomllib.loads(resolve("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["bnlib"]
    folder = resolve("bnlib")
    others = {file for file in folder.rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert others == {file for pattern in patterns for file in folder.glob(pattern)} and len(others) > 3


def test_import_and_training_need_only_torch_numpy_pandas_and_safetensors():
    code = ("import sys, bnlib, bnlib.train, bnlib.grid; "
            "print([m for m in ('matplotlib', 'sklearn', 'torchvision', 'papermill', 'seaborn', 'tensorboard', 'PIL', "
            "'IPython', 'dask', 'distributed', 'pytorch_optimizer') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
