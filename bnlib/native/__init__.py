"""The operations written in C++ for a CPU, and in Triton for a GPU: whether this machine has them, and their build.

    lanes.h         vectors of as many channels as a register holds
    batchnorm.h     batch norm, sum and ReLU: the passes over a batch
    through.h       what a convolution reads and writes, through batch norm
    winograd.h      3×3 convolution with a quarter of the multiplications
    amx.h           3×3 convolution in bfloat16 by AMX, strided ones too
    layers.cpp      batch norm, sum and ReLU in one operation (`bnlib.bnrelu`); 3×3 and strided 1×1 convolutions
                    (`bnlib.convolution`); the fork of a block's two ways (`bnlib.residual`); a batch's images, cut,
                    mirrored and normalised (`bnlib.data`)
    block.cpp       a residual block in one operation (`bnlib.residual`)
    gpu.py          batch norm, sum and ReLU on a GPU, in Triton (`bnlib.bnrelu`)
"""

import hashlib
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]*"))


@cache
def why_not() -> str:
    """`""` if the C++ operations can run on this machine, else why not; builds them on the first call (under a minute).

    `BNLIB_CPP=0` in the environment forces torch's own modules.
    """
    if os.environ.get("BNLIB_CPP") == "0":
        return "switched off by BNLIB_CPP=0"
    try:
        _build()
    except Exception as error:          # no compiler, no ninja, no disk: whatever it is, training must go on
        logging.getLogger(__name__).info("the C++ operations were not built", exc_info=error)
        return f"not built: {type(error).__name__}"         # its text may hold a path, and this goes into records
    return ""


@cache
def why_not_on_gpu() -> str:
    """`""` if the Triton kernels can run on this machine's GPU, else why not; tries them on a small batch, forward and
    backward.

    `BNLIB_CPP=0` in the environment forces torch's own modules here too.
    """
    if os.environ.get("BNLIB_CPP") == "0":
        return "switched off by BNLIB_CPP=0"
    try:
        from bnlib.native import gpu
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.zeros(2, 16, 2, 2, dtype=dtype, device="cuda").contiguous(memory_format=torch.channels_last)
            gamma, beta, mean, var = (torch.ones(16, device="cuda") for _ in range(4))
            seen = torch.zeros((), dtype=torch.int64, device="cuda")
            with torch.enable_grad():
                gpu.BNReLU.apply(x.requires_grad_(), None, gamma.requires_grad_(), beta.requires_grad_(), mean, var,
                                 seen, 0.1, 1e-5, True).sum().backward()
    except Exception as error:          # no Triton, no compiler for its launcher, too old a GPU: training must go on
        logging.getLogger(__name__).info("the Triton kernels do not run", exc_info=error)
        return f"not built: {type(error).__name__}"
    return ""


def _build() -> None:
    """Loads the operations; builds them where no process has, from copies: ninja builds anew for another path."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)          # not: "No CUDA runtime is found"
    from torch.utils import cpp_extension
    scripts = str(Path(sys.executable).parent)              # ninja is installed beside python
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "building.lock"):
        (folder / "lock").unlink(missing_ok=True)           # an older torch's own outlives a process killed as it built
        for source in SOURCES:                              # they may differ where a killed process had begun to copy
            copy = folder / source.name
            if not copy.exists() or copy.read_text() != source.read_text():
                copy.write_text(source.read_text())
        cpp_extension.load(folder.name, [str(folder / source.name) for source in SOURCES if source.suffix == ".cpp"],
                           extra_cflags=["-O3", "-march=native", "-fopenmp"], build_directory=str(folder),
                           is_python_module=False)


def build_folder() -> Path:
    """Where the operations for this very processor are built: another processor, another torch or another source is
    another build, another copy of the project is not. So is a torch installed elsewhere, for whose headers ninja would
    build anew, in turn with the first. `$TORCH_EXTENSIONS_DIR` is heeded."""
    from torch.utils import cpp_extension
    model, flags = processor()
    built_for = "".join(source.read_text() for source in SOURCES)
    built_for += f"{torch.__version__} {torch.__file__} {model} {sorted(flags)} {sys.version}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root) / f"bnlib_{hashlib.sha256(built_for.encode()).hexdigest()[:12]}"


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
