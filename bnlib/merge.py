"""Records and unfinished runs of another machine's results folder, each checked before it is taken in."""

from collections.abc import Iterator
from pathlib import Path

from bnlib import checkpoint, store
from bnlib.names import InputError
from bnlib.verify import Finding, check, differences


def merge(folder: str | Path, results: str | Path = "results", device: str | None = None) -> Iterator[Finding]:
    """Takes each sound record under `folder`, another results folder, that `results` lacks, and each unfinished run
    that has come further than here; says of each what was done with it.

    A record that is here already stays as it is; one that differs from it is a fault. Raises InputError where `folder`
    holds neither records nor unfinished runs.
    """
    folder = Path(folder)
    if not (folder / "runs").is_dir() and not (folder / "partial").is_dir():
        raise InputError(f"{folder}: no results folder; expected runs/ or partial/ in it")
    store.check_writable(results)
    for theirs in store.folders(folder.absolute()):
        yield _take_record(theirs, results, device)
    for theirs in sorted((folder / "partial").glob("*/checkpoint.pt")):
        yield _take_unfinished(theirs, results)


def _take_record(theirs: Path, results: str | Path, device: str | None) -> Finding:
    finding, found = check(theirs, device)
    if finding.faults:
        return finding
    if store.record_folder(results, found.id).exists():
        ours = store.find_sound(found.config, results)
        if ours is None:
            finding.faults.append("the one here is damaged; remove it and merge again")
        elif differing := differences(ours, found):
            finding.faults.append(f"the one here stays, and is another: {', '.join(differing)}")
        else:
            finding.checked.append("here already")
    else:
        store.receive(results, found.id, found.files())
        checkpoint.remove(store.checkpoint_file(found.config, results))
        finding.checked.append("taken in")
    return finding


def _take_unfinished(theirs: Path, results: str | Path) -> Finding:
    finding = Finding(f"{theirs.parent.name}, unfinished", [], [])
    state, here = checkpoint.read(theirs), store.resolve(results) / "partial" / theirs.parent.name / theirs.name
    if state is None or state["science"]["config"] != theirs.parent.name:
        finding.faults.append(f"{theirs}: damaged, or of another run; remove it")
    elif state["science"]["protocol"] != store.PROTOCOL:
        finding.faults.append(f"{theirs}: of protocol {state['science']['protocol']}; this bnlib has {store.PROTOCOL}")
    elif store.record_folder(results, theirs.parent.name).exists():
        finding.checked.append("finished here")
    elif here.exists() and (ours := checkpoint.read(here)) and _done(ours) >= _done(state):
        finding.checked.append("come further here")
    else:
        store.put(here, theirs.read_bytes())
        finding.checked.append(f"taken in, after epoch {_done(state)[0]}")
    return finding


def _done(state: dict) -> tuple[int, int]:
    """Epochs and steps that a checkpoint has behind it."""
    return len(state["history"]), state["epoch"]["steps"]
