"""A table in, a figure out: one short function each, one visual language for all.

`plots.pictures` and `plots.studies` (of `09` and `10`) are asked for by name.
"""

from bnlib.plots import pictures, studies
from bnlib.plots.accuracies import (
    accuracy_against,
    accuracy_by_setting,
    accuracy_by_size,
    depth_or_width,
    history,
    progress,
    random_weights,
    top1_and_top5,
)
from bnlib.plots.activity import activations, thresholds
from bnlib.plots.channels import affine_by_layer, affine_histograms, dead_share, ridges, trajectories
from bnlib.plots.optimizing import courses, growth, searched, with_and_without
from bnlib.plots.reference import deviations, learning
from bnlib.plots.stability import trials
from bnlib.plots.style import Saved, colour, described, nothing_yet, save
from bnlib.plots.tables import equality, optimizers, pruning, side_by_side, speed, table, verdicts

__all__ = ["Saved", "accuracy_against", "accuracy_by_setting", "accuracy_by_size", "activations", "affine_by_layer",
           "affine_histograms", "colour", "courses", "dead_share", "depth_or_width", "described", "deviations",
           "equality", "growth", "history", "learning", "nothing_yet", "optimizers", "pictures", "progress", "pruning",
           "random_weights", "ridges", "save", "searched", "side_by_side", "speed", "studies", "table", "thresholds",
           "top1_and_top5", "trajectories", "trials", "verdicts", "with_and_without"]
