"""The C++ operations touch no memory but that of their tensors, and use nothing that nobody has written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bnlib import native

OPERATIONS = """
import itertools, sys, torch
from bnlib import residual
operations, empty = torch.ops.bnlib, torch.empty(64)
assert empty.isnan().all()                                          # the allocator is there
torch.set_num_threads(int(sys.argv[1]))
amx = not residual.why_not_amx()                                    # which loads the operations

def images(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

def layer(inputs, outputs, size):
    return [images(outputs, inputs, size, size), *torch.rand(2, outputs).unbind(), *torch.rand(2, outputs).unbind()]

def check(operation, x, *given):
    for each in given:
        if torch.is_tensor(each) and each.dtype == torch.float32:
            each.requires_grad_()
    outputs = operation(x, *given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    learned = [each for each in (x, *given) if torch.is_tensor(each) and each.requires_grad]
    gradients = torch.autograd.grad(sum(y.float().square().sum() for y in outputs), learned, allow_unused=True)
    for each in (*outputs, *(g for g in gradients if g is not None)):    # running statistics have none
        assert each.isfinite().all(), operation

sizes = [(1, 16, 2, 2), (3, 48, 7, 9), (5, 32, 12, 10), (2, 144, 3, 17), (33, 16, 16, 2), (3, 16, 10, 104)]
for dtype, (count, channels, height, width) in itertools.product([torch.float32, torch.bfloat16, torch.float64], sizes):
    x, rest = images(count, channels, height, width, dtype=dtype), (0.1, 1e-5)
    norm = [each.to(torch.promote_types(dtype, torch.float32)) for each in layer(1, channels, 1)[1:]]
    check(operations.bn_relu_train, x, x, *norm, *rest, True)
    check(operations.bn_relu_train, x, None, *norm, *rest, False)
    for add in (None, x):
        assert operations.bn_relu_evaluate(x, add, *norm, 1e-5, True).isfinite().all()
    check(operations.fork, x)
    check(operations.skip, x, 2, 2)
    check(operations.convolve_3x3, x, layer(channels, 32, 3)[0])
    if dtype == torch.float64 or (dtype == torch.bfloat16 and not amx):
        continue
    check(operations.basic_block, x, *layer(channels, channels, 3), *layer(channels, channels, 3), *rest)
    if dtype == torch.bfloat16:
        x = images(count, channels, 2 * height, 2 * width, dtype=dtype)
        for outputs in (16, 96):
            layers = [*layer(channels, outputs, 3), *layer(outputs, outputs, 3), *layer(channels, outputs, 1)]
            check(operations.halving_block, x, *layers, *rest)

dtypes = torch.float32, torch.bfloat16
for channels, width, border, dtype in itertools.product((1, 3), (4, 7, 32), (0, 4), dtypes):
    photos, last = torch.full((3, 5, width, channels), 255, dtype=torch.uint8), torch.full((4,), 2 * border)
    flip, ones = torch.tensor([False, False, True, True]), torch.ones(channels)
    found = operations.augment(photos, torch.tensor([2, 0, 2, 1]), last, last, flip, border, ones, ones, dtype)
    assert found.isfinite().all(), operations.augment
"""


@pytest.mark.skipif(bool(native.why_not()), reason=f"C++ operation {native.why_not()}")
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
@pytest.mark.parametrize(("guard", "threads"), [("end", 1), ("end", 3), ("start", 1)])
def test_the_operations_touch_no_memory_but_their_own(guard, threads, tmp_path):
    library, source = tmp_path / "guard.so", Path(__file__).with_name("guard.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", library], check=True)
    done = subprocess.run([sys.executable, "-c", OPERATIONS, str(threads)], capture_output=True, text=True,
                          env=os.environ | {"LD_PRELOAD": str(library), "GUARD": guard})
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
