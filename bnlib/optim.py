"""Optimizer and learning-rate schedule from a config."""

from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, MultiStepLR

from bnlib.config import Config, InputError, options_of


class LBFGS(torch.optim.LBFGS):
    """torch's, with strong Wolfe line search; and what `lbfgs.HeldStep` needs to know besides.

    piece: images that go through the network at once; penalised: the parameters in the loss's ½·weight_decay·Σθ².
    """

    def __init__(self, parameters, lr: float, piece: int, weight_decay: float, penalised: list, **options):
        super().__init__(parameters, lr, line_search_fn="strong_wolfe", **options)
        self.piece, self.weight_decay, self.penalised = piece, weight_decay, penalised


def optimizer(parameters, config: Config, decayed: Iterable | None = None) -> torch.optim.Optimizer:
    """The config's optimizer over the parameters that train, with weight decay on those in `decayed` (None: on all).

    The paper's is SGD with momentum (Frankle et al. 2021, App. A). With nothing to train it steps over nothing.
    Raises InputError for options that the optimizer refuses, and where pytorch_optimizer is needed and not installed.
    """
    parameters = list(parameters) or [torch.nn.Parameter(torch.zeros(1))]
    among = set(parameters if decayed is None else decayed)
    groups = [{"params": [p for p in parameters if p in among]},
              {"params": [p for p in parameters if p not in among], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    device, decay = parameters[0].device, config.weight_decay
    fused = {"fused": device.type in ("cpu", "cuda")}                       # one kernel for all parameters
    options = options_of(config.optimizer, config.optimizer_options)
    lr = rate(config.lr, device, captured=config.optimizer in ("sgd", "adam", "adamw"))
    try:
        if config.optimizer == "sgd":
            made = torch.optim.SGD(groups, lr, config.momentum, weight_decay=decay, **options, **fused)
            for parameter in parameters if config.bn_first and config.momentum else ():
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)      # for all of them, or none
            return made
        if config.optimizer in ("adam", "adamw"):
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
            return kind(groups, lr, weight_decay=decay, **options, **fused, capturable=device.type == "cuda")
        if config.optimizer == "lbfgs":
            return LBFGS(parameters, lr, weight_decay=decay, penalised=[p for p in parameters if p in among], **options)
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


def schedule(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> LRScheduler:
    """Learning rate a step: divided by ten at each milestone, after a linear warm-up where one is asked for."""
    total = config.epochs * steps_per_epoch
    parts = [MultiStepLR(optimizer, [round(fraction * total) for fraction in config.milestones])]
    if config.warmup_epochs:
        steps = max(1, round(config.warmup_epochs * steps_per_epoch))
        parts.append(LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps))
    return ChainedScheduler(parts)
