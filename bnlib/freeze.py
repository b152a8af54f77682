"""Which parameters train, decided by module type, never by name; and how many there are."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlib.config import canonical_trainable


def select(network: nn.Module, what: str) -> dict[str, nn.Parameter]:
    """The parameters that `what` names, by their names in the network, first layer first.

    `all`; `bn`: γ and β of every batch norm; `gamma`; `beta`; `output`: weights and biases of the last linear
    layer; `none`; several joined by `+`. Raises InputError for anything else.
    """
    parts = canonical_trainable(what).split("+")
    output = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    chosen = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bn, is_gamma = isinstance(module, _BatchNorm), name == "weight"
            if ("all" in parts
                    or ("bn" in parts and is_bn)
                    or ("gamma" in parts and is_bn and is_gamma)
                    or ("beta" in parts and is_bn and not is_gamma)
                    or ("output" in parts and module in output)):
                chosen.add(parameter)
    return {name: parameter for name, parameter in network.named_parameters() if parameter in chosen}


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
