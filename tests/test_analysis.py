"""Tables against counts and formulas done by hand."""

import re
import types

import numpy as np
import pandas as pd
import pytest

from bnlib import Config, InputError, analysis, findings, freeze, plots, published, verdicts
from bnlib.config import resolve
from bnlib.profiles import PRESETS, PROFILES, variant
from bnlib.verdicts.rules import percent_dead, percent_right
from bnlib.wording import changed

MATCHING = "Matching BN only takes many times more random weights (8 a channel or more)"


def fake_run(accuracy=0.5, gamma=(0.5, 0.5), status="done", **fields):
    """What analysis reads of a run, with values set by hand."""
    config = Config(**fields)
    return types.SimpleNamespace(
        config=config, id=config.id, status=status, gamma={"bn": np.array(gamma)}, beta={"bn": np.zeros(len(gamma))},
        metrics={"test_accuracy": accuracy, "parameters_trained": 1120, "parameters": 175_258},
        provenance={"device": "CPU", "seconds": 3600.0, "images_per_second": 1000.0, "precision": "bf16", "torch": "2",
                    "conv_path": "torch", "commit": "abc"}, record={"classes": 10})


def test_accuracy_is_mean_and_sample_deviation_over_seeds():
    table = analysis.accuracy([fake_run(a, seed=s) for s, a in enumerate((0.40, 0.44, 0.48))])
    row = table.iloc[0]
    assert (row["mean"], row["n"], row["seeds"]) == (pytest.approx(44), 3, "0, 1, 2")
    assert row["std"] == pytest.approx(np.std([40, 44, 48], ddof=1))


def test_accuracies_come_by_the_number_of_random_weights_and_not_by_its_digits():
    table = analysis.accuracy([fake_run(trainable=f"random{k}") for k in (16, 2, 32, 4)])
    assert table["trainable"].tolist() == ["random2", "random4", "random16", "random32"]


def test_runs_that_differ_in_more_than_their_seed_make_no_mean():
    """Batches of 256 and of 1,024 are the protocol of large images of two profiles; other fields make a variant."""
    of_short, of_paper = (PROFILES[name]["large"] | {"model": "imagenet_resnet18", "epochs": 16}
                          for name in ("short", "paper"))
    runs = [fake_run(0.4, **of_short), fake_run(0.42, **of_short, seed=1), fake_run(0.8, **of_paper)]
    assert analysis.accuracy(runs)["n"].tolist() in ([2, 1], [1, 2])
    dead = analysis.dead_features([fake_run(), fake_run(seed=1), fake_run(lr=0.5)])
    assert sorted(zip(dead["variant"], dead["n"], strict=True)) == [("", 2), ("learning rate 0.5", 1)]


def test_the_demo_trains_residual_networks_as_all_others():
    for each in PROFILES.values():
        assert each["residual"] == each["training"]


def test_a_diverged_run_counts_as_diverged_and_not_as_an_accuracy():
    row = analysis.accuracy([fake_run(0.4, seed=0), fake_run(0.1, seed=1, status="diverged")]).iloc[0]
    assert (row["mean"], row["n"], row["diverged"]) == (pytest.approx(40), 1, 1)


def test_dead_share_counts_small_gammas_of_either_sign():
    share = analysis.dead_share({"a": np.array([0.0, -0.009, 0.01, 1.0]), "b": np.array([0.5, 0.5])})
    assert share.to_dict() == {"a": 0.5, "b": 0.0}
    with pytest.raises(InputError, match="below=-1"):
        analysis.dead_share({}, below=-1)


def test_the_threshold_that_was_counted_by_is_the_one_that_is_named():
    runs = [fake_run(gamma=(0.03, 0.5)), fake_run(gamma=(0.03, 0.03), trainable="random8")]
    table = analysis.dead_features(runs, below=0.05)
    assert "50.0 % of all |γ| below 0.05" in analysis.compare_dead(table)[0]
    (axes,) = plots.dead_share(table).axes
    assert axes.get_xlabel() == "channels with |γ| < 0.05 (%)" and len(axes.containers) == 2           # marks and bars


def test_a_bar_of_switched_off_features_and_its_number_end_within_the_axes():
    runs = [fake_run(gamma=gamma, seed=seed) for seed, gamma in enumerate([(0.001, 0.5), (0.001, 0.001)])]
    (axes,) = plots.dead_share(analysis.dead_features(runs)).axes
    axes.figure.canvas.draw()
    (number,) = (text for text in axes.texts if text.get_text().startswith("75.0"))
    drawn, within = number.get_window_extent(), axes.get_window_extent()           # what is not drawn has none
    assert within.x0 < drawn.x0 < drawn.x1 <= within.x1


def test_affine_has_a_row_a_channel(tiny_run):
    channels = analysis.affine([tiny_run])
    assert len(channels) == sum(map(len, tiny_run.gamma.values())) == tiny_run.metrics["parameters_trained"] / 2
    assert np.array_equal(channels["gamma"], np.concatenate(list(tiny_run.gamma.values())))


def test_a_run_that_is_given_twice_counts_once():
    runs = [fake_run(a, seed=s) for s, a in enumerate((0.4, 0.5))]
    pd.testing.assert_frame_equal(analysis.accuracy(runs + runs[:1]), analysis.accuracy(runs))


def test_compare_computes_the_difference_to_each_published_value():
    said = analysis.compare(analysis.accuracy([fake_run(0.475)]), published("test accuracy", "cifar10"))
    assert any("47.5 %" in s and "48 %" in s and "difference −0.5 points" in s for s in said)
    assert any("46.67 %" in s and "+0.8 points" in s for s in said) and not any(" of 160 epochs" in s for s in said)
    short = analysis.compare(analysis.accuracy([fake_run(0.475, epochs=16)]), published("test accuracy", "cifar10"))
    assert short and all(s.endswith("points, after 16 of 160 epochs.") for s in short)
    large = PROFILES["paper"]["large"] | {"model": "imagenet_resnet200"}
    for epochs, said in ((90, "points."), (16, "points, after 16 of 90 epochs.")):
        table = analysis.accuracy([fake_run(0.3, **large | {"epochs": epochs})])
        (whole,) = analysis.compare(table, published("top-5 accuracy"))
        assert whole.endswith(said)


def in_fp32(run):
    run.provenance |= {"precision": "fp32", "bn_path": "torch (switched off by BNLIB_CPP=0)"}
    return run


def by_triton(run):
    run.provenance |= {"bn_path": "Triton"}
    return run


def test_a_config_trained_once_more_is_told_by_precision():
    runs = [fake_run(a, seed=s) for s, a in enumerate((0.44, 0.45, 0.46))]
    for run in runs:
        run.provenance["bn_path"] = "C++"
    repeats = [in_fp32(fake_run(a, seed=s)) for s, a in enumerate((0.42, 0.46, 0.44))]
    (said,) = analysis.by_precision([*runs, fake_run(0.9, model="resnet32")], repeats)
    assert said == ("ResNet-14, BN only, 160 epochs, the same seeds: "
                    "45.0 ± 1.0 % (3 seeds) in bf16, batch norm by C++; "
                    "44.0 ± 2.0 % (3 seeds) in fp32, batch norm by torch; all 6 together 44.5 ± 1.5 %; "
                    "one seed ends up to 2.0 points apart.")
    again = fake_run(0.41)
    again.provenance |= {"bn_path": "C++", "conv_path": "Winograd, strips"}
    assert "41.0 % (1 seed) in bf16, batch norm by C++, convolution by Winograd; all 2" in (
        analysis.by_precision(runs[:1], [again])[0])
    assert "45.5 ± 0.7 % (2 seeds) in bf16" in analysis.by_precision(runs[1:], repeats)[0]      # of both the same seeds
    assert (": 44.0 % (seed 0) in bf16, batch norm by C++; 45.0 % (seed 1) in bf16, batch norm by Triton; "
            "42.0, 46.0 % (seeds 0, 1) in fp32, batch norm by torch; all 4 together 44.2 ± 1.7 %; one seed"
            ) in analysis.by_precision([runs[0], by_triton(runs[1])], repeats[1::-1])[0]
    assert analysis.by_precision(runs, []) == analysis.by_precision([fake_run(model="resnet32")], repeats) == []


def verdict(runs, claim):
    """Where seeds make no difference, as two runs besides tell."""
    steady = [fake_run(seed=seed) for seed in (0, 1)]
    return verdicts.table(runs, repeated=steady).set_index("claim").loc[claim, "verdict"]


@pytest.mark.parametrize(("accuracies", "expected"), [
    ((0.475, 0.480, 0.478), "reproduced"), ((0.455, 0.455, 0.455), "not reproduced"), ((0.48,), "agrees so far"),
    ((0.45,), "disagrees so far"), ((0.44, 0.48, 0.52), "undecided"), ((0.47, 0.475), "agrees so far")])
def test_a_published_number_is_judged_by_the_stated_rule(accuracies, expected):
    runs = [fake_run(a, seed=s) for s, a in enumerate(accuracies)]
    assert verdict(runs, "ResNet-14, BN only: test accuracy") == expected


def test_seeds_that_diverged_hold_a_published_number_back():
    runs = [fake_run(0.48, seed=s) for s in range(3)] + [fake_run(0.1, seed=s, status="diverged") for s in (3, 4)]
    row = verdicts.table(runs).set_index("claim").loc["ResNet-14, BN only: test accuracy"]
    assert row["verdict"] == "undecided" and "(3 seeds; 2 more diverged)" in row["ours"]
    dead = "BN only switches features off: share of |γ| < 0.01"
    shares = [fake_run(model=f"resnet{d}", seed=s, gamma=[0] * 33 + [1] * 67) for d in (14, 32, 56) for s in range(3)]
    assert verdict(shares, dead) == "reproduced"
    assert verdict([*shares, fake_run(0.1, model="resnet866", status="diverged")], dead) == "undecided"


def test_seeds_that_differ_more_than_others_decide_on_their_own_number():
    wild = [fake_run(a, seed=s) for s, a in enumerate((0.44, 0.48, 0.52))]
    tame = [fake_run(0.5, model=f"resnet{d}", seed=s) for d in (20, 32, 44, 56) for s in range(3)]
    assert verdict(wild + tame, "ResNet-14, BN only: test accuracy") == "undecided"


def test_where_nobody_knows_what_seeds_make_an_ordering_is_one_so_far():
    runs = [fake_run(a, model=f"resnet{d}") for d, a in ((14, 0.4), (32, 0.5), (56, 0.6))]
    assert verdict(runs, "BN only: deeper is better") == "reproduced"
    assert verdicts.table(runs).set_index("claim").loc["BN only: deeper is better", "verdict"] == "agrees so far"


def test_imagenet_is_judged_by_the_papers_protocol_alone():
    claim = "ImageNet ResNet-200, BN only: top-5 accuracy"
    for profile, expected in (("short", "not yet run"), ("paper", "agrees so far")):
        fields = PROFILES[profile]["large"] | {"model": "imagenet_resnet200", "epochs": 90}
        one = fake_run(**fields)
        one.metrics["test_top5_accuracy"] = 0.32
        assert verdict([one], claim) == expected


def test_short_runs_say_nothing_on_a_number_reported_after_160_epochs():
    assert verdict([fake_run(0.48, epochs=16)], "ResNet-14, BN only: test accuracy") == "not yet run"


@pytest.mark.parametrize(("accuracies", "expected"), [
    ({14: 0.4, 32: 0.5, 56: 0.6}, "reproduced"), ({14: 0.4, 32: 0.6, 56: 0.5, 110: 0.7}, "partly"),
    ({14: 0.4, 32: 0.5}, "agrees so far"),
    ({14: 0.6, 32: 0.5, 56: 0.4}, "not reproduced"), ({14: 0.6, 32: 0.5}, "disagrees so far"),
    ({14: 0.6}, "not yet run")])
def test_an_ordering_is_judged_pair_by_pair(accuracies, expected):
    runs = [fake_run(a, model=f"resnet{d}") for d, a in accuracies.items()]
    assert verdict(runs, "BN only: deeper is better") == expected


def test_a_network_that_diverged_is_not_left_out_of_an_ordering():
    runs = [fake_run(a, model=f"resnet{d}") for d, a in ((14, 0.4), (32, 0.5), (110, 0.6))]
    row = verdicts.table([*runs, fake_run(0.1, model="resnet56", status="diverged")], repeated=[
        fake_run(seed=seed) for seed in (0, 1)]).set_index("claim").loc["BN only: deeper is better"]
    assert row["verdict"] == "partly" and "in 2 of 3 pairs" in row["ours"] and "1 of these runs diverged" in row["ours"]


def test_full_training_is_compared_with_bn_only_of_the_same_seed():
    runs = [run for d in (14, 32, 56) for run in (
        fake_run(0.45, gamma=(0, 0.5), model=f"resnet{d}"), fake_run(0.45, gamma=(0, 0.5), model=f"resnet{d}", seed=1),
        fake_run(0.9, gamma=(0.5, 0.5), model=f"resnet{d}", trainable="all"))]
    for claim in ("Training all parameters beats BN only", "Full training switches off fewer features"):
        row = verdicts.table(runs).set_index("claim").loc[claim]
        assert row["verdict"] == "reproduced" and row["ours"].startswith("in 3 of 3 pairs")
    assert verdict(runs[:3], "Training all parameters beats BN only") == "agrees so far"


def test_the_row_that_is_judged_is_the_row_that_is_stated():
    three = [fake_run(0.48, seed=s) for s in range(3)]
    row = verdicts.table([*three, fake_run(0.60, epochs=300)]).set_index("claim").loc[
        "ResNet-14, BN only: test accuracy"]
    assert "48.0 ± 0.0 % (3 seeds) after 160 epochs" in row["ours"] and row["verdict"] == "reproduced"


@pytest.mark.parametrize(("status", "expected"), [("done", "reproduced"), ("diverged", "not reproduced")])
def test_three_seeds_decide_on_a_number_and_three_that_diverged_refute_it(status, expected):
    runs = [fake_run(0.48, status=status, seed=s) for s in range(3)]
    assert verdict(runs, "ResNet-14, BN only: test accuracy") == expected
    assert verdict(runs[:2], "ResNet-14, BN only: test accuracy") == (
        "agrees so far" if expected == "reproduced" else "disagrees so far")


def test_the_share_of_dead_features_is_judged_at_160_epochs():
    claim = f"BN only switches features off: share of |γ| < {analysis.DEAD}"
    third = (0, 0.5, 0.5)
    each = [fake_run(gamma=third, model=f"resnet{d}", seed=s) for d in (14, 32, 56) for s in range(3)]
    assert verdict(each, claim) == "reproduced" and verdict(each[:3], claim) == "agrees so far"
    none = [fake_run(gamma=(0.5, 0.5), seed=s) for s in range(3)]
    assert verdict([*each[3:], *none], claim) == "not reproduced"                           # the worst counts
    assert verdict([*each[3:], none[0]], claim) == "disagrees so far"                       # one seed refutes nothing
    assert verdict([fake_run(gamma=third, epochs=16)], claim) == "not yet run"


def test_findings_are_computed_from_the_runs():
    said = " ".join(findings.summary([fake_run(0.4321), fake_run(0.91, trainable="all")]))
    assert "1,120 of its 175,258 parameters (0.6 %), reaches 43.2 %" in said
    assert "(the paper: 48 % after 160; guessing: 10 %); training all of them, 91.0 % (1 seed) after 160 epochs" in said


def test_findings_say_which_half_does_the_work_and_how_much_is_there():
    runs = [fake_run(0.45), fake_run(0.4, trainable="gamma"), fake_run(0.3, trainable="beta"),
            fake_run(0.5, norm="group")]
    said = list(findings.summary(runs))
    assert ("**γ alone does more than β alone**: ResNet-14, 160 epochs: BN only 45.0 % (1 seed), γ only 40.0 % "
            "(1 seed), β only 30.0 % (1 seed).") in said
    assert "**β alone does more than γ alone**" in " ".join(findings.summary(
        [fake_run(0.45), fake_run(0.2, trainable="gamma"), fake_run(0.3, trainable="beta")]))
    assert list(findings.progress(runs, planned=10)) == [
        "4 of 10 planned runs are there: 4 runs of 160 epochs; 4.0 hours."]
    assert findings.progress([], 10)[0].startswith("0 of 10 planned runs are there: none of the paper's 160 yet")


def test_compute_is_summed_device_by_device():
    resumed = fake_run(seed=1)
    (row,) = analysis.machines([fake_run(), resumed]).itertuples(index=False)
    assert tuple(row) == ("CPU", "bf16", "2", 2, 2.0)


def test_an_unknown_metric_is_named():
    with pytest.raises(InputError, match="metric='accuracy'"):
        published("accuracy")


def test_published_values_have_a_source_and_a_place():
    table = pd.read_csv(resolve("bnlib/published.csv"))
    assert table[["source", "where", "metric", "value"]].notna().all().all()


def test_a_variant_is_what_differs_from_the_profile():
    assert variant(Config(seed=3, epochs=16, model="resnet56", trainable="all")) == {}
    assert variant(Config(lr=0.3, bn_init="ones")) == {"bn_init": "ones", "lr": 0.3}
    few = Config(dataset="imagenet", model="imagenet_resnet18", epochs=2)               # fewer than of the warm-up
    assert variant(few).keys() <= {"warmup_epochs", "batch_size", "lr", "milestones"}
    demo = {"dataset": "digits", "batch_size": 32, "augment": "crop", "epochs": 3}
    assert variant(Config(**demo)) == {} and variant(Config(**demo, lr=0.5)) == {"lr": 0.5}


@pytest.mark.parametrize(("config", "said"), [
    (Config(epochs=16, lr=0.3, bn_init="ones"), "γ starts at 1, learning rate 0.3"),
    (Config(epochs=16, optimizer="adam", norm="none", trainable="output"), "Adam, without batch norm"),
    (Config(epochs=16, n_train=6400, warmup_epochs=1), "6,400 training images, 1 epoch of warm-up"),
    (Config(epochs=16, fp32=True), "float32"),
    (Config(epochs=16, shortcut="none"), "no shortcut where shapes change"),
    (Config(epochs=16, milestones=(0.25, 0.6)), "milestones=(0.25, 0.6)"),
    (Config(epochs=16, batch_size=2048), "batches of 2,048"),
    (Config(epochs=16, weight_decay=0.01, decay="none"), "weight decay 0.01 on neither"),
    (Config(epochs=16, decay="beta"), "weight decay on β alone"),
    (Config(epochs=16, momentum=0.5), "momentum=0.5"),
    (Config(epochs=16), "")])
def test_a_variant_in_words_names_each_change(config, said):
    assert changed(variant(config)) == said


def test_runs_that_vary_the_protocol_are_not_averaged_with_it():
    table = analysis.accuracy([fake_run(0.5), fake_run(0.1, lr=1.0)]).set_index("variant")
    assert table["mean"].to_dict() == {"": 50, "learning rate 1.0": 10}
    three = [fake_run(0.48, seed=s) for s in range(3)]
    assert verdict([*three, fake_run(0.1, lr=1.0)], "ResNet-14, BN only: test accuracy") == "reproduced"


@pytest.mark.parametrize(("matching", "expected"), [
    (16, "agrees so far"), (4, "disagrees so far"), (2, "disagrees so far"), (None, "agrees so far")])
def test_random_weights_that_match_bn_are_counted(matching, expected):
    runs = [fake_run(0.45), *(fake_run(0.46 if matching and k >= matching else 0.3, trainable=f"random{k}")
                              for k in (2, 4, 8, 16, 32))]
    row = verdicts.table(runs).set_index("claim").loc[MATCHING]
    assert row["verdict"] == expected
    assert (f"{matching} a channel" if matching else "more than 32 a channel") in row["ours"]


@pytest.mark.parametrize(("matching", "expected"), [(8, "reproduced"), (4, "not reproduced")])
def test_random_weights_are_counted_seed_by_seed(matching, expected):
    runs = [fake_run(0.46 if k >= matching else 0.3, trainable=f"random{k}", seed=s)
            for k in (2, 4, 8) for s in range(3)]
    runs += [fake_run(0.45, seed=s) for s in range(3)]
    assert verdict(runs, MATCHING) == expected


def test_random_weights_that_match_tell_nothing_where_half_as_many_were_not_tried():
    runs = [fake_run(0.45), fake_run(0.3, trainable="random2"), fake_run(0.6, trainable="random32")]
    assert verdict(runs, MATCHING) == "not yet run"


def test_random_weights_that_nearly_match_decide_nothing_within_what_seeds_make():
    claim = MATCHING
    runs = [fake_run(a, trainable=what, seed=s) for s in range(3)
            for what, a in (("bn", 0.45 + 0.02 * s), ("random4", 0.4499 + 0.02 * s), ("random8", 0.5))]
    row = verdicts.table(runs).set_index("claim").loc[claim]
    assert row["verdict"] == "undecided" and "in 3 of 3 pairs" in row["ours"]


def test_two_random_weights_alone_do_not_tell_how_many_match_bn():
    runs = [fake_run(0.45), fake_run(0.3, trainable="random2")]
    assert verdict(runs, MATCHING) == "not yet run"


@pytest.mark.parametrize(("less", "expected"), [(0.01, "reproduced"), (0.05, "not reproduced")])
def test_freezing_gamma_and_beta_costs_little_by_the_stated_margin(less, expected):
    runs = [fake_run(0.85 - less * (t == "weights"), model=m, trainable=t)
            for m in ("resnet14", "resnet32", "resnet56") for t in ("all", "weights")]
    assert verdict(runs, "Freezing γ and β costs full training at most 2 points") == expected


@pytest.mark.parametrize(("change", "expected"), [(0.1, "reproduced"), (3.0, "not reproduced")])
def test_small_gammas_that_may_go_are_judged_by_their_change(change, expected):
    def verdict(**fields):
        thresholds = pd.concat([pd.DataFrame({
            "run": model, "model": model, "trainable": "bn", "epochs": 160, "threshold": [0, 0.01], "zeroed": [0, 30],
            "accuracy": [45, 45 - change]} | fields) for model in ("resnet14", "resnet32", "resnet56")])
        rows = verdicts.table([], thresholds=thresholds).set_index("claim")["verdict"]
        return rows["BN only: setting |γ| < 0.01 to zero changes accuracy by 0.5 points or less"]
    assert verdict() == expected and verdict(zeroed=0) == "not yet run"


@pytest.mark.parametrize(("deviation", "expected"), [(1e-12, "holds"), (1e-5, "does not hold")])
def test_numpy_equals_torch_up_to_the_bars(deviation, expected):
    equality = pd.DataFrame({"compared": ["outputs", "gradients", "training"], "deviation": [1e-12, deviation, 1e-12],
                             "bar": 1e-6})
    for compared, verdict in ((equality, expected), (equality[:2], "not yet run"), (equality[:0], "not yet run")):
        rows = verdicts.table([], equality=compared).set_index("claim")["verdict"]
        assert rows["Outputs, gradients and training of the networks in NumPy equal torch's"] == verdict


def test_starts_that_matter_little_stay_within_two_points():
    runs = [run for s in range(3) for run in (fake_run(0.45, seed=s), fake_run(0.44, bn_init="ones", seed=s),
                                              fake_run(0.40, conv_init="binary", seed=s))]
    assert verdict(runs, "How γ and β start matters little") == "reproduced"
    assert verdict(runs, "How convolutions start matters little") == "not reproduced"
    assert verdict(runs[:3], "How γ and β start matters little") == "agrees so far"         # one seed
    others = [fake_run(a, **PRESETS["3c3d-cifar10"] | {"bn_init": b}) for a, b in ((0.45, "ones"), (0.2, "signed"))]
    assert verdict([*runs, *others], "How γ and β start matters little") == "reproduced"


@pytest.mark.parametrize(("claim", "fields", "accuracy", "expected"), [
    ("Training γ and β first, then everything, beats training everything for as many epochs",
     {"trainable": "all", "bn_first": 20}, 0.46, "holds so far"),                       # one network is not three
    ("Training γ and β first, then everything, beats training everything for as many epochs",
     {"trainable": "all", "bn_first": 20}, 0.44, "does not hold so far"),
    ("γ and β of group or layer norm alone do as well (within 2 points)", {"norm": "group"}, 0.44, "holds so far"),
    ("γ and β of group or layer norm alone do as well (within 2 points)", {"norm": "layer"}, 0.42,
     "does not hold so far"),
    ("At about as many parameters, a narrow network (two channels or more) trained in full beats BN only",
     {"model": freeze.narrow("resnet14"), "trainable": "all"}, 0.46, "holds so far"),
])
def test_claims_beyond_the_paper_are_judged_seed_by_seed(claim, fields, accuracy, expected):
    runs = [fake_run(0.45), fake_run(0.45, trainable="all"), fake_run(accuracy, **fields),
            fake_run(accuracy, **fields | {"seed": 7})]                    # without a partner of its seed: no pair
    row = verdicts.table(runs).set_index("claim").loc[claim]
    assert row["verdict"] == expected and "of 1 pairs" in row["ours"]


@pytest.mark.parametrize(("ahead", "expected"), [(1.1, "undecided"), (1.2, "agrees so far"), (-1.1, "undecided"),
                                                 (-1.2, "not reproduced")])
def test_a_difference_that_seeds_alone_make_is_undecided(ahead, expected):
    """Three differences of runs that deviate by 1 and by 0 points, by √½ in all: two standard errors are 2·√(6·½)/3 =
    1.15."""
    full = [fake_run(0.85 + 0.01 * s, seed=s, trainable="all") for s in (0, 1, 2)]
    alone = [fake_run(0.86 - 0.01 * ahead, seed=s) for s in (0, 1, 2)]
    row = verdicts.table(full + alone).set_index("claim").loc["Training all parameters beats BN only"]
    assert row["verdict"] == expected
    assert f"of 3 pairs; ahead {ahead:+.1f} ± 1.2 points; ".replace("-", "−") in row["ours"]
    one_seed = verdicts.table([full[1], alone[1]]).set_index("claim")["verdict"]        # no noise is known of
    assert one_seed["Training all parameters beats BN only"] == (
        "agrees so far" if ahead > 0 else "disagrees so far")


def test_pairs_that_share_a_run_go_up_and_down_together():
    """Seeds deviate by 1 point. Of three depths the mean gain is half of last less first: 2·√2/2 = 1.4. Two starts that
    are compared with one run: 2·√(1 + ¼ + ¼) = 2.4."""
    noisy = [fake_run(0.2 + s / 100, epochs=5, seed=s) for s in range(3)]
    deep = [fake_run(0.44 + i / 200, model=f"resnet{d}") for i, d in enumerate((14, 32, 56))]
    starts = [fake_run(0.441, bn_init="ones"), fake_run(0.442, bn_init="signed")]
    ours = verdicts.table([*noisy, *deep, *starts]).set_index("claim")["ours"]
    assert ours["BN only: deeper is better"].startswith("in 2 of 2 pairs; ahead +0.5 ± 1.4 points;")
    assert "± 2.4 points; " in ours["How γ and β start matters little"]


def test_a_mean_that_says_otherwise_than_most_pairs_decides_nothing():
    noisy = [fake_run(0.2 + s / 1000, epochs=5, seed=s) for s in range(3)]
    full = [fake_run(a, model=f"resnet{d}", trainable="all") for d, a in ((14, 0.5), (32, 0.5), (56, 0.1))]
    alone = [fake_run(0.45, model=f"resnet{d}") for d in (14, 32, 56)]
    row = verdicts.table(noisy + full + alone).set_index("claim").loc["Training all parameters beats BN only"]
    assert row["verdict"] == "undecided" and "ahead −8.3 ± " in row["ours"]


def test_the_noise_between_seeds_is_pooled_over_what_differs_in_nothing_else():
    """Sums of squares 2 (of three runs) and 0.5 (of two), over 2 + 1 degrees of freedom."""
    runs = [*(fake_run(a, seed=s) for s, a in enumerate((0.44, 0.45, 0.46))), fake_run(0.9, epochs=300),
            *(fake_run(a, seed=s, model="resnet32") for s, a in enumerate((0.5, 0.51))),
            fake_run(0.8, trainable="all"), fake_run(0.8, trainable="all", seed=1)]
    noise = verdicts.seed_noise(runs)
    here, dead = ("cifar10", percent_right), ("cifar10", percent_dead)
    assert noise[here] == pytest.approx((2.5 / 4) ** 0.5) and noise[dead] == 0
    others = [fake_run(a, seed=s, dataset="sequences") for s, a in enumerate((0.1, 0.5))]          # other images
    assert verdicts.seed_noise([*runs, *others])[here] == noise[here]
    assert verdicts.seed_noise(runs[:1]) == {}
    repeats = [in_fp32(fake_run(a, seed=s)) for s, a in enumerate((0.40, 0.42))]       # 2 more over 1; apart from bf16
    for repeated in (repeats, [fake_run(a, seed=s) for s, a in enumerate((0.40, 0.42))]):   # and so in bf16 once more
        assert verdicts.seed_noise(runs, repeated)[here] == pytest.approx((4.5 / 5) ** 0.5)


def test_runs_that_were_repeated_make_noise_and_nothing_else():
    pair, claim = [fake_run(0.44), fake_run(0.47, trainable="all")], "Training all parameters beats BN only"
    steady = [fake_run(0.44, seed=1), fake_run(0.47, seed=1, trainable="all")]
    assert verdicts.table(pair + steady).set_index("claim").loc[claim, "verdict"] == "agrees so far"
    repeats = [in_fp32(fake_run(a, seed=s)) for s, a in enumerate((0.40, 0.48))]
    row = verdicts.table(pair + steady, repeated=repeats).set_index("claim").loc[claim]
    assert row["verdict"] == "undecided" and row["ours"].startswith("in 2 of 2 pairs")


def test_pairs_of_several_numbers_of_epochs_are_not_averaged_together():
    runs = [fake_run(right, trainable=what, epochs=epochs, seed=seed)
            for epochs, seeds, bn, full in ((16, 2, 0.44, 0.84), (160, 1, 0.48, 0.9))
            for seed in range(seeds) for what, right in (("bn", bn), ("all", full))]
    said = verdicts.table(runs).set_index("claim").loc["Training all parameters beats BN only", "ours"]
    assert "ResNet-14 84.0 against 44.0 %, ResNet-14 after 160 epochs 90.0 against 48.0 %; seeds 0, 1;" in said


def test_how_far_pairs_are_ahead_is_told_by_the_number_of_epochs():
    runs = [fake_run(right, trainable=what, epochs=epochs) for epochs, bn, full in ((16, 0.44, 0.84), (160, 0.48, 0.9))
            for what, right in (("bn", bn), ("all", full))]
    said = verdicts.table(runs).set_index("claim").loc["Training all parameters beats BN only", "ours"]
    assert "; ahead +40.0 points after 16 epochs, +42.0 points after 160 epochs; " in said


def test_a_margin_is_for_the_mean_over_seeds():
    """Of three seeds one is 3 points away, by chance; in the mean it is 1."""
    runs = [fake_run(0.45 + points / 100 * changed, seed=seed, **({"bn_init": "ones"} if changed else {}))
            for seed, points in enumerate((0, 0, 3)) for changed in (0, 1)]
    row = verdicts.table(runs).set_index("claim").loc["How γ and β start matters little"]
    assert row["ours"].startswith("in 1 of 1 pairs, each a mean over seeds; ahead +1.0 ± ")
    assert "; γ starts at 1, ResNet-14 +1.0 points;" in row["ours"]
    freezing = "Freezing γ and β costs full training at most 2 points"
    runs = [fake_run(0.85 - points / 100 * (what == "weights"), model=model, seed=seed, trainable=what)
            for model in ("resnet14", "resnet32", "resnet56") for seed, points in enumerate((0, 0, 3))
            for what in ("all", "weights")]
    row = verdicts.table(runs).set_index("claim").loc[freezing]
    assert row["ours"].startswith("in 3 of 3 pairs, each a mean over seeds;")


def test_variants_of_the_protocol_are_not_averaged_together():
    runs = [fake_run(0.45), fake_run(0.4, norm="group"), fake_run(0.3, norm="layer")]
    said = verdicts.table(runs).set_index("claim").loc[
        "γ and β of group or layer norm alone do as well (within 2 points)", "ours"]
    assert "ResNet-14, group norm, 40.0 against 45.0 %, ResNet-14, layer norm, 30.0 against 45.0 %" in said


def test_what_diverged_in_every_seed_is_in_the_figure():
    runs = [fake_run(0.45), fake_run(0.1, lr=3.0, status="diverged"), fake_run(0.4, norm="group")]
    axes = plots.accuracy_by_setting(analysis.accuracy(runs), "variant").axes[0]
    (said,) = [text for text in axes.texts if text.get_text() == "diverged"]
    assert said.xy[1] == 0 and axes.get_yticklabels()[0].get_text() == "learning rate 3.0"


def test_the_narrow_network_that_counts_is_the_one_of_as_many_parameters():
    claim = "At about as many parameters, a narrow network (two channels or more) trained in full beats BN only"
    others = [fake_run(right, model=f"resnet{m}", trainable="all") for m, right in (("14c1", 0.1), ("14c3", 0.9))]
    partner = fake_run(0.5, model=freeze.narrow("resnet14"), trainable="all")
    row = verdicts.table([fake_run(0.45), *others, partner]).set_index("claim").loc[claim]
    assert row["verdict"] == "holds so far" and "in 1 of 1 pairs; ahead +5.0 points; ResNet-8c2" in row["ours"]
    assert verdict([fake_run(0.45), *others], claim) == "not yet run"
    partner.metrics["parameters_trained"] *= 1.3
    assert verdict([fake_run(0.45), partner], claim) == "not yet run"                   # not about as many


def test_depth_is_compared_with_width_at_as_many_parameters():
    def bn(model, right, trained):
        run = fake_run(right, model=model)
        run.metrics["parameters_trained"] = trained
        return run

    claim = "BN only: at about as many parameters, deeper beats wider"
    runs = [bn("resnet14", 0.45, 1120), bn("resnet14x2", 0.48, 2240), bn("resnet20", 0.47, 1568),
            bn("resnet32", 0.51, 2464), bn("resnet56", 0.54, 4256)]
    row = verdicts.table(runs).set_index("claim").loc[claim]
    assert row["verdict"] == "agrees so far"
    assert "in 1 of 1 pairs; ahead +3.0 points; ResNet-32 51.0 against ResNet-14-2 48.0 %" in row["ours"]
    (axes,) = plots.depth_or_width(analysis.accuracy(runs)).axes
    assert [list(container.lines[0].get_xdata()) for container in axes.containers] == [
        [1120, 1568, 2464, 4256], [1120, 2240]]


def test_open_questions_are_told_by_verdict_with_what_they_lack():
    deep = [fake_run(a, model=m, epochs=16) for m, a in (("resnet14", 0.4), ("resnet32", 0.5))]
    table = verdicts.table(deep)
    so_far, not_run = verdicts.open_questions(table)
    assert so_far == "**Agrees so far**, for want of 3 networks or seeds: BN only: deeper is better."
    assert not_run.startswith("**Not yet run**, or not for the paper's 160 epochs: ") and "wider is better" in not_run
    assert verdicts.on(table, "deeper is", "wider is") == [
        "BN only: deeper is better: **agrees so far**.", "BN only: wider is better: **not yet run**."]


@pytest.mark.parametrize(("models", "seeds", "expected"), [
    (("resnet14",), 3, "holds"), (("resnet14", "resnet20", "resnet32"), 1, "holds"),
    (("resnet14", "resnet20"), 2, "holds so far"),
])
def test_an_ordering_takes_three_networks_or_one_in_three_seeds(models, seeds, expected):
    runs = [fake_run(a, model=m, seed=s, trainable=t) for m in models for s in range(seeds)
            for t, a in (("gamma", 0.4), ("beta", 0.3))]
    assert verdict(runs, "γ alone does more than β alone") == expected


@pytest.mark.parametrize(("claim", "lower"), [
    ("BN only does more than the output layer alone", "output"),
    ("BN only does more than shortcuts alone, weights, γ and β", "shortcut")])
def test_bn_only_is_compared_with_other_parts_that_train_alone(claim, lower):
    for less, expected in ((0.3, "holds"), (0.6, "does not hold")):
        runs = [fake_run(a, seed=s, trainable=t) for s in range(3) for t, a in (("bn", 0.45), (lower, less))]
        assert verdict(runs, claim) == expected


def test_sequences_are_judged_apart_from_images():
    runs = [fake_run(a, dataset="sequences", model="resnet1d14", augment="none", batch_size=32, trainable=t)
            for t, a in (("bn", 0.5), ("output", 0.1))]
    assert verdict(runs, "On sequences too, γ and β do more than the output layer") == "holds so far"
    assert verdict(runs, "γ alone does more than β alone") == "not yet run"


def test_runs_that_vary_one_field_are_told_from_those_that_vary_another():
    runs = [fake_run(), fake_run(norm="group"), fake_run(norm="group", lr=0.5), fake_run(lr=0.5)]
    assert analysis.varied(runs, "norm") == runs[:2] and analysis.varied(runs, "norm", "lr") == runs


def test_a_stored_network_takes_its_trained_parameters_running_statistics_and_a_seed(tiny_run):
    """ResNet-8: 16 + 2·(16 + 32 + 64) channels, and the shortcuts' 32 + 64; γ, β, running mean and variance of each."""
    assert analysis.sizes([tiny_run])["bytes"].tolist() == [4 * 4 * (16 + 2 * (16 + 32 + 64) + 32 + 64) + 8]


def test_figures_compare_runs_of_as_many_epochs_those_of_which_there_are_most():
    runs = [fake_run(0.48), fake_run(0.3, trainable="random2"), fake_run(0.44, epochs=16),
            *(fake_run(0.2 + k / 100, trainable=f"random{k}", epochs=16) for k in (2, 4, 8))]
    axes = plots.random_weights(analysis.accuracy(runs)).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [2, 4, 8] and axes.get_title() == "ResNet-14, 16 epochs"
    settings = plots.accuracy_by_setting(analysis.accuracy(runs)).axes[0]
    assert len(settings.get_yticks()) == 4 and "16 epochs" in settings.get_title()


def test_which_half_does_the_work_is_told_of_runs_of_as_many_epochs():
    runs = [fake_run(0.48), *(fake_run(a, trainable=t, epochs=16) for t, a in (("bn", 0.45), ("gamma", 0.39)))]
    said = "Part by part: ResNet-14, 16 epochs: BN only 45.0 % (1 seed), γ only 39.0 % (1 seed)."
    assert said in findings.summary(runs)


def test_the_summary_says_how_far_batch_norm_alone_comes_without_shortcuts():
    runs = [fake_run(a, model=f"{kind}{depth}") for kind, depth, a in (
        ("resnet", 20, 0.47), ("plain", 20, 0.42), ("resnet", 32, 0.51))]
    said = [s for s in findings.summary(runs) if s.startswith("**Shortcuts")]
    assert said == ["**Shortcuts help**: training only γ and β reaches at depth 20 42.0 % without them, 47.0 % with "
                    "them (160 epochs, 1 seed)."]


def test_networks_with_and_without_shortcuts_are_compared_in_the_seeds_that_both_have():
    runs = [fake_run(0.47, model="resnet20"), fake_run(0.57, model="resnet20", seed=1), fake_run(0.42, model="plain20"),
            fake_run(0.9, model="resnet20", seed=1, trainable="all"), fake_run(0.8, model="plain20", trainable="all")]
    table = analysis.residual_and_plain(runs).set_index("trained")
    assert table.loc["bn", ["residual, ours", "plain, ours", "seeds"]].tolist() == [47, 42, 1]
    assert table.loc["all", ["residual, ours", "plain, ours"]].tolist() == [90, 80]         # they share none


def test_the_summary_says_how_accuracy_goes_with_size():
    runs = [*(fake_run(a, model=f"resnet{depth}") for depth, a in ((14, 0.48), (32, 0.57), (56, 0.62))),
            *(fake_run(a, model=model, epochs=16) for model, a in (("resnet14", 0.44), ("resnet14x2", 0.4)))]
    (said,) = [s for s in findings.summary(runs) if s.startswith("BN-only accuracy")]
    assert said == ("BN-only accuracy: **with depth it rises**: 48.0, 57.0, 62.0 % at 14, 32, 56 layers (160 epochs; "
                    "seeds: 1, 1, 1); **with width it falls**: 44.0, 40.0 % at 1, 2 times the width (16 epochs; "
                    "seeds: 1, 1).")


def test_two_verdict_tables_of_a_page_have_names_of_their_own():
    claims = verdicts.table([fake_run(0.48)])
    ours = verdicts.of_the_paper(claims)
    first, second = (claims[half].style.pipe(plots.verdicts).to_html() for half in (ours, ~ours))
    ids = [set(re.findall(r'id="(T_verdicts[^"]*)"', html)) for html in (first, second)]
    assert all(ids) and not ids[0] & ids[1]
    assert "(✓) agrees so far" in first and "– not yet run" in second


def test_trials_of_deep_networks_say_which_diverged_and_where_the_loss_went():
    def trial(losses, status="done", precision="bf16", **fields):
        run = fake_run(0.2, model="resnet218", **PROFILES["paper"]["stability"] | fields, status=status)
        run.record, run.provenance = {"classes": 10}, {"precision": precision}
        run.history = pd.DataFrame({"epoch": range(1, len(losses) + 1), "train_loss": losses})
        return run
    runs = [trial([2.5, 2.25]), trial([2.5, np.nan], "diverged", "fp32", fp32=True),
            trial([np.nan], "diverged", "fp32", warmup_epochs=1.0, fp32=True),
            trial([2.5, 2], "done", "fp32; bf16", seed=3),
            fake_run(model="resnet218", n_train=6400, epochs=9)]                                # not a trial
    table = analysis.trials(runs)
    (said,) = analysis.trials_stated(table)
    assert said.startswith("ResNet-218, 8 epochs of 6,400 images: 2 of 4 runs diverged.")
    for part in ("no warm-up, bf16: 2.50 to 2.25", "no warm-up, fp32: diverged in epoch 2",
                 "fp32, then bf16: 2.50 to 2.00", "1 epoch of warm-up, fp32: diverged in epoch 1"):
        assert part in said
    axes = plots.trials(table).axes[0]
    crosses = {(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() == "x"}
    assert crosses == {(2, 2.5), (1, np.log(10))}            # the last loss that was a number, or that of guessing
    assert analysis.trials_stated(analysis.trials([])) == []


def test_trials_of_one_precision_are_told_apart():
    """On a machine that is not fast at bf16 both are float32."""
    runs = [fake_run(model="resnet218", **PROFILES["paper"]["stability"] | {"fp32": fp32}) for fp32 in (False, True)]
    for run in runs:
        run.record, run.provenance = {"classes": 10}, {"precision": "fp32"}
        run.history = pd.DataFrame({"epoch": [1], "train_loss": [2.0]})
    table = analysis.trials(runs)
    assert "0 of 2 runs" in analysis.trials_stated(table)[0]
    assert len([line for line in plots.trials(table).axes[0].lines if line.get_marker() == "."]) == 2


def test_the_tally_counts_claims_of_the_paper_settings_with_enough_seeds_and_long_runs():
    runs = [*(fake_run(0.48, seed=s) for s in range(3)), fake_run(0.3, epochs=16, trainable="random2"),
            fake_run(0.9, epochs=16, norm="group")]
    table = verdicts.table(runs)
    of_the_paper = verdicts.of_the_paper(table)
    assert of_the_paper.is_monotonic_decreasing and 0 < of_the_paper.sum() < len(table)             # the paper's first
    assert not table["claim"][of_the_paper].str.contains("NumPy|Shortcuts|γ alone").any()
    (said,) = verdicts.tally(table, runs)
    counted = table["verdict"][of_the_paper].value_counts()
    assert f"Of the paper's {of_the_paper.sum()} claims: reproduced {counted['reproduced']}, " in said
    assert said.endswith("1 of 3 settings have 3 seeds or more; 3 of 5 runs have the paper's 160 epochs.")


def test_pairs_of_two_precisions_are_told():
    runs = [fake_run(0.45), in_fp32(fake_run(0.9, trainable="all")), fake_run(0.5, model="resnet32"),
            fake_run(0.9, model="resnet32", trainable="all")]
    row = verdicts.table(runs).set_index("claim").loc["Training all parameters beats BN only"]
    assert "bf16 beside fp32 in 1" in row["ours"]


def test_what_switches_off_most_is_named_first():
    runs = [fake_run(gamma=(0, 0.5)), fake_run(gamma=(0, 0, 0.5), lr=1.0), fake_run(gamma=(0.5, 0.5), bn_init="ones")]
    assert list(analysis.rank_dead(analysis.dead_features(runs))) == [
        "Switched off (|γ| < 0.01) in ResNet-14, BN only, after 160 epochs: learning rate 1.0 66.7 %; "
        "the protocol 50.0 %; γ starts at 1 0.0 %."]
