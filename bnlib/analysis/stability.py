"""Whether deep networks diverge when batch norm alone trains: short trials, with warm-up or not, in two precisions."""

from collections.abc import Iterable

import pandas as pd

from bnlib.profiles import is_trial
from bnlib.store import Run
from bnlib.wording import Sentences, name, with_warmup


def trials(runs: Iterable[Run]) -> pd.DataFrame:
    """The trials among the runs, a row a run and epoch: run, dataset, model, depth, warmup (epochs), precision, seed,
    status, classes, images (of training), epochs (planned), test (final accuracy, %), epoch, loss (of training,
    nats)."""
    parts = [run.history[["epoch"]].assign(
        run=run.id, dataset=run.config.dataset, model=run.config.model, depth=run.config.depth,
        warmup=run.config.warmup_epochs, precision=run.provenance["precision"].replace("; ", ", then "),
        seed=run.config.seed, status=run.status, classes=run.record["classes"], images=run.config.n_train,
        epochs=run.config.epochs, test=100 * run.metrics["test_accuracy"],
        loss=run.history["train_loss"]) for run in runs if is_trial(run.config)]
    if not parts:
        return pd.DataFrame(columns=["run", "model"])
    return pd.concat(parts, ignore_index=True).sort_values(["depth", "warmup", "precision", "run", "epoch"])


def trials_stated(table: pd.DataFrame) -> Sentences:
    """How many trials of each network diverged, loss or γ and β being no longer finite, and where the others came."""
    said = Sentences()
    for model, of_model in table.groupby("model", sort=False):
        runs = [run for _, run in of_model.groupby("run", sort=False)]
        lost = sum(run["status"].iloc[0] == "diverged" for run in runs)
        first = of_model.iloc[0]
        losses = "; ".join(f"{with_warmup(run['warmup'].iloc[0])}, {run['precision'].iloc[0]}: {_course(run)}"
                           for run in runs)
        said.append(f"{name(model)}, {first['epochs']} epochs of {first['images']:,} images: {lost} of {len(runs)} "
                    f"runs diverged. Training loss of the first epoch and the last, and test accuracy: {losses}.")
    return said


def _course(run: pd.DataFrame) -> str:
    if run["status"].iloc[0] == "diverged":
        return f"diverged in epoch {run['epoch'].iloc[-1]}"
    return f"{run['loss'].iloc[0]:.2f} to {run['loss'].iloc[-1]:.2f}, {run['test'].iloc[0]:.1f} %"
