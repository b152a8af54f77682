"""Optimizer and learning-rate schedule from a config."""

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from bnlib.config import Config

CYCLES = 3         # of cosine_restarts, each twice as long as the one before
RAMP = 0.1         # share of training in which a trapezoid rises, and in which it falls


def optimizer(parameters, config: Config, undecayed=frozenset()) -> torch.optim.Optimizer:
    """SGD with momentum over the parameters that train; weight decay on all of them but the `undecayed`.

    The paper's protocol, where it acts on γ and β too (Frankle et al. 2021, App. A). With nothing to train it steps
    over nothing.
    """
    parameters = list(parameters) or [torch.nn.Parameter(torch.empty(0))]
    device, groups = parameters[0].device, parameters
    if undecayed:
        groups = [{"params": [p for p in parameters if p not in undecayed]},
                  {"params": [p for p in parameters if p in undecayed], "weight_decay": 0.0}]
    made = torch.optim.SGD(groups, rate(config.lr, device), config.momentum, weight_decay=config.weight_decay,
                           fused=device.type in ("cpu", "cuda"))            # one kernel for all parameters
    if config.bn_first:            # which must find a momentum of all of them, or of none
        for parameter in parameters:
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


def rate(value: float, device: torch.device) -> float | torch.Tensor:
    """A learning rate as the optimizer holds it: on a GPU a tensor there, which a CUDA graph reads at each replay."""
    return torch.tensor(value, device=device) if device.type == "cuda" else value


def schedule(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> LRScheduler:
    """Learning rate a step, after a linear warm-up where one is asked for.

    `milestones`: divided by ten at each; `constant`; `cosine`: from `lr` to 0; `cosine_restarts`: three such falls,
    each twice as long as the one before (Loshchilov & Hutter 2017); `trapezoid`: a tenth of training up, a tenth down.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "milestones":
        parts = [MultiStepLR(optimizer, [round(fraction * total) for fraction in config.milestones])]
    elif config.schedule == "constant":
        parts = [ConstantLR(optimizer, factor=1, total_iters=0)]
    elif config.schedule == "cosine":
        parts = [CosineAnnealingLR(optimizer, total)]
    elif config.schedule == "cosine_restarts":
        parts = [CosineAnnealingWarmRestarts(optimizer, -(-total // (2**CYCLES - 1)), T_mult=2)]
    else:
        ramp = max(1, round(RAMP * total))
        rise = LinearLR(optimizer, start_factor=1 / (ramp + 1), total_iters=ramp)
        fall = LinearLR(optimizer, start_factor=1, end_factor=1 / (ramp + 1), total_iters=ramp)
        parts = [SequentialLR(optimizer, [rise, fall], [max(ramp, total - ramp - 1)])]
    if config.warmup_epochs:
        steps = max(1, round(config.warmup_epochs * steps_per_epoch))
        parts.append(LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps))
    return ChainedScheduler(parts)
