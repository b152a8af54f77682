"""Whether every record still is what was measured: its files, its id, its network's predictions, a second training."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bnlib import data, store
from bnlib.names import InputError
from bnlib.optim import work
from bnlib.stop import Interrupted
from bnlib.train import check_images, evaluate_on_test_set, run

#: What two trainings must share to end in the same bytes; the commit is not one of them: a change of code that changes
#: results raises `store.PROTOCOL`.
SAME_PLACE = ("device", "precision", "bn_path", "conv_path", "python", "torch", "numpy")
OTHER_PLACE = 0.001       # share of test images that another machine's rounding may turn, and at least so many:
A_FEW = 2
OTHER_TRAINING = 0.02     # difference in accuracy between two trainings that round otherwise


@dataclasses.dataclass
class Finding:
    """What was found of one record: what was looked at, and what is wrong."""

    name: str
    checked: list[str]
    faults: list[str]


def verify(results: str | Path = "results", retrain: int = 0, device: str | None = None) -> Iterator[Finding]:
    """Each record of `results` in turn, checked as far as data and weights are at hand.

    Files against their checksums, the id against the config, the record's network against its stored predictions; the
    `retrain` cheapest records are trained once more and compared.
    """
    if retrain < 0:
        raise InputError(f"retrain={retrain}: must be at least 0")
    if not (store.resolve(results) / "runs").is_dir():
        raise InputError(f"{results}: no folder of records")
    sound = []
    for folder in store.folders(results):
        finding, found = check(folder, device)
        sound += [found] if found and found.record["protocol"] == store.PROTOCOL else []
        yield finding
    for found in sorted(sound, key=lambda found: work(found.config))[:retrain]:
        yield _retrain(found, device)


def check(folder: Path, device: str | None = None) -> tuple[Finding, store.Run | None]:
    """What was found of the record in a folder; and the record, if its files and its id are sound."""
    finding, found = Finding(folder.name, [], []), None
    try:
        found = store.sound(folder)
        finding.checked.append("files and id")
        _check_predictions(found, finding, device)
    except InputError as error:
        finding.faults.append(str(error))
    return finding, found


def _check_predictions(found: store.Run, finding: Finding, device: str | None) -> None:
    """The accuracy and predictions in the record are those that its network gives again."""
    if not found.record["complete"] and not store.weights_file(found.config, found.folder.parent.parent).exists():
        finding.checked.append("not its network, whose weights are not here")
        return
    if not data.at_hand(found.config.dataset):
        finding.checked.append(f"not its predictions, since {found.config.dataset} is not here")
        return
    check_images(found)
    again = evaluate_on_test_set(found.network(), found.config, device)
    recorded = found.predictions["predicted"].to_numpy()
    if len(again.predicted) != len(recorded):
        finding.faults.append(f"{len(recorded)} predictions for {len(again.predicted)} test images")
        return
    turned = int((again.predicted != recorded).sum())
    allowed = max(A_FEW, OTHER_PLACE * len(recorded))
    if turned > allowed:
        finding.faults.append(f"{turned} of {len(recorded)} predictions are not what its network gives")
    if abs(again.correct - found.metrics["test_correct"]) > allowed:
        finding.faults.append(f"accuracy {found.metrics['test_accuracy']:.2%}; its network has {again.accuracy:.2%}")
    finding.checked.append("predictions" + (f" ({turned} on the fence)" if turned else ""))


def _retrain(found: store.Run, device: str | None) -> Finding:
    """A second training: the same bytes on the same device and software, else an accuracy near the first."""
    finding = Finding(f"{found.id}, trained again", [], [])
    if found.config.bn_parts > 1:
        finding.checked.append(f"not trained: that takes {found.config.bn_parts} processes")
        return finding
    with tempfile.TemporaryDirectory() as folder:
        try:
            again = run(found.config, results=Path(folder) / "results", device=device,
                        precision=found.provenance["precision"].split("; ")[-1])
        except InputError as error:
            finding.faults.append(str(error))
            return finding
        except Interrupted:
            raise KeyboardInterrupt(f"interrupted; of {found.id}'s second training nothing is kept") from None
        if all(found.provenance[key] == again.provenance[key] for key in SAME_PLACE):
            finding.faults += differences(found, again)
            finding.checked.append("bit for bit")
        else:
            away = abs(found.metrics["test_accuracy"] - again.metrics["test_accuracy"])
            if away > OTHER_TRAINING:
                finding.faults.append(f"accuracy {found.metrics['test_accuracy']:.2%} and "
                                      f"{again.metrics['test_accuracy']:.2%}")
            finding.checked.append(f"on another device or software: accuracy {away:.2%} away")
    return finding


def differences(a: store.Run, b: store.Run) -> list[str]:
    """What two records of one config measured differently, to the last bit; seconds are no part of it."""
    found = []
    if not a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds")):
        found.append("history differs")
    for part in ("tensors", "trajectory"):
        file = f"{part}.safetensors"
        if a.record["sha256"][file] != b.record["sha256"][file]:
            found.append(f"{part} differ")
    if not a.predictions.equals(b.predictions):
        found.append("predictions differ")
    numbers = {key: (a.metrics[key], b.metrics[key]) for key in a.metrics}
    found += [f"{key}: {x} and {y}" for key, (x, y) in numbers.items() if x != y]
    return found
