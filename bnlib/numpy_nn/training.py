"""Training of the NumPy networks on a dataset, with loss, accuracy and F-score of every batch and every epoch."""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from bnlib.config import generator
from bnlib.data import Dataset
from bnlib.numpy_nn.layers import CrossEntropy, Layer
from bnlib.numpy_nn.networks import freeze, loss_and_gradients
from bnlib.numpy_nn.optim import Adam


def normalised(images, dataset: Dataset) -> np.ndarray:
    """uint8 (N, H, W, C) → float32 (N, 3, H, W) with the training set's mean 0 and deviation 1; grey is repeated."""
    mean, std = (np.array(moment, np.float32) for moment in dataset.moments)
    floats = (np.asarray(images, np.float32) / 255 - mean) / std
    return np.ascontiguousarray(np.broadcast_to(floats, (*floats.shape[:3], 3)).transpose(0, 3, 1, 2))


@threadpool_limits.wrap(limits=1)      # more would wait for each other beside another busy process
def fit(network: Layer, dataset: Dataset, *, epochs: int, batch_size: int = 64, lr: float = 1e-3,
        n_train: int | None = None, n_test: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Trains all parameters with Adam, in place, on `n_train` images drawn by the seed (None: all there are).

    Returns a row a batch (`part` "batch") and a row an epoch for the training images while it went on ("train") and
    for `n_test` test images drawn by the seed ("test"): part, epoch (a batch's as a fraction), loss, accuracy in [0, 1]
    and F-score, the mean over the classes that are there.
    """
    chosen = generator(seed, "split").permutation(len(dataset.x_train))[:n_train]
    tested = generator(seed, "split").permutation(len(dataset.x_test))[:n_test]
    x_test, y_test = normalised(dataset.x_test[tested], dataset), dataset.y_test.numpy()[tested]
    optimizer = Adam(freeze(network, "all"), lr)
    rows = []
    for epoch in range(1, epochs + 1):
        network.train()
        order, seen = chosen[generator(seed, "batches", epoch).permutation(len(chosen))], []
        for first in range(0, len(order), batch_size):
            batch = order[first:first + batch_size]
            labels = dataset.y_train.numpy()[batch]
            loss, logits = loss_and_gradients(network, normalised(dataset.x_train[batch], dataset), labels)
            optimizer.step()
            seen.append((loss, logits.argmax(1), labels))
            rows.append({"part": "batch", "epoch": epoch - 1 + (first + len(batch)) / len(order), **scores([seen[-1]])})
        rows.append({"part": "train", "epoch": epoch, **scores(seen)})
        rows.append({"part": "test", "epoch": epoch, **evaluate(network, x_test, y_test)})
    return pd.DataFrame(rows)


def evaluate(network: Layer, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Loss, accuracy and F-score over all images, in evaluation mode."""
    network.train(False)
    seen = []
    for first in range(0, len(images), 100):
        logits, part = network.forward(images[first:first + 100]), labels[first:first + 100]
        seen.append((CrossEntropy().forward(logits, part), logits.argmax(1), part))
    return scores(seen)


def scores(batches: list[tuple[float, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Scores of (mean loss, predictions, labels) batches together, each image counting the same."""
    from sklearn.metrics import f1_score
    predicted, labels = (np.concatenate([batch[i] for batch in batches]) for i in (1, 2))
    return {"loss": sum(loss * len(part) for loss, _, part in batches) / len(labels),
            "accuracy": float((predicted == labels).mean()),
            "F-score": float(f1_score(labels, predicted, average="macro", zero_division=0))}
