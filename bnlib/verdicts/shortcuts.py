"""What shortcuts are good for: claims of He et al. 2015 on full training, and the question of BN only without them."""

from bnlib.names import parse_model
from bnlib.profiles import variant
from bnlib.store import Run
from bnlib.verdicts.rules import OURS, distance, judged_by_distance, percent_right, side_by_side

DEEP = 44          # layers from which depth may harm a plain network: He et al. 2015 compare 20 with 32, 44 and 56
KEPT = 0.5         # of what is above guessing, that BN only should keep without shortcuts
CHANCE = 10.0      # percent right by guessing among CIFAR-10's classes


def claims(runs: list[Run]) -> list[tuple]:
    """What shortcuts are good for: claims of He et al. 2015 on full training, and the question of BN only without them.

    Depth is judged between the shallowest and the deepest network of a line of one seed and one number of epochs, at
    the depths that both kinds were trained at, the deepest DEEP layers or more. Without shortcuts BN only is judged by
    whether the plain network keeps the share KEPT of what the residual one has above chance.
    """
    where, unvaried = "He et al. 2015", [run for run in runs if not variant(run.config)]
    plain_ones, residual = ([run for run in unvaried if parse_model(run.config.model).family == family]
                            for family in ("plain", "resnet"))
    option_a = [run for run in runs if variant(run.config) == {"shortcut": "A"}]
    both = set(map(_place, plain_ones)) & set(map(_place, residual))

    return [
        _ends("Full training of plain networks: the deepest loses to the shallowest", where, "loses",
              [run for run in plain_ones if _place(run) in both], (1, -1)),
        _ends("Full training of residual networks: the deepest does not lose to the shallowest", where, "does not",
              [run for run in residual if _place(run) in both], (-1, 1)),
        _matched("Shortcuts with a convolution (B) do at least as well as with zeros (A)",
                 "He et al. 2015, on ImageNet", "B ≥ A", option_a,
                 residual, ("model", "trainable"), ("option A", "option B")),
        _matched("Without shortcuts BN only keeps half of what it has above guessing", OURS, "–",
                 *([r for r in side if r.config.trainable == "bn"] for side in (plain_ones, residual)),
                 ("depth", "width"), ("plain networks", "residual networks"), (1, -KEPT), (KEPT - 1) * CHANCE),
    ]


def _ends(title: str, where: str, claim: str, runs: list[Run], weights: tuple[float, float]) -> tuple:
    """Whether a claim on the shallowest and the deepest network holds, of width 1, at one seed and number of epochs.

    weights: of the shallowest's and the deepest's accuracy in how far they are on the side of the claim.
    """
    lines: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.config.trainable == "all" and run.config.width == 1:
            lines.setdefault((run.config.epochs, run.config.seed), []).append(run)
    ordered = [sorted(line, key=lambda run: run.config.depth) for line in lines.values()]
    used = [line for line in ordered if line[0].config.depth < DEEP <= line[-1].config.depth]
    ends = [(line[0], line[-1]) for line in used]
    said = "; ".join(f"depth {low.config.depth} {percent_right(low):.1f} %, {high.config.depth} "
                     f"{percent_right(high):.1f} %" for low, high in ends)
    return title, where, claim, *judged_by_distance(
        [distance([pair], weights=weights) for pair in ends], said, ends, {low.config.seed for low, _ in ends})


def _matched(title: str, where: str, claim: str, lower: list[Run], upper: list[Run], alike: tuple[str, ...],
             names: tuple[str, str], weights: tuple[float, float] = (-1, 1), margin: float = 0.0) -> tuple:
    """Whether a claim holds on each pair of runs, a lower and an upper, that are `alike`, of one seed and epochs.

    weights, margin: as of `distance`.
    """
    def key(run: Run) -> tuple:
        return tuple(getattr(run.config, field) for field in (*alike, "epochs", "seed"))

    others = {key(run): run for run in upper}
    pairs = [(run, others[key(run)]) for run in lower if key(run) in others]
    return title, where, claim, *judged_by_distance(
        [distance([pair], weights=weights, margin=margin) for pair in pairs],
        f"{names[1]} against {names[0]}: {side_by_side(pairs, percent_right)}", pairs)


def _place(run: Run) -> tuple:
    """Where a run stands in a comparison of two kinds of networks."""
    return run.config.depth, run.config.width, run.config.trainable, run.config.epochs, run.config.seed
