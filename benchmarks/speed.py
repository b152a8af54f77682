"""How fast training is, side by side with the plain loop: `make bench`.

The lanes of a comparison take turns of a second or two, so that a noisy machine favours none. Each has a process of
its own, so that none profits from another's settings, and waits while another runs.

    plain    eager fp32, gradients of all weights, DataLoader with 2 workers, torchvision's transforms
    ours     as `bnlib.run` trains
    ours-    the same without our own operations
"""

import argparse
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from bnlib import Config, data, models, native, optim
from bnlib.config import resolve
from bnlib.device import choose_device, choose_precision, device_name, keep_memory
from bnlib.freeze import select
from bnlib.plan import slug
from bnlib.train import evaluate, make_step, place

BATCH = 128
NETWORKS = ["resnet14", "resnet56", "resnet14x4"]        # whose lanes are compared
SPINCOUNT = os.environ["GOMP_SPINCOUNT"]


def synthetic(n: int = 50_000) -> data.Dataset:
    """Random images of CIFAR-10's shape and number; a step takes as long on them as on real ones."""
    draws = np.random.default_rng(0)
    images = torch.from_numpy(draws.integers(0, 256, (n, 32, 32, 3), np.uint8))
    labels = torch.from_numpy(draws.integers(0, 10, n))
    return data.Dataset("synthetic", images, labels, images[:10_000], labels[:10_000], tuple("0123456789"), "")


# ------------------------------------------------------------------------------------------- lanes

def plain_lane(config: Config, dataset: data.Dataset, device: torch.device) -> Iterator[None]:
    """The loop that earlier studies use; each `next` is one step."""
    from PIL import Image
    from torchvision import transforms
    mean, std = dataset.moments
    transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor(), transforms.Normalize(mean, std)])

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset.x_train)

        def __getitem__(self, i):
            return transform(Image.fromarray(dataset.x_train[i].numpy())), dataset.y_train[i]

    network = models.from_config(config, 10).to(device).train()
    optimizer = torch.optim.SGD(select(network, config.trainable).values(), 0.1, 0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=2, drop_last=True,
                                         multiprocessing_context="fork")
    while True:
        for images, labels in loader:
            loss = F.cross_entropy(network(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_lane(config: Config, dataset: data.Dataset, device: torch.device) -> Iterator[None]:
    """Training as `bnlib.run` does it; each `next` is one step."""
    precision = choose_precision(device)
    network = models.from_config(config, 10).train()
    trainable = place(network, config, device, precision)
    normalise = data.Normalise(dataset, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    batches = data.TrainingBatches(dataset.x_train, dataset.y_train, config, normalise, device)
    optimizer = optim.optimizer(trainable, config)
    schedule = optim.schedule(optimizer, config, len(batches))
    step = make_step(network, optimizer, precision, device)
    for epoch in range(1, 1000):
        for images, labels in batches.epoch(epoch):
            step(images, labels)
            schedule.step()
            yield


LANES = {"plain": plain_lane, "ours": our_lane, "ours-": our_lane}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def turn_of(lane: Iterator[None], device: torch.device, turn: float) -> float:
    """Images/s of a lane over `turn` seconds, after a few steps that use up what was prepared while it waited."""
    began = time.perf_counter()
    for _ in range(5):
        next(lane)
        synchronise(device)
        if time.perf_counter() - began > turn / 2:   # slow steps: five would take too long
            break
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < turn:
        next(lane)
        steps += 1
    synchronise(device)
    return steps * BATCH / (time.perf_counter() - began)


def serve(connection, name: str, config: Config) -> None:
    """A lane in its own process: sends the seconds to its first step, then images/s a turn, at last its peak memory."""
    began, device = time.perf_counter(), choose_device()
    if name != "plain":
        keep_memory()
    if name != "ours":
        os.environ["BNLIB_CPP"] = "0"                # read when an operation of ours is first asked for
    lane = LANES[name](config, synthetic(), device)
    next(lane)
    synchronise(device)
    connection.send(time.perf_counter() - began)
    while (turn := connection.recv()) is not None:
        connection.send(turn_of(lane, device, turn))
    connection.send(peak_memory(lane))
    lane.close()


def peak_memory(lane: Iterator[None], steps: int = 4) -> float:
    """Megabytes (2²⁰ bytes) that this process and its workers hold at most as the lane takes some steps, what several
    hold together shared out among them (Linux's Pss); NaN where the system does not tell. Looked at every few
    milliseconds, since the plain loop gives its activations back to the system at the end of each step."""
    processes = (os.getpid(), *(child.pid for child in multiprocessing.active_children()))
    held, done = [np.nan], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            told = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
            held.append(sum(int(re.search(r"^Pss: +(\d+) kB", each, re.MULTILINE)[1]) for each in told) / 1024)

    with suppress(OSError), ThreadPoolExecutor(1) as watcher:
        looking = watcher.submit(look)
        try:
            for _ in range(steps):
                next(lane)
        finally:
            done.set()
        looking.result()
    return np.nanmax(held) if len(held) > 1 else np.nan


def compare(config: Config, rounds: int, turn: float) -> pd.DataFrame:
    """A row a lane: median images/s over its turns, ratio to plain within each round, first step, peak memory."""
    context, ends, processes = multiprocessing.get_context("spawn"), {}, []
    for name in LANES:
        ends[name], other = context.Pipe()
        # the plain loop waits as OpenMP does by default; ours as bnlib/__init__.py has it (read when a process starts)
        os.environ.pop("GOMP_SPINCOUNT", None)
        if name != "plain":
            os.environ["GOMP_SPINCOUNT"] = SPINCOUNT
        processes.append(context.Process(target=serve, args=(other, name, config)))
        processes[-1].start()
        other.close()                                # so that a lane that dies is an error here, not a wait for ever
        first = ends[name].recv()                    # one after the other, or they would share the processor
        ends[name] = (ends[name], first)
    turns = {name: [] for name in LANES}
    for _ in range(rounds):
        for name, (end, _) in ends.items():
            end.send(turn)
            turns[name].append(end.recv())
    rows = []
    for name, (end, first) in ends.items():
        end.send(None)
        ratio = np.median(np.divide(turns[name], turns["plain"]))
        rows.append({"network": config.model, "trained": config.trainable, "lane": name,
                     "images/s": round(np.median(turns[name])), "against plain": round(ratio, 2),
                     "first step, s": round(first, 2), "peak memory, MB": np.round(end.recv())})
    for process in processes:
        process.join()
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------- tables

def speed(networks: list[str], rounds: int, turn: float) -> pd.DataFrame:
    """The three lanes for each network and what trains in it."""
    return pd.concat([compare(Config(model=model, trainable=trainable, batch_size=BATCH), rounds, turn)
                      for model in networks for trainable in ("bn", "all")])


def scaling(dataset, device, turn: float) -> pd.DataFrame:
    """Seconds an epoch of 50,000 images, BN only, against depth and width."""
    rows, base = [], None
    networks = ["resnet14", "resnet32", "resnet56", "resnet110", "resnet14x2", "resnet14x4", "resnet14x8"]
    for model in networks + ["resnet866"] * (device.type == "cuda"):
        config = Config(model=model, batch_size=BATCH)
        lane = our_lane(config, dataset, device)
        seconds = 50_000 / max(turn_of(lane, device, turn) for _ in range(2))
        base = base or seconds
        linear = base * models.multiply_adds(model) / models.multiply_adds("resnet14")
        rows.append({"network": model, "seconds an epoch": round(seconds, 2), "against ResNet-14": seconds / base,
                     "against its multiply–adds": seconds / linear})
    return pd.DataFrame(rows)


def ceiling(dataset, device, per_second: float) -> pd.DataFrame:
    """What the step of ResNet-14, BN only, reaches of the machine's matrix product and copy speed.

    Operations: a forward pass, and as much again for the gradients of all but the first convolution's input, counted
    as if each product were computed; Winograd's algorithm may pass the limit. Bytes: activations, in the precision of
    training, that each convolution and the batch norm behind it read and write: 2 + 3 forward, 2 + 5 backward;
    a residual block that is one operation moves fewer.
    """
    n, precision = 4096 if device.type == "cuda" else 2048, choose_precision(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    buffer = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(buffer)
    flops = 2 * n**3 / best_time(lambda: a @ b, device)
    bandwidth = 2 * buffer.numel() / best_time(lambda: target.copy_(buffer), device)
    operations, elements, network = 0, 0, models.build("resnet14", 10)

    def count(module, inputs, output):
        nonlocal operations, elements
        operations += 2 * output[0].numel() * module.weight[0].numel() * (1 if module is network.conv else 2)
        elements += output[0].numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32))
    moved = dtype.itemsize * elements * (2 + 3 + 2 + 5)
    return pd.DataFrame([
        {"of the machine": f"matrix product, {precision}", "ceiling": f"{flops / 1e9:,.0f} GFLOP/s",
         "a training image needs": f"{operations / 1e6:,.1f} MFLOP", "limit, images/s": round(flops / operations),
         "reached": f"{per_second * operations / flops:.0%}"},
        {"of the machine": "copy", "ceiling": f"{bandwidth / 1e9:,.1f} GB/s",
         "a training image needs": f"{moved / 1e6:,.2f} MB", "limit, images/s": round(bandwidth / moved),
         "reached": f"{per_second * moved / bandwidth:.0%}"}])


def best_time(operation, device, times: int = 12) -> float:
    found = []
    for _ in range(times):
        synchronise(device)
        began = time.perf_counter()
        operation()
        synchronise(device)
        found.append(time.perf_counter() - began)
    return min(found)


def evaluation_speed(dataset, device) -> float:
    """Images/s of an evaluation of ResNet-14 during training."""
    config, precision = Config(batch_size=BATCH), choose_precision(device)
    network = models.build(config.model, 10)
    place(network, config, device, precision)
    normalise = data.Normalise(dataset, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    batches = dataset.in_order("test", device)
    return len(dataset.x_test) / best_time(lambda: evaluate(network, batches, normalise, precision), device, 3)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=4, help="turns of each lane (4)")
    options.add_argument("--turn", type=float, default=1.5, help="seconds a turn (1.5)")
    options.add_argument("--networks", nargs="+", default=NETWORKS,
                         help="whose lanes are compared (resnet14 resnet56 resnet14x4); of others no table is written")
    options = options.parse_args()

    device = choose_device()
    keep_memory()
    why_not = native.why_not() if device.type == "cpu" else native.why_not_on_gpu()
    print(f"{device_name(device)}, torch {torch.__version__}, {choose_precision(device)}, "
          f"our own operations: {why_not or 'yes'}\n")
    dataset, tables = synthetic(), {}
    tables["speed"] = speed(options.networks, options.rounds, options.turn)
    tables["scaling"] = scaling(dataset, device, options.turn)
    ours = tables["speed"].set_index(["network", "trained", "lane"])["images/s"]
    if (resnet14 := ("resnet14", "bn", "ours")) in ours:
        tables["ceiling"] = ceiling(dataset, device, ours[resnet14])
    tables["evaluation"] = pd.DataFrame([{"network": "resnet14", "images/s": round(evaluation_speed(dataset, device))}])
    for name, table in tables.items():
        print(f"{name}\n{table.to_string(index=False, float_format=lambda x: f'{x:.2f}')}\n")
    if options.networks == NETWORKS:                 # a part of it would hide what was measured before
        write(tables, resolve("results/tables") / f"bench-{slug(device_name(device))}.csv")


def write(tables: dict[str, pd.DataFrame], file: Path) -> None:
    """One row a figure: table, what, figure, value."""
    rows = []
    for name, table in tables.items():
        keys = [c for c in ("network", "trained", "lane", "of the machine") if c in table]
        what = table[keys].agg(" ".join, axis=1)
        long = table.drop(columns=keys).assign(what=what).melt("what", var_name="figure")
        rows.append(long.assign(table=name)[["table", "what", "figure", "value"]])
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(rows).to_csv(file, index=False)
    print(f"written to {os.path.relpath(file)}")


if __name__ == "__main__":
    main()
