"""What `make bench` measures by: its count of memory, and that each lane trains."""

import mmap
import sys
import time

import pytest
import torch

from benchmarks.speed import LANES, peak_memory, synthetic
from bnlib import Config
from bnlib.device import choose_device
from bnlib.freeze import select


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what processes hold together")
def test_memory_given_back_within_a_step_counts():
    def lane(megabytes):
        while True:
            with mmap.mmap(-1, megabytes << 20) as block:        # the heap may keep what was freed in it
                for _ in range(megabytes):
                    block.write(b"1" * 2**20)                      # not touched it is not held
                time.sleep(0.1)                                  # as long as a step
            yield

    least = peak_memory(lane(1))
    assert least + 250 < peak_memory(lane(300)) < least + 350


@pytest.mark.parametrize("trainable", ["bn", "random2"])
@pytest.mark.parametrize("name", LANES)
def test_each_lane_trains(name, trainable):
    """A step of each changes everything that trains of the network that it built, and nothing else."""
    networks, config = [], Config(model="resnet14", trainable=trainable, batch_size=128)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: networks.append(module) if not networks else None)
    lane = LANES[name](config, synthetic(256), choose_device())
    next(lane)
    hook.remove()
    before = {key: value.clone() for key, value in networks[0].state_dict().items()}
    next(lane)
    lane.close()
    changed = {key for key, value in networks[0].state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key, _ in networks[0].named_buffers()}
    assert changed - statistics == select(networks[0], trainable).keys()
