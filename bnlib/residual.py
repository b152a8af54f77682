"""A residual block as one operation, where that is faster."""

from functools import cache

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from bnlib import convolution, native
from bnlib.bnrelu import BN, BNReLU
from bnlib.convolution import ChosenConv2d, Convolution

#: What a residual block is made of; a module that has them all is taken for one.
PARTS = ("conv1", "bn1", "conv2", "bn2", "shortcut")

#: A block's convolutions, each with its batch norm; a third where it halves its images, that of the shortcut.
Layers = list[tuple[Convolution, BN]]


def layers_of(block: nn.Module) -> Layers:
    """Those of a block that is relu(bn2(conv2(relu(bn1(conv1(x))))) + x), or halves its images and has bn3(conv3(x)) in
    place of x, and is nothing else; otherwise none.

    Where a part has been exchanged, or somebody looks at what goes through it, the parts go one after the other.
    """
    if not all(hasattr(block, name) for name in PARTS):
        return []
    found = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if type(block.shortcut).forward is nn.Sequential.forward and len(block.shortcut) == 2:
        found.append(tuple(block.shortcut))
    elif type(block.shortcut) is not nn.Identity:
        return []
    if not all(type(conv) in (Convolution, ChosenConv2d) and isinstance(norm, BN) for conv, norm in found):
        return []
    inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
    if halves(found):
        form = [(inputs, outputs, 3, 2, BNReLU), (outputs, outputs, 3, 1, BNReLU), (inputs, outputs, 1, 2, BN)]
    else:
        form = [(outputs, outputs, 3, 1, BNReLU)] * 2
    fits = (all(_is_layer(*layer, *expected) for layer, expected in zip(found, form, strict=True))
            and _agree([norm for _, norm in found])
            and all(_is_untouched(part) for part in (block.shortcut, *(part for layer in found for part in layer))))
    return found if fits else []


def halves(layers: Layers) -> bool:
    """Whether a block of these layers gives images of half the height and width."""
    return len(layers) == 3


def _is_layer(conv: Convolution, norm: BN, inputs: int, outputs: int, kernel: int, stride: int, kind: type) -> bool:
    return (conv.has_form(kernel, stride) and (conv.in_channels, conv.out_channels) == (inputs, outputs)
            and conv.bias is None and type(norm) is kind
            and all(each is not None for each in (norm.weight, norm.bias, norm.running_mean, norm.momentum)))


def _agree(norms: list[BN]) -> bool:
    """Whether one type and one set of constants is that of all."""
    return (len({(norm.eps, norm.momentum) for norm in norms}) == 1
            and len({each.dtype for norm in norms
                     for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)}) == 1)


def _is_untouched(part: nn.Module) -> bool:
    """Whether nobody has hooked into this very part or given it another way to compute."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and not {"forward", "_conv_forward", "weights", "_is_fast"} & vars(part).keys()


def fused_layers(block: nn.Module, x: torch.Tensor) -> Layers:
    """The layers of a block that is one operation for these images, otherwise none: in training, in float32 where its
    convolutions go by Winograd's, in bfloat16 by AMX; if it halves images, of even height and width, by AMX alone."""
    by_amx = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not why_not_amx()
    found = layers_of(block) if block.training and (x.dtype == torch.float32 or by_amx) else []
    if not found or _has_any_global_hook():
        return []
    if not all(norm.training and norm.weight.dtype == torch.float32 for _, norm in found):
        return []
    if by_amx:
        takes = (all((x.dtype, conv.weight.dtype) in convolution.taken() for conv, _ in found)
                 and x.ndim == 4 and x.shape[1] == block.conv1.in_channels and x.numel() > 0
                 and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling()
                 and (not halves(found) or x.shape[2] % 2 == x.shape[3] % 2 == 0))
    else:
        takes = not halves(found) and all(conv._is_fast(x, conv.weight) for conv, _ in found)
    return found if takes else []


@cache
def why_not_amx() -> str:
    """`""` if blocks in bfloat16 are one operation on this machine, else why not."""
    return native.why_not() or ("" if torch.ops.bnlib.has_amx() else "no AMX")


def forward(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    """The output of a block of these `fused_layers`, (N, C, H, W) → the same or (N, C', H/2, W/2); running statistics
    take the batch in. See `native/block.cpp`."""
    arguments = []
    for conv, norm in layers:
        norm.num_batches_tracked.add_(1)
        arguments += [conv.weights(), norm.weight, norm.bias, norm.running_mean, norm.running_var]
    operation = torch.ops.bnlib.halving_block if halves(layers) else torch.ops.bnlib.basic_block
    return operation(x, *arguments, norm.momentum, norm.eps)         # which all of them have in common


def fork(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x for each of a block's two ways, (N, C, H, W). On a CPU the gradients of channels-last images are added by an
    operation of ours, to the same bits as torch's and faster; through it goes no transform of `torch.func`."""
    takes = (x.device.type == "cpu" and x.requires_grad and x.ndim == 4 and x.shape[1] % 16 == 0 < x.shape[1]
             and x.dtype in (torch.float32, torch.bfloat16, torch.float64)
             and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling()
             and not native.why_not())
    return torch.ops.bnlib.fork(x) if takes else (x, x)


def path(network: nn.Module, device: torch.device, precision: str) -> str:
    """What computes the convolutions of whole blocks in training, `Winograd`, `our AMX kernel` or, where that computes
    strided ones too, `our AMX kernel, strided too`; `""` where no block is one operation. Maps and batches are taken to
    be large enough, and those that are halved to be even. Older records have no strided ones."""
    found = [each for each in map(layers_of, network.modules()) if each]
    if precision == "bf16":
        ours = found and device.type == "cpu" and not why_not_amx()
        return "our AMX kernel" + ", strided too" * any(map(halves, found)) if ours else ""
    return "Winograd" if not all(map(halves, found)) and convolution.path(network, device, precision) != "torch" else ""
