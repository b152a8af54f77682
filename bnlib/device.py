"""Where training runs: the device and its precision, cores and memory, and what the provenance says of them."""

import contextlib
import ctypes
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from bnlib import native
from bnlib.names import InputError, choose

PRECISIONS = ("bf16", "fp32")
QUOTA = Path("/sys/fs/cgroup/cpu.max")       # Linux: microseconds of work in so many, of all a container's cores
#: The vector units that processors of one model name differ by, the fastest first: the system's flag → the usual name.
VECTORS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-bf16", "avx512f": "AVX512", "avx2": "AVX2"}


def choose_device(device: str | None = None) -> torch.device:
    """The device asked for, or the fastest there is. Raises InputError for one that is not there."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False      # fp32 means fp32
    torch.backends.cudnn.deterministic = True                                            # and the same twice
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = device or next(name for name, is_there in there.items() if is_there)
    if not there[choose("device", device, there)]:
        raise InputError(f"device={device!r}: not on this machine; there is {', '.join(n for n in there if there[n])}")
    return torch.device(device)


def choose_precision(device: torch.device, precision: str | None = None) -> str:
    """The precision asked for, or bf16 where the device computes faster in it than in fp32."""
    if precision is not None:
        return choose("precision", precision, PRECISIONS)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and {"avx512_bf16", "amx_bf16"} & native.processor()[1]
    return "bf16" if fast else "fp32"


def cores() -> int:
    """How many processor cores this process may use: of those there are, those it is bound to, and as many as a
    container may keep busy."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):                 # no such file, or `max`
        quota, period = map(int, QUOTA.read_text().split())
        ours = min(ours, max(1, quota // period))
    return ours


def keep_memory() -> None:
    """Tells glibc to keep freed memory: activations handed back and faulted in each step cost up to 30 %."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)           # M_MMAP_THRESHOLD: take large blocks from the heap
        libc.mallopt(-1, 2**31 - 1)         # M_TRIM_THRESHOLD: and keep them there


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def device_name(device: torch.device) -> str:
    """The device's model, such as `NVIDIA H200` or `AMD EPYC (AVX512-bf16), 2 threads`; never the host's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    model, flags = native.processor()
    unit = next((f" ({VECTORS[flag]})" for flag in VECTORS if flag in flags), "")
    return f"{model}{unit}, {torch.get_num_threads()} threads"


@cache
def commit() -> str | None:
    """The git commit of this code, with `+` where bnlib has uncommitted changes; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    return None
