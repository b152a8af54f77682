"""Records: whole or absent, readable by name, and no larger than they need be."""

import dataclasses
import hashlib
import io
import json
import os
import shutil

import pytest
import torch

from bnlib import Config, InputError, checkpoint, load_runs, run, store
from bnlib.train import evaluate_on_test_set


def test_a_record_holds_what_the_seed_does_not_give_back(tiny_run):
    assert {f.name for f in tiny_run.folder.iterdir()} == {
        "run.json", "history.csv", "tensors.safetensors", "trajectory.safetensors", "predictions.csv.gz"}
    assert set(tiny_run.tensors) == {"gamma", "beta", "running_mean", "running_var"}
    assert sum(f.stat().st_size for f in tiny_run.folder.iterdir()) < 20_000


def test_a_failed_write_leaves_no_record(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        store.write(tmp_path / "results", tiny_run.record, tiny_run.history, tiny_run.tensors, {}, tiny_run.predictions)
    assert list((tmp_path / "results/runs").iterdir()) == []


def test_load_runs_gives_a_row_a_run_and_filters_with_wildcards(tiny_run):
    results = tiny_run.folder.parent.parent
    table = load_runs(results)
    assert table.loc[tiny_run.id, "test_accuracy"] == tiny_run.metrics["test_accuracy"]
    assert len(load_runs(results, model="resnet*", trainable="bn")) == 1
    assert load_runs(results, model="plain*").empty
    with pytest.raises(InputError, match="filter 'modle'"):
        load_runs(results, modle="resnet*")


def test_a_record_of_another_format_is_named(tiny_run, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text(json.dumps(tiny_run.record | {"format": 0}))
    with pytest.raises(InputError, match=r"old: record format 0, this bnlib reads 2; remove"):
        store.Run(tmp_path / "old")


def test_a_network_drawn_from_another_seed_is_refused(tiny_run, monkeypatch):
    monkeypatch.setattr(tiny_run, "config", Config.from_dict(tiny_run.config.to_dict() | {"seed": 7}))
    with pytest.raises(InputError, match="drawn from seed 7 are not those of the record"):
        tiny_run.network()


def test_a_record_without_all_trained_weights_says_so(tiny_run, monkeypatch):
    monkeypatch.setitem(tiny_run.record, "complete", False)
    with pytest.raises(InputError, match="kept only where they were trained"):
        tiny_run.network()


def test_a_network_trained_in_full_is_at_hand_where_it_was_trained(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, trainable="all"), results=tmp_path / "results")
    assert evaluate_on_test_set(r.network(), r.config).correct == r.metrics["test_correct"]


@pytest.mark.parametrize("file", ["history.csv", "tensors.safetensors", "trajectory.safetensors", "predictions.csv.gz"])
def test_a_file_that_was_changed_is_named(file, tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"copy/{file}: changed since it was written"):
        getattr(store.Run(copy), file.split(".")[0])


def test_reading_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))
    content = io.BytesIO()
    torch.save({"x": Evil()}, content)
    content = content.getvalue()
    (tmp_path / "x.pt").write_bytes(hashlib.sha256(content).digest() + content)           # as sound as any
    with pytest.raises(InputError, match=r"the checkpoint cannot be read \(Weights only load failed\)"):
        checkpoint.read(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(content), weights_only=False)                                   # which would have run it
    assert (tmp_path / "ran").exists()


def test_repeats_are_found_and_kept_out_of_the_runs(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "checks/fp32/runs" / tiny_run.id)
    assert [run.id for run in store.repeats(tmp_path)] == [tiny_run.id] and store.all_runs(tmp_path) == []
    assert store.repeats(tmp_path / "nothing") == []


def test_a_record_of_a_later_protocol_is_not_trained_over(tiny_run, monkeypatch):
    monkeypatch.setattr(store, "PROTOCOL", 0)
    with pytest.raises(store.RecordError, match="of protocol 1, and this bnlib has 0; take a later one"):
        store.find(tiny_run.config, tiny_run.folder.parent.parent)


def test_a_results_folder_has_one_lock_a_run_also_where_a_link_leads_to_it(tiny, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "shared")
    with store.lock(tiny, tmp_path / "shared"), pytest.raises(store.Busy):
        store.lock(tiny, tmp_path / "results", wait=False).__enter__()
