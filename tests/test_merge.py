"""Records and unfinished runs that come from another machine's results folder."""

import dataclasses
import hashlib
import io
import shutil

import pytest
import torch

from bnlib import InputError, checkpoint, run, store
from bnlib.device import PRECISIONS
from bnlib.merge import merge
from bnlib.verify import differences
from tests.test_train import stop_after


def taken(folder, results) -> dict[str, str]:
    """What merging says of each record or unfinished run."""
    return {finding.name: "; ".join(finding.faults or finding.checked) for finding in merge(folder, results)}


def test_records_that_are_lacking_are_taken_in_once_and_whole(tiny_run, tmp_path):
    theirs = tiny_run.folder.parent.parent
    assert taken(theirs, tmp_path / "ours")[tiny_run.id].endswith("taken in")
    ours = store.find(tiny_run.config, tmp_path / "ours")
    assert not differences(ours, tiny_run) and ours.provenance == tiny_run.provenance
    assert taken(theirs, tmp_path / "ours")[tiny_run.id].endswith("here already")


def test_a_record_of_the_same_id_that_differs_is_a_fault_and_ours_stays(tiny, tiny_run, tmp_path):
    another = next(p for p in PRECISIONS if p != tiny_run.provenance["precision"])
    ours = run(tiny, results=tmp_path / "ours", precision=another)
    assert "the one here stays, and is another: history differs" in taken(
        tiny_run.folder.parent.parent, tmp_path / "ours")[tiny.id]
    assert not differences(store.find(tiny, tmp_path / "ours"), ours)


def test_a_damaged_record_is_not_taken_in(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "theirs/runs" / tiny_run.id)
    (tmp_path / "theirs/runs" / tiny_run.id / "history.csv").write_text("epoch\n")
    assert "history.csv: changed since it was written" in taken(tmp_path / "theirs", tmp_path / "ours")[tiny_run.id]
    assert store.find(tiny_run.config, tmp_path / "ours") is None


def test_an_unfinished_run_goes_on_on_another_machine_and_ends_in_the_same_bytes(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny, epochs=4)
    whole = run(config, results=tmp_path / "whole")
    stop_after(5, config, tmp_path / "theirs", monkeypatch)                     # two steps an epoch
    unfinished = f"{config.id}, unfinished"
    assert taken(tmp_path / "theirs", tmp_path / "ours") == {unfinished: "taken in, after epoch 2"}
    assert taken(tmp_path / "theirs", tmp_path / "ours") == {unfinished: "come further here"}
    monkeypatch.setattr("bnlib.train.device_name", lambda device: "another machine")
    moved = run(config, results=tmp_path / "ours")
    assert not differences(moved, whole)
    assert moved.provenance["device"].endswith("; another machine")
    assert taken(tmp_path / "theirs", tmp_path / "ours") == {unfinished: "finished here"}
    assert not list((tmp_path / "ours/partial").iterdir())


def test_what_is_being_trained_here_is_left_alone(tiny_run, tmp_path):
    with store.lock(tiny_run.config, tmp_path / "ours"):
        said = taken(tiny_run.folder.parent.parent, tmp_path / "ours")[tiny_run.id]
    assert "being trained here" in said and store.find(tiny_run.config, tmp_path / "ours") is None


def test_a_record_of_another_protocol_is_not_taken_in(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PROTOCOL", 2)
    said = taken(tiny_run.folder.parent.parent, tmp_path / "ours")[tiny_run.id]
    assert said == "of protocol 1; this bnlib has 2" and not (tmp_path / "ours/runs" / tiny_run.id).exists()


def test_a_damaged_or_renamed_checkpoint_is_not_taken_in(tiny, tmp_path, monkeypatch):
    stop_after(1, tiny, tmp_path / "theirs", monkeypatch)
    file = store.checkpoint_file(tiny, tmp_path / "theirs")
    shutil.copytree(file.parent, file.parent.with_name("another"))
    file.write_bytes(file.read_bytes()[:-1])
    assert all("damaged, or of another run" in said for said in taken(tmp_path / "theirs", tmp_path / "ours").values())
    assert not (tmp_path / "ours/partial").exists()


def test_a_checkpoint_on_other_images_does_not_take_the_place_of_ours(tiny, tmp_path, monkeypatch):
    stop_after(2, tiny, tmp_path / "theirs", monkeypatch)
    ours = store.checkpoint_file(tiny, tmp_path / "ours")
    state = checkpoint.unpacked(store.checkpoint_file(tiny, tmp_path / "theirs").read_bytes())
    state["science"] |= {"dataset": "of other images"}
    content = io.BytesIO()
    torch.save(state, content)
    store.put(ours, before := hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    said = taken(tmp_path / "theirs", tmp_path / "ours")[f"{tiny.id}, unfinished"]
    assert said == "the one here stays, and is of another dataset; remove either" and ours.read_bytes() == before


def test_checkpoints_of_full_training_are_no_part_of_the_results(tiny, tmp_path, monkeypatch):
    stop_after(1, dataclasses.replace(tiny, trainable="all"), tmp_path / "theirs", monkeypatch)
    assert not (tmp_path / "theirs/partial").exists()


def test_a_checkpoint_of_batch_norm_stays_under_200_kilobytes_at_110_layers(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny, model="resnet110", n_train=64, epochs=160)
    stop_after(1, config, tmp_path / "results", monkeypatch)
    assert store.checkpoint_file(config, tmp_path / "results").stat().st_size < 200_000       # before any history


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(InputError, match="expected runs/ or partial/"):
        list(merge(tmp_path, tmp_path / "ours"))


def test_an_unfinished_run_that_has_no_checkpoint_yet_is_no_fault(tiny, tmp_path):
    (tmp_path / "theirs/partial" / tiny.id).mkdir(parents=True)
    (tmp_path / "theirs/partial" / tiny.id / "checkpoint.1234").write_bytes(b"of a process that was killed")
    assert taken(tmp_path / "theirs", tmp_path / "ours") == {f"{tiny.id}, unfinished": "not begun"}
