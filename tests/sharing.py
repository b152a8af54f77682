"""What two processes do that share each batch: started by `test_parallel.py` through torchrun, given a folder."""

import contextlib
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import torch

from bnlib import Config, freeze, models, parallel, run, stop, store, train
from bnlib.profiles import PRESETS, modified

TINY = {"dataset": "digits", "model": "resnet8", "n_train": 93, "epochs": 2, "batch_size": 32, "augment": "crop"}
CONFIGS = {
    "bn": Config(**TINY),
    "one image left": Config(**TINY | {"n_train": 33}),
    "all": Config(**TINY | {"trainable": "all", "lr": 0.01}),
    "none": Config(**TINY | {"trainable": "none"}),
    "bn first": Config(**TINY | {"trainable": "all", "bn_first": 1, "lr": 0.01}),
    "3c3d": Config(**PRESETS["3c3d-cifar10"] | TINY | {"model": "3c3d", "n_train": 47}
                   | modified("trained_bn", "last3")),
    "dropout": Config(**PRESETS["allcnnc-cifar100"] | TINY | {
        "model": "allcnnc", "n_train": 6, "batch_size": 3, "epochs": 1} | modified("trained_bn", "last1")),
}
#: What compares networks in the same floats.
OPTIONS = {"device": "cpu", "precision": "fp32"}


class AskedOfOne(stop.Stop):
    """Asks the second process alone to stop, after two steps."""

    def __init__(self, *_):
        super().__init__(None)
        self.left = 3

    def asked(self) -> bool:
        self.left -= 1
        if self.left < 0 and not parallel.leads():
            self.deadline = time.time()
        return super().asked()


def bytes_sent() -> int:
    """Numbers whose gradients are sent in one step of BN-only training."""
    network, sent = models.build("resnet8", 10), []
    freeze.freeze(network, "bn")
    shared = parallel.spread(network)

    def count(state, bucket):
        sent.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    shared.replica.register_comm_hook(None, count)
    shared(torch.randn(4, 3, 32, 32)).sum().backward()
    return sum(sent)


def parts_are_apart() -> float:
    """How far logits with `bn_parts=2` are from those of each half of the batch by itself."""
    config = Config(**TINY | {"bn_parts": 2})
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network, alone = models.from_config(config, 10).train(), models.from_config(config, 10).train()
    parallel.synchronise(network, config)
    expected = torch.cat([alone(images[:4]), alone(images[4:])])
    return (parallel.spread(network)(images) - expected).abs().max().item()


def finished_by_another(folder: Path):
    """`store.lock` where somebody else writes the record before this process gets it."""
    lock = store.lock

    @contextlib.contextmanager
    def held(config, results, *given):
        with lock(config, results, *given):
            time.sleep(1)                             # the other process must not have looked yet
            shutil.copytree(store.record_folder(folder / "results", config.id), store.record_folder(results, config.id))
            yield
    return held


def main(folder: Path) -> None:
    parallel.join("cpu")
    if not parallel.leads():
        store.write_through = None                    # the first process alone writes
    for config in CONFIGS.values():
        run(config, results=folder / "results", **OPTIONS)
    stopped, train.Stop = folder / "stopped/results", AskedOfOne
    try:
        run(CONFIGS["all"], results=stopped, **OPTIONS)
        left = False
    except stop.Paused:
        left = store.checkpoint_file(CONFIGS["all"], stopped).exists()
    train.Stop = stop.Stop
    run(CONFIGS["all"], results=stopped, **OPTIONS)
    run(dataclasses.replace(CONFIGS["bn"], bn_parts=2), results=folder / "results", **OPTIONS)
    lock, store.lock = store.lock, finished_by_another(folder)
    run(CONFIGS["bn"], results=folder / "meanwhile/results", **OPTIONS)
    store.lock = lock
    found = {"stopped at a checkpoint": left, "sent": bytes_sent(), "apart": parts_are_apart()}
    if parallel.leads():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
