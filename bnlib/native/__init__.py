"""The operations written in C++ for a CPU: whether this machine can run them, and their build.

    lanes.h         vectors of as many channels as a register holds
    bnrelu.cpp      batch norm, sum and ReLU in one operation (`bnlib.bnrelu`)
    winograd.cpp    3×3 convolution with a quarter of the multiplications (`bnlib.convolution`)
"""

import hashlib
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


@cache
def why_not() -> str:
    """`""` if the C++ operations can run on this machine, else why not; builds them on the first call (20 s, cached).

    `BNLIB_CPP=0` in the environment forces torch's own modules.
    """
    if os.environ.get("BNLIB_CPP") == "0":
        return "switched off by BNLIB_CPP=0"
    try:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)      # not: "No CUDA runtime is found"
        from torch.utils import cpp_extension
        scripts = str(Path(sys.executable).parent)          # ninja is installed beside python
        if scripts not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
        # built for this very processor: another one, another torch or another source is another build
        model, flags = processor()
        built_for = "".join(file.read_text() for file in sorted(FOLDER.glob("*.[ch]*")))
        built_for += f"{torch.__version__} {model} {sorted(flags)} {sys.version}"
        cpp_extension.load(f"bnlib_{hashlib.sha256(built_for.encode()).hexdigest()[:12]}",
                           [str(file) for file in sorted(FOLDER.glob("*.cpp"))],
                           extra_cflags=["-O3", "-march=native", "-fopenmp"], is_python_module=False)
    except Exception as error:          # no compiler, no ninja, no disk: whatever it is, training must go on
        return f"not built: {type(error).__name__}"         # its text may hold a path, and this goes into records
    return ""


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The processor's model, and the instruction sets that Linux names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return (found.get("model name") or platform.processor() or platform.machine(),
            frozenset(found.get("flags", "").split()))
