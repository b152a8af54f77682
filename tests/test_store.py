"""Records: whole or absent, readable by name, and no larger than they need be."""

import json

import pytest
import torch

from bnlib import Config, InputError, load_runs, store


def test_a_record_holds_what_the_seed_does_not_give_back(tiny_run):
    assert {f.name for f in tiny_run.folder.iterdir()} == {
        "run.json", "history.csv", "tensors.safetensors", "trajectory.safetensors", "predictions.csv.gz"}
    assert set(tiny_run.tensors) == {f"{layer}.{part}" for layer in tiny_run.gamma for part in
                                     ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert sum(f.stat().st_size for f in tiny_run.folder.iterdir()) < 40_000


def test_a_failed_write_leaves_no_record(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "save", lambda tensors: b"")
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write(tmp_path / "results", {"id": "x"}, tiny_run.history, {}, {}, None)
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
    with pytest.raises(InputError, match=r"old: record format 0, this bnlib reads 1; remove"):
        store.Run(tmp_path / "old")


@pytest.mark.parametrize("run_id", ["../x", "/etc/x", "a/b", "", ".", ".."])
def test_a_run_id_never_leaves_the_results(run_id, tmp_path):
    with pytest.raises(InputError, match="must be a plain name"):
        store.record_folder(tmp_path, run_id)


def test_a_network_drawn_from_another_seed_is_refused(tiny_run, monkeypatch):
    monkeypatch.setattr(tiny_run, "config", Config.from_dict(tiny_run.config.to_dict() | {"seed": 7}))
    with pytest.raises(InputError, match="drawn from seed 7 are not those of the record"):
        tiny_run.network()


def test_a_record_without_all_trained_weights_says_so(tiny_run, monkeypatch):
    monkeypatch.setitem(tiny_run.record, "complete", False)
    with pytest.raises(InputError, match="too large to store"):
        tiny_run.network()


def test_reading_a_checkpoint_runs_no_code(tmp_path, tiny):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))
    torch.save({"x": Evil()}, tmp_path / "x.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(tmp_path / "x.pt", weights_only=True)
