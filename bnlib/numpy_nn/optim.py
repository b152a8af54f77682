"""Optimizers over parameters, not layers; with torch's defaults and torch's order of operations.

As in torch, a parameter without a gradient is left as it is.
"""

import math
from collections.abc import Iterable

import numpy as np

from bnlib.names import InputError
from bnlib.numpy_nn.layers import Parameter

Parameters = Iterable[Parameter] | dict[str, Parameter]


def as_list(parameters: Parameters) -> list[Parameter]:
    """The parameters of a list, or of `Layer.parameters()`. Raises InputError for what is none, or is there twice."""
    if not isinstance(parameters, Iterable):
        raise InputError(f"optimizer: expected a list or dict of parameters, given {type(parameters).__name__}")
    found = list(parameters.values() if isinstance(parameters, dict) else parameters)
    if others := [each for each in found if not isinstance(each, Parameter)]:
        raise InputError(f"optimizer: expected parameters, given {type(others[0]).__name__}")
    if len(set(map(id, found))) < len(found):
        raise InputError(f"optimizer: expected each parameter once, given {len(found)}, of which some are the same")
    return found


def has_gradient(parameter: Parameter) -> bool:
    """Whether there is one to step along. Raises InputError for one of another shape, which NumPy would stretch."""
    if parameter.grad is not None and parameter.grad.shape != parameter.value.shape:
        raise InputError(f"optimizer: expected a gradient {parameter.value.shape}, given {parameter.grad.shape}")
    return parameter.grad is not None


def within(optimizer: str, below: float = math.inf, **numbers: float) -> None:
    """InputError unless each of an optimizer's numbers is from 0 to below this one."""
    for name, number in numbers.items():
        if not 0 <= number < below:
            raise InputError(f"{optimizer}: expected {name} from 0 to below {below}, given {number}")


class SGD:
    """v ← momentum·v + g + weight_decay·w; w ← w − lr·v, as `torch.optim.SGD`. `lr` may be set between steps.

    Raises InputError for what is no parameter, and for numbers out of range; as does `Adam`.
    """

    def __init__(self, parameters: Parameters, lr: float = 1e-3, momentum: float = 0, weight_decay: float = 0):
        self.parameters = as_list(parameters)
        within("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        """Moves each parameter that has a gradient. Raises InputError for a gradient of another shape."""
        for p, v in zip(self.parameters, self.velocity, strict=True):
            if not has_gradient(p):
                continue
            v *= self.momentum
            v += p.grad + self.weight_decay * p.value
            p.value -= self.lr * v


class Adam:
    """Kingma & Ba 2015, Alg. 1, as `torch.optim.Adam`; weight decay, if any, is added to the gradient."""

    def __init__(self, parameters: Parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0):
        self.parameters = as_list(parameters)
        within("Adam", lr=lr, eps=eps, weight_decay=weight_decay)
        within("Adam", 1, beta_1=betas[0], beta_2=betas[1])
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.first = [np.zeros_like(p.value) for p in self.parameters]
        self.second = [np.zeros_like(p.value) for p in self.parameters]
        self.steps = [0] * len(self.parameters)              # of each, since one may begin to train later

    def step(self) -> None:
        """Moves each parameter that has a gradient. Raises InputError for a gradient of another shape."""
        one, two = self.betas
        for i, (p, m, v) in enumerate(zip(self.parameters, self.first, self.second, strict=True)):
            if not has_gradient(p):
                continue
            self.steps[i] += 1
            g = p.grad + self.weight_decay * p.value
            m += (1 - one) * (g - m)
            v += (1 - two) * (np.square(g) - v)
            denominator = np.sqrt(v) / math.sqrt(1 - two**self.steps[i]) + self.eps
            p.value -= self.lr / (1 - one**self.steps[i]) * m / denominator
