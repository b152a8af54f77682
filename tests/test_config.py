"""Configs: one id an experiment, and one clear line for what cannot be."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlib import Config, InputError, profile
from bnlib.__main__ import parser
from bnlib.names import BN_INITS, CONV_INITS, DECAYED, INPUTS, NORMS, SCHEDULES
from bnlib.options import OPTIMIZERS
from bnlib.profiles import PRESETS, PROFILES, modified


def test_defaults_are_the_papers_protocol():
    c = Config()
    assert (c.lr, c.momentum, c.weight_decay, c.batch_size, c.epochs) == (0.1, 0.9, 1e-4, 128, 160)
    assert c.milestones == (0.5, 0.75) and c.n_train is None and c.n_val == 0


def test_one_network_has_one_id_however_it_is_spelled():
    ids = {Config(model=m).id for m in ("resnet14", "resnet14x1", "cifar_resnet_14", "cifar_resnet_14_1",
                                        "cifar_freeze_14_1", "ResNet-14", "ResNet-14-1")}
    assert ids == {Config().id}
    assert {Config(model=m).model for m in ("imagenet_wide_resnet50_2", "imagenet-wide-ResNet-50-2")} == {
        "imagenet_wide_resnet50_2"}
    assert Config(model="cifar_freeze_14_8").model == "resnet14x8"


@pytest.mark.parametrize("spellings", [
    ("bn", "gamma+beta", "beta+gamma+bn"), ("bn+output", "output+bn"), ("all", "bn+all", "bn+weights", "all+random2"),
    ("weights", "weights+random4", "output+weights"), ("bn+random2", "random2+bn"),
    ("beta+weights", "weights+beta"), ("gamma+weights", "weights+gamma+output")])
def test_one_choice_of_trainable_has_one_id(spellings):
    assert len({Config(trainable=t).id for t in spellings}) == 1


def test_a_number_has_one_id_whatever_its_type():
    assert Config(lr=1).id == Config(lr=1.0).id
    assert Config(milestones=[0.5, 0.75]).id == Config().id


def test_the_id_names_the_experiment_and_differs_with_every_field():
    base = Config()
    assert base.id.startswith("cifar10-resnet14-bn-s0-")
    other = {"dataset": "mnist", "n_train": 100, "n_val": 10, "model": "resnet20", "trainable": "all", "lr": 0.2,
             "momentum": 0.5, "weight_decay": 0.0, "batch_size": 64, "epochs": 3, "milestones": (0.5,),
             "warmup_epochs": 1.0, "augment": "none", "seed": 1, "shortcut": "A", "final_relu": False, "bn_parts": 2,
             "decay": "weights", "schedule": "cosine", "inputs": "raw", "log_every": 10, "fp32": True,
             "optimizer_options": "nesterov=True"}
    assert len({base.id, *(dataclasses.replace(base, **{k: v}).id for k, v in other.items())}) == len(other) + 1


@pytest.mark.parametrize(("fields", "said"), [
    ({"model": "resnet15"}, "resnet15: depth must be 6n+2 (14, 20, 26, 32, …); nearest: resnet14"),
    ({"model": "resnet14x0"}, "width must be at least 1"),
    ({"model": "resnet14c0"}, "resnet14c0: channels must be at least 1; nearest: resnet14c1"),
    ({"model": "resnet1d15"}, "nearest: resnet1d14"),
    ({"model": "vgg11"}, "model='vgg11'"),
    ({"model": "imagenet_resnet20"}, "did you mean 'imagenet_resnet200'?"),
    ({"model": "imagenet_resnet18", "shortcut": "A"}, "shortcut='A': imagenet_resnet18 has no choice of it"),
    ({"model": "imagenet_vgg11_bn", "trainable": "shortcut"}, "nothing to train there"),
    ({"model": "imagenet_resnet18", "norm": "none"}, "there are no γ and β where norm='none'"),
    ({"model": "imagenet_resnet18", "norm": "none", "trainable": "all", "bn_first": 1}, "there are no γ and β"),
    ({"image_size": 4}, "image_size=4: must be at least 8, or None"),
    ({"model": "plain15"}, "nearest: plain14"),
    ({"model": "3c3d", "positions": "1,0,0,1"}, "positions='1,0,0,1': 3c3d takes 5 letters 0 or 1"),
    ({"model": "3c3d", "positions": "1,0,0,1,x"}, "or first<k>, last<k> with k up to 5; all; none"),
    ({"model": "allcnnc", "positions": "first9"}, "positions='first9': allcnnc takes 8 letters"),
    ({"positions": "all"}, "positions='all': resnet14 has no layers to choose from; 3c3d and allcnnc have"),
    ({"model": "3c3d", "positions": "none"}, "there are no γ and β where positions='0,0,0,0,0'"),
    ({"norm": "none", "trainable": "gamma+beta"}, "there are no γ and β where norm='none'"),
    ({"model": "3c3d", "trainable": "all", "norm": "group"}, "norm='group': 3c3d has no choice of it"),
    ({"model": "plain20", "shortcut": "A"}, "shortcut='A': plain20 has no choice of it"),
    ({"model": "plain20", "trainable": "shortcut"}, "nothing to train there"),
    ({"final_relu": "maybe"}, "final_relu='maybe': must be true or false"),
    ({"bn_parts": 65}, "bn_parts=65: must be from 1 to half of batch_size"),
    ({"decay": "gama"}, "did you mean 'gamma'?"),
    ({"decay": "none+gamma"}, "'none' stands alone"),
    ({"schedule": "cosin"}, "did you mean 'cosine'?"),
    ({"schedule": "trapezoid", "warmup_epochs": 1}, "schedule='trapezoid' takes none"),
    ({"inputs": "image"}, "did you mean 'imagenet'?"),
    ({"log_every": -1}, "log_every=-1: must be at least 0"),
    ({"norm": "grupo"}, "did you mean 'group'?"),
    ({"bn_first": 160}, "bn_first=160: must be at least 0 and below epochs"),
    ({"bn_first": 2, "trainable": "gamma"}, "γ and β never train where trainable='gamma'"),
    ({"trainable": "bnn"}, "did you mean 'bn'?"),
    ({"trainable": "random0"}, "did you mean 'random<K>'?"),
    ({"trainable": "random2+random4"}, "one random<K>"),
    ({"trainable": "shortcut", "shortcut": "A"}, "shortcut='A' has nothing to train"),
    ({"trainable": "none+bn"}, "'none' stands alone"),
    ({"model": "cifar_freeze_14", "trainable": "all"}, "trains batch norm alone"),
    ({"dataset": "../secret"}, "dataset='../secret'"),
    ({"epochs": 0}, "epochs=0: must be at least 1"),
    ({"epochs": 1.5}, "epochs=1.5: must be a whole number"),
    ({"lr": 0}, "lr=0.0: must be above 0"),
    ({"lr": "fast"}, "lr='fast': must be a number"),
    ({"seed": -1}, "seed=-1: must be at least 0"),
    ({"n_train": 50_001}, "cifar10 has 50,000 training images"),
    ({"n_train": 49_000, "n_val": 2000}, "cifar10 has 50,000 training images"),
    ({"n_val": 50_000}, "cifar10 has 50,000 training images"),
    ({"batch_size": 1}, "batch_size=1: must be at least 2"),
    ({"milestones": (0.75, 0.5)}, "milestones"),
    ({"warmup_epochs": 200}, "warmup_epochs=200.0: must be from 0 to epochs"),
    ({"augment": "flip"}, "did you mean"),
    ({"optimizer": "sdg"}, "not one of sgd, adam, adamw, lbfgs, adabound, adan, lion, prodigy; did you mean 'sgd'?"),
    ({"optimizer": "adam", "optimizer_options": "beta=0.9"}, "'beta': not one of betas, eps, amsgrad; did you mean"),
    ({"optimizer": "adam", "optimizer_options": "betas=0.9"},
     "'betas=0.9': betas is 2 numbers from 0 to below 1, such as (0.9,0.999)"),
    ({"optimizer": "adam", "optimizer_options": "eps"}, "'eps': eps is a number from 0 on, such as 1e-08"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_iter=0"},
     "'max_iter=0': max_iter is a whole number from 1 on, such as 20"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_iter=2.5"},
     "'max_iter=2.5': max_iter is a whole number from 1 on"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_iter=2"},
     "max_iter and max_eval must be at least 3, or LBFGS learns"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_eval=2"},
     "max_iter and max_eval must be at least 3, or LBFGS learns"),
    ({"optimizer": "lbfgs", "optimizer_options": "tolerance_grad=-1"}, "tolerance_grad is a number from 0 on"),
    ({"optimizer": "adam", "optimizer_options": "betas=(0.9,1.5)"}, "betas is 2 numbers from 0 to below 1"),
    ({"optimizer": "adam", "optimizer_options": "amsgrad=1"}, "amsgrad is True or False, such as False"),
    ({"optimizer": ["adam"]}, "optimizer=['adam']: not one of sgd, adam"),
    ({"optimizer": "prodigy", "optimizer_options": "beta3=1"}, "beta3 is a number from 0 to below 1, or None, such as"),
    ({"optimizer": "prodigy", "optimizer_options": "d0=0"}, "d0 is a number above 0, such as 1e-06"),
    ({"optimizer": "prodigy", "optimizer_options": "growth_rate=0"}, "growth_rate is a number above 0, or inf, such"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_eval=3.5"}, "max_eval is a whole number from 1 on, or None"),
    ({"optimizer": "lbfgs", "optimizer_options": "max_eval=inf"}, "max_eval is a whole number from 1 on, or None"),
    ({"optimizer": "adam", "optimizer_options": "eps=inf"}, "eps is a number from 0 on, such as 1e-08"),
    ({"optimizer": "adam", "optimizer_options": "betas={0.1,0.2}"}, "betas is 2 numbers from 0 to below 1, such as"),
    ({"optimizer": "adam", "optimizer_options": "eps=1e-6 eps=1e-7"}, "'eps=1e-6 eps=1e-7': eps is given twice"),
    ({"optimizer": "adabound", "optimizer_options": "final_lr=-1"}, "final_lr is a number from 0 on, such as 0.1"),
    ({"optimizer": "adam", "momentum": 0.9},
     "momentum=0.9: must be 0 or None, as adam has none; nor does it take over SGD's lr"),
    ({"decay": "bn+alpha"}, "decay='alpha': not one of all, weights, gamma, beta, biases"),
    ({"decay": "none+bn"}, "decay='none+bn': 'none' stands alone"),
])
def test_what_cannot_be_is_one_line_that_names_field_and_rule(fields, said):
    with pytest.raises(InputError) as error:
        Config(**fields)
    assert said in str(error.value) and "\n" not in str(error.value)


CONFIGS = st.builds(
    Config,
    dataset=st.sampled_from(["cifar10", "cifar100", "mnist", "my_images", "123", "None", "true"]),
    n_train=st.none() | st.integers(1, 30_000),
    n_val=st.integers(0, 5000),
    model=st.builds("{}{}{}{}".format, st.sampled_from(["resnet", "resnet1d"]),
                    st.integers(1, 200).map(lambda n: 6 * n + 2), st.sampled_from("xc"), st.integers(1, 64)),
    image_size=st.none() | st.integers(8, 512),
    norm=st.sampled_from(NORMS[:-1]),            # with none, γ and β could not train
    final_relu=st.booleans(),
    fp32=st.booleans(),
    decay=st.lists(st.sampled_from(DECAYED), min_size=1).map("+".join) | st.sampled_from(["all", "none"]),
    schedule=st.sampled_from(SCHEDULES),
    inputs=st.sampled_from(INPUTS),
    log_every=st.integers(0, 1000),
    trainable=st.lists(st.sampled_from(["bn", "gamma", "beta", "output", "shortcut", "weights", "random2"]),
                       min_size=1).map("+".join),
    conv_init=st.sampled_from(CONV_INITS),
    bn_init=st.sampled_from(BN_INITS),
    lr=st.floats(1e-6, 1e3),
    momentum=st.floats(0, 0.999),
    weight_decay=st.floats(0, 1),
    batch_size=st.integers(2, 4096),
    epochs=st.integers(1, 1000),
    milestones=st.lists(st.floats(0.01, 0.99), unique=True).map(sorted),
    augment=st.sampled_from(["crop+flip", "crop", "none"]),
    seed=st.integers(0, 2**63 - 1))


CONFIGS |= st.builds(
    Config,
    optimizer=st.sampled_from(sorted(set(OPTIMIZERS) - {"sgd"})),
    lr=st.none() | st.floats(1e-6, 1e3),
    weight_decay=st.none() | st.floats(0, 1),
    decay=st.sampled_from(["all", "gamma", "beta", "gamma+beta", "weights", "none"])) | st.builds(
    Config,
    optimizer=st.just("adabound"),
    optimizer_options=st.builds("betas=({}, {}), final_lr={} ams_bound={}".format, st.floats(0, 0.999),
                                st.floats(0, 0.999), st.floats(1e-6, 10), st.booleans()))


@given(CONFIGS)
def test_any_valid_config_survives_the_command_line(config):
    words = ["train", config.model]
    for name, value in dataclasses.asdict(config).items():
        if name != "model":
            words.append(f"--{name.replace('_', '-')}" + ("" if name == "milestones" else f"={value}"))
            words += map(str, value) if name == "milestones" else []
    options = vars(parser().parse_args(words))
    again = Config(**{field.name: options[field.name] for field in dataclasses.fields(Config)})
    assert again == config and again.id == config.id


#: For each field, values that no run can have.
IMPOSSIBLE = {
    "dataset": st.sampled_from(["", "../x", "a b", "/etc", "ü"]) | st.integers(),
    "n_train": st.integers(max_value=0) | st.just("many") | st.floats(0.1, 0.9),
    "n_val": st.integers(max_value=-1) | st.just("few"),
    "image_size": st.integers(max_value=7) | st.just("large") | st.floats(8.1, 8.9),
    "trainable": st.text("xyz+", min_size=1),
    "shortcut": st.text("CDE", min_size=1),
    "norm": st.text("xyz", min_size=1),
    "positions": st.text("01,", min_size=1) | st.just("first2"),
    "final_relu": st.text("xyz", min_size=1) | st.integers(2),
    "fp32": st.text("xyz", min_size=1) | st.integers(2),
    "bn_parts": st.integers(max_value=0) | st.integers(65),
    "schedule": st.text("xyz", min_size=1),
    "inputs": st.text("xyz", min_size=1),
    "log_every": st.integers(max_value=-1) | st.just("often"),
    "keep_affine": st.text("xyz", min_size=1) | st.integers(2) | st.just(False),            # of a BN-only run
    "bn_first": st.integers(max_value=-1) | st.integers(160) | st.just("soon"),
    "conv_init": st.text("xyz", min_size=1),
    "bn_init": st.text("xyz", min_size=1),
    "optimizer": st.text("xyz", min_size=1) | st.none() | st.integers(),
    "optimizer_options": st.sampled_from(["lr=1", "nesterov", "nesterov=1", "dampening=fast", "dampening=nan"])
    | st.integers() | st.none(),
    "decay": st.text("xyz+", min_size=1) | st.integers(),
    "augment": st.text("xyz", min_size=1),
    "lr": st.floats(max_value=0) | st.just(float("nan")) | st.just(float("inf")) | st.just("fast"),
    "momentum": st.floats(1, 10) | st.floats(-5, -0.01) | st.just(float("nan")),
    "weight_decay": st.floats(-5, -1e-9) | st.just(float("inf")),
    "batch_size": st.integers(max_value=1) | st.just(2.5) | st.booleans(),
    "epochs": st.integers(max_value=0) | st.just(float("inf")),
    "milestones": st.lists(st.floats(1, 5), min_size=1) | st.just([0.7, 0.3]) | st.just(0.5),
    "warmup_epochs": st.floats(161, 1e6) | st.floats(-5, -0.1),
    "seed": st.integers(max_value=-1) | st.integers(min_value=2**63) | st.just("lucky"),
}


def test_every_field_but_model_has_impossible_values():
    """A model's message begins with the name that was given, as `test_what_cannot_be_is_one_line…` shows."""
    assert {*IMPOSSIBLE, "model"} == {field.name for field in dataclasses.fields(Config)}


@given(st.sampled_from(sorted(IMPOSSIBLE)).flatmap(lambda name: st.tuples(st.just(name), IMPOSSIBLE[name])))
def test_any_invalid_config_is_refused_with_its_fields_name(field):
    name, value = field
    with pytest.raises(InputError, match=f"^{name}") as error:
        Config(**{name: value})
    assert "\n" not in str(error.value)


@given(CONFIGS)
def test_any_valid_config_survives_json_and_keeps_its_id(config):
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.id == config.id
    assert Config(**dataclasses.asdict(config)).id == config.id and "/" not in config.id


def test_an_unknown_field_in_json_is_named_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        Config.from_dict({"epoch": 3})


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_gives_valid_configs(name):
    p = profile(name)
    assert all(Config(model=f"resnet{d}", seed=s, **p.training) for d in p.depths for s in p.seeds)


def test_networks_of_deepobs_and_plain_ones_survive_json():
    for fields in (*PRESETS.values(), {"model": "3c3d", "positions": "last2"}, {"model": "plain20", "norm": "none",
                                                                                "trainable": "all"}):
        config = Config(**fields)
        again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config and again.id == config.id


def test_an_unknown_modification_is_named_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'fixed_gamma'"):
        modified("fixed_gama")


def test_ids_of_runs_that_were_there_before_these_fields_are_the_same():
    assert Config(model="resnet14", epochs=16).id == "cifar10-resnet14-bn-s0-78e9d3a6"


def test_a_profile_is_overridden_one_setting_at_a_time():
    p = profile("short", depths=[20], epochs=3, seeds=None)
    assert (p.depths, p.training["epochs"], p.seeds) == ([20], 3, [0, 1, 2])


def test_unknown_profiles_and_settings_are_named_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'short'"):
        profile("shrt")
    with pytest.raises(InputError, match="did you mean 'depths'"):
        profile("demo", depth=[14])
