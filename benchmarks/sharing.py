"""Images/s of several runs on one GPU, together and alone: `python -m benchmarks.sharing [--runs 5]`.

Each run trains its own seed of one network, with the loop of `bnlib.run`: in threads of one process, a stream each, or
in processes of their own.
"""

import argparse
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import torch

from benchmarks.speed import BATCH, our_lane, synthetic
from bnlib import Config
from bnlib.cuda import own_stream
from bnlib.device import choose_device, device_name


def images_per_second(config: Config, ready, seconds: float) -> float:
    """What one run trains while the others train too; ready: a barrier at which all wait for the last."""
    device = choose_device()
    with own_stream(device):
        try:
            lane = our_lane(config, synthetic(), device)
            for _ in range(50):
                next(lane)
            torch.cuda.current_stream().synchronize()
        except Exception:
            ready.abort()                            # or the others would wait for ever
            raise
        ready.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(10):
                next(lane)
            torch.cuda.current_stream().synchronize()
            steps += 10
        return steps * BATCH / (time.perf_counter() - began)


def in_threads(configs: list[Config], seconds: float) -> list[float]:
    ready = threading.Barrier(len(configs))
    with ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(lambda config: images_per_second(config, ready, seconds), configs))


def in_processes(configs: list[Config], seconds: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(len(configs)) as pool:
        ready = manager.Barrier(len(configs))
        return pool.starmap(images_per_second, [(config, ready, seconds) for config in configs])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="resnet14")
    options.add_argument("--runs", type=int, default=5, help="that train together (5)")
    options.add_argument("--seconds", type=float, default=3, help="that each way trains (3)")
    options = options.parse_args()
    if choose_device().type != "cuda":
        raise SystemExit("benchmarks.sharing: no NVIDIA GPU here")
    configs = [Config(model=options.model, seed=seed, batch_size=BATCH) for seed in range(options.runs)]
    rows = []
    for name, way, those in (("one alone", in_threads, configs[:1]), ("threads", in_threads, configs),
                             ("processes", in_processes, configs)):
        together = sum(way(those, options.seconds))
        rows.append({"": name, "runs": len(those), "images/s together": round(together),
                     "time of all against one": round(len(those) * (rows[0]["images/s together"] if rows else together)
                                                      / together, 2)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    print(f"{options.model} on {device_name(choose_device())}")


if __name__ == "__main__":
    main()
