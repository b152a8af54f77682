"""Grids: what is there is loaded, what is missing is trained cheapest first, and the time given is kept."""

import dataclasses
import time

import pytest

from bnlib import Config, InputError, campaign, grid, run_all, store
from bnlib.grid import seconds


def test_cheapest_first_and_only_what_is_missing(tiny, tmp_path, monkeypatch):
    configs = [dataclasses.replace(tiny, model=m) for m in ("resnet14", "resnet8", "resnet8x2")]
    trained, run = [], grid.run
    monkeypatch.setattr(grid, "run", lambda config, **options: trained.append(config.model) or run(config, **options))
    runs = run_all(configs, results=tmp_path / "results")
    assert trained == ["resnet8", "resnet14", "resnet8x2"]
    assert [r.config for r in runs] == configs and not runs.missing
    trained.clear()
    record = store.record_folder(tmp_path / "results", configs[1].id)
    for file in record.iterdir():
        file.unlink()
    record.rmdir()
    run_all(configs, results=tmp_path / "results")
    assert trained == ["resnet8"]


def test_skip_trains_nothing_and_names_what_is_missing(tiny_run, tiny):
    other = dataclasses.replace(tiny, seed=9)
    runs = run_all([tiny, other], missing="skip", results=tiny_run.folder.parent.parent)
    assert [r.id for r in runs] == [tiny.id] and runs.missing == [other]
    assert other.id in runs._repr_markdown_()


def test_a_budget_stops_at_a_checkpoint_and_the_begun_run_goes_on_first(tiny, tmp_path, monkeypatch):
    long, short = dataclasses.replace(tiny, epochs=300), dataclasses.replace(tiny, epochs=200, seed=1)
    began = time.time()
    runs = run_all([long], budget="1s", results=tmp_path / "results")
    assert runs == [] and runs.missing == [long] and time.time() - began < 10
    assert grid.started(long, tmp_path / "results")
    order = []

    def pause(config, **options):
        order.append(config)
        raise grid.Paused

    monkeypatch.setattr(grid, "run", pause)
    run_all([short, long], results=tmp_path / "results")
    assert order == [long]


def test_a_run_that_fails_is_named_and_the_others_train(tiny, tmp_path, monkeypatch):
    """One that began is tried first, each time; what is wrong with all of them is said at once."""
    configs, trained, run = [dataclasses.replace(tiny, seed=s) for s in range(3)], [], grid.run

    def failing(config, **options):
        trained.append(config.seed)
        if config.seed == 0:
            raise InputError("an image of it is broken")
        return run(config, **options)
    monkeypatch.setattr(grid, "run", failing)
    with pytest.warns(UserWarning, match=f"{configs[0].id} failed: an image of it is broken"):
        runs = run_all(configs, results=tmp_path / "results")
    assert trained == [0, 1, 2] and runs.failed == {configs[0]: "an image of it is broken"}
    assert runs.missing == configs[:1] and "failed: an image of it is broken" in runs._repr_markdown_()
    with pytest.raises(InputError, match="broken"):
        run_all(configs, results=tmp_path / "results")                  # the only one
    monkeypatch.setattr(grid, "run", lambda config, **_: (_ for _ in ()).throw(InputError("no disk")))
    with pytest.raises(InputError, match="no disk"), pytest.warns(UserWarning, match="no disk"):
        run_all(configs, results=tmp_path / "another")


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (20, 20), ("20", 20)])
def test_budgets_are_times(text, expected):
    assert seconds(text) == expected


def test_a_budget_that_is_no_time_is_an_error():
    with pytest.raises(InputError, match="budget='soon'"):
        seconds("soon")


def test_the_campaigns_grid_is_the_notebooks_own():
    configs = campaign.profile_configs("paper")
    assert len(configs) == len(set(configs))
    assert {c.model for c in configs} >= {"resnet14", "resnet866", "resnet14x32"}
    assert {c.seed for c in configs} == {0, 1, 2, 3, 4}
    assert {c.epochs for c in configs if c.model == "resnet14"} == {160}
    assert {c.model for c in configs if c.epochs == 100} == {"3c3d"}            # an earlier study's preset
    assert Config(seed=3) in configs


def test_a_tweak_beside_the_planned_runs_is_not_part_of_the_report(tmp_path):
    planned = campaign.profile_configs("smoke")[0]
    run_all([planned, dataclasses.replace(planned, lr=0.01)], results=tmp_path / "results")
    assert [r.config for r in campaign.planned_runs(["smoke"], tmp_path / "results")] == [planned]


def test_coverage_counts_finished_seeds(tmp_path):
    table = campaign.coverage(["short", "paper"], tmp_path / "results")
    row = table[(table["network"] == "resnet14") & (table["trained"] == "bn") & (table["variant"] == "")].iloc[0]
    assert (row["short"], row["paper"]) == ("0 of 3", "0 of 5")


def test_coverage_by_notebook_counts_the_runs_that_each_lists(tmp_path, monkeypatch):
    planned = campaign.profile_configs("smoke", ["01_depth"])
    run_all(planned[:1], results=tmp_path / "results")
    lost = dataclasses.replace(planned[1], lr=1e30)                                 # one that diverged has been run
    monkeypatch.setattr(campaign, "profile_configs", lambda *_, **__: [lost])
    assert run_all([lost], results=tmp_path / "results")[0].status == "diverged"
    assert campaign.coverage(["smoke"], tmp_path / "results")["smoke"].tolist() == ["1 of 1"]
    monkeypatch.undo()
    table = campaign.coverage_by_notebook(["smoke", "paper"], tmp_path / "results").set_index("notebook")
    assert table.loc["01_depth", "smoke"] == f"1 of {len(planned)}"
    for name in ("02_width", "04_what_trains", "09_dissect_batchnorm"):                # the latter list some runs twice
        assert table.loc[name, "paper"] == f"0 of {len(campaign.profile_configs('paper', [name]))}"
    assert "00_quickstart" not in table.index                                       # it has no grid


def test_the_campaign_trains_what_is_worth_most_first_and_each_run_once():
    tiers = list(campaign.tiers().values())
    assert {(c.model, c.trainable, c.seed, c.epochs) for c in tiers[0]} == {
        (m, t, 0, 16) for m in ("resnet14", "resnet32", "resnet56", "resnet110", "resnet14x2", "resnet14x4")
        for t in ("bn", "all")}
    assert {(c.model, c.trainable, c.seed) for c in tiers[1]} == {*(("resnet14", "bn", s) for s in range(5)), *(
        (m, t, 0) for m, t in (("resnet14", "all"), ("resnet32", "bn"), ("resnet56", "bn")))}
    assert {c.epochs for c in tiers[1]} == {160}
    every = [c for tier in tiers for c in tier]
    assert len(every) == len(set(every))
    assert set(every) == {*campaign.profile_configs("short"), *campaign.profile_configs("paper")}
