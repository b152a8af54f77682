"""A residual block as one operation, where that is faster."""

from functools import cache

import torch
from torch import nn

from bnlib import convolution, native
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
            and len({each.dtype for norm in norms
                     for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)}) == 1
            and len({number for layer in layers for number in (layer.in_channels, layer.out_channels)}) == 1
            and type(block.shortcut) is nn.Identity
            and (block.bn1.eps, block.bn1.momentum) == (block.bn2.eps, block.bn2.momentum)
            and all(_is_untouched(getattr(block, name)) for name in PARTS))


def _is_untouched(part: nn.Module) -> bool:
    """Whether nobody has hooked into this very part or given it another way to compute."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and not {"forward", "_conv_forward", "_is_fast"} & vars(part).keys()


def is_fast(block: nn.Module, x: torch.Tensor) -> bool:
    """Whether the block is one operation for these images: in training, in float32 where its convolutions go by
    Winograd's, in bfloat16 by AMX."""
    by_amx = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not why_not_amx()
    if not (block.training and (x.dtype == torch.float32 or by_amx) and has_form(block)):
        return False
    layers, norms = (block.conv1, block.conv2), (block.bn1, block.bn2)
    if not all(norm.training and norm.weight.dtype == torch.float32 for norm in norms):
        return False
    if not by_amx:
        return all(layer._is_fast(x, layer.weight) for layer in layers)
    return (all((x.dtype, layer.weight.dtype) in convolution.taken() for layer in layers)
            and x.ndim == 4 and x.shape[1] == block.conv1.in_channels
            and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling())


@cache
def why_not_amx() -> str:
    """`""` if blocks in bfloat16 are one operation on this machine, else why not."""
    return native.why_not() or ("" if torch.ops.bnlib.has_amx() else "no AMX")


def forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The block's output, (N, C, H, W) → the same; running statistics take the batch in. See `native/block.cpp`."""
    arguments = []
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        norm.num_batches_tracked.add_(1)
        arguments += [layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return torch.ops.bnlib.basic_block(x, *arguments, block.bn1.momentum, block.bn1.eps)


def fork(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x for each of a block's two ways, (N, C, H, W). On a CPU the gradients of channels-last images are added by an
    operation of ours, to the same bits as torch's and faster; through it goes no transform of `torch.func`."""
    takes = (x.device.type == "cpu" and x.requires_grad and x.ndim == 4 and x.shape[1] % 16 == 0 < x.shape[1]
             and x.dtype in (torch.float32, torch.bfloat16, torch.float64)
             and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling()
             and not native.why_not())
    return torch.ops.bnlib.fork(x) if takes else (x, x)


def path(network: nn.Module, device: torch.device, precision: str) -> str:
    """What computes the convolutions of whole blocks in training, `Winograd` or `our AMX kernel`; `""` where no block
    is one operation, maps and batches being large enough."""
    blocks = [module for module in network.modules() if has_form(module)]
    if precision == "bf16":
        return "our AMX kernel" if blocks and device.type == "cpu" and not why_not_amx() else ""
    return "Winograd" if blocks and convolution.path(network, device, precision) != "torch" else ""
