"""Optimizers: what was chosen for each, how training went, what restrains γ and β."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd

from bnlib import optim
from bnlib.config import Config
from bnlib.names import DATASETS
from bnlib.options import OPTIMIZERS, options_of
from bnlib.profiles import PROFILES
from bnlib.store import Run
from bnlib.wording import NORM, OPTIMIZER, Sentences, decay_on, machine, setting, shown, trained

#: Passes over the images that the profiles train for on CIFAR-10.
LENGTHS = tuple(PROFILES[name]["training"].get("epochs", Config.epochs) for name in ("short", "paper"))
#: What an optimizer brings along, beside its options: two runs that differ in nothing else are of one comparison.
ITS_OWN = {"optimizer": "sgd", "optimizer_options": "", "lr": None, "momentum": None, "weight_decay": None,
           "batch_size": None, "schedule": "milestones", "milestones": None, "warmup_epochs": 0.0, "log_every": 0}


def own_decay(runs: Iterable[Run]) -> list[Run]:
    """The runs with the weight decay that their optimizer documents: not those that ask what decay restrains."""
    return [run for run in runs if run.config.decay == "all"
            and run.config.weight_decay == OPTIMIZERS[run.config.optimizer]["weight_decay"]]


def optimizers(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run of the comparison of optimizers: those with validation images.

    Columns: run, dataset, model, trainable, task (the config without seed and what is the optimizer's own, as an id),
    optimizer, setting, options (the numbers that it sets), seed, epochs, passes (over the training images), length (16
    or 160, the profiles' passes, whichever those planned are nearer), seconds, val_accuracy, test_accuracy (both %),
    val_loss, test_loss, beta (root mean square), status, device, and chosen: whether the setting is, of those its
    optimizer was given for a task and length, the one of the best validation accuracy in the mean over seeds, of equals
    the one of the lower validation loss. One of which a seed diverged is not chosen. The test images have no say.
    """
    runs, rows, settings = [run for run in runs if run.config.n_val], [], []
    unsaid = shared_batch(runs)
    for run in runs:
        c, passed, done = run.config, course(run), run.status == "done"
        settings.append(dataclasses.replace(c, seed=0).id)
        rows.append({
            "run": run.id, "dataset": c.dataset, "model": c.model, "trainable": c.trainable,
            "task": dataclasses.replace(c, seed=0, epochs=c.bn_first + 1, **ITS_OWN).id, "optimizer": c.optimizer,
            "setting": setting(c, **unsaid), "options": _numbers(c), "seed": c.seed, "epochs": c.epochs,
            "passes": passed["passes"].iloc[-1], "length": min(LENGTHS, key=lambda n: abs(
                np.log(c.epochs * optim.passes(c) / n))),
            "seconds": passed["seconds"].iloc[-1], "beta": root_mean_square(run.beta),
            **{f"{part}_accuracy": 100 * run.metrics[f"{part}_accuracy"] if done else np.nan
               for part in ("val", "test")},
            **{f"{part}_loss": run.metrics[f"{part}_loss"] if done else np.nan for part in ("val", "test")},
            "status": run.status, "device": made_on(run)})
    table = pd.DataFrame(rows, columns=["run", "dataset", "model", "trainable", "task", "optimizer", "setting",
                                        "options", "seed", "epochs", "passes", "length", "seconds", "val_accuracy",
                                        "test_accuracy", "val_loss", "test_loss", "beta", "status", "device"])
    among = ["task", "optimizer", "length"]
    means = table.assign(id=settings).groupby([*among, "id"], as_index=False, sort=False)[["val_accuracy", "val_loss"]]
    means = means.agg(lambda values: values.mean(skipna=False)).dropna()
    best = means.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).drop_duplicates(among)
    return table.assign(chosen=pd.Series(settings, dtype=object).isin(best["id"]))


def shared_batch(runs: Iterable[Run]) -> dict[str, int]:
    """The batch size that all runs but those of LBFGS share, as what `wording.setting` need not say; or nothing."""
    sizes = {run.config.batch_size for run in runs if run.config.optimizer != "lbfgs"}
    return {"batch_size": sizes.pop()} if len(sizes) == 1 else {}


def _numbers(config: Config) -> dict[str, float]:
    """What may be searched over of an optimizer: rate and batch size, and those of its options that are numbers."""
    own = options_of(config.optimizer, config.optimizer_options)
    return {"lr": config.lr, "batch size": config.batch_size} | {
        name: value for name, value in own.items() if type(value) in (int, float)}


def searched(table: pd.DataFrame) -> Sentences:
    """What was tried of each optimizer and what the validation images chose, from `optimizers`."""
    said = Sentences()
    for (trainable, optimizer), rows in table.groupby(["trainable", "optimizer"], sort=False):
        chosen, tried = rows[rows["chosen"]]["setting"].unique(), list(dict.fromkeys(rows["setting"]))
        if len(chosen):
            edges = _edges(rows[rows["chosen"]]["options"].iloc[0], rows["options"])
            said.append(f"{OPTIMIZER[optimizer]}, {trained(trainable)}: tried {'; '.join(tried)}; chosen {chosen[0]}"
                        + (f", at the edge of what was tried in {' and '.join(edges)}." if edges else "."))
    return said


def _edges(chosen: dict[str, float], tried: Iterable[dict[str, float]]) -> list[str]:
    """The options of which several values were tried and the smallest or the largest was chosen."""
    values = {name: {options[name] for options in tried} for name in chosen}
    return [name for name, found in values.items() if len(found) > 1 and chosen[name] in (min(found), max(found))]


def course(run: Run) -> pd.DataFrame:
    """A run's history with `passes` over the training images and `seconds` of training as they add up.

    Each pass counts as long as the fastest of the run took, since a machine that is busy is no optimizer's fault.
    """
    history = run.history
    passes = history["passes"] if "passes" in history else pd.Series(1.0, history.index)
    return history.assign(passes=passes.cumsum(), seconds=(history["seconds"] / passes).min() * passes.cumsum())


def made_on(run: Run) -> str:
    """What the seconds of a run depend on beside its config: machine, precision, and Winograd's convolution if by that.

    Whether blocks are whole by AMX follows from config and machine, so that networks with batch norm and without
    compare; and from how old the code was, as all seconds do.
    """
    made = run.provenance
    follows = made["conv_path"] == "torch" or made["conv_path"].startswith("our AMX kernel")
    return ", ".join([machine(made["device"]), made["precision"], *[made["conv_path"]] * (not follows)])


def timed_alike(runs: Iterable[Run]) -> list[Run]:
    """The runs whose seconds compare: those made on what most were."""
    runs = list(runs)
    made = [made_on(run) for run in runs]
    return [run for run, on in zip(runs, made, strict=True) if on == max(made, key=made.count)]


def logged_losses(run: Run) -> pd.DataFrame:
    """The training loss of the steps that a run logged, with the epoch, passes and seconds at which each ended.

    Columns: step, epoch, passes, seconds, loss (nats, of the step's batch); steps of an epoch count as equally long.
    Of a folder of images, whose number no record has, the last step logged counts as the last.
    """
    steps, passed, c = run.trajectory["steps"], course(run), run.config
    known = c.n_train or c.dataset in DATASETS
    in_an_epoch = -(-c.images // c.batch_size) if known else steps[-1:] / max(1, len(passed))
    epoch = np.minimum(steps / in_an_epoch, len(passed))
    table = {"step": steps, "epoch": epoch, "loss": run.trajectory["step_loss"]}
    return pd.DataFrame(table | {kind: np.interp(epoch, np.r_[0, passed["epoch"]], np.r_[0, passed[kind]])
                                 for kind in ("passes", "seconds")})


def growth(runs: Iterable[Run]) -> pd.DataFrame:
    """The size of γ and β as training goes on: a row a run and logged epoch, with their root mean square.

    Columns: run, model, trainable, optimizer, setting, decay, weight_decay, seed, epoch, gamma, beta.
    """
    columns = ["run", "model", "trainable", "optimizer", "setting", "decay", "weight_decay", "seed", "epoch", "gamma",
               "beta"]
    parts = []
    for run in runs:
        c, logged = run.config, run.trajectory
        size = {part: np.sqrt(np.mean(np.concatenate(
            [values.astype(float) ** 2 for values in logged[part].values()], axis=1), axis=1))
            for part in ("gamma", "beta")}
        parts.append(pd.DataFrame({
            "run": run.id, "model": c.model, "trainable": c.trainable, "optimizer": c.optimizer,
            "setting": setting(c, batch_size=c.batch_size, weight_decay=c.weight_decay), "decay": c.decay,
            "weight_decay": c.weight_decay, "seed": c.seed, "epoch": logged["epochs"], **size})[columns])
    return pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)


def restrained(runs: Iterable[Run]) -> Sentences:
    """What weight decay on γ, on β, on both or on neither leaves of them, a sentence a run."""
    return Sentences(
        f"Weight decay of {run.config.weight_decay:g} {decay_on(run.config.decay)}: root mean square of γ "
        f"{root_mean_square(run.gamma):.2f}, of β {root_mean_square(run.beta):.2f}; test accuracy "
        f"{100 * run.metrics['test_accuracy']:.1f} % (seed {run.config.seed}, {run.config.epochs} epochs)."
        for run in runs if run.status == "done")


def root_mean_square(values: dict[str, np.ndarray]) -> float:
    """Of all channels of all layers: the size of γ or β of a run."""
    return float(np.sqrt(np.mean(np.concatenate(list(values.values())) ** 2)))


def alone_logged(runs: Iterable[Run]) -> list[Run]:
    """The runs whose record keeps the loss of single steps alone: those of `with_and_without`."""
    return [run for run in runs if not run.config.keep_affine and "steps" in run.trajectory]


def with_and_without(runs: Iterable[Run]) -> pd.DataFrame:
    """The training loss at each logged step of runs that keep the loss alone, a row a run and step.

    Columns: run, dataset, classes, model, norm, optimizer, setting, seed, batch_size, step, seconds (of training until
    then, all steps of an epoch taken as equally long; NaN but for those `timed_alike`), loss (nats, of the step's
    batch).
    """
    columns = ["run", "dataset", "classes", "model", "norm", "optimizer", "setting", "seed", "batch_size", "step",
               "seconds", "loss"]
    runs, parts = alone_logged(runs), []
    timed = {run.id for run in timed_alike(runs)}
    for run in runs:
        c, logged = run.config, logged_losses(run)
        parts.append(logged[["step", "loss"]].assign(
            seconds=logged["seconds"] if run.id in timed else np.nan,
            run=run.id, dataset=c.dataset, classes=run.record["classes"], model=c.model, norm=c.norm,
            optimizer=c.optimizer, seed=c.seed, batch_size=c.batch_size,
            setting=setting(c, schedule="constant", batch_size=c.batch_size))[columns])
    return pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)


def last_loss(run: Run) -> float:
    """The mean training loss over the last tenth of a run's logged steps; infinite where it is no number."""
    losses = run.trajectory["step_loss"]
    mean = float(np.mean(losses[-max(1, len(losses) // 10):]))
    return mean if np.isfinite(mean) else np.inf


def speeds(runs: Iterable[Run]) -> Sentences:
    """Where each run of `with_and_without` has come after its steps, a sentence a run."""
    runs = {run.id: run for run in runs}
    return Sentences(
        f"{shown(last.dataset)}, {NORM[last.norm]}, {OPTIMIZER[last.optimizer]}, {last.setting}: a "
        f"training loss of {last_loss(runs[last.run]):.2f} over the last tenth of {last.step:,} steps"
        f"{'' if np.isnan(last.seconds) else f', in {last.seconds:,.0f} seconds'} (seed {last.seed}); "
        f"guessing gives {np.log(last.classes):.2f}."
        for last in with_and_without(runs.values()).drop_duplicates("run", keep="last").itertuples())
