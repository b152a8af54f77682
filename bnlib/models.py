"""The networks, plainly written, each naming its paper, and the draw of their weights from a seed."""

import copy
import math
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlib import deepobs, residual
from bnlib.bnrelu import BN, BNReLU
from bnlib.config import Config, generator
from bnlib.convolution import ChosenConv2d, Convolution
from bnlib.names import (
    BN_INITS,
    CONV_INITS,
    NORMS,
    SHORTCUTS,
    InputError,
    canonical_positions,
    choose,
    parse_model,
    random_weights,
)
from bnlib.sequences import STEPS
from bnlib.streaming import IMAGE_SIZE

#: What normalises and has γ and β: batch norm, or what stands in its place.
Norm = _BatchNorm | nn.GroupNorm


class Sum(nn.Module):
    """x + add, and ReLU where asked, where no normalisation is to stand in batch norm's place: no parameters."""

    def __init__(self, channels: int, relu: bool):
        super().__init__()
        self.channels, self.relu = channels, relu

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        y = x if add is None else x + add
        return F.relu(y) if self.relu else y


class GroupNorm(nn.GroupNorm):
    """group_norm(x) + add, and ReLU where asked, in batch norm's place: γ and β a channel, no running statistics.

    Groups of about `size` channels, all of one size (Wu & He 2018); None: of all, which is layer norm over an image (Ba
    et al. 2016).
    """

    def __init__(self, channels: int, size: int | None, relu: bool):
        super().__init__(1 if size is None else math.gcd(channels, max(1, channels // size)), channels)
        self.relu = relu

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        y = super().forward(x)
        y = y if add is None else y + add
        return F.relu(y) if self.relu else y


def normalisation(norm: str, channels: int, relu: bool = True) -> nn.Module:
    """Batch norm, a sum and ReLU (without `relu` none) as one module; another normalisation in its place, or none."""
    if norm == "batch":
        return BNReLU(channels) if relu else BN(channels)
    if norm == "none":
        return Sum(channels, relu)
    return GroupNorm(channels, {"group": 8, "layer": None}[norm], relu)


def convolution(inputs: int, outputs: int, stride: int = 1, kernel: tuple[int, int] = (3, 3),
                norm: str = "batch") -> Convolution:
    """Zero-padded, with a bias only where no normalisation follows, whose β would do the same.

    Along an axis where the kernel has one pixel nothing is padded or skipped.
    """
    strides = tuple(1 if size == 1 else stride for size in kernel)
    return Convolution(inputs, outputs, kernel, strides, [size // 2 for size in kernel], bias=norm == "none")


class Shortcut(nn.Sequential):
    """1×1 convolution and batch norm where a block changes its input's shape (He et al. 2015, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], norm: str):
        super().__init__(Convolution(inputs, outputs, 1, stride, bias=norm == "none"),
                         normalisation(norm, outputs, relu=False))


class PaddedShortcut(nn.Module):
    """Every s-th pixel, and zeros for the channels that are not there: no parameters (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]):
        super().__init__()
        self.more, self.stride = outputs - inputs, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x[:, :, ::self.stride[0], ::self.stride[1]], (0, 0, 0, 0, 0, self.more))
        return padded.contiguous(memory_format=torch.channels_last)


class NoShortcut(nn.Module):
    """Nothing to add."""

    def forward(self, x: torch.Tensor) -> None:
        return None


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, Fig. 2); (N, C, H, W) → (N, C', H/s, W/s).

    shortcut: A, B or `none` where the block changes its input's shape; `plain`: none in any block. final_relu: whether
    a ReLU follows the sum.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, norm: str, kernel: tuple[int, int],
                 final_relu: bool = True):
        super().__init__()
        self.conv1 = convolution(inputs, outputs, stride, kernel, norm)
        self.bn1 = normalisation(norm, outputs)
        self.conv2 = convolution(outputs, outputs, 1, kernel, norm)
        self.bn2 = normalisation(norm, outputs, final_relu)
        changes = stride > 1 or inputs != outputs
        if shortcut == "plain" or (changes and shortcut == "none"):
            self.shortcut = NoShortcut()
        elif not changes:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PaddedShortcut(inputs, outputs, self.conv1.stride)
        else:
            self.shortcut = Shortcut(inputs, outputs, self.conv1.stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if layers := residual.fused_layers(self, x):
            return residual.forward(layers, x)
        beside = x
        # where both ways have a gradient to add; without batch norm transforms of torch.func go through a block
        if isinstance(self.bn2, BN) and not isinstance(self.shortcut, NoShortcut):
            x, beside = residual.fork(x)
        y = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(y), add=self.shortcut(beside))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2 (He et al. 2015, Sec. 4.2): three stages of n blocks; (N, 3, H, W) → (N, classes).

    Width W multiplies the channels 16, 32, 64 of the stages (Frankle et al. 2021, Table 1). With a kernel of (1, 3) it
    is the same network for sequences, (N, 3, 1, L): strides and kernels along L alone. With the shortcut `plain` it is
    the plain network that He et al. compare with, the same layers in the same order.
    """

    def __init__(self, depth: int, width: float, classes: int, shortcut: str = "B", norm: str = "batch",
                 kernel: tuple[int, int] = (3, 3), final_relu: bool = True):
        super().__init__()
        channels = [int(16 * width), int(32 * width), int(64 * width)]
        self.conv = convolution(3, channels[0], 1, kernel, norm)
        self.bn = normalisation(norm, channels[0])
        blocks, inputs = [], channels[0]
        for stage, outputs in enumerate(channels):
            for block in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1, shortcut, norm, kernel,
                                         final_relu))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.bn(self.conv(x)))
        return self.output(x.permute(0, 2, 3, 1).flatten(1, 2).mean(1))      # so that its gradient is channels-last


#: Blocks in the four stages of torchvision's ResNets; 200: He et al. 2016, Table 5.
STAGES = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3],
          200: [3, 24, 36, 3]}


def imagenet_resnet(depth: int, width: float, classes: int, norm: str = "batch") -> nn.Module:
    """torchvision's ResNet for ImageNet (He et al. 2015, Table 1), wide (Zagoruyko & Komodakis 2016) for a width of 2.

    norm: what stands in batch norm's place; with `none` each convolution has a bias, 0 at first, and the weights that a
    seed gives it beside batch norm.
    """
    from torchvision.models import resnet
    block = resnet.BasicBlock if depth < 50 else resnet.Bottleneck
    network = resnet.ResNet(block, STAGES[depth], classes, width_per_group=int(64 * width),
                            norm_layer=partial(normalisation, norm, relu=False))
    for module in network.modules():
        if isinstance(module, block) and module.downsample is not None:
            conv = module.downsample[0]
            module.downsample = Shortcut(conv.in_channels, conv.out_channels, conv.stride, norm)
    for module in network.modules():
        if norm == "none" and isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.empty(module.out_channels))
    return network


def imagenet_vgg(depth: int, classes: int, norm: str = "batch") -> nn.Module:
    """torchvision's VGG (Simonyan & Zisserman 2014) with batch norm, or another norm or none in its place.

    Without its dropout, whose draws would follow from torch's global state and not from the seed alone.
    """
    from torchvision.models import vgg
    features = vgg.make_layers(vgg.cfgs[{11: "A", 16: "D"}[depth]], batch_norm=norm != "none")
    for number, module in enumerate(features):
        if isinstance(module, nn.BatchNorm2d):
            features[number] = normalisation(norm, module.num_features, relu=False)
    return vgg.VGG(features, classes, init_weights=False, dropout=0.0)


def from_config(config: Config, classes: int) -> nn.Module:
    """The network of a run as it is before training."""
    network = build(config.model, classes, seed=config.seed, conv_init=config.conv_init, bn_init=config.bn_init,
                    shortcut=config.shortcut, norm=config.norm, final_relu=config.final_relu,
                    positions=config.positions)
    if per_channel := random_weights(config.trainable):
        choose_weights(network, per_channel, config.seed)
    return network


def choose_weights(network: nn.Module, per_channel: int, seed: int) -> None:
    """Makes each convolution one of whose weights `per_channel` of each output channel can train, drawn by the seed.

    As many as the channel has where it has fewer, such as the 16 of a narrow 1×1 convolution.
    """
    draws = generator(seed, "chosen")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, ChosenConv2d(child, per_channel, draws))


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy in which chosen weights are part of ordinary convolutions again: the same outputs."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, ChosenConv2d):
                plain = Convolution(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                                    bias=conv.bias is not None)
                plain.weight, plain.bias = nn.Parameter(conv.weights()), conv.bias
                setattr(parent, name, plain)
    return network


def build(name: str, classes: int, *, seed: int = 0, conv_init: str = "he_normal", bn_init: str = "uniform",
          shortcut: str = "B", norm: str = "batch", final_relu: bool = True, positions: str = "") -> nn.Module:
    """The network `name` for `classes` classes, its weights drawn from the seed on the CPU, in float32.

    The draw is independent of device and of torch's global state. Convolutions and output weights are rounded to
    bfloat16 values, so that a run in bf16 and one in fp32 train the very same network.
    Raises InputError for an unknown network, initialisation, shortcut or normalisation, or for wrong positions.
    """
    with torch.device("meta"):                         # no weights drawn twice
        network = architecture(name, classes, choose("shortcut", shortcut, SHORTCUTS), choose("norm", norm, NORMS),
                               final_relu, positions)
    network.to_empty(device="cpu")
    draws = generator(seed, "weights")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _draw_weight(module, choose("conv_init", conv_init, CONV_INITS), draws)
            elif isinstance(module, Norm):
                _draw_affine(module, choose("bn_init", bn_init, BN_INITS), draws)
            elif isinstance(module, Sum) and name.startswith("imagenet"):
                draws.random(module.channels, dtype="float32")         # the γ of another, for the same convolutions
        masks = generator(seed, "dropout")
        for module in network.modules():
            if isinstance(module, deepobs.Dropout):
                module.draw(masks)
    return network


def architecture(name: str, classes: int, shortcut: str = "B", norm: str = "batch", final_relu: bool = True,
                 positions: str = "") -> nn.Module:
    """The network `name` with whatever weights torch gives it."""
    family, depth, width = parse_model(name)
    if family in deepobs.NETWORKS:
        letters = canonical_positions(positions, name).split(",")
        return deepobs.NETWORKS[family](classes, [letter == "1" for letter in letters])
    if family.startswith("imagenet"):
        return imagenet_vgg(depth, classes, norm) if family == "imagenet_vgg" else imagenet_resnet(
            depth, width, classes, norm)
    kernel = {"resnet": (3, 3), "resnet1d": (1, 3), "plain": (3, 3)}[family]
    return ResNet(depth, width, classes, "plain" if family == "plain" else shortcut, norm, kernel, final_relu)


def _draw_weight(module: nn.Module, how: str, draws: np.random.Generator) -> None:
    shape, sigma = tuple(module.weight.shape), math.sqrt(2 / module.weight[0].numel())       # He et al. 2015
    if how == "xavier":                                # Glorot & Bengio 2010: as many from as into a layer
        sigma = math.sqrt(2 / (module.weight[0].numel() + module.weight[:, 0].numel()))
    if how == "he_uniform" or (how == "xavier" and isinstance(module, nn.Linear)):           # the latter as DeepOBS
        values = (2 * draws.random(shape, dtype="float32") - 1) * (math.sqrt(3) * sigma)
    elif how == "orthogonal":                          # orthonormal rows, or columns where there are fewer of them
        normal = draws.standard_normal((shape[0], math.prod(shape[1:])))
        q, r = np.linalg.qr(normal if normal.shape[0] >= normal.shape[1] else normal.T)
        q = q * np.sign(np.diag(r))
        values = (q if q.shape == normal.shape else q.T).reshape(shape)
    else:
        values = draws.standard_normal(shape, dtype="float32") * sigma
        values = np.sign(values) * sigma if how == "binary" else values
    module.weight.copy_(torch.from_numpy(values).bfloat16())
    if module.bias is not None:
        module.bias.zero_()


def _draw_affine(module: nn.Module, how: str, draws: np.random.Generator) -> None:
    if isinstance(module, _BatchNorm):
        module.reset_running_stats()
    uniform = torch.from_numpy(draws.random(len(module.weight), dtype="float32"))
    module.weight.copy_({"signed": 2 * uniform - 1, "ones": torch.ones_like(uniform)}.get(how, uniform))
    module.bias.fill_(1 if how == "beta_one" else 0)


@cache
def multiply_adds(name: str, image_size: int | None = None) -> int:
    """Multiply–add operations of the convolutions in one forward pass over one image, or a sequence.

    image_size: its pixels a side; None: 32, or 224 for torchvision's networks.
    """
    family = parse_model(name).family
    usual = {"resnet1d": (1, STEPS)}.get(family, (IMAGE_SIZE,) * 2 if family.startswith("imagenet") else (32, 32))
    with torch.device("meta"):
        network = architecture(name, classes=1)
    return sum(output[0].numel() * layer.weight[0].numel()
               for layer, output in _outputs(network, (image_size, image_size) if image_size else usual)
               if isinstance(layer, nn.Conv2d))


def smallest_map(network: nn.Module, size: tuple[int, int]) -> int:
    """Pixels of the smallest map that a batch norm gets of an image of this size, 1 after a dense layer.

    Raises InputError for images that are too small for the network.
    """
    shadow = copy.deepcopy(network).to("meta")
    return min((output.shape[2:].numel() for layer, output in _outputs(shadow, size) if isinstance(layer, _BatchNorm)),
               default=math.prod(size))


def _outputs(network: nn.Module, size: tuple[int, int]) -> list[tuple[nn.Module, torch.Tensor]]:
    """Each convolution and batch norm of a network on the meta device, with what it makes of one image; in order."""
    found = []
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = lambda x, add=None: x       # on the meta device batch norm makes torch load its compiler
        if isinstance(module, nn.Conv2d | _BatchNorm):
            module.register_forward_hook(lambda layer, _, output: found.append((layer, output)))
    try:
        network(torch.empty(1, 3, *size, device="meta"))
    except RuntimeError as error:
        raise InputError(f"images of {size[0]}×{size[1]} pixels are too small for this network: "
                         f"{str(error).splitlines()[0]}") from None
    return found
