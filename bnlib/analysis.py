"""Runs in, tables out: accuracies, statistics of γ and β, comparison with published numbers."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bnlib import data
from bnlib.config import DEEPOBS, OPTIMIZERS, Config, InputError, choose, parse_model
from bnlib.profiles import OF_THE_PAPER, PRESETS, modification, variant
from bnlib.store import Run

DEAD = 0.01            # |γ| below which the paper counts a feature as switched off (Sec. 5)

PAPER_EPOCHS = Config().epochs      # after which the paper reports its numbers


class Sentences(list):
    """Sentences with computed numbers; a notebook shows them as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"* {sentence}" for sentence in self)


# ------------------------------------------------------------------------------------------- accuracy

def plain(runs: Iterable[Run]) -> list[Run]:
    """The runs of the protocol, without those that vary it, be it by a network of another study (09, 10)."""
    return [run for run in runs
            if not variant(run.config, OF_THE_PAPER)
            and parse_model(run.config.model).family not in ("plain", *DEEPOBS)]


def varied(runs: Iterable[Run], *fields: str) -> list[Run]:
    """The runs of the protocol, and those that vary these fields of `Config` and nothing else."""
    return [run for run in runs
            if all(part.split("=")[0] in fields for part in variant(run.config).split(", ") if part)]


def pair(runs: Iterable[Run]) -> list[Run]:
    """A BN-only run and one of full training that can stand side by side, in this order, or what there is of them.

    Of one network; the longest training that both have, else the longest; of these the first seed.
    """
    done = sorted((run for run in runs if run.status == "done"), key=lambda run: (-run.config.epochs, run.config.seed))
    of = {what: [run for run in done if run.config.trainable == what] for what in ("bn", "all")}
    shared = {run.config.epochs for run in of["bn"]} & {run.config.epochs for run in of["all"]}
    return [next(run for run in found if run.config.epochs == max(shared, default=run.config.epochs))
            for found in of.values() if found]


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Of each network the rows of one number of epochs, so that no figure mixes 16 with 160.

    The one of which there is most to compare, settings and what trains; of equals the longest training.
    """
    kinds = [column for column in ("trainable", "variant") if column in table]
    settings = table.drop_duplicates(["model", "epochs", *kinds]).value_counts(["model", "epochs"]).reset_index()
    best = settings.sort_values(["count", "epochs"]).drop_duplicates("model", keep="last").set_index("model")["epochs"]
    return table[table["epochs"] == table["model"].map(best)]


def accuracy(runs: Iterable[Run], metric: str = "test_accuracy") -> pd.DataFrame:
    """Final test accuracy (or another share among the metrics) in %, a row a setting: mean and deviation over seeds.

    Columns: dataset, model, depth, width, trainable, variant, epochs, parameters (trained), mean, std (of the sample,
    NaN for one seed), n (finished seeds), diverged (seeds that diverged), seeds, devices.
    """
    keys = ["dataset", "depth", "width", "model", "trainable", "variant", "epochs", "parameters"]
    rows = pd.DataFrame([{
        "dataset": run.config.dataset, "depth": run.config.depth, "width": run.config.width, "model": run.config.model,
        "trainable": run.config.trainable, "variant": variant(run.config), "epochs": run.config.epochs,
        "parameters": run.metrics["parameters_trained"], "seed": run.config.seed,
        "accuracy": 100 * run.metrics[metric] if run.status == "done" else np.nan,
        "diverged": run.status == "diverged", "device": run.provenance["device"],
    } for run in runs], columns=[*keys, "seed", "accuracy", "diverged", "device"])
    return rows.groupby(keys, as_index=False).agg(
        mean=("accuracy", "mean"), std=("accuracy", "std"), n=("accuracy", "count"), diverged=("diverged", "sum"),
        seeds=("seed", listed), devices=("device", listed))


def top1_and_top5(runs: Iterable[Run]) -> pd.DataFrame:
    """`accuracy` by the most probable class (`top` 1) and by the five most probable (5), and what chance gives.

    Of runs on sets of more than ten classes; columns top and chance (%) beside those of `accuracy`.
    """
    runs = [run for run in runs if "test_top5_accuracy" in run.metrics]
    classes = {run.config.dataset: run.record["classes"] for run in runs}
    tables = [accuracy(runs, metric).assign(top=top) for top, metric in (
        (1, "test_accuracy"), (5, "test_top5_accuracy"))]
    both = pd.concat(tables, ignore_index=True)
    return both.assign(chance=100 * both["top"] / both["dataset"].map(classes))


def sizes(runs: Iterable[Run]) -> pd.DataFrame:
    """The table of `accuracy`, and what a trained network takes to store, `bytes`.

    Four for each parameter that trained, each running mean and each running variance; eight for the seed that gives
    back what was frozen.
    """
    runs = list(runs)
    stored = {(run.config.model, run.config.trainable): 4 * (
        run.metrics["parameters_trained"] + sum(len(row) for part in (run.running_mean, run.running_var)
                                                for row in part.values())
    ) + 8 * (run.metrics["parameters_trained"] < run.metrics["parameters"]) for run in runs}
    table = accuracy(runs)
    return table.assign(bytes=[stored[row.model, row.trainable] for row in table.itertuples()])


def listed(values: Iterable) -> str:
    return ", ".join(map(str, sorted(set(values))))


def published(metric: str = "test accuracy", dataset: str | None = None) -> pd.DataFrame:
    """The published values of a metric: source, where, dataset, model, trainable, value, unit, note.

    Raises InputError for a metric that `published.csv` does not hold.
    """
    table = pd.read_csv(Path(__file__).with_name("published.csv"))
    if metric not in set(table["metric"]):
        raise InputError(f"metric={metric!r}: not one of {', '.join(sorted(set(table['metric'])))}")
    table = table[table["metric"] == metric]
    return (table if dataset is None else table[table["dataset"] == dataset]).reset_index(drop=True)


def compare(table: pd.DataFrame, published: pd.DataFrame) -> Sentences:
    """One sentence a setting of `accuracy`'s table that is published: ours, theirs, the difference."""
    said = Sentences()
    for row in table[table["n"] > 0].itertuples():
        same = (published["dataset"] == row.dataset) & (published["model"] == row.model) & (
            published["trainable"] == row.trainable)
        for other in published[same].itertuples():
            said.append(f"{name(row.model)}, {trained(row.trainable)}: {spread(row)} after {row.epochs} epochs; "
                        f"{other.source} ({other.where}): {other.value:g} %; "
                        f"difference {row.mean - other.value:+.1f} points.")
    if not said:
        said.append("None of these settings has been published; the numbers stand for themselves.")
    return said


def about_images(name: str) -> Sentences:
    """Whether a set of images is here, and what to do if it is not."""
    if data.at_hand(name):
        return Sentences([f"{SHOWN.get(name, name)}: the images are here."])
    return Sentences([f"{SHOWN.get(name, name)}: the images are not here, so nothing can be trained on them. Put the "
                      f"folders `train/` and `val/`, with a folder of images for each class, into `$BNLIB_DATA/{name}` "
                      "and run this notebook again."])


def compare_dead(table: pd.DataFrame) -> Sentences:
    """What share of γ is switched off, from `dead_features`, beside the published one."""
    claim = published("share of features disabled").iloc[0]
    return Sentences(
        f"{name(row.model)}, {trained(row.trainable)}: {row.mean:.1f} % of all |γ| below {DEAD} after {row.epochs} "
        f"epochs ({seeds_of(row.n)}); {claim['source']} for {trained(claim['trainable'])} after {PAPER_EPOCHS}: "
        f"about {claim['value']:g} %." for row in table.itertuples())


def trained(what: str) -> str:
    """How a choice of `trainable` is called in sentences and legends: `bn` → `BN only`."""
    names = {"all": "all parameters", "bn": "BN", "gamma": "γ", "beta": "β", "output": "output layer",
             "shortcut": "shortcuts", "weights": "all but γ and β", "none": "nothing trained"}
    parts = what.split("+")
    named = [names.get(part) or f"{part.removeprefix('random')} random weights a channel" for part in parts]
    return " and ".join(named) + ("" if parts[0] in ("all", "weights", "none") else " only")


def name(model: str) -> str:
    """`resnet14x8` → `ResNet-14-8`, the paper's spelling; `resnet1d14` → `1-D ResNet-14`;
    `imagenet_resnet50` → `ImageNet ResNet-50`; `plain20` → `plain-20`, He et al.'s."""
    if model.startswith("imagenet"):
        model = model.removeprefix("imagenet_").removesuffix("_bn").replace("vgg", "VGG-").replace("_", "-")
        return "ImageNet " + model.replace("wide-resnet", "Wide ResNet-").replace("resnet", "ResNet-")
    model = model.replace("resnet1d", "1-D resnet").replace("resnet", "ResNet-").replace("plain", "plain-")
    return model.replace("x", "-")


#: How a dataset is called in sentences.
SHOWN = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "digits": "scikit-learn's digits",
         "sequences": "synthetic sequences", "imagenet": "ImageNet", "large_digits": "digits of many sizes and colours"}


def spread(row) -> str:
    """`43.4 ± 0.3 % (3 seeds)`, or what there is of it."""
    if not row.n:
        return f"diverged ({seeds_of(row.diverged)})"
    deviation = "" if np.isnan(row.std) else f" ± {row.std:.1f}"
    return f"{row.mean:.1f}{deviation} % ({seeds_of(row.n)})"


def seeds_of(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


# ------------------------------------------------------------------------------------------- optimizers

#: How an optimizer is called.
OPTIMIZER = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lbfgs": "LBFGS", "adabound": "AdaBound", "adan": "Adan",
             "lion": "Lion", "prodigy": "Prodigy"}


def setting(config: Config) -> str:
    """What was chosen for an optimizer: `lr 0.003`, of LBFGS `batch 5,000, max_iter=5 history_size=10`."""
    batch = [f"batch {min(config.batch_size, config.n_train or config.batch_size):,}"]
    first = batch if config.optimizer == "lbfgs" else [f"lr {config.lr:g}"]
    return ", ".join(first + [config.optimizer_options] * bool(config.optimizer_options))


def optimizers(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run of the comparison of optimizers: those with validation images and each optimizer's own decay.

    Columns: run, dataset, model, trainable, optimizer, setting, lr, seed, epochs, passes (over the training images),
    length (of training: passes to the nearest power of ten, so that no 16 epochs stand beside 160), seconds,
    val_accuracy, test_accuracy (both %), val_loss, test_loss, beta (root mean square), status, and chosen: whether the
    setting is, of those its optimizer was given there, the one of the best validation accuracy in the mean over seeds,
    of equals the one of the lower validation loss. The test images have no say.
    """
    rows = []
    for run in runs:
        c = run.config
        if not c.n_val or c.weight_decay != OPTIMIZERS[c.optimizer]["weight_decay"] or c.decay != "all":
            continue
        passed, done = course(run), run.status == "done"
        rows.append({
            "run": run.id, "dataset": c.dataset, "model": c.model, "trainable": c.trainable, "optimizer": c.optimizer,
            "setting": setting(c), "lr": c.lr, "seed": c.seed, "epochs": c.epochs,
            "passes": passed["passes"].iloc[-1], "length": 10 ** round(np.log10(passed["passes"].iloc[-1])),
            "seconds": passed["seconds"].iloc[-1], "beta": root_mean_square(run.beta),
            **{f"{part}_accuracy": 100 * run.metrics[f"{part}_accuracy"] if done else np.nan
               for part in ("val", "test")},
            **{f"{part}_loss": run.metrics[f"{part}_loss"] if done else np.nan for part in ("val", "test")},
            "status": run.status})
    table = pd.DataFrame(rows, columns=["run", "dataset", "model", "trainable", "optimizer", "setting", "lr", "seed",
                                        "epochs", "passes", "length", "seconds", "val_accuracy", "test_accuracy",
                                        "val_loss", "test_loss", "beta", "status"])
    among = ["dataset", "model", "trainable", "optimizer", "length"]
    keys = [*among, "setting", "epochs"]
    means = table.groupby(keys, as_index=False, sort=False)[["val_accuracy", "val_loss"]].mean().dropna()
    best = means.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).drop_duplicates(among)
    return table.assign(chosen=pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(best[keys])))


def with_and_without(runs: Iterable[Run]) -> pd.DataFrame:
    """The training loss at each logged step of runs that keep the loss alone, a row a run and step.

    Columns: run, dataset, classes, model, norm, optimizer, setting, seed, batch_size, step, seconds (of training until
    then, all steps of an epoch taken as equally long), loss (nats, of the step's batch).
    """
    parts = []
    for run in alone_logged(runs):
        c, history, steps = run.config, course(run), run.trajectory["steps"]
        epochs = steps / steps[-1] * len(history)
        parts.append(pd.DataFrame({
            "run": run.id, "dataset": c.dataset, "classes": run.record["classes"], "model": c.model, "norm": c.norm,
            "optimizer": c.optimizer, "setting": setting(c), "seed": c.seed, "batch_size": c.batch_size, "step": steps,
            "seconds": np.interp(epochs, np.r_[0, history["epoch"]], np.r_[0, history["seconds"]]),
            "loss": run.trajectory["step_loss"]}))
    columns = ["run", "dataset", "classes", "model", "norm", "optimizer", "setting", "seed", "batch_size", "step",
               "seconds", "loss"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def alone_logged(runs: Iterable[Run]) -> list[Run]:
    """The runs whose record keeps the loss of single steps alone: those of `with_and_without`."""
    return [run for run in runs if not run.config.keep_affine and "steps" in run.trajectory]


def last_loss(run: Run) -> float:
    """The mean training loss over the last tenth of a run's logged steps; infinite where it is no number."""
    losses = run.trajectory["step_loss"]
    mean = float(np.mean(losses[-max(1, len(losses) // 10):]))
    return mean if np.isfinite(mean) else np.inf


#: How the presence of batch norm is called.
NORM = {"batch": "with batch norm", "none": "without batch norm"}


def speeds(runs: Iterable[Run]) -> Sentences:
    """Where each run of `with_and_without` has come after its steps, a sentence a run."""
    runs = {run.id: run for run in runs}
    return Sentences(
        f"{SHOWN.get(last.dataset, last.dataset)}, {NORM[last.norm]}, {OPTIMIZER[last.optimizer]}, {last.setting}: a "
        f"training loss of {last_loss(runs[last.run]):.2f} over the last tenth of {last.step:,} steps, in "
        f"{last.seconds:,.0f} seconds (seed {last.seed}); guessing gives {np.log(last.classes):.2f}."
        for last in with_and_without(runs.values()).drop_duplicates("run", keep="last").itertuples())


def restrained(runs: Iterable[Run]) -> Sentences:
    """What weight decay on γ, on β, on both or on neither leaves of them, a sentence a run."""
    called = {"all": "on γ and β", "gamma": "on γ alone", "beta": "on β alone", "none": "on neither"}
    return Sentences(
        f"Weight decay of {run.config.weight_decay:g} {called[run.config.decay]}: root mean square of γ "
        f"{root_mean_square(run.gamma):.2f}, of β {root_mean_square(run.beta):.2f}; test accuracy "
        f"{100 * run.metrics['test_accuracy']:.1f} % (seed {run.config.seed}, {run.config.epochs} epochs)."
        for run in runs if run.status == "done")


def root_mean_square(values: dict[str, np.ndarray]) -> float:
    """Of all channels of all layers: the size of γ or β of a run."""
    return float(np.sqrt(np.mean(np.concatenate(list(values.values())) ** 2)))


def course(run: Run) -> pd.DataFrame:
    """A run's history with `passes` over the training images and `seconds` of training as they add up."""
    history = run.history
    passes = history["passes"] if "passes" in history else pd.Series(1.0, history.index)
    return history.assign(passes=passes.cumsum(), seconds=history["seconds"].cumsum())


def searched(table: pd.DataFrame) -> Sentences:
    """What was tried of each optimizer and what the validation images chose, from `optimizers`."""
    said = Sentences()
    for (trainable, optimizer), rows in table.groupby(["trainable", "optimizer"], sort=False):
        chosen, tried = rows[rows["chosen"]]["setting"].unique(), list(dict.fromkeys(rows["setting"]))
        if len(chosen):
            edge = optimizer != "lbfgs" and len(tried) > 1 and rows[rows["chosen"]]["lr"].iloc[0] in (
                rows["lr"].min(), rows["lr"].max())
            said.append(f"{OPTIMIZER[optimizer]}, {trained(trainable)}: {'; '.join(tried)} were tried; chosen: "
                        f"{chosen[0]}" + (", at the edge of what was tried." if edge else "."))
    return said


def growth(runs: Iterable[Run]) -> pd.DataFrame:
    """The size of γ and β as training goes on: a row a run and logged epoch, with their root mean square.

    Columns: run, model, trainable, optimizer, setting, decay, weight_decay, seed, epoch, gamma, beta.
    """
    parts = []
    for run in runs:
        c, logged = run.config, run.trajectory
        size = {part: np.sqrt(np.mean(np.concatenate(
            [values.astype(float) ** 2 for values in logged[part].values()], axis=1), axis=1))
            for part in ("gamma", "beta")}
        parts.append(pd.DataFrame({
            "run": run.id, "model": c.model, "trainable": c.trainable, "optimizer": c.optimizer, "setting": setting(c),
            "decay": c.decay, "weight_decay": c.weight_decay, "seed": c.seed, "epoch": logged["epochs"], **size}))
    columns = ["run", "model", "trainable", "optimizer", "setting", "decay", "weight_decay", "seed", "epoch", "gamma",
               "beta"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


# --------------------------------------------------------------------------------------- γ and β of a run

def affine(runs: Iterable[Run]) -> pd.DataFrame:
    """γ and β of every channel: one row a channel, with run, dataset, model, depth, width, trainable, epochs, seed,
    number of its layer (1 for the first), layer, channel, gamma and beta. Runs that diverged are left out."""
    parts = []
    for run in runs:
        if run.status != "done":
            continue
        about = {"run": run.id, "dataset": run.config.dataset, "model": run.config.model, "depth": run.config.depth,
                 "width": run.config.width, "trainable": run.config.trainable, "epochs": run.config.epochs,
                 "seed": run.config.seed}
        gamma, beta = run.gamma, run.beta
        parts += [pd.DataFrame(about | {"number": number, "layer": layer, "channel": range(len(gamma[layer])),
                                        "gamma": gamma[layer], "beta": beta[layer]})
                  for number, layer in enumerate(gamma, 1)]
    columns = ["run", "dataset", "model", "depth", "width", "trainable", "epochs", "seed", "number", "layer", "channel",
               "gamma", "beta"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def dead_share(gamma: dict[str, np.ndarray], below: float = DEAD) -> pd.Series:
    """Share of channels in each layer whose |γ| is under `below`.

    The paper counts a feature as switched off at 0.01 (Sec. 5): accuracy stays the same when such γ are set to zero.
    Returns one value in [0, 1] a layer, indexed by layer name, first layer first.
    Raises InputError for a negative threshold.
    """
    if below < 0:
        raise InputError(f"below={below}: must be at least 0")
    return pd.Series({layer: float((np.abs(values) < below).mean()) for layer, values in gamma.items()}, dtype=float)


def dead_features(runs: Iterable[Run], below: float = DEAD) -> pd.DataFrame:
    """Share of all channels with |γ| < `below`, in %: mean and standard deviation over seeds, one row a setting."""
    keys = ["dataset", "depth", "width", "model", "trainable", "epochs"]
    by_run = pd.DataFrame([{**{key: getattr(run.config, key) for key in keys}, "seed": run.config.seed,
                            "dead": 100 * dead_share({"all": np.concatenate(list(run.gamma.values()))}, below)["all"]}
                           for run in runs if run.status == "done" and run.gamma], columns=[*keys, "seed", "dead"])
    return by_run.groupby(keys, as_index=False).agg(mean=("dead", "mean"), std=("dead", "std"), n=("dead", "count"))


def dead_by_layer(runs: Iterable[Run], below: float = DEAD) -> pd.DataFrame:
    """Share of a layer's channels with |γ| < `below`, in %, one row a run and layer.

    Columns: run, dataset, model, depth, width, trainable, epochs, seed, number (of the layer, 1 for the first), layer,
    dead. Runs that diverged are left out.
    """
    keys = ["dataset", "model", "depth", "width", "trainable", "epochs", "seed"]
    rows = [{"run": run.id, **{key: getattr(run.config, key) for key in keys}, "number": number, "layer": layer,
             "dead": 100 * share}
            for run in runs if run.status == "done"
            for number, (layer, share) in enumerate(dead_share(run.gamma, below).items(), 1)]
    return pd.DataFrame(rows, columns=["run", *keys, "number", "layer", "dead"])


# ------------------------------------------------------------------------------------- batch norm taken apart

def taken_apart(runs: Iterable[Run]) -> list[Run]:
    """The runs of `09_dissect_batchnorm` with batch norm everywhere or nowhere, at the earlier study's learning rate.

    Of each network and dataset those of the longest training.
    """
    chosen = [run for run in runs if len(set(run.config.positions.split(","))) == 1 and run.config.lr in {
        preset["lr"] for preset in PRESETS.values()
        if (preset["model"], preset["dataset"]) == (run.config.model, run.config.dataset)}]
    longest: dict[tuple, int] = {}
    for run in chosen:
        key = run.config.dataset, run.config.model
        longest[key] = max(longest.get(key, 0), run.config.epochs)
    return [run for run in chosen if run.config.epochs == longest[run.config.dataset, run.config.model]]


def _about(run: Run) -> dict:
    """What tells apart the runs of `09_dissect_batchnorm`."""
    return {"run": run.id, "dataset": run.config.dataset, "model": run.config.model, "positions": run.config.positions,
            "modification": modification(run.config), "lr": run.config.lr, "seed": run.config.seed}


def histories(runs: Iterable[Run]) -> pd.DataFrame:
    """Loss, and accuracy in %, on training and test images: one row a run and epoch, and what tells runs apart."""
    parts = [run.history.assign(**_about(run), epoch=run.history["epoch"]) for run in runs]
    if not parts:
        return pd.DataFrame(columns=["modification", "lr", "epoch"])
    table = pd.concat(parts, ignore_index=True)
    accuracies = [column for column in table if column.endswith("accuracy")]
    return table.assign(**{column: 100 * table[column] for column in accuracies})


def by_positions(runs: Iterable[Run]) -> pd.DataFrame:
    """Final test accuracy in %: mean, std and n over seeds, one row a network, its positions and modification."""
    table = pd.DataFrame([_about(run) | {"accuracy": 100 * run.metrics["test_accuracy"]} for run in runs
                          if run.status == "done"])
    if table.empty:
        return table
    return table.groupby(["dataset", "model", "positions", "modification"], as_index=False).agg(
        mean=("accuracy", "mean"), std=("accuracy", "std"), n=("accuracy", "count"), seed=("seed", "first"))


def layer_means(runs: Iterable[Run]) -> pd.DataFrame:
    """Mean γ and β of each layer, one row a run, logged epoch and layer, and the layer's number from the image on.

    A layer that has a bias in batch norm's stead has the mean of that as β, and no γ.
    """
    rows = []
    for run in runs:
        gamma, beta = run.trajectory["gamma"], run.trajectory["beta"] | run.trajectory.get("bias", {})
        mixed = gamma and len(beta) > len(gamma)         # conv1, conv2, …: some with batch norm, some with a bias
        for number, layer in enumerate(sorted(beta) if mixed else beta, 1):
            for i, epoch in enumerate(run.trajectory["epochs"]):
                mean = gamma[layer][i].mean(dtype=float) if layer in gamma else np.nan
                rows.append(_about(run) | {"epoch": epoch, "number": number, "layer": layer.split(".")[0],
                                           "gamma": mean, "beta": beta[layer][i].mean(dtype=float)})
    return pd.DataFrame(rows)


def surface(run: Run, layer: str, part: str = "gamma") -> pd.DataFrame:
    """γ or β of one layer over training: a row a channel, sorted by its final value, a column a logged epoch.

    Of a run that logged steps (`log_every`), a column a step. Raises InputError for a layer that has none.
    """
    steps = "steps" in run.trajectory
    values = run.trajectory[f"step_{part}" if steps else part]
    logged = pd.DataFrame(values[choose("layer", layer, values)].T.astype(float),
                          columns=run.trajectory["steps" if steps else "epochs"])
    return logged.sort_values(logged.columns[-1], kind="stable").rename_axis(
        index="channel", columns="step" if steps else "epoch")


def residual_and_plain(runs: Iterable[Run]) -> pd.DataFrame:
    """Final test accuracy in % by depth, what trained and epochs: residual beside plain networks, ours and published.

    Columns: dataset, depth, trained, epochs, seeds (the fewest), and for `residual` and `plain` ours (mean over seeds),
    the earlier study's and He et al.'s; NaN where there is none.
    """
    table = accuracy(run for run in runs if not variant(run.config))
    sources = {"ours": None, "study": "residual-versus-plain study", "He et al.": "He et al. 2015"}
    rows: dict[tuple, dict] = {}
    for row in table.itertuples():
        family, depth, width = parse_model(row.model)
        if family not in ("resnet", "plain") or width != 1:
            continue
        kind = "plain" if family == "plain" else "residual"
        found = rows.setdefault((row.dataset, depth, row.trainable, row.epochs), {
            "seeds": row.n, **{f"{k}, {s}": np.nan for k in ("residual", "plain") for s in sources}})
        found["seeds"] = min(found["seeds"], row.n)
        found[f"{kind}, ours"] = row.mean
        known = published(dataset=row.dataset)
        known = known[(known["model"] == row.model) & (known["trainable"] == row.trainable)]
        known = known.set_index("source")["value"]
        found.update({f"{kind}, {short}": known.get(source) for short, source in sources.items() if source in known})
    keys = ["dataset", "depth", "trained", "epochs"]
    made = pd.DataFrame([dict(zip(keys, key, strict=True)) | found for key, found in rows.items()], columns=[
        *keys, "seeds", *(f"{kind}, {source}" for kind in ("residual", "plain") for source in sources)])
    return made.sort_values(["dataset", "trained", "epochs", "depth"], ignore_index=True)


# ----------------------------------------------------------------------------------------- provenance

def provenance(runs: Iterable[Run]) -> pd.DataFrame:
    """Where the numbers come from, one row a network, mode and device: epochs, seeds, hours, images/s, versions."""
    rows = pd.DataFrame([{
        "network": run.config.model, "trained": run.config.trainable,
        "epochs": run.config.epochs, "seed": run.config.seed, "hours": run.provenance["seconds"] / 3600,
        "images/s": run.provenance["images_per_second"], "device": run.provenance["device"],
        "precision": run.provenance["precision"], "torch": run.provenance["torch"],
        "code": str(run.provenance["commit"]),
    } for run in runs], columns=["network", "trained", "epochs", "seed", "hours", "images/s", "device", "precision",
                                 "torch", "code"])
    return rows.groupby(["network", "trained", "epochs", "device", "precision", "torch"], as_index=False).agg(
        seeds=("seed", listed), hours=("hours", "sum"), **{"images/s": ("images/s", "median")}, code=("code", listed))
