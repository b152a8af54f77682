"""Which parameters train, decided by module type, never by name; and how many there are."""

import math
from functools import cache

import torch
from torch import nn

from bnlib.models import ChosenConv2d, Norm, Shortcut, architecture
from bnlib.names import canonical_trainable, model_name

#: What a record keeps of each batch norm, and its name in `nn.BatchNorm2d`.
BN_PARTS = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}


def select(network: nn.Module, what: str) -> dict[str, nn.Parameter]:
    """The parameters that `what` names, by their names in the network, first layer first.

    `all`; `bn`: γ and β of every batch norm, or of what stands in its place; `gamma`; `beta`; `output`: weights and
    biases of the last linear layer, or of the last convolution where there is none; `shortcut`: the 1×1 convolutions
    and their batch norm; `weights`: all but γ and β;
    `random2`: two chosen weights of each channel (of a network that `models.choose_weights` made so); `none`; several
    joined by `+`.
    Raises InputError for anything else.
    """
    parts = canonical_trainable(what).split("+")
    output = output_layer(network)
    in_shortcuts = {p for m in network.modules() if isinstance(m, Shortcut) for p in m.parameters()}
    selected = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bn, is_gamma = isinstance(module, Norm), name == "weight"
            if isinstance(module, ChosenConv2d) and name == "chosen":        # a copy of weights, not more of them
                wanted = any(part.startswith("random") for part in parts)
            else:
                wanted = ("all" in parts
                          or ("bn" in parts and is_bn)
                          or ("gamma" in parts and is_bn and is_gamma)
                          or ("beta" in parts and is_bn and not is_gamma)
                          or ("weights" in parts and not is_bn)
                          or ("shortcut" in parts and parameter in in_shortcuts)
                          or ("output" in parts and module is output))
            if wanted:
                selected.add(parameter)
    return {name: parameter for name, parameter in network.named_parameters() if parameter in selected}


def output_layer(network: nn.Module) -> nn.Module:
    """The layer that gives the logits: the last linear one, or the last convolution of a network without any."""
    layers = [[m for m in network.modules() if isinstance(m, kind)] for kind in (nn.Linear, nn.Conv2d)]
    return (layers[0] or layers[1])[-1]


def undecayed(network: nn.Module, decay: str) -> set[nn.Parameter]:
    """The parameters that weight decay leaves alone where it acts on `decay` (`Config.decay`)."""
    parts, found = set(decay.split("+")), set()
    for module in network.modules():
        kinds = ("gamma", "beta") if isinstance(module, Norm) else ("weights", "biases")
        for name, parameter in module.named_parameters(recurse=False):
            if not parts & {"all", kinds[name == "bias"]}:
                found.add(parameter)
    return found


def freeze(network: nn.Module, what: str) -> dict[str, nn.Parameter]:
    """Lets what `what` names train and freezes all else; returns the parameters that train, by name.

    A frozen parameter has `requires_grad=False`: autograd computes no gradient for it and no optimizer sees it.
    """
    trainable = select(network, what)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
    return trainable


def count(network: nn.Module, what: str = "all") -> int:
    """Number of single parameters that `what` names, as in Table 1 of Frankle et al. 2021."""
    return sum(parameter.numel() for parameter in select(network, what).values())


def bn_layers(network: nn.Module) -> dict[str, Norm]:
    """Each batch norm, or what stands in its place, by its name in the network."""
    return {name: module for name, module in network.named_modules()
            if isinstance(module, Norm)}


def biased_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Each layer that could have batch norm and has a bias in its stead, by its name: all but the one of the logits."""
    last = output_layer(network)
    return {name: module for name, module in network.named_modules() if module is not last
            and isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None}


def in_one_row(network: nn.Module, part: str) -> torch.Tensor:
    """`gamma`, `beta`, `running_mean` or `running_var` of all layers, first layer first, on the CPU.

    Layers that have none, such as the running statistics of group norm, give none.
    """
    layers = [getattr(layer, BN_PARTS[part], None) for layer in bn_layers(network).values()]
    return torch.cat([torch.zeros(0), *(layer.detach().float().cpu() for layer in layers if layer is not None)])


@cache
def narrow(model: str, depths: tuple[int, ...] = (8, 14, 20), classes: int = 10) -> str:
    """The narrow ResNet that has, when all of it trains, about as many parameters as γ and β of `model`.

    The nearest count among ResNets of these depths with 2 to 16 channels in their first stage: the one that was tried
    with a single channel, ResNet-20c1, did not learn (`08_beyond`).
    """
    wanted = _parameters(model, classes, "bn")
    names = [model_name(depth, channels / 16) for depth in depths for channels in range(2, 17)]
    return min(names, key=lambda name: abs(math.log(_parameters(name, classes, "all") / wanted)))


@cache
def _parameters(model: str, classes: int, trainable: str) -> int:
    with torch.device("meta"):
        return count(architecture(model, classes), trainable)
