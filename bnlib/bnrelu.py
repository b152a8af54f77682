"""Batch norm, an optional sum and ReLU as one module; the fast path and torch's own behind it."""

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import native

TYPES = {(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)}
#: Channels that the kernels take. Powers of two; with more a tile would hold too few pixels.
CHANNELS = {16, 32, 64, 128, 256, 512, 1024}


class BN(nn.BatchNorm2d):
    """batch_norm(x) + add, a drop-in `nn.BatchNorm2d`: (N, C, H, W) → (N, C, H, W).

    Parameters, running statistics and evaluation are those of `nn.BatchNorm2d` (Ioffe & Szegedy 2015). Channels-last
    tensors go through one C++ operation on a CPU, in training through Triton kernels on a GPU; anything these do not
    take goes through torch's modules. Through neither is there a second derivative, nor one in forward mode.
    """

    relu = False

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        if self._has_kernels(x, add):
            from bnlib.native.gpu import BNReLU as kernels
            return kernels.apply(x, add, self.weight, self.bias, self.running_mean, self.running_var,
                                 self.num_batches_tracked, self.momentum, self.eps, self.relu)
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
        return (x.device.type == "cpu" and self._fits(x, add) and x.shape[1] % 16 == 0
                and (self.training or not torch.is_grad_enabled())     # evaluation through it has no gradient
                and not native.why_not())

    def _has_kernels(self, x: torch.Tensor, add: torch.Tensor | None) -> bool:
        return (x.device.type == "cuda" and x.device.index == torch.cuda.current_device()
                and self.training and self._fits(x, add) and x.dtype != torch.float64
                and x.shape[1] in CHANNELS and x.numel() > x.shape[1] and not native.why_not_on_gpu())

    def _fits(self, x: torch.Tensor, add: torch.Tensor | None) -> bool:
        values = (self.weight, self.bias, self.running_mean, self.running_var)
        return (self.momentum is not None and x.ndim == 4 and x.numel() > 0
                and x.is_contiguous(memory_format=torch.channels_last)
                and all(each is not None and (x.dtype, each.dtype) in TYPES and each.device == x.device
                        and each.shape == x.shape[1:2] and each.is_contiguous() for each in values)
                and (add is None or (add.dtype == x.dtype and add.shape == x.shape and add.device == x.device
                                     and add.is_contiguous(memory_format=torch.channels_last)))
                and not torch.compiler.is_compiling())


class BNReLU(BN):
    """relu(batch_norm(x) + add) as one module."""

    relu = True


def path(network: nn.Module, device: torch.device, graphed: bool) -> str:
    """How the network's batch norm is computed in training: `C++`, `Triton`, `torch`, or by one of them and torch.

    On a CPU also why the C++ is not there, if it is not; on a GPU whether in a CUDA graph. Older records say `C++` also
    of networks without batch norm, and of those with other numbers of channels than it takes, which went by torch.
    """
    if device.type == "cpu":
        if why_not := native.why_not():
            return f"torch ({why_not})"
        ours, takes = "C++", lambda channels: channels % 16 == 0
    else:
        there = device.type == "cuda" and not native.why_not_on_gpu()
        ours, takes = "Triton", lambda channels: there and channels in CHANNELS
    ways = {ours if takes(module.num_features) else "torch" for module in network.modules() if isinstance(module, BN)}
    return " and ".join(sorted(ways) or ["torch"]) + ", CUDA graph" * graphed
