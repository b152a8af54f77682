"""Optimizers over parameters, not layers; with torch's defaults and torch's order of operations.

As in torch, a parameter without a gradient is left as it is.
"""

import math
from collections.abc import Iterable

import numpy as np

from bnlib.config import InputError
from bnlib.numpy_nn.layers import Parameter

Parameters = Iterable[Parameter] | dict[str, Parameter]


def as_list(parameters: Parameters) -> list[Parameter]:
    """The parameters of a list, or of `Layer.parameters()`. Raises InputError for what is none."""
    found = list(parameters.values() if isinstance(parameters, dict) else parameters)
    if others := [each for each in found if not isinstance(each, Parameter)]:
        raise InputError(f"optimizer: expected parameters, given {type(others[0]).__name__}")
    return found


class SGD:
    """v ← momentum·v + g + weight_decay·w; w ← w − lr·v, as `torch.optim.SGD`. `lr` may be set between steps."""

    def __init__(self, parameters: Parameters, lr: float, momentum: float = 0, weight_decay: float = 0):
        self.parameters = as_list(parameters)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity = [np.zeros_like(p.value) for p in self.parameters]

    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocity, strict=True):
            if p.grad is None:
                continue
            v *= self.momentum
            v += p.grad + self.weight_decay * p.value
            p.value -= self.lr * v


class Adam:
    """Kingma & Ba 2015, Alg. 1, as `torch.optim.Adam`; weight decay, if any, is added to the gradient."""

    def __init__(self, parameters: Parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0):
        self.parameters = as_list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.first = [np.zeros_like(p.value) for p in self.parameters]
        self.second = [np.zeros_like(p.value) for p in self.parameters]
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        one, two = self.betas
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            g = p.grad + self.weight_decay * p.value
            m += (1 - one) * (g - m)
            v += (1 - two) * (np.square(g) - v)
            denominator = np.sqrt(v) / math.sqrt(1 - two**self.steps) + self.eps
            p.value -= self.lr / (1 - one**self.steps) * m / denominator
