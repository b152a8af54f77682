"""The convolution: 3×3 by Winograd's algorithm where that is faster, by torch everywhere else; and one of whose weights
a few train."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import native

#: Above these torch is about as fast or faster. Waste: pixels computed for each that is wanted, since tiles have 4×4 of
#: them. Channels: with more, what a block of tiles needs leaves the cache. So it is too with fewer tiles than channels,
#: when transforming the weights costs more than it saves.
LARGEST_WASTE, MOST_CHANNELS = 1.5, 512
#: With fewer input channels, a strided 1×1 convolution's weight gradient on a CPU writes past its memory, and the
#: process dies: torch 2.14's oneDNN, several threads, an odd number of images.
SAFE_CHANNELS = 16


class Convolution(nn.Conv2d):
    """An `nn.Conv2d`: (N, C, H, W) → (N, C', H', W').

    On a CPU where `why_not` has no reason against it, what has a 3×3 kernel, stride 1 and a border of one pixel takes a
    quarter of the multiplications (Lavin & Gray 2016, F(4×4, 3×3)), and so do its gradients. In float32 they are about
    five times as far from the exact ones as torch's: 1e-6 of their size at 16 channels, 6e-6 at 512. Of bfloat16 images
    they are computed in float32 and rounded once, and again with a bias; weights that train under autocast are not
    rounded. An infinite pixel makes its tile's outputs NaN. There is no second derivative.

    On a CPU a strided 1×1 convolution skips pixels first, so that it computes no gradient of those that it never sees:
    the same values, several times faster.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weights(), self.bias)

    def weights(self) -> torch.Tensor:
        """The weights that it convolves with, (C', C, h, w)."""
        return self.weight

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._skips(x):
            return F.conv2d(skip(x, self.stride), weight, bias)
        if not self._is_fast(x, weight):
            return super()._conv_forward(x, weight, bias)
        y = torch.ops.bnlib.convolve_3x3(x, weight)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def _is_fast(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        if not (x.ndim == 4 and x.device.type == weight.device.type == "cpu" and (x.dtype, weight.dtype) in taken()
                and x.is_contiguous(memory_format=torch.channels_last) and self.has_form(3, 1)
                and x.shape[1] == weight.shape[1] and not torch.compiler.is_compiling()):
            return False
        images, _, height, width = x.shape
        tiles = images * -(-height // 4) * -(-width // 4)
        return (max(weight.shape) <= tiles and 16 * tiles <= LARGEST_WASTE * images * height * width
                and not why_not("fp32" if x.dtype == torch.float32 else "bf16"))

    def _skips(self, x: torch.Tensor) -> bool:
        return (self.kernel_size == (1, 1) != self.stride and self.padding == (0, 0) and self.groups == 1
                and x.ndim == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling()
                and (self.in_channels < SAFE_CHANNELS or not native.why_not()))

    def has_form(self, kernel: int, stride: int) -> bool:
        """Whether it is zero-padded, with a square kernel of this size, and has channels that our operations take."""
        return (self.kernel_size == (kernel, kernel) and self.stride == (stride, stride)
                and self.padding == (kernel // 2, kernel // 2) and self.dilation == (1, 1)
                and self.groups == 1 and self.padding_mode == "zeros"
                and self.in_channels % 16 == self.out_channels % 16 == 0
                and min(self.in_channels, self.out_channels) > 0
                and max(self.in_channels, self.out_channels) <= MOST_CHANNELS)


class ChosenConv2d(Convolution):
    """A convolution of whose weights a few of each output channel train, the same number of each.

    They are a parameter of their own, (C', K), put into the frozen weights at every use; so no gradient, momentum or
    weight decay can reach another weight (Frankle et al. 2021, Sec. 4.2).
    """

    def __init__(self, conv: nn.Conv2d, per_channel: int, draws: np.random.Generator):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
        self.weight, self.bias = conv.weight, conv.bias
        every = draws.permuted(np.tile(np.arange(conv.weight[0].numel()), (conv.out_channels, 1)), axis=1)
        self.register_buffer("index", torch.from_numpy(every[:, :per_channel].copy()), persistent=False)
        self.chosen = nn.Parameter(conv.weight.detach().flatten(1).gather(1, self.index))

    def weights(self) -> torch.Tensor:
        """All weights, (C', C, h, w), those that train among them."""
        rows = self.weight.flatten(1).scatter(1, self.index, self.chosen.to(self.weight.dtype))
        return rows.view(self.weight.shape).contiguous(memory_format=torch.channels_last)


def skip(x: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """Of images x, (N, C, H, W), the pixels that a 1×1 convolution of this stride sees, channels-last."""
    if x.is_contiguous(memory_format=torch.channels_last) and x.numel() and not native.why_not():
        return torch.ops.bnlib.skip(x, *stride)
    return x[:, :, ::stride[0], ::stride[1]].contiguous(memory_format=torch.channels_last)


def taken() -> set[tuple[torch.dtype, torch.dtype]]:
    """The types of images and weights whose convolution has the images' type, autocast or not."""
    if not torch.is_autocast_enabled("cpu"):
        return {(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)}
    if torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return set()
    return {(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)}


@cache
def why_not(precision: str) -> str:
    """`""` if 3×3 convolutions in this precision go by Winograd's algorithm on this machine, else why not."""
    flags = native.processor()[1]
    if precision == "fp32" and "avx2" not in flags:
        return "measured on AVX2 and AVX-512 only"
    if precision == "bf16" and "amx_bf16" in flags:
        return "AMX multiplies faster in bf16"
    if precision == "bf16" and "avx512f" not in flags:
        return "measured on AVX-512 only"
    return native.why_not()


def path(network: nn.Module, device: torch.device, precision: str) -> str:
    """How the network's 3×3 convolutions are computed in training: `Winograd, strips`, where any goes by strips of
    tiles, or `torch`. Records of before the strips say `Winograd`, which rounds otherwise.
    """
    has = any(isinstance(module, Convolution) and module.has_form(3, 1) for module in network.modules())
    return "Winograd, strips" if has and device.type == "cpu" and not why_not(precision) else "torch"
