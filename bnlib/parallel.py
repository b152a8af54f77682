"""One run on several processes that share each batch, as `torchrun` starts them; a process alone notices nothing.

Every process draws the same batches and computes a part of each; gradients of what trains are averaged by torch's
DistributedDataParallel. With statistics of the whole batch (`bn_parts=1`) the run is that of one process up to
rounding, and has its id. The first process alone writes.
"""

import atexit
import datetime
import inspect
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bnlib.config import Config
from bnlib.deepobs import Dropout
from bnlib.device import choose_device
from bnlib.names import InputError

#: What DistributedDataParallel calls the choice whether running statistics come from the first process at each step.
SYNC_BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers")
                    if name in inspect.signature(DistributedDataParallel).parameters)


def join(device: str | None) -> None:
    """Meets the other processes that `torchrun` started, if it did: through nccl on GPUs, gloo on CPUs.

    device: as for `train.run`. Raises InputError for a device over which batches cannot be shared.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    kind = choose_device(device).type
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device={kind!r}: several processes can share a batch on cpu or cuda only")
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait while the first waits for another process that trains the same config, which may take its time.
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=datetime.timedelta(weeks=1))
    atexit.register(dist.destroy_process_group)


def processes() -> int:
    """How many processes share each batch; 1 for a process alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this process is the one that writes: the first, or one alone."""
    return processes() == 1 or dist.get_rank() == 0


def largest(*values: int) -> list[int]:
    """Of each of these numbers the largest that any process has, so that all go the same way."""
    if processes() == 1:
        return list(values)
    shared = torch.tensor(values)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared.tolist()


def leaders(value: bool) -> bool:
    """What the first process says, whatever this one would; waits until it has said it."""
    return bool(largest(value and leads())[0])


def check_same(**values: int) -> None:
    """InputError unless all processes have the same numbers, such as the epochs of the checkpoint that each found."""
    found = largest(*values.values(), *(-value for value in values.values()))
    for i, name in enumerate(values):
        if found[i] != -found[i + len(values)]:
            raise InputError(f"processes found checkpoints of {-found[i + len(values)]} and of {found[i]} {name}; they "
                             "must all have one results folder")


# ------------------------------------------------------------------------------------------------ batches

def own_part(images: int) -> slice:
    """Which of a batch's images this process computes; the parts differ by at most one image."""
    rank, count = dist.get_rank(), processes()
    return slice(images * rank // count, images * (rank + 1) // count)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, on each of them; so is its gradient."""

    @staticmethod
    def forward(context, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.forward(context, gradient)


def gathered(row: torch.Tensor, at, *shape: int) -> torch.Tensor:
    """A tensor of this shape, each part of which comes from the process that has it at `at`, on all processes.

    Its gradient in each is the sum over all.
    """
    whole = row.new_zeros(shape)
    whole[at] = row
    return SumOverProcesses.apply(whole)


class Spread(nn.Module):
    """A network of which each process computes its own part of a batch: images (N, 3, H, W) → logits (N, classes).

    All processes have the logits of the whole batch, hence the same loss. Its gradient reaches each part as often as
    there are processes, and DistributedDataParallel divides by their number: together, once. It sends the gradients of
    what trains alone: γ and β where nothing else does.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.dropouts = [module for module in network.modules() if isinstance(module, Dropout)]
        synchronised = any(isinstance(module, Synchronised) for module in network.modules())
        trains = any(parameter.requires_grad for parameter in network.parameters())
        choices = {SYNC_BUFFERS: False} if synchronised else {}
        self.replica = DistributedDataParallel(network, **choices) if trains else network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        own = own_part(len(images))
        for dropout in self.dropouts:
            dropout.first = own.start
        logits = self.replica(images[own]).float()
        return gathered(logits, own, len(images), logits.shape[1])


def spread(network: nn.Module) -> nn.Module:
    """The network as `Spread` over the processes; itself in a process alone."""
    return Spread(network) if processes() > 1 else network


# ------------------------------------------------------------------------------------------------ batch norm

class Synchronised(_BatchNorm):
    """In training, batch norm with the statistics of the batch that all processes share, on any device.

    `nn.SyncBatchNorm` does this on GPUs alone. Each process sends number, mean and squared deviation of each channel
    (Chan et al. 1979), and gradients flow back through them. Evaluation is that of the layer whose class this joins.
    """

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training:
            return super().forward(x) if add is None else super().forward(x, add)
        others, shape = [d for d in range(x.ndim) if d != 1], (1, -1, *(1,) * (x.ndim - 2))
        values, number = x.float(), x.numel() // x.shape[1]
        # of no images all is zero, and gradients pass through it, for which the other processes wait
        variance, mean = torch.var_mean(values, others, correction=0) if number else (values.sum(others),) * 2
        own = torch.stack([torch.full_like(mean, number), mean, variance * number])
        n, means, deviations = gathered(own, dist.get_rank(), processes(), *own.shape).unbind(1)
        total = n.sum(0)
        mean = (n * means).sum(0) / total
        variance = (deviations + n * (means - mean) ** 2).sum(0) / total
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        y = torch.addcmul((self.bias - mean * scale).view(shape), values, scale.view(shape)).to(x.dtype)
        y = y if add is None else y + add
        return F.relu(y) if getattr(self, "relu", False) else y


def synchronise(network: nn.Module, config: Config) -> bool:
    """Lets each batch norm see the whole batch, in place, where several processes share it and the config says so.

    Returns whether it did. Raises InputError where there are not as many processes as the config has parts.
    """
    if config.bn_parts not in (1, processes()):
        raise InputError(f"bn_parts={config.bn_parts}: takes as many processes, of which there are {processes()}: "
                         f"torchrun --nproc-per-node {config.bn_parts} -m bnlib train …")
    apart = processes() > 1 and config.bn_parts == 1
    if apart:
        for module in network.modules():
            if isinstance(module, _BatchNorm):                       # the same tensors, another forward pass
                kind = type(module)
                module.__class__ = type(f"Synchronised{kind.__name__}", (Synchronised, kind), {})
    return apart
