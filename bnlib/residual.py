"""A residual block as one operation, where that is faster."""

from functools import cache

import torch
from torch import nn

from bnlib import convolution, native
from bnlib.bnrelu import BN, BNReLU
from bnlib.convolution import Convolution

#: What a residual block is made of; a module that has them all is taken for one.
PARTS = ("conv1", "bn1", "conv2", "bn2", "shortcut")
#: Its convolutions' kernel and stride, and what normalises, where it keeps its images' shape and where it halves them.
KEEPING = [(3, 1, BNReLU), (3, 1, BNReLU)]
HALVING = [(3, 2, BNReLU), (3, 1, BNReLU), (1, 2, BN)]

Layers = list[tuple[Convolution, BN]]


def layers(block: nn.Module) -> Layers:
    """The convolutions of a block, each with its batch norm, if it is relu(bn2(conv2(relu(bn1(conv1(x))))) + x), or
    halves its images and has bn3(conv3(x)) in place of x, and is nothing else; otherwise none.

    Where a part has been exchanged, or somebody looks at what goes through it, the parts go one after the other.
    """
    if not all(hasattr(block, name) for name in PARTS):
        return []
    form, found = KEEPING, [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block.shortcut, nn.Sequential) and len(block.shortcut) == 2:
        form, found = HALVING, [*found, tuple(block.shortcut)]
    elif type(block.shortcut) is not nn.Identity:
        return []
    convs, norms = zip(*found, strict=True)
    if not (all(_is_plain(conv) and conv.has_form(kernel, stride) and type(norm) is kind and _is_plain_norm(norm)
                for (conv, norm), (kernel, stride, kind) in zip(found, form, strict=True))
            and all(_is_untouched(part) for part in (block.shortcut, *convs, *norms))):
        return []
    inputs, outputs = convs[0].in_channels, convs[0].out_channels
    fit = (all(conv.out_channels == outputs for conv in convs) and (form is HALVING or inputs == outputs)
           and [conv.in_channels for conv in convs] == [inputs, outputs, inputs][:len(convs)]
           and len({(norm.eps, norm.momentum) for norm in norms}) == 1
           and len({each.dtype for norm in norms
                    for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)}) == 1)
    return found if fit else []


def _is_plain(part: nn.Module) -> bool:
    """Whether it is our convolution without a bias, whichever of its weights train."""
    return isinstance(part, Convolution) and part.bias is None and all(
        getattr(type(part), name) is getattr(Convolution, name) for name in ("forward", "_conv_forward"))


def _is_plain_norm(norm: BN) -> bool:
    return norm.weight is not None and norm.momentum is not None and norm.running_mean is not None


def _is_untouched(part: nn.Module) -> bool:
    """Whether nobody has hooked into this very part or given it another way to compute."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and not {"forward", "_conv_forward", "_is_fast"} & vars(part).keys()


def whole(block: nn.Module, x: torch.Tensor) -> Layers:
    """The layers of a block that is one operation for these images, otherwise none: in training, in float32 where its
    convolutions go by Winograd's, in bfloat16 by AMX; where it halves images of even height and width, by AMX alone."""
    by_amx = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not why_not_amx()
    found = layers(block) if block.training and (x.dtype == torch.float32 or by_amx) else []
    if not all(norm.training and norm.weight.dtype == torch.float32 for _, norm in found):
        return []
    if not by_amx:
        return found if len(found) == 2 and all(conv._is_fast(x, conv.weight) for conv, _ in found) else []
    takes = (all((x.dtype, conv.weight.dtype) in convolution.taken() for conv, _ in found)
             and x.ndim == 4 and x.shape[1] == block.conv1.in_channels
             and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling()
             and (len(found) == 2 or (x.shape[2] % 2 == x.shape[3] % 2 == 0 and x.numel() > 0)))
    return found if found and takes else []


@cache
def why_not_amx() -> str:
    """`""` if blocks in bfloat16 are one operation on this machine, else why not."""
    return native.why_not() or ("" if torch.ops.bnlib.has_amx() else "no AMX")


def forward(found: Layers, x: torch.Tensor) -> torch.Tensor:
    """The output of a whole block, (N, C, H, W) → the same or (N, C', H/2, W/2); running statistics take the batch in.
    See `native/block.cpp`."""
    arguments = []
    for conv, norm in found:
        norm.num_batches_tracked.add_(1)
        arguments += [conv.whole(), norm.weight, norm.bias, norm.running_mean, norm.running_var]
    operation = torch.ops.bnlib.basic_block if len(found) == 2 else torch.ops.bnlib.halving_block
    return operation(x, *arguments, norm.momentum, norm.eps)


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
    strided ones too, `our AMX kernel, strided too`; `""` where no block is one operation, maps and batches being large
    enough. Records of before the strided ones say that the kernel had not computed them."""
    found = [layers(module) for module in network.modules()]
    if precision == "bf16":
        strided = ", strided too" * any(len(each) == 3 for each in found)
        return "our AMX kernel" + strided if any(found) and device.type == "cpu" and not why_not_amx() else ""
    keeping = any(len(each) == 2 for each in found)
    return "Winograd" if keeping and convolution.path(network, device, precision) != "torch" else ""
