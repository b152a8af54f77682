"""A step of LBFGS: one batch held fixed, and as many passes over it as the line search asks for."""

import contextlib
import math
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlib import data, optim, streaming
from bnlib.deepobs import Dropout
from bnlib.device import autocast
from bnlib.names import InputError


class HeldStep:
    """`step(images, labels) -> (mean loss, logits)`, both as they are after the step; `.passes` it took over the batch.

    Every pass of a step is the same function of the parameters: the same pixels, augmented once, in the same pieces
    (as few as `optimizer.piece` allows, no two differing by more than one image), each normalised by its own mean and
    variance. These follow the parameters from pass to pass, as they must if the gradient is to be that of the value;
    what would make two passes differ, another batch or running statistics, is held. The value is the mean cross-entropy
    plus ½·weight_decay·Σθ². One more pass, without gradient, sets the running statistics to the means over the pieces
    at the new parameters; it counts as a pass too. Dropout sets the same values to zero in all of them.
    """

    def __init__(self, network: nn.Module, optimizer: optim.LBFGS, precision: str, device: torch.device):
        self.network, self.optimizer, self.precision, self.device = network, optimizer, precision, device
        self.bn = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self.dropout = [module for module in network.modules() if isinstance(module, Dropout)]
        self.trained = optimizer.param_groups[0]["params"]
        self.passes, self.masks = 0, []

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        number = -(-len(labels) // self.optimizer.piece)
        pieces = list(zip(images.tensor_split(number), labels.tensor_split(number), strict=True))
        self.passes, self.masks = 0, [module.steps.clone() for module in self.dropout]
        with self._momentum(0.0):
            self.optimizer.step(lambda: self._loss(pieces, len(labels)))
        # The next batch's first gradient less this one's last is no curvature, but the noise of two batches: with a
        # direction of zero torch leaves that pair out of its memory, and keeps those that each batch gave.
        for state in self.optimizer.state.values():
            if "d" in state:
                state["d"].zero_()
        return self._settle(pieces)

    def _loss(self, pieces: list, images: int) -> torch.Tensor:
        """LBFGS's closure: the loss of the whole batch, its gradient in the parameters' `.grad`."""
        self._begin_pass()
        for parameter in self.trained:
            parameter.grad = None
        loss = torch.zeros((), device=self.device)
        if self.optimizer.weight_decay and self.optimizer.penalised:
            squares = [parameter.square().sum() for parameter in self.optimizer.penalised]
            penalty = self.optimizer.weight_decay / 2 * torch.stack(squares).sum()
            if penalty.requires_grad:                # not while γ and β train alone and decay acts on weights
                penalty.backward()
            loss += penalty.detach()
        for part, labels in pieces:
            with autocast(self.device, self.precision):
                logits = self.network(part)
            share = F.cross_entropy(logits.float(), labels) * (len(labels) / images)
            if share.requires_grad:                  # not where nothing trains
                share.backward()
            loss += share.detach()
        for parameter in self.trained:               # torch strings gradients together by a view, which needs them so
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous()
        return loss

    @torch.no_grad()
    def _settle(self, pieces: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Running statistics as the means over the pieces at the parameters of now; loss and logits there."""
        self._begin_pass()
        logits = []
        for layer in self.bn:
            layer.reset_running_stats()
        for number, (part, _) in enumerate(pieces, 1):
            with self._momentum(1 / number), autocast(self.device, self.precision):
                logits.append(self.network(part).float())
        logits = torch.cat(logits)
        return F.cross_entropy(logits, torch.cat([labels for _, labels in pieces])), logits

    def _begin_pass(self) -> None:
        """Counts it, and lets dropout, which draws anew for each piece, begin where the step's first pass began."""
        self.passes += 1
        for module, steps in zip(self.dropout, self.masks, strict=True):
            module.steps.copy_(steps)

    @contextlib.contextmanager
    def _momentum(self, value: float):
        """Lets all running statistics move by this share of the way to a batch's; 0: not at all."""
        before = [layer.momentum for layer in self.bn]
        for layer in self.bn:
            layer.momentum = value
        try:
            yield
        finally:
            for layer, momentum in zip(self.bn, before, strict=True):
                layer.momentum = momentum


def check_batch(batches: data.TrainingBatches | streaming.StreamedBatches, optimizer: optim.LBFGS) -> None:
    """InputError for batches that LBFGS cannot hold: larger than memory, together with the pairs of steps and gradients
    that it remembers, or with a last one too small to fit to."""
    config, images = batches.config, len(batches.labels)
    last, number = images % config.batch_size, -(-images // config.batch_size)
    if 0 < last < config.batch_size / 2 and number > 1:
        raise InputError(f"batch_size={config.batch_size}: leaves a last batch of {last} of {images:,} images, too few "
                         f"for LBFGS; {-(-images // number)} or {-(-images // (number - 1))} divide them evenly")
    colours, copies = 3, 2                           # as normalised, and before its crop
    pixels = config.image_size**2 if config.image_size else math.prod(batches.size)
    an_image = colours * copies * pixels * batches.normalise.dtype.itemsize
    group = optimizer.param_groups[0]
    pairs = 2 * group["history_size"] * sum(4 * parameter.numel() for parameter in group["params"])
    needed, there = min(config.batch_size, images) * an_image + pairs, memory(batches.device)
    if pairs > there:
        raise InputError(f"history_size={group['history_size']}: LBFGS remembers as many pairs of steps and gradients, "
                         f"{pairs / 1e9:.3g} GB; this {batches.device.type} has {there / 1e9:.3g} GB; "
                         + _at_most(there * group["history_size"] // pairs))
    if needed > there:
        raise InputError(f"batch_size={config.batch_size}: LBFGS holds a batch while it steps, and "
                         f"{group['history_size']} pairs of steps and gradients, {needed / 1e9:.3g} GB; this "
                         f"{batches.device.type} has {there / 1e9:.3g} GB; {_at_most((there - pairs) // an_image)}")


def _at_most(number: int) -> str:
    return f"at most {number}" if number else "not one fits; a smaller network or another optimizer does"


def memory(device: torch.device) -> int:
    """Bytes of the GPU's memory that are free, or of all of the computer's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
