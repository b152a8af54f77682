"""Records and unfinished runs of another machine's results folder, each checked before it is taken in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bnlib import checkpoint, store
from bnlib.config import Config
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
    for theirs in sorted(each for each in (folder / "partial").glob("*") if each.is_dir()):
        yield _take_unfinished(theirs, results)


def _take_record(theirs: Path, results: str | Path, device: str | None) -> Finding:
    finding, found = check(theirs, device)
    if finding.faults:
        return finding
    if found.record["protocol"] != store.PROTOCOL:
        finding.faults.append(_of_another(found.record["protocol"]))
        return finding
    with _held(found.config, results, finding) as held:
        if held and store.record_folder(results, found.id).exists():
            ours = store.find_sound(found.config, results)
            if ours is None:
                finding.faults.append("the one here is damaged, or of an older protocol; remove it and merge again")
            elif differing := differences(ours, found):
                finding.faults.append(f"the one here stays, and is another: {', '.join(differing)}")
            else:
                finding.checked.append("here already")
        elif held:
            store.receive(results, found.id, found.files())
            checkpoint.remove(store.checkpoint_file(found.config, results))
            finding.checked.append("taken in")
    return finding


def _take_unfinished(theirs: Path, results: str | Path) -> Finding:
    finding, name = Finding(f"{theirs.name}, unfinished", [], []), theirs.name
    here = store.resolve(results) / "partial" / name / "checkpoint.pt"
    try:
        content = checkpoint.newest(theirs / here.name)
        science = checkpoint.unpacked(content)["science"] if content else {"config": None}
    except InputError as error:
        finding.faults.append(str(error))
        return finding
    if content is None and not any((theirs / here.name).parent.glob("checkpoint*.pt")):
        finding.checked.append("not begun")
    elif science["config"] != name:
        finding.faults.append(f"{theirs}: damaged, or of another run; remove it")
    elif science["protocol"] != store.PROTOCOL:
        finding.faults.append(_of_another(science["protocol"]))
    elif store.record_folder(results, name).exists():
        finding.checked.append("finished here")
    else:
        with _held(name, results, finding) as held:
            if held and (other := _differing(science, here)):
                finding.faults.append(f"the one here stays, and is of another {other}; remove either")
            elif held and (done := checkpoint.put_further(content, here)):
                finding.checked.append(f"taken in, after epoch {done[0]}")
            elif held:
                finding.checked.append("come further here")
    return finding


def _differing(science: dict, here: Path) -> str:
    """In what a checkpoint's run differs from that of the one that lies here, if any."""
    content = checkpoint.newest(here)
    ours = checkpoint.unpacked(content)["science"] if content else science
    return ", ".join(key for key in science if ours.get(key) != science[key])


def _of_another(protocol: int) -> str:
    return f"of protocol {protocol}; this bnlib has {store.PROTOCOL}"


@contextlib.contextmanager
def _held(run: Config | str, results: str | Path, finding: Finding) -> Iterator[bool]:
    """The run's lock; False, and a fault, where a process here trains it."""
    try:
        with store.lock(run, results, wait=False):
            yield True
    except store.Busy:
        finding.faults.append("is being trained here; merge again when that has ended")
        yield False
