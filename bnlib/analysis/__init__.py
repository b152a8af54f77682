"""Runs in, tables out: accuracies, statistics of γ and β, optimizers, comparison with published numbers."""

from bnlib.analysis.accuracies import (
    PAPER_EPOCHS,
    about_images,
    accuracy,
    by_precision,
    comparable,
    compare,
    epochs_of_the_paper,
    machines,
    pair,
    plain,
    provenance,
    published,
    sizes,
    top1_and_top5,
    varied,
)
from bnlib.analysis.channels import (
    DEAD,
    affine,
    compare_dead,
    dead_by_layer,
    dead_features,
    dead_share,
    percent_dead,
    rank_dead,
)
from bnlib.analysis.optimizing import (
    alone_logged,
    course,
    growth,
    last_loss,
    logged_losses,
    made_on,
    optimizers,
    own_decay,
    restrained,
    root_mean_square,
    searched,
    shared_batch,
    speeds,
    timed_alike,
    with_and_without,
)
from bnlib.analysis.stability import trials, trials_stated
from bnlib.analysis.studies import (
    by_positions,
    decayed,
    histories,
    layer_means,
    residual_and_plain,
    surface,
    taken_apart,
    which_half,
)

__all__ = ["DEAD", "PAPER_EPOCHS", "about_images", "accuracy", "affine", "alone_logged", "by_positions", "by_precision",
           "comparable", "compare", "compare_dead", "course", "dead_by_layer", "dead_features", "dead_share", "decayed",
           "epochs_of_the_paper", "growth", "histories", "last_loss", "layer_means", "logged_losses", "machines",
           "made_on", "optimizers", "own_decay", "pair", "percent_dead", "plain", "provenance", "published",
           "rank_dead", "residual_and_plain", "restrained", "root_mean_square", "searched", "shared_batch", "sizes",
           "speeds", "surface", "taken_apart", "timed_alike", "top1_and_top5", "trials", "trials_stated", "varied",
           "which_half", "with_and_without"]
