"""Tables against counts and formulas done by hand."""

import types

import numpy as np
import pandas as pd
import pytest

from bnlib import Config, InputError, analysis, published, verdicts


def fake_run(accuracy=0.5, gamma=(0.5, 0.5), status="done", **fields):
    """What analysis reads of a run, with values set by hand."""
    config = Config(**fields)
    return types.SimpleNamespace(
        config=config, id=config.id, status=status, gamma={"bn": np.array(gamma)}, beta={"bn": np.zeros(len(gamma))},
        metrics={"test_accuracy": accuracy, "parameters_trained": 1120, "parameters": 175_258},
        provenance={"device": "CPU", "seconds": 3600.0, "images_per_second": 1000.0, "precision": "bf16", "torch": "2",
                    "commit": "abc"})


def test_accuracy_is_mean_and_sample_deviation_over_seeds():
    table = analysis.accuracy([fake_run(a, seed=s) for s, a in enumerate((0.40, 0.44, 0.48))])
    row = table.iloc[0]
    assert (row["mean"], row["n"], row["seeds"]) == (pytest.approx(44), 3, "0, 1, 2")
    assert row["std"] == pytest.approx(np.std([40, 44, 48], ddof=1))


def test_a_diverged_run_counts_as_diverged_and_not_as_an_accuracy():
    row = analysis.accuracy([fake_run(0.4, seed=0), fake_run(0.1, seed=1, status="diverged")]).iloc[0]
    assert (row["mean"], row["n"], row["diverged"]) == (pytest.approx(40), 1, 1)


def test_dead_share_counts_small_gammas_of_either_sign():
    share = analysis.dead_share({"a": np.array([0.0, -0.009, 0.01, 1.0]), "b": np.array([0.5, 0.5])})
    assert share.to_dict() == {"a": 0.5, "b": 0.0}
    with pytest.raises(InputError, match="below=-1"):
        analysis.dead_share({}, below=-1)


def test_affine_has_a_row_a_channel(tiny_run):
    channels = analysis.affine([tiny_run])
    assert len(channels) == sum(map(len, tiny_run.gamma.values())) == tiny_run.metrics["parameters_trained"] / 2
    assert np.array_equal(channels["gamma"], np.concatenate(list(tiny_run.gamma.values())))


def test_compare_computes_the_difference_to_each_published_value():
    said = analysis.compare(analysis.accuracy([fake_run(0.475)]), published("test accuracy", "cifar10"))
    assert any("47.5 %" in s and "48 %" in s and "difference -0.5 points" in s for s in said)
    assert any("46.67 %" in s and "+0.8 points" in s for s in said)


def verdict(runs, claim):
    return verdicts.table(runs).set_index("claim").loc[claim, "verdict"]


@pytest.mark.parametrize(("accuracies", "expected"), [
    ((0.475, 0.480, 0.478), "reproduced"), ((0.455, 0.455, 0.455), "partly"), ((0.30, 0.30, 0.30), "not reproduced")])
def test_a_published_number_is_judged_by_the_stated_rule(accuracies, expected):
    runs = [fake_run(a, seed=s) for s, a in enumerate(accuracies)]
    assert verdict(runs, "ResNet-14, BN only: test accuracy") == expected


def test_short_runs_say_nothing_on_a_number_reported_after_160_epochs():
    assert verdict([fake_run(0.48, epochs=16)], "ResNet-14, BN only: test accuracy") == "not yet run"


@pytest.mark.parametrize(("accuracies", "expected"), [
    ({14: 0.4, 32: 0.5, 56: 0.6}, "reproduced"), ({14: 0.4, 32: 0.6, 56: 0.5, 110: 0.7}, "partly"),
    ({14: 0.4, 32: 0.5}, "partly"),
    ({14: 0.6, 32: 0.5}, "not reproduced"), ({14: 0.6}, "not yet run")])
def test_an_ordering_is_judged_pair_by_pair(accuracies, expected):
    runs = [fake_run(a, model=f"resnet{d}") for d, a in accuracies.items()]
    assert verdict(runs, "BN only: deeper is better") == expected


def test_full_training_is_compared_with_bn_only_of_the_same_seed():
    runs = [run for d in (14, 32, 56) for run in (
        fake_run(0.45, gamma=(0, 0.5), model=f"resnet{d}"), fake_run(0.45, gamma=(0, 0.5), model=f"resnet{d}", seed=1),
        fake_run(0.9, gamma=(0.5, 0.5), model=f"resnet{d}", trainable="all"))]
    for claim in ("Training all parameters beats BN only", "Full training switches off fewer features"):
        row = verdicts.table(runs).set_index("claim").loc[claim]
        assert row["verdict"] == "reproduced" and row["ours"].startswith("in 3 of 3 pairs")
    assert verdict(runs[:3], "Training all parameters beats BN only") == "partly"


def test_the_row_that_is_judged_is_the_row_that_is_stated():
    row = verdicts.table([fake_run(0.48), fake_run(0.60, epochs=300)]).set_index(
        "claim").loc["ResNet-14, BN only: test accuracy"]
    assert "48.0 % (1 seed) after 160 epochs" in row["ours"]
    assert row["verdict"] == "reproduced"


def test_the_share_of_dead_features_is_judged_at_160_epochs():
    claim = f"BN only switches features off: share of |γ| < {analysis.DEAD}"
    third = (0, 0.5, 0.5)
    assert verdict([fake_run(gamma=third)], claim) == "reproduced"
    assert verdict([fake_run(gamma=(0.5, 0.5))], claim) == "not reproduced"
    assert verdict([fake_run(gamma=third, epochs=16)], claim) == "not yet run"


def test_findings_are_computed_from_the_runs():
    said = " ".join(analysis.findings([fake_run(0.4321), fake_run(0.91, trainable="all")]))
    assert "1,120 of its 175,258 parameters (0.6%), reaches 43.2 %" in said
    assert "all of them reach 91.0 % (1 seed) after 160" in said


def test_an_unknown_metric_is_named():
    with pytest.raises(InputError, match="metric='accuracy'"):
        published("accuracy")


def test_published_values_have_a_source_and_a_place():
    table = pd.read_csv(analysis.Path(analysis.__file__).with_name("published.csv"))
    assert table[["source", "where", "metric", "value"]].notna().all().all()
