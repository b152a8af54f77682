"""The command line: `python -m bnlib train`, and the other commands that `--help` lists."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import json
import os
import re
import signal
import sys
import time
import warnings
from functools import cache

from bnlib import Config, InputError, campaign, data, grid, load_runs, parallel, run, store, streaming, verify
from bnlib.device import choose_device
from bnlib.names import choose, parse_model
from bnlib.options import OPTIMIZERS, OPTIONS, compact
from bnlib.profiles import PROFILES
from bnlib.train import evaluate_on_test_set


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Exit status 0; 1: faults found; 2: a mistake, said in one line; 128 + n: ended by signal n."""
    warnings.showwarning = _one_line
    try:
        options = vars(parser().parse_args(arguments))
        return options.pop("command")(**options) or 0
    except InputError as error:
        print(f"bnlib: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:   # a command for which training alone installs too little
        print(f"bnlib: needs {error.name}: `pip install -e '.[report]'` has it", file=sys.stderr)
        return 2
    except BrokenPipeError:                # whoever reads, as `| head` does, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        print(f"bnlib: {str(interruption) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(interruption, "signal", signal.SIGINT)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m bnlib", description="Train batch norm and only batch norm.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(command, example, **arguments):
        name = command.__name__.removesuffix("_")
        sub = commands.add_parser(name, help=command.__doc__.splitlines()[0], description=command.__doc__,
                                  epilog=f"example: python -m bnlib {example}", allow_abbrev=False)
        sub.set_defaults(command=command)
        for flag, settings in arguments.items():
            names = [flag] if settings.pop("positional", False) else ["--" + flag.replace("_", "-")]
            sub.add_argument(*names, **settings)
        return sub

    results = {"default": "results", "metavar": "DIR", "help": "folder of the records (results)"}
    device = {"default": None, "help": "cuda, mps or cpu; the first that is there"}
    profile = {"default": "short", "help": ", ".join(PROFILES)}
    budget = {"default": None, "metavar": "TIME", "help": "stop cleanly after so long: 90s, 30m, 2h"}
    cluster = {"default": None, "help": "train on local workers (their number, or local), or on a Dask scheduler (its "
               "address or file)"}
    sub = add(train, "train resnet14 --trainable bn --epochs 16 --seed 0",
              model={"positional": True, "help": "resnet14, resnet110, resnet14x8, …"}, results=dict(results),
              device=device, precision={"default": None, "help": "bf16 or fp32; bf16 where the device is fast at it"},
              tensorboard={"action": "store_true", "help": "write event files to tensorboard/ where checkpoints go"})
    comments = _comments()
    comments["optimizer_options"] += "; with defaults: " + "; ".join(
        f"{name}: " + ", ".join(f"{option}={compact(value)}" for option, value in own.items())
        for name, own in OPTIONS.items())
    for field in ("lr", "weight_decay"):
        comments[field] += ", " + ", ".join(f"{name} {own[field]:g}" for name, own in OPTIMIZERS.items())
    for field in dataclasses.fields(Config):
        if field.name != "model":
            sub.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS,
                             type=str if isinstance(field.default, str) else _value,
                             nargs="*" if field.name == "milestones" else None, metavar="X",
                             help=f"{comments[field.name]} ({field.default})".replace("%", "%%"))
    add(test_, "test cifar10-resnet14-bn-s0-78e9d3a6",
        run_or_model={"positional": True, "help": "a run's id, or a network's name for one that is not trained"},
        dataset={"default": "cifar10", "help": "for an untrained network: the set to test it on (cifar10)"},
        seed={"default": 0, "type": int, "help": "for an untrained network: draws it (0)"}, results=dict(results),
        device=device)
    add(list_, 'list --model "resnet*" --trainable bn', results=dict(results),
        **{name: {"default": None, "help": f"only this {name}; * and ? are wildcards"}
           for name in ("dataset", "model", "trainable")})
    add(show, "show cifar10-resnet14-bn-s0-78e9d3a6", run_id={"positional": True, "help": "as `list` prints it"},
        results=dict(results))
    add(verify_, "verify --retrain 1", results=dict(results), device=device,
        retrain={"default": 0, "type": int, "metavar": "N", "help": "train the N cheapest records once more (0)"})
    add(merge_, "merge ../other/results", folder={"positional": True, "help": "a results folder from elsewhere"},
        results=dict(results), device=device)
    add(data_, "data cifar10", name={"positional": True, "help": ", ".join(data.DATASETS) + ", or an image folder"})
    add(campaign_, "campaign --budget 8h", budget=budget, cluster=cluster,
        profile={"default": None, "help": f"its grids alone: {', '.join(PROFILES)}"},
        plan={"action": "store_true", "help": "train nothing; say what it takes, from measured images/s"},
        price={"default": None, "type": float, "metavar": "X", "help": "with --plan: of an hour of a device"},
        watts={"default": None, "type": float, "metavar": "W", "help": "with --plan: that a device draws"},
        results={**results, "default": None, "help": "folder of the records; the profile's"})
    add(reproduce, 'reproduce --profile demo --notebooks "01_depth summary"', profile={**profile, "default": "demo"},
        notebooks={"default": None, "help": "which of them, in quotes; all"}, budget=budget, cluster=cluster,
        fresh={"action": "store_true", "help": "train everything anew, into build/<profile>, which is emptied first "
               "unless such a call left it unfinished"},
        set={"nargs": "+", "default": [], "metavar": "NAME=VALUE",
             "help": "notebook parameters, such as depths=[14,20]"})
    add(report, "report", profile=profile)
    return top


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the one-line form of all others."""

    def error(self, message):
        raise InputError(f"{message}; see {self.prog} --help")


# ------------------------------------------------------------------------------------------- commands

def train(model, results, device, precision, tensorboard, **fields):
    """Train one network, or load its record if there is one."""
    if fields.get("milestones") == [None]:
        fields["milestones"] = None
    if model.startswith("cifar_"):       # an earlier study's spelling says what trains
        fields.setdefault("trainable", "bn" if model.startswith("cifar_freeze") else "all")
    finished = run(Config(model=model, **fields), results=results, device=device, precision=precision,
                   tensorboard=tensorboard)
    if parallel.leads():
        _print_run(finished)


def test_(run_or_model, dataset, seed, results, device):
    """Evaluate a finished run, or an untrained network, on all test images."""
    folder = store.record_folder(results, run_or_model)
    if folder.exists():
        recorded = store.sound(folder)
        network, config = recorded.network(), recorded.config
    else:
        try:
            parse_model(run_or_model)
        except InputError:
            if "-" in run_or_model:
                choose("run", run_or_model, _few(run_or_model, [r.id for r in store.all_runs(results)]))
        config = Config(model=run_or_model, dataset=dataset, seed=seed)
        network = _untrained(config)
    found = evaluate_on_test_set(network, config, device)
    print(f"{run_or_model}: {found.correct:,} of {len(found.predicted):,} test images of {config.dataset} right "
          f"({found.accuracy:.2%}), loss {found.loss:.4f}, on {choose_device(device).type}")


def list_(results, **filters):
    """List the records, one line a run."""
    table = load_runs(results, **{name: value for name, value in filters.items() if value is not None})
    if table.empty:
        print(f"no records in {results} match")
        return
    for row in table.sort_values(["dataset", "depth", "width", "trainable", "epochs", "seed"]).itertuples():
        accuracy = f"{row.test_accuracy:7.2%}" if row.status == "done" else row.status
        print(f"{row.Index:44s} {row.epochs:4d} epochs  {accuracy}  {row.seconds / 60:6.1f} min  {row.device}")


def show(run_id, results):
    """Show a run: its config, history, metrics and provenance."""
    folder = store.record_folder(results, run_id)
    if not folder.exists():
        choose("run", run_id, _few(run_id, [r.id for r in store.all_runs(results)]))
    _print_run(store.sound(folder), whole=True)


def verify_(results, retrain, device):
    """Check every record: files, id, the network's predictions, and on request a second training."""
    return _print_findings(verify.verify(results, retrain, device))


def _print_findings(made) -> int:
    """A line a finding, and their count; 1 if any has a fault."""
    findings = []
    for finding in made:
        findings.append(finding)
        print(f"{'BAD' if finding.faults else 'ok ':4s}{finding.name:44s} "
              + "; ".join(finding.faults or [", ".join(finding.checked)]), flush=True)
    bad = sum(bool(finding.faults) for finding in findings)
    print(f"{len(findings)} checked, {bad or 'none'} with faults")
    return int(bad > 0)


def data_(name):
    """Fetch a dataset where it is not there yet, and check every pixel and label."""
    found = data.load(name)
    if isinstance(found, data.Dataset):
        shape = "×".join(map(str, found.x_train.shape[1:]))
    else:
        shape = f"of any size, decoded at {streaming.speed(found):,.0f} images/s by {streaming.workers()} processes"
    print(f"{name}: {found.n_train:,} training and {len(found.y_test):,} test images {shape}, "
          f"{len(found.classes)} classes, fingerprint {found.fingerprint[:16]}…")


def campaign_(profile, budget, cluster, plan, price, watts, results):
    """Train what the report still lacks, what is worth most first; or one profile's notebooks, cheapest first.

    Stops cleanly when the budget is spent; the next call goes on, here or wherever results/ is. Exit status 1 if a run
    failed.
    """
    if profile:
        tiers = {f"profile {profile}": campaign.profile_configs(choose("profile", profile, PROFILES))}
    else:
        tiers = campaign.tiers()
    results = results or (PROFILES[profile]["results"] if profile else "results")
    if not plan and (price, watts) != (None, None):
        raise InputError("--price and --watts: go with --plan")
    if plan:
        from bnlib import plan
        lacking = [c for configs in tiers.values() for c in configs if store.find_sound(c, results) is None]
        return print(plan.text(lacking, results, price, watts) if lacking else "all runs are there")
    failed, deadline = 0, None if budget is None else time.time() + grid.seconds(budget)
    for tier, configs in tiers.items():
        left = None if deadline is None else max(0.0, deadline - time.time())
        runs = grid.run_all(configs, budget=left, cluster=cluster, results=results)
        failed += len(runs.failed)
        print(f"{tier}: {len(runs)} runs are there, {len(runs.missing)} are missing", flush=True)
        for config in runs.missing:
            if config in runs.failed or grid.started(config, results):
                print(f"  {config.id} ({f'failed: {why}' if (why := runs.failed.get(config)) else 'begun'})")
    return int(failed > 0)


def merge_(folder, results, device):
    """Take in records and unfinished runs from another machine's results folder, each one checked."""
    from bnlib.merge import merge
    return _print_findings(merge(folder, results, device))


def reproduce(profile, notebooks, budget, cluster, fresh, set):
    """Execute the notebooks with a profile, training what is missing; exit status 1 if a run failed."""
    from bnlib import report
    parameters = {}
    for word in (word for words in set for word in _WORD.findall(words)):
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: must be NAME=VALUE, such as depths=[14,20]")
        parameters[name] = _value(value)
    runs = report.reproduce(profile, notebooks.split() if notebooks else None, budget, fresh, cluster, parameters)
    return int(bool(runs.failed))


def report(profile):
    """Render all notebooks and figures from the records, and the site of them."""
    from bnlib import report
    report.render(profile)


# -------------------------------------------------------------------------------------------- details

#: One NAME=VALUE among several: spaces within quotes or brackets belong to the value.
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\[(?:"(?:\\.|[^"\\])*"|'[^']*'|[^\]"'])*\]|\S)+""")


def _one_line(message, category, *_) -> None:
    """A warning as one line, without the path and the line of code that Python puts before it."""
    print(f"bnlib: {message}", file=sys.stderr)


def _print_run(found: store.Run, whole: bool = False) -> None:
    if whole:
        print(found.history.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
        for part in ("config", "metrics", "provenance"):
            print(f"\n{part}\n{json.dumps(found.record[part], indent=1, ensure_ascii=False)}")
        print()
    accuracy = found.metrics["test_accuracy"]
    print(f"{found.id}: {found.status}" + (f", test accuracy {accuracy:.2%}" if found.status == "done" else "")
          + f", {found.metrics['parameters_trained']:,} of {found.metrics['parameters']:,} parameters trained"
          + f", {found.provenance['images_per_second']:,.0f} images/s\n{found.folder}")


def _few(wanted: str, ids: list[str]) -> list[str]:
    """The run ids nearest to the wanted one, for a message that fits on a line."""
    return difflib.get_close_matches(wanted, ids, n=3, cutoff=0.0) or ["(no records there)"]


def _untrained(config: Config):
    from bnlib import models
    return models.from_config(config, len(data.load(config.dataset).classes))


def _value(text: str):
    """A flag's text as the value that JSON or Python knows (numbers, lists, true, None), else as text."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(text)
    return text


@cache
def _comments() -> dict[str, str]:
    """What the comment beside each field of Config says of it."""
    return dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.M))


if __name__ == "__main__":
    sys.exit(main())
