"""Batch norm, an optional sum and ReLU as one module; the fast path and torch's own behind it."""

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import native

TYPES = {(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)}


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
                and x.shape[1] == len(self.weight) and x.shape[1] % 16 == 0
                and x.is_contiguous(memory_format=torch.channels_last)
                and (add is None or (add.dtype == x.dtype and add.shape == x.shape
                                     and add.is_contiguous(memory_format=torch.channels_last)))
                and (self.training or not torch.is_grad_enabled())     # evaluation through it has no gradient
                and not torch.compiler.is_compiling() and not native.why_not())


class BNReLU(BN):
    """relu(batch_norm(x) + add) as one module."""

    relu = True
