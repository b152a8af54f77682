"""A task that is not images: which two motifs occur in a noisy sequence, and in which order."""

from itertools import permutations

import numpy as np

STEPS, CHANNELS = 128, 3       # of a sequence
N_TRAIN, N_TEST = 5_000, 2_000
MOTIFS = 4                     # of which each sequence holds two; their ordered pairs are the 12 classes
NOISE = 0.6                    # standard deviation of the noise where a motif's is 1


def make(seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Training and test sequences, uint8 (N, 1, 128, 3), and their classes' indices (N,); and the classes' names.

    A motif is a smooth random curve in three channels. Each occurrence is stretched by 0.75 to 1.25, scaled by 0.7 to
    1.3, turned upside down or not, and lies anywhere, the second one after the first; half of a third motif lies
    anywhere as a distraction; noise covers all. So the mean of every class is the same. An image of height 1 is a
    sequence.
    """
    draws = np.random.default_rng(seed)
    motifs = _smooth(draws.standard_normal((MOTIFS, 40, CHANNELS)))
    pairs = list(permutations(range(MOTIFS), 2))
    arrays = []
    for n in (N_TRAIN, N_TEST):
        labels = draws.integers(0, len(pairs), n)
        curves = np.stack([_sequence(motifs, pairs[label], draws) for label in labels])
        arrays += [_as_bytes(curves + NOISE * draws.standard_normal(curves.shape)), labels]
    return arrays, [f"{'ABCD'[first]} before {'ABCD'[second]}" for first, second in pairs]


def _sequence(motifs: np.ndarray, pair: tuple[int, int], draws: np.random.Generator) -> np.ndarray:
    curve, (first, second) = np.zeros((STEPS, CHANNELS)), (_occurrence(motifs[motif], draws) for motif in pair)
    begin = draws.integers(STEPS - len(first) - len(second) + 1)
    after = draws.integers(begin + len(first), STEPS - len(second) + 1)
    other = motifs[draws.choice([motif for motif in range(MOTIFS) if motif not in pair])]
    third = _occurrence(other[:len(other) // 2], draws)
    for at, part in ((begin, first), (after, second), (draws.integers(STEPS - len(third) + 1), third)):
        curve[at:at + len(part)] += part
    return curve


def _occurrence(motif: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """The motif, (L, C), stretched, scaled, and turned upside down in one half of the cases."""
    length = round(len(motif) * draws.uniform(0.75, 1.25))
    scale = draws.uniform(0.7, 1.3) * draws.choice([-1, 1])
    at = np.linspace(0, len(motif) - 1, length)
    return scale * np.stack([np.interp(at, np.arange(len(motif)), channel) for channel in motif.T], axis=1)


def _smooth(noise: np.ndarray, width: int = 7) -> np.ndarray:
    """Running means over `width` steps, scaled to a standard deviation of 1 in each motif and channel."""
    padded = np.concatenate([np.zeros_like(noise[:, :width]), noise], axis=1).cumsum(1)
    smooth = padded[:, width:] - padded[:, :-width]
    return smooth / smooth.std(1, keepdims=True)


def _as_bytes(curves: np.ndarray) -> np.ndarray:
    return (128 + 32 * curves).round().clip(0, 255).astype(np.uint8)[:, None]
