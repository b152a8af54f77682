"""Optimizer and learning-rate schedule from a config."""

import torch
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, MultiStepLR

from bnlib.config import Config


def optimizer(parameters, config: Config) -> torch.optim.Optimizer:
    """SGD with momentum over the parameters that train; weight decay on all of them, γ and β too.

    The paper's protocol (Frankle et al. 2021, App. A). With nothing to train it steps over nothing.
    """
    parameters = list(parameters) or [torch.nn.Parameter(torch.empty(0))]
    device = parameters[0].device
    made = torch.optim.SGD(parameters, rate(config.lr, device), config.momentum, weight_decay=config.weight_decay,
                           fused=device.type in ("cpu", "cuda"))            # one kernel for all parameters
    if config.bn_first:            # which must find a momentum of all of them, or of none
        for parameter in parameters:
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


def rate(value: float, device: torch.device) -> float | torch.Tensor:
    """A learning rate as the optimizer holds it: on a GPU a tensor there, which a CUDA graph reads at each replay."""
    return torch.tensor(value, device=device) if device.type == "cuda" else value


def schedule(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> LRScheduler:
    """Learning rate a step: divided by ten at each milestone, after a linear warm-up where one is asked for."""
    total = config.epochs * steps_per_epoch
    parts = [MultiStepLR(optimizer, [round(fraction * total) for fraction in config.milestones])]
    if config.warmup_epochs:
        steps = max(1, round(config.warmup_epochs * steps_per_epoch))
        parts.append(LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps))
    return ChainedScheduler(parts)
