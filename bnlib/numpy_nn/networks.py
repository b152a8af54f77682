"""The networks, under the names of their twins in torch, so that either loads the other's state."""

import math

import numpy as np

from bnlib.config import generator
from bnlib.names import InputError, choose, parse_model
from bnlib.numpy_nn.convolution import Conv2d
from bnlib.numpy_nn.layers import (
    BatchNorm2d,
    CrossEntropy,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Residual,
    Sequential,
    whole,
)


class PaddedShortcut(Layer):
    """Every s-th pixel, and zeros for the channels that are not there (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        whole("PaddedShortcut", inputs=inputs, stride=stride)
        whole("PaddedShortcut", least=inputs, outputs=outputs)
        self.inputs, self.more, self.stride = inputs, outputs - inputs, stride

    def forward(self, x):
        self._expect(x, "N", self.inputs, "H", "W")
        self.in_shape = x.shape
        y = np.pad(x[:, :, ::self.stride, ::self.stride], ((0, 0), (0, self.more), (0, 0), (0, 0)))
        self.out_shape = y.shape
        return y

    def backward(self, gradient):
        self._expect_gradient(gradient)
        x_grad = np.zeros(self.in_shape, gradient.dtype)
        x_grad[:, :, ::self.stride, ::self.stride] = gradient[:, :self.inputs]
        return x_grad


def shortcut_for(inputs: int, outputs: int, stride: int, option: str = "B") -> Layer:
    """x as it is where its shape stays; else a 1×1 convolution and batch norm (B), or zero padding (A)."""
    if stride == 1 and inputs == outputs:
        return Identity()
    if option == "A":
        return PaddedShortcut(inputs, outputs, stride)
    return Sequential(Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))


class BasicBlock(Residual):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, Fig. 2); (N, C, H, W) → (N, C', ⌈H/s⌉, ⌈W/s⌉)."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str):
        self.conv1 = Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(outputs)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.shortcut = shortcut_for(inputs, outputs, stride, option)
        self.relu2 = ReLU()


class ResNet(Sequential):
    """CIFAR ResNet of depth 6n+2, twin of `bnlib.models.ResNet`; (N, 3, H, W) → (N, classes)."""

    def __init__(self, name: str, classes: int, shortcut: str = "B"):
        family, depth, width = parse_model(name)
        if family != "resnet":
            raise InputError(f"network={name!r}: expected a CIFAR ResNet, such as resnet14 or resnet14x2")
        choose("shortcut", shortcut, ("A", "B"))
        channels = [round(16 * width), round(32 * width), round(64 * width)]
        self.conv = Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn = BatchNorm2d(channels[0])
        self.relu = ReLU()
        blocks, inputs = [], channels[0]
        for stage, outputs in enumerate(channels):
            for block in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1, shortcut))
                inputs = outputs
        self.blocks = Sequential(*blocks)
        self.pool = GlobalAvgPool2d()
        self.flatten = Flatten()
        self.output = Linear(channels[-1], classes)


class Bottleneck(Residual):
    """1×1, 3×3 and 1×1 convolution and a shortcut (He et al. 2015, Fig. 5); (N, C, H, W) → (N, 4·C', ⌈H/s⌉, ⌈W/s⌉).

    The stride is that of the 3×3 convolution, as in torchvision, not of the first as in the paper.
    """

    def __init__(self, inputs: int, channels: int, stride: int):
        self.conv1 = Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.relu2 = ReLU()
        self.conv3 = Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * channels)
        self.downsample = shortcut_for(inputs, 4 * channels, stride)
        self.relu3 = ReLU()


class ResNet101(Sequential):
    """ResNet-101 (He et al. 2015, Table 1), twin of `torchvision.models.resnet101`; (N, 3, H, W) → (N, classes)."""

    def __init__(self, classes: int):
        self.conv1 = Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(64)
        self.relu = ReLU()
        self.maxpool = MaxPool2d(3, 2, padding=1)
        inputs = 64
        for stage, (blocks, channels) in enumerate(((3, 64), (4, 128), (23, 256), (3, 512)), 1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            inside = [Bottleneck(4 * channels if i else inputs, channels, stride) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", Sequential(*inside))
            inputs = 4 * channels
        self.avgpool = GlobalAvgPool2d()
        self.flatten = Flatten()
        self.fc = Linear(inputs, classes)


class OneConvolution(Sequential):
    """One 3×3 convolution, ReLU and one linear layer, for images of `size` = (H, W), or one number for both.

    (N, 3, H, W) → (N, classes).
    """

    def __init__(self, size: tuple[int, int], classes: int, channels: int = 8):
        height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
        whole("OneConvolution", height=height, width=width, classes=classes)
        self.conv = Conv2d(3, channels, 3, padding=1)
        self.relu = ReLU()
        self.flatten = Flatten()
        self.output = Linear(channels * height * width, classes)


def draw(network: Layer, seed: int) -> Layer:
    """He-normal weights (He et al. 2015) from the seed, biases 0, γ = 1, β = 0, running statistics as of a new network;
    in place, whatever the network was before. Returns it."""
    draws = generator(seed, "weights")
    for _, layer in network.walk():
        if isinstance(layer, Conv2d | Linear):
            sigma = math.sqrt(2 / layer.weight.value[0].size)
            layer.weight.value[...] = sigma * draws.standard_normal(layer.weight.value.shape)
            if layer.bias is not None:
                layer.bias.value[...] = 0
        elif isinstance(layer, BatchNorm2d):
            layer.load_state_dict(BatchNorm2d(len(layer.running_mean)).state_dict())
    return network


def freeze(network: Layer, what: str) -> list[Parameter]:
    """Lets `all`, `bn` (γ and β of every batch norm) or `none` train and freezes the rest; returns what trains.

    By the type of the layer, never by a name, as `bnlib.freeze` does. What is frozen loses its gradient of before, so
    that an optimizer over all parameters leaves it as it is.
    """
    choose("trainable", what, ("all", "bn", "none"))
    for _, layer in network.walk():
        for part in vars(layer).values():
            if isinstance(part, Parameter):
                part.requires_grad = what == "all" or (what == "bn" and isinstance(layer, BatchNorm2d))
                part.grad = part.grad if part.requires_grad else None
    return [parameter for parameter in network.parameters().values() if parameter.requires_grad]


def loss_and_gradients(network: Layer, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and logits of a batch; every parameter that trains gets its gradient.

    images (N, 3, H, W), labels (N,) of whole numbers. Raises InputError for what does not fit, and for a loss that is
    no number.
    """
    loss = CrossEntropy()
    logits = network.forward(images)
    mean = loss.forward(logits, labels)
    if not np.isfinite(mean):
        raise InputError(f"{network}: the loss is {mean}; a smaller learning rate may keep it finite")
    network.backward(loss.backward())
    return mean, logits
