"""A training step as one CUDA graph, so that a small network's hundreds of kernels cost one launch."""

import contextlib
import os
import threading
import warnings

import torch

from bnlib import optim, parallel

#: Held from a warm-up to the end of its capture, which begins by waiting for the whole GPU; another's forbids that.
CAPTURING = threading.Lock()


def graphed(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether a step is captured: on a GPU, by one process, of an optimizer that a graph can hold and of something that
    trains; `BNLIB_GRAPHS=0` in the environment keeps the plain step."""
    return (device.type == "cuda" and os.environ.get("BNLIB_GRAPHS") != "0" and parallel.processes() == 1
            and optim.captured(optimizer) and optimizer.param_groups[0]["params"][0].device.type == "cuda")


def own_stream(device: torch.device):
    """A stream for one run, so that small runs in several threads share a GPU; on another device nothing.

    While others train, a thread waits for its own stream only: `torch.cuda.synchronize()` would spoil their captures.
    """
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()


class GraphedStep:
    """`step(images, labels) -> (loss, logits)`, captured once and replayed for each batch of the same shape.

    A smaller batch, such as the last of an epoch, takes the plain step; where a run begins with one, a larger one is
    captured anew. What the warm-up before the capture changes is put back, so that the graph changes speed and nothing
    else. The learning rate must be a tensor on the device (`optim.optimizer` makes it one), or the graph would hold its
    value of today.
    """

    WARM_UP = 3        # steps before a capture, as torch's documentation of CUDA graphs asks for

    def __init__(self, step, network: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.step, self.network, self.optimizer = step, network, optimizer
        self.graph = None
        for group in optimizer.param_groups:
            if "capturable" in group:                  # of Adam, which warns of it where no graph is made
                group["capturable"] = True

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.graph is None or len(images) > len(self.images):
            with CAPTURING:
                self._capture(images, labels)
        if images.shape != self.images.shape:
            return self.step(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss.clone(), self.logits.clone()

    def _capture(self, images, labels) -> None:
        self.images, self.labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        before = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        state = {(p, name): value.clone() for p, s in self.optimizer.state.items() for name, value in s.items()
                 if isinstance(value, torch.Tensor)}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), warnings.catch_warnings():
            warnings.simplefilter("ignore")            # that capturable costs time where nothing is captured
            for _ in range(self.WARM_UP):
                self.step(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                tensor.copy_(before[name])
            for parameter, values in self.optimizer.state.items():      # no momentum, moments or steps yet: zeros
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        value.copy_(state.get((parameter, name), torch.zeros_like(value)))
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        # another thread may pin the memory of streamed images meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss, self.logits = self.step(self.images, self.labels)
