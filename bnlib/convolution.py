"""The 3×3 convolution: by Winograd's algorithm where that is faster, by torch everywhere else."""

import torch
from torch import nn

from bnlib import native

#: Above these torch is about as fast or faster. Waste: pixels computed for each that is wanted, since tiles have 4×4 of
#: them. Channels: with more, what a block of tiles needs leaves the cache. So it is too with fewer tiles than channels,
#: when transforming the weights costs more than it saves.
LARGEST_WASTE, MOST_CHANNELS = 1.5, 256


class Convolution(nn.Conv2d):
    """An `nn.Conv2d`: (N, C, H, W) → (N, C', H', W').

    In float32 on a CPU with AVX2, what has a 3×3 kernel, stride 1 and a border of one pixel takes a quarter of the
    multiplications (Lavin & Gray 2016, F(4×4, 3×3)), and so do its gradients. They are about five times as far from the
    exact ones as torch's: 1e-6 of their size at 16 channels, 4e-6 at 256. There is no second derivative. bfloat16 goes
    through torch, whose products of matrices are faster there.
    """

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not self._is_fast(x, weight):
            return super()._conv_forward(x, weight, bias)
        y = torch.ops.bnlib.convolve_3x3(x, weight)
        return y if bias is None else y + bias[:, None, None]

    def _is_fast(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        if not (x.ndim == 4 and x.device.type == weight.device.type == "cpu"
                and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
                and x.is_contiguous(memory_format=torch.channels_last) and self._has_fast_shape()
                and x.shape[1] == weight.shape[1] and not torch.compiler.is_compiling()):
            return False
        images, _, height, width = x.shape
        tiles = images * -(-height // 4) * -(-width // 4)
        return (max(weight.shape) <= tiles and 16 * tiles <= LARGEST_WASTE * images * height * width
                and not why_not())

    def _has_fast_shape(self) -> bool:
        return (self.kernel_size == (3, 3) and self.stride == self.padding == self.dilation == (1, 1)
                and self.groups == 1 and self.padding_mode == "zeros"
                and self.in_channels % 16 == self.out_channels % 16 == 0
                and max(self.in_channels, self.out_channels) <= MOST_CHANNELS)


def why_not() -> str:
    """`""` if 3×3 convolutions in float32 go by Winograd's algorithm on this machine, else why not."""
    flags = native.processor()[1]
    measured = "avx2" in flags and "avx512f" not in flags
    return native.why_not() or ("" if measured else "measured on AVX2 only")


def path(network: nn.Module, device: torch.device, precision: str) -> str:
    """How the network's 3×3 convolutions are computed in training: `Winograd, strips`, where any goes by strips of
    tiles, or `torch`. Records of before the strips say `Winograd`, which rounds otherwise.
    """
    has = any(isinstance(module, Convolution) and module._has_fast_shape() for module in network.modules())
    return "Winograd, strips" if has and device.type == "cpu" and precision == "fp32" and not why_not() else "torch"
