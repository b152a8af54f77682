"""Batch norm, an optional sum and ReLU as one module; the fast path and torch's own behind it."""

import hashlib
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SOURCE = Path(__file__).with_name("bnrelu.cpp")
TYPES = {(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)}


@cache
def fast_path() -> str:
    """`""` if the C++ operation can run on this machine, else why not; builds it on the first call (20 s, cached).

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
        built_for = SOURCE.read_bytes() + f"{torch.__version__} {model} {sorted(flags)} {sys.version}".encode()
        cpp_extension.load(f"bnrelu_{hashlib.sha256(built_for).hexdigest()[:12]}", [str(SOURCE)],
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


class BN(nn.BatchNorm2d):
    """batch_norm(x) + add, a drop-in `nn.BatchNorm2d`: (N, C, H, W) → (N, C, H, W).

    Parameters, running statistics and evaluation are those of `nn.BatchNorm2d` (Ioffe & Szegedy 2015). Channels-last
    tensors on a CPU go through one C++ operation; anything it does not take goes through torch's modules.
    """

    relu = False

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        if self._is_fast(x, add):
            arguments = (x, add, self.weight, self.bias, self.running_mean, self.running_var)
            if not self.training:
                return torch.ops.bnlib.bn_relu_evaluate(*arguments, self.eps, self.relu)
            self.num_batches_tracked.add_(1)
            return torch.ops.bnlib.bn_relu_train(*arguments, self.momentum, self.eps, self.relu)
        y = super().forward(x)
        if add is not None:
            y = y + add
        return F.relu(y) if self.relu else y

    def _is_fast(self, x: torch.Tensor, add: torch.Tensor | None) -> bool:
        return (x.device.type == "cpu"
                and self.weight is not None
                and (x.dtype, self.weight.dtype) in TYPES
                and self.running_mean is not None and self.momentum is not None
                and x.shape[1] % 16 == 0
                and x.is_contiguous(memory_format=torch.channels_last)
                and (add is None or (add.dtype == x.dtype and add.shape == x.shape
                                     and add.is_contiguous(memory_format=torch.channels_last)))
                and (self.training or not torch.is_grad_enabled())     # evaluation through it has no gradient
                and not fast_path())


class BNReLU(BN):
    """relu(batch_norm(x) + add) as one module."""

    relu = True
