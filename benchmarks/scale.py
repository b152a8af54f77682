"""How the paper's grid fills 1 … 1,000 workers: `python -m benchmarks.scale`. A simulation; nothing is trained.

Hours of each run are those of `campaign --plan`: measured images/s, estimated for networks that were not measured. The
order is `bnlib.cluster`'s own. Workers die at random; a run goes on elsewhere from its last epoch.
"""

import argparse
import heapq
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from bnlib import campaign, plan
from bnlib.cluster import assign, longest_first
from bnlib.config import Config

WORKERS = (1, 2, 4, 8, 16, 32, 64, 100, 250, 1000)
MODES = ("bn", "all", "gamma", "beta", "output", "shortcut", "bn+output")


def simulate(hours: dict[Config, float], workers: int, failures: float = 0.0, away: float = 0.1,
             seed: int = 0) -> dict[str, float]:
    """One grid on so many workers: hours it takes, and the shares of the workers' time that did and did not count.

    hours: of each run. failures: deaths of a worker an hour that it works; it comes back after `away` hours.
    """
    draws, left = np.random.default_rng(seed), dict(hours)
    waiting, free, events, order = longest_first(hours), dict.fromkeys(range(workers), 1), [], itertools.count()
    now = last = 0.0
    while waiting or events:
        for config, worker in assign(waiting, free, lambda config, worker: 1):
            waiting.remove(config)
            del free[worker]
            death = draws.exponential(1 / failures) if failures else np.inf
            heapq.heappush(events, (now + min(death, left[config]), next(order), worker, config, death < left[config]))
            if death < left[config]:                      # what is done of an epoch is lost
                epoch = hours[config] / config.epochs
                left[config] -= death // epoch * epoch
        now, _, worker, config, died = heapq.heappop(events)
        if died:
            waiting = longest_first([*waiting, config])
            heapq.heappush(events, (now + away, next(order), worker, None, False))
            continue
        free[worker] = 1
        if config is not None:                            # not a worker that is back
            last = now
    useful, bound = sum(hours.values()), max(sum(hours.values()) / workers, max(hours.values()))
    return {"workers": workers, "hours": last, "speed-up": useful / last, "utilisation": useful / last / workers,
            "of the best possible": bound / last, "wasted": 1 - useful / last / workers}


def every_mode(configs: list[Config]) -> list[Config]:
    """The networks and seeds of a grid, in every mode that the paper looks at."""
    return list(dict.fromkeys(replace(config, trainable=mode) for config in configs for mode in MODES))


def grids() -> dict[str, list[Config]]:
    """The paper profile's grid as the notebooks list it, and its networks by depth and width in every mode."""
    return {"the notebooks' grid": campaign.profile_configs("paper"),
            "every mode": every_mode(campaign.depth_and_width("paper"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=float, default=0.01, help="deaths of a worker an hour (0.01)")
    parser.add_argument("--away", type=float, default=0.1, help="hours until it is back (0.1)")
    options = parser.parse_args()
    pd.set_option("display.float_format", "{:,.3f}".format)
    for device, rates in plan.measured().items():
        for name, configs in grids().items():
            hours = {config: plan.hours(config, rates) for config in configs}
            rows = [simulate(hours, n, options.failures, options.away) for n in WORKERS]
            longest = max(hours.values()) / sum(hours.values())
            print(f"\n{name}, {device}: {len(hours)} runs, the longest {longest:.1%} of the whole; each worker "
                  f"dies {options.failures:g} times an hour")
            print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
