"""A residual block as one operation, where that is faster."""

import torch
from torch import nn

from bnlib import convolution
from bnlib.bnrelu import BNReLU
from bnlib.convolution import Convolution

#: What a residual block is made of; a module that has them all is taken for one.
PARTS = ("conv1", "bn1", "conv2", "bn2", "shortcut")


def has_form(block: nn.Module) -> bool:
    """Whether it is relu(bn2(conv2(relu(bn1(conv1(x))))) + x) of 3×3 convolutions without a bias, and nothing else.

    Where a part has been exchanged, or somebody looks at what goes through it, the parts go one after the other.
    """
    if not all(hasattr(block, name) for name in PARTS):
        return False
    layers, norms = (block.conv1, block.conv2), (block.bn1, block.bn2)
    return (all(type(layer) is Convolution and layer.bias is None and layer._has_fast_shape() for layer in layers)
            and all(type(norm) is BNReLU and norm.weight is not None and norm.momentum is not None
                    and norm.running_mean is not None for norm in norms)
            and len({each.dtype for norm in norms for each in (norm.weight, norm.running_mean, norm.running_var)}) == 1
            and type(block.shortcut) is nn.Identity
            and (block.bn1.eps, block.bn1.momentum) == (block.bn2.eps, block.bn2.momentum)
            and all(_is_untouched(getattr(block, name)) for name in PARTS))


def _is_untouched(part: nn.Module) -> bool:
    """Whether nobody has hooked into this very part or given it another way to compute."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and not {"forward", "_conv_forward"} & vars(part).keys()


def is_fast(block: nn.Module, x: torch.Tensor) -> bool:
    """Whether the block is one operation for these images: in training and float32, where its convolutions go by
    Winograd's."""
    return (block.training and x.dtype == torch.float32 and has_form(block)
            and all(norm.training and norm.weight.dtype == x.dtype for norm in (block.bn1, block.bn2))
            and all(layer._is_fast(x, layer.weight) for layer in (block.conv1, block.conv2)))


def forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The block's output, (N, C, H, W) → the same; running statistics take the batch in. See `native/block.cpp`."""
    arguments = []
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        norm.num_batches_tracked.add_(1)
        arguments += [layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return torch.ops.bnlib.basic_block(x, *arguments, block.bn1.momentum, block.bn1.eps)


def any_whole(network: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether any block of the network is one operation in training, maps and batches being large enough: in float32,
    since in bfloat16 it gains nothing (benchmarks/NOTES.md)."""
    return (precision == "fp32" and convolution.path(network, device, precision) != "torch"
            and any(map(has_form, network.modules())))
