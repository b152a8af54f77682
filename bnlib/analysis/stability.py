"""Whether deep networks diverge when batch norm alone trains: short trials, with warm-up or not, in two precisions."""

from collections.abc import Iterable

import pandas as pd

from bnlib.store import Run
from bnlib.wording import Sentences, listed, name


def trials(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run and epoch: run, dataset, model, depth, warmup (epochs), precision, seed, status, classes, images (of
    training), epoch, loss (of training, nats), accuracy (on test images, %)."""
    parts = [run.history[["epoch"]].assign(
        run=run.id, dataset=run.config.dataset, model=run.config.model, depth=run.config.depth,
        warmup=run.config.warmup_epochs, precision=run.provenance["precision"], seed=run.config.seed,
        status=run.status, classes=run.record["classes"], images=run.config.n_train,
        loss=run.history["train_loss"], accuracy=100 * run.history["test_accuracy"]) for run in runs]
    if not parts:
        return pd.DataFrame(columns=["run", "model", "depth", "warmup", "precision", "seed", "status", "epoch", "loss"])
    return pd.concat(parts, ignore_index=True).sort_values(["depth", "warmup", "precision", "seed", "epoch"])


def diverged(table: pd.DataFrame) -> Sentences:
    """How many runs of each network diverged, and where the loss of each went; of `trials`."""
    said = Sentences()
    for model, of_model in table.groupby("model", sort=False):
        runs = [run for _, run in of_model.groupby(["warmup", "precision", "seed"])]
        lost = sum(run["status"].iloc[0] == "diverged" for run in runs)
        losses = "; ".join(f"{with_warmup(run['warmup'].iloc[0])}, {run['precision'].iloc[0]}: "
                           f"{run['loss'].iloc[0]:.2f} to {run['loss'].iloc[-1]:.2f}" for run in runs)
        epochs = listed(run["epoch"].max() for run in runs)
        said.append(f"{name(model)}, {epochs} epochs of {of_model['images'].iloc[0]:,} images: {lost} of {len(runs)} "
                    f"runs diverged. Training loss of the first epoch and the last: {losses}.")
    return said


def with_warmup(epochs: float) -> str:
    """`no warm-up`, `1 epoch of warm-up`."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'} of warm-up" if epochs else "no warm-up"
