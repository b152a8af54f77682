"""The 3×3 convolution: by Winograd's algorithm where that is faster, by torch everywhere else."""

import torch
from torch import nn

from bnlib import native

#: Pixels computed for each that is wanted, above which torch is as fast: tiles have 4×4.
LARGEST_WASTE = 1.8


class Convolution(nn.Conv2d):
    """A drop-in `nn.Conv2d`: (N, C, H, W) → (N, C', H', W').

    In float32 on an x86 CPU, what has a 3×3 kernel, stride 1 and a border of one pixel takes a quarter of the
    multiplications (Lavin & Gray 2016, F(4×4, 3×3)), and so do its gradients; they differ from torch's by 1e-6 of their
    size, where rounding alone makes 3e-7. bfloat16 goes through torch, whose products of matrices are faster there.
    """

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not self._is_fast(x, weight):
            return super()._conv_forward(x, weight, bias)
        y = torch.ops.bnlib.convolve_3x3(x, weight)
        return y if bias is None else y + bias[:, None, None]

    def _is_fast(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        height, width = x.shape[2:]
        return (x.device.type == "cpu"
                and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
                and self.kernel_size == (3, 3) and self.stride == (1, 1) and self.padding == (1, 1)
                and self.dilation == (1, 1) and self.groups == 1 and self.padding_mode == "zeros"
                and weight.shape[0] % 16 == weight.shape[1] % 16 == 0
                and x.is_contiguous(memory_format=torch.channels_last)
                and 16 * -(-height // 4) * -(-width // 4) <= LARGEST_WASTE * height * width
                and not path())


def path() -> str:
    """`""` if this machine computes 3×3 convolutions in float32 by Winograd's algorithm, else why not."""
    return native.fast_path() or ("" if "avx2" in native.processor()[1] else "not measured on this processor")
