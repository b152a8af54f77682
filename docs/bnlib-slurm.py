"""A profile's grid on Slurm: python docs/bnlib-slurm.py --profile paper --jobs 8 --partition gpu --gpus 1

Runs where jobs can be submitted, and stays there while they work; stopped and started again, it goes on.
"""

import argparse
import os
import sys
import threading
import time

import dask
from dask_jobqueue import SLURMCluster

from bnlib import run_all
from bnlib.campaign import profile_configs
from bnlib.profiles import PROFILES

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="paper", choices=list(PROFILES), metavar="NAME", help=", ".join(PROFILES))
    parser.add_argument("--jobs", type=int, default=4, help="jobs at a time, each with one worker (4)")
    parser.add_argument("--partition", help="Slurm's partition; its default one")
    parser.add_argument("--account", help="whom the hours are charged to")
    parser.add_argument("--gpus", type=int, default=0, help="0 or 1 for each job (0)")
    parser.add_argument("--cores", type=int, default=2, help="for each job (2)")
    parser.add_argument("--memory", default="4GB", help="for each job (4GB)")
    parser.add_argument("--walltime", default="12:00:00", help="of a job; what it cannot finish goes on in the next")
    parser.add_argument("--interface", help="the network by which jobs reach this machine, such as ib0")
    parser.add_argument("--budget", help="stop cleanly after so long: 30m, 12h")
    options = parser.parse_args()
    # the dashboard answers on this machine alone, unless BNLIB_DASHBOARD binds it elsewhere; `ssh -L` brings it nearer
    bound = os.environ.get("BNLIB_DASHBOARD", "127.0.0.1:0")
    dask.config.set({"distributed.dashboard.link": f"http://{bound.rpartition(':')[0]}:{{port}}/status"})

    with SLURMCluster(
        queue=options.partition, account=options.account, walltime=options.walltime, interface=options.interface,
        cores=4 if options.gpus else 1,                # runs at a time: several small networks share a GPU
        processes=1, memory=options.memory, job_cpu=options.cores, python=sys.executable,
        job_extra_directives=["--requeue", *([f"--gres=gpu:{options.gpus}"] if options.gpus else [])],
        worker_extra_args=["--resources", "GPU=1"] if options.gpus else [],
        scheduler_options={"dashboard_address": bound},
    ) as cluster:
        def keep() -> None:                            # a job that is pre-empted or out of time is followed by another
            while True:
                cluster.scale(jobs=options.jobs)
                time.sleep(60)

        threading.Thread(target=keep, daemon=True).start()
        runs = run_all(profile_configs(options.profile), cluster=cluster, budget=options.budget,
                       results=PROFILES[options.profile]["results"])
    print(f"{len(runs)} runs of profile {options.profile} are there, {len(runs.missing)} are missing")
    for config, reason in runs.failed.items():
        print(f"  {config.id} failed: {reason}")
