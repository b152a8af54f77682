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

from bnlib import models
from bnlib.config import Config
from bnlib.names import InputError
from bnlib.options import options_of

CYCLES = 3         # of cosine_restarts, each twice as long as the one before
RAMP = 0.1         # share of training in which a trapezoid rises, and in which it falls


class LBFGS(torch.optim.LBFGS):
    """torch's, with strong Wolfe line search; and what `lbfgs.HeldStep` needs to know besides.

    piece: images that go through the network at once; penalised: the parameters in the loss's ½·weight_decay·Σθ².
    """

    def __init__(self, parameters, lr: float, piece: int, weight_decay: float, penalised: list, **options):
        super().__init__(parameters, lr, line_search_fn="strong_wolfe", **options)
        self.piece, self.weight_decay, self.penalised = piece, weight_decay, penalised


def optimizer(parameters, config: Config, undecayed=frozenset()) -> torch.optim.Optimizer:
    """The config's optimizer over the parameters that train, with weight decay on all but the `undecayed`.

    The paper's is SGD with momentum, with decay on γ and β too (Frankle et al. 2021, App. A). With nothing to train it
    steps over nothing.
    Raises InputError for options that the optimizer refuses, and where pytorch_optimizer is needed and not installed.
    """
    if config.bn_first and config.optimizer in ("adabound", "adan", "prodigy"):
        raise InputError(f"bn_first={config.bn_first}: {config.optimizer} counts its steps for all parameters together "
                         "and would take wrong first ones with those that begin to train later")
    parameters = list(parameters) or [torch.nn.Parameter(torch.zeros(1))]
    decayed = [p for p in parameters if p not in undecayed]
    groups = [{"params": decayed}, {"params": [p for p in parameters if p in undecayed], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    device, decay = parameters[0].device, config.weight_decay
    fused = {"fused": device.type in ("cpu", "cuda")}                       # one kernel for all parameters
    options = options_of(config.optimizer, config.optimizer_options)
    lr = rate(config.lr, device, captured=config.optimizer in ("sgd", "adam", "adamw"))
    try:
        if config.optimizer == "sgd":
            if config.bn_first and options["dampening"]:
                raise ValueError(f"no dampening of parameters that begin to train after bn_first={config.bn_first}")
            made = torch.optim.SGD(groups, lr, config.momentum, weight_decay=decay, **options, **fused)
            for parameter in parameters if config.bn_first and config.momentum else ():
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)      # for all of them, or none
            return made
        if config.optimizer in ("adam", "adamw"):
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
            return kind(groups, lr, weight_decay=decay, **options, **fused)
        if config.optimizer == "lbfgs":
            return LBFGS(parameters, lr, weight_decay=decay, penalised=decayed, **options)
        return _library()[config.optimizer](groups, lr=lr, weight_decay=decay, **options)
    except ValueError as error:
        raise InputError(f"optimizer_options={config.optimizer_options!r}: {config.optimizer} says: {error}") from None


def _library() -> dict[str, type]:
    """The optimizers of pytorch_optimizer that a config may name; loaded only when one of them is asked for."""
    try:
        from pytorch_optimizer import AdaBound, Adan, Lion, Prodigy
    except ImportError:
        raise InputError("adabound, adan, lion and prodigy need pytorch_optimizer: pip install pytorch-optimizer"
                         ) from None
    return {"adabound": AdaBound, "adan": Adan, "lion": Lion, "prodigy": Prodigy}


def captured(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a CUDA graph can hold a step: of torch's first-order ones, whose state may begin as zeros."""
    first_order = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam)              # AdamW is an Adam
    return first_order and not any(group.get("dampening") for group in optimizer.param_groups)


def rate(value: float, device: torch.device, captured: bool = True) -> float | torch.Tensor:
    """A learning rate as the optimizer holds it: for a CUDA graph a tensor on the GPU, read at each replay."""
    return torch.tensor(value, device=device) if device.type == "cuda" and captured else value


def passes(config: Config) -> int:
    """How often a step goes over its batch, about: once, but an LBFGS step as often as its line searches may."""
    if config.optimizer != "lbfgs":
        return 1
    options = options_of(config.optimizer, config.optimizer_options)
    return (options["max_eval"] or options["max_iter"] * 5 // 4) + 1         # torch's own bound, and the last look


def work(config: Config) -> float:
    """Multiply–adds of all forward passes of training, the measure by which runs are ordered and time is estimated."""
    return models.multiply_adds(config.model, config.image_size) * config.images * config.epochs * passes(config)


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
