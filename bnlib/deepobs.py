"""The networks 3c3d and allcnnc of DeepOBS, with batch norm where it is asked for."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bnlib.bnrelu import BNReLU
from bnlib.convolution import Convolution
from bnlib.names import InputError

SMALLEST, LARGEST = 25, 32        # pixels a side of which 3c3d's pooling leaves the 3×3 that its dense layers take


class RectifiedLayer(nn.Sequential):
    """A convolution or dense layer and its ReLU; with `norm` batch norm between them, and then no bias of its own.

    (N, C, H, W) → (N, C', H', W') with 2-D batch norm, or (N, C) → (N, C') with 1-D batch norm.
    """

    def __init__(self, kind: type[nn.Module], inputs: int, outputs: int, norm: bool, **shape):
        super().__init__()
        self.layer = kind(inputs, outputs, bias=not norm, **shape)
        if norm:
            self.bn = BNReLU(outputs) if kind is Convolution else nn.BatchNorm1d(outputs)
        if not norm or kind is not Convolution:              # `BNReLU` is both
            self.relu = nn.ReLU()


class SamePool(nn.Module):
    """Largest of 3×3 pixels at every second one, padded as TensorFlow's "same": (N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉).

    An even side is padded by one pixel, at its end; an odd one by one at both.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


class SamePad(nn.Module):
    """The zeros that TensorFlow's "same" puts around an image before a 3×3 convolution of stride 2; as `SamePool`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        return F.pad(x, (width % 2, 1, height % 2, 1))


class Dropout(nn.Module):
    """In training each value set to zero with probability `share`, the others divided by 1 − share; (N, C, H, W).

    The mask follows from the seed, the number of training steps done and the place of the value in the batch, by a hash
    of 32 bits: whatever the device, also in a CUDA graph, after a stop, and where processes share the batch, whose own
    images begin with number `first`.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share, self.key, self.first = share, 0, 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

    def draw(self, draws: np.random.Generator) -> None:
        """The seed's own masks, from the first step on."""
        self.key = int(draws.integers(2**31))
        self.steps.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        self.steps.add_(1)
        images, channels, height, width = x.shape
        place = torch.arange(x.numel(), dtype=torch.int32, device=x.device) + self.first * channels * height * width
        bits = _hash(place + _hash(self.steps + self.key)) & 0xFFFFFF
        kept = (bits >= round(self.share * 2**24)).view(images, height, width, channels).permute(0, 3, 1, 2)
        return torch.where(kept, x / (1 - self.share), 0)


def _hash(x: torch.Tensor) -> torch.Tensor:
    """int32 → int32, each bit of which depends on all bits of x (`lowbias32` of C. Wellons); products may overflow."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x = (x ^ (x >> shift & (1 << 32 - shift) - 1)) * factor
    return x ^ (x >> 16 & 0xFFFF)


class ThreeConvThreeDense(nn.Sequential):
    """3c3d of DeepOBS (Schneider et al. 2019; `net_cifar10_3c3d`): (N, 3, 32, 32) → (N, classes).

    Convolutions 5×5 to 64 and 3×3 to 96 channels without padding, 3×3 to 128 with it; after each ReLU and a "same" max-
    pool; dense layers of 512 and 256, each with ReLU, and one of `classes`. As there in all but batch norm, which it
    does not have. positions: for each layer but the last whether it has one.
    """

    def __init__(self, classes: int, positions: list[bool]):
        super().__init__()
        channels = [3, 64, 96, 128]
        for i, (kernel, padding) in enumerate(((5, 0), (3, 0), (3, 1))):
            self.add_module(f"conv{i + 1}", RectifiedLayer(Convolution, channels[i], channels[i + 1], positions[i],
                                                           kernel_size=kernel, padding=padding))
            self.add_module(f"pool{i + 1}", SamePool())
        self.flatten = nn.Flatten()
        self.dense1 = RectifiedLayer(nn.Linear, 3 * 3 * 128, 512, positions[3])
        self.dense2 = RectifiedLayer(nn.Linear, 512, 256, positions[4])
        self.output = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not SMALLEST <= min(x.shape[2:]) <= max(x.shape[2:]) <= LARGEST:
            raise InputError(f"3c3d: images of {x.shape[2]}×{x.shape[3]} pixels; its dense layers take those of "
                             f"{SMALLEST} to {LARGEST}")
        return super().forward(x)


class AllConv(nn.Sequential):
    """allcnnc of DeepOBS (`net_cifar100_allcnnc`), All-CNN-C of Springenberg et al. 2015: (N, 3, H, W) → (N, classes).

    Nine convolutions, each with ReLU, the last too; 3×3 ones padded ("same"), but the seventh not; 1×1 ones at the end;
    their mean over the image. Dropout of 0.2 on the image and 0.5 after each stride. DeepOBS starts biases at 0.1, here
    they start at 0. positions: for each layer but the last whether it has batch norm.
    """

    def __init__(self, classes: int, positions: list[bool]):
        super().__init__()
        outputs, kernels, strides = [96] * 3 + [192] * 5 + [classes], [3] * 7 + [1] * 2, {3: 2, 6: 2}
        self.dropout1, inputs = Dropout(0.2), 3
        for i, (channels, kernel) in enumerate(zip(outputs, kernels, strict=True), 1):
            stride, norm = strides.get(i, 1), i < 9 and positions[i - 1]
            if stride == 2:
                self.add_module(f"pad{i}", SamePad())
            self.add_module(f"conv{i}", RectifiedLayer(
                Convolution, inputs, channels, norm, kernel_size=kernel, stride=stride,
                padding=1 if stride == 1 and kernel == 3 and i != 7 else 0))
            if stride == 2:
                self.add_module(f"dropout{2 if i == 3 else 3}", Dropout(0.5))
            inputs = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean((2, 3))


NETWORKS: dict[str, Callable[[int, list[bool]], nn.Module]] = {"3c3d": ThreeConvThreeDense, "allcnnc": AllConv}
