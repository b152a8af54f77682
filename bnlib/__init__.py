"""What can a network do whose convolutions stay random and whose batch-norm γ and β alone are trained?

    from bnlib import Config, run
    r = run(Config(model="resnet14", trainable="bn", epochs=16, seed=0))
"""

import importlib
import os

# Before torch starts its threads: one that waits for another gives up its core soon, instead of spinning on it while
# the other is off the machine. Costs 3 % on a quiet machine; beside one busy process it is about eight times faster.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from bnlib.config import Config
from bnlib.names import InputError
from bnlib.profiles import profile
from bnlib.store import Run, load_runs
from bnlib.train import run

__version__ = "0.1.0"
__all__ = ["Config", "InputError", "Run", "analysis", "features", "interactive", "load_runs", "plots", "profile",
           "published", "run", "run_all", "verdicts"]

#: Loaded when first asked for, so that training needs neither pandas' styles nor matplotlib.
_LATER = {"run_all": "grid", "published": "analysis", "analysis": None, "features": None,
          "interactive": None, "plots": None, "verdicts": None}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module 'bnlib' has no attribute {name!r}")
    module = importlib.import_module(f"bnlib.{_LATER[name] or name}")
    return getattr(module, name) if _LATER[name] else module
