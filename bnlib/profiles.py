"""Profiles, which fill the grids of the notebooks, the presets of an earlier study, and what sets a run apart."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bnlib.config import Config, resolve
from bnlib.names import BN_INITS, CONV_INITS, DEEPOBS, IMAGENET, INPUTS, InputError, choose, parse_model

#: What may train, in the order of `04_what_trains`; random<K> is K random weights of each channel.
_MODES = ["all", "weights", "bn+output", "bn", "gamma", "beta", "output", "shortcut", *(
    f"random{k}" for k in (2, 4, 8, 16, 32))]
#: Ways to start, of `06_initialisation`: fields that differ from the protocol, one at a time.
_STARTS = [*({"bn_init": how} for how in BN_INITS[1:]), *({"conv_init": how} for how in CONV_INITS[1:]),
           *({"lr": lr} for lr in (0.01, 0.03, 0.3, 1.0))]
#: What `11_optimizers` compares, on the network that `optimizing` describes: the settings of each optimizer that the
#: validation images choose among. An epoch of LBFGS is about seven passes, so that 3 of them are 21 beside 16.
_SEARCH = [*({"optimizer": "sgd", "lr": lr} for lr in (0.03, 0.1, 0.3)),
           *({"optimizer": "adam", "lr": lr} for lr in (0.001, 0.003, 0.01)),
           # its rate ends near final_lr, whatever it begins with
           *({"optimizer": "adabound", "lr": lr} for lr in (0.001, 0.003)),
           *({"optimizer": "adabound", "lr": 0.003, "optimizer_options": f"final_lr={end}"} for end in (0.01, 1.0)),
           *({"optimizer": "lbfgs", "batch_size": size, "epochs": 3, "optimizer_options": f"max_iter=5 {memory}",
              "log_every": 15_000 // size}         # nine losses, as three epochs are three points
             for size, memory in ((5000, "history_size=10"), (5000, "history_size=50"), (15000, "history_size=10"))),
           # γ and β alone: of those above, the largest rates and the smallest batch were the best on validation images
           *({"trainable": "bn"} | further for further in (
               {"optimizer": "sgd", "lr": 1.0}, {"optimizer": "sgd", "lr": 3.0}, {"optimizer": "adam", "lr": 0.03},
               {"optimizer": "adabound", "lr": 0.01, "optimizer_options": "final_lr=1.0"},
               {"optimizer": "lbfgs", "batch_size": 2500, "epochs": 3,
                "optimizer_options": "max_iter=5 history_size=50", "log_every": 6}))]

#: What an earlier study of the parts of batch norm trained with, on networks of DeepOBS: plain SGD at a constant rate,
#: L2 on weights and γ alone (`DissectBatchNorm`; its crops, flips and normalisation are those of all runs here).
_DISSECT = {"conv_init": "xavier", "bn_init": "ones", "momentum": 0.0, "schedule": "constant", "decay": "weights+gamma"}
PRESETS = {
    "3c3d-cifar10": _DISSECT | {"model": "3c3d", "dataset": "cifar10", "lr": 0.0226, "batch_size": 128, "epochs": 100,
                                "weight_decay": 0.002},
    "3c3d-cifar100": _DISSECT | {"model": "3c3d", "dataset": "cifar100", "lr": 0.0166, "batch_size": 256, "epochs": 350,
                                 "weight_decay": 0.002},
    "allcnnc-cifar100": _DISSECT | {"model": "allcnnc", "dataset": "cifar100", "lr": 0.0166, "batch_size": 256,
                                    "epochs": 350, "weight_decay": 5e-4},
    "allcnnc-cifar100-adam": _DISSECT | {"model": "allcnnc", "dataset": "cifar100", "optimizer": "adam", "lr": 5.7e-4,
                                         "optimizer_options": "betas=(0.521,0.943)", "batch_size": 256, "epochs": 350,
                                         "weight_decay": 5e-4},
}
#: What that study does to the batch norms that a network has, as `trainable`; then the same with all else frozen.
MODIFICATIONS = {
    "vanilla": "all",                              # with positions="none": no batch norm at all
    "trained_bn": "all", "fixed_bn": "weights", "fixed_gamma": "beta+weights", "fixed_beta": "gamma+weights",
    "trained_bn alone": "bn", "fixed_bn alone": "none", "fixed_gamma alone": "beta", "fixed_beta alone": "gamma",
}


def growing(model: str) -> list[str]:
    """Every growing prefix and suffix of the positions of a network of DeepOBS: `first5`, `last5`, `first4`, …"""
    return [f"{end}{k}" for k in range(parse_model(model).depth - 1, 0, -1) for end in ("first", "last")]


def modified(modification: str, positions: str = "all") -> dict[str, str]:
    """The Config fields of a modification on the batch norms at `positions`; `vanilla` has none anywhere.

    Raises InputError for an unknown one.
    """
    trainable = MODIFICATIONS[choose("modification", modification, MODIFICATIONS)]
    return {"trainable": trainable, "positions": "none" if modification == "vanilla" else positions}


def modification(config: Config) -> str:
    """What that study calls this choice of what trains: `fixed_gamma` for `beta+weights`; else `trainable` itself."""
    if parse_model(config.model).family in DEEPOBS and "1" not in config.positions:
        return "vanilla" if config.trainable == "all" else config.trainable
    names = {trainable: name for name, trainable in MODIFICATIONS.items() if name != "vanilla"}
    return names.get(config.trainable, config.trainable)


#: Ways to change a residual network, or what it sees, one at a time, of `10_residual_vs_plain`.
_CHANGES = [{"shortcut": "none"}, {"final_relu": False}, {"norm": "none"},
            {"norm": "none", "lr": 0.001},                         # at the protocol's rate it may diverge
            *({"inputs": how} for how in INPUTS[1:]), {"augment": "none"}, {"augment": "crop+flip+once"},
            {"batch_size": 256}]

#: The comparison of the ResNet-101 study, of `11_optimizers`: all parameters, a constant rate. Without batch norm He's
#: normal weights begin with a loss far above that of guessing; orthogonal ones begin near it, with batch norm and
#: without. γ = 1, as torchvision's ResNets have it, which the study trained.
_DEEP = {"model": "imagenet_resnet101", "trainable": "all", "image_size": 96, "conv_init": "orthogonal",
         "bn_init": "ones", "batch_size": 32, "schedule": "constant", "keep_affine": False}
_CARS = [{"dataset": f"stanford_cars_{size}", "image_size": None} for size in ("64x96", "96x96")]
_TWO = [{"optimizer": name, "lr": lr} for lr in (0.001, 0.0001) for name in ("adam", "adabound")]

#: What a profile sets: `training` goes into each Config, the rest spans the grids of the notebooks.
_PAPER = {
    "training": {},                                # Config's defaults are the paper's protocol
    "depths": [14, 32, 56, 110, 218, 434, 866],
    "widths": [1, 2, 4, 8, 16, 32],
    "width_depth": 14,                             # the depth at which width is varied
    "modes": _MODES,
    "starts": _STARTS,
    "stability": {"n_train": 6400, "epochs": 8},       # 400 steps: whether a deep network diverges
    "stability_depths": [218, 434, 866],
    "stability_changes": [{"warmup_epochs": epochs, "fp32": fp32} for epochs in (0.0, 1.0) for fp32 in (False, True)],
    "optimizing": {"model": "resnet32", "shortcut": "A", "n_val": 5000},
    "optimizers": [o | {"epochs": 20, "log_every": 0} if "epochs" in o else o for o in _SEARCH],
    "deep": _DEEP | {"epochs": 10, "log_every": 20},
    "deep_sets": [{"dataset": "cifar10"}, *_CARS],
    "deep_optimizers": _TWO,
    "seeds": [0, 1, 2, 3, 4],
    # a sequence turned round is another one, hence no flip; 5,000 of them make few steps, hence small batches
    "sequences": {"dataset": "sequences", "batch_size": 32, "augment": "none"},
    # what the paper's author trains ImageNet with: github.com/facebookresearch/open_lth, models/imagenet_resnet.py
    "large": {"dataset": "imagenet", "batch_size": 1024, "lr": 0.4, "epochs": 90, "warmup_epochs": 5,
              "milestones": (30 / 90, 60 / 90, 80 / 90)},
    "large_models": list(IMAGENET),
    "large_modes": ["all", "bn", "output", "random2"],
    "large_seeds": [0, 1, 2],
    "dissect": PRESETS["3c3d-cifar10"],
    "masks": growing("3c3d"),
    "modifications": [*MODIFICATIONS],
    "rates": [0.00226, 0.0226, 0.226],
    "residual": {},
    "plain_depths": [20, 32, 44, 56, 14],
    "changes": _CHANGES,
    "results": "results",
}
_SHORT = _PAPER | {
    "training": {"epochs": 16},
    "stability_depths": [218],
    "sequences": _PAPER["sequences"] | {"epochs": 16},
    "large": _PAPER["large"] | {"batch_size": 256, "lr": 0.1, "epochs": 16, "warmup_epochs": 1},
    "large_models": ["imagenet_resnet18", "imagenet_resnet50"],
    "large_seeds": [0],
    "optimizers": _SEARCH,
    "deep": _DEEP | {"n_train": 6400, "epochs": 1, "log_every": 1},        # 200 steps
    "deep_sets": [{"dataset": "cifar10"}, _CARS[0]],
    "deep_optimizers": _TWO,                       # at the rate that both document, and one at which the study trained
    "dissect": _PAPER["dissect"] | {"epochs": 16},
    "masks": ["all"],
    "modifications": [m for m in MODIFICATIONS if m != "fixed_bn alone"],
    "residual": {"epochs": 16},
    "plain_depths": [20, 32, 56],
    "depths": [14, 32, 56, 110],
    "widths": [1, 2, 4],
    "seeds": [0, 1, 2],
}
_DEMO = {
    # a mirrored digit is no digit, hence no flip; small batches, or 1,437 images would make 11 steps an epoch
    "training": {"dataset": "digits", "epochs": 4, "batch_size": 32, "augment": "crop"},
    "stability": {"dataset": "digits", "n_train": 256, "epochs": 2, "batch_size": 32, "augment": "crop"},
    "stability_depths": [26],
    "stability_changes": _PAPER["stability_changes"],
    "depths": [8, 14, 20],
    "widths": [1, 2],
    "width_depth": 8,
    "modes": ["all", "weights", "bn+output", "bn", "gamma", "beta", "output", "shortcut", "random2", "random8"],
    "starts": [{"bn_init": "ones"}, {"bn_init": "signed"}, {"conv_init": "orthogonal"}, {"conv_init": "binary"},
               {"lr": 0.01}, {"lr": 0.5}],
    "optimizing": {"model": "resnet8", "shortcut": "A", "n_train": 480, "n_val": 200},
    "optimizers": [*({"optimizer": "sgd", "lr": lr} for lr in (0.1, 1.0)),
                   *({"optimizer": name, "lr": lr} for name in ("adam", "adabound") for lr in (0.003, 0.03)),
                   *({"optimizer": "lbfgs", "batch_size": size, "epochs": 3, "optimizer_options": "max_iter=5"}
                     for size in (240, 480))],
    # 101 layers take minutes: 18 of them, on a folder of images
    "deep": _DEEP | {"dataset": "large_digits", "model": "imagenet_resnet18", "image_size": 32, "n_train": 240,
                     "epochs": 2, "batch_size": 16, "augment": "crop", "log_every": 1},
    "deep_sets": [{}],
    "deep_optimizers": _TWO[:2],
    "seeds": [0, 1],
    "sequences": _PAPER["sequences"] | {"epochs": 3},
    "large": {"dataset": "large_digits", "image_size": 32, "epochs": 2, "batch_size": 32, "augment": "crop"},
    "large_models": ["imagenet_resnet18"],
    "large_modes": ["all", "bn", "output", "random2"],
    "large_seeds": [0],
    # seconds a run: a part of the digits, a few epochs
    "dissect": _PAPER["dissect"] | {"dataset": "digits", "n_train": 256, "epochs": 4, "batch_size": 32,
                                    "augment": "crop"},
    "masks": ["all", "last3"],
    "modifications": [m for m in MODIFICATIONS if m != "fixed_bn alone"],
    "rates": [0.00226, 0.0226, 0.226],
    "residual": {"dataset": "digits", "epochs": 4, "batch_size": 32, "augment": "crop"},      # as `training`
    "plain_depths": [8, 14],
    "changes": [{"shortcut": "none"}, {"final_relu": False}, {"inputs": "raw"},
                {"augment": "none"}],
    "results": "build/demo/results",
}
_SMOKE = _DEMO | {
    "training": {"dataset": "digits", "n_train": 128, "epochs": 1, "batch_size": 64, "augment": "crop"},
    "stability": _DEMO["stability"] | {"n_train": 96},
    "stability_depths": [20],
    "depths": [8, 14],
    "widths": [1, 2],
    "modes": ["all", "weights", "bn", "random2"],
    "starts": [{"bn_init": "ones"}, {"lr": 0.5}],
    "sequences": _PAPER["sequences"] | {"n_train": 128, "epochs": 1},
    "large": _DEMO["large"] | {"n_train": 64, "epochs": 1},
    "large_modes": ["bn", "output"],
    "optimizing": {"model": "resnet8", "shortcut": "A", "n_val": 100},
    "optimizers": [{"optimizer": "sgd"}, {"optimizer": "adam"}, {"optimizer": "adabound"},
                   {"optimizer": "lbfgs", "batch_size": 128, "optimizer_options": "max_iter=3"}],
    "deep": _DEMO["deep"] | {"n_train": 64, "epochs": 1},
    "dissect": _DEMO["dissect"] | {"n_train": 64, "epochs": 1},
    "masks": ["all"],
    "modifications": ["vanilla", "trained_bn", "fixed_gamma"],
    "rates": [0.0226],
    "residual": _DEMO["residual"] | {"n_train": 128, "epochs": 1, "batch_size": 64},
    "plain_depths": [8],
    "changes": [{"shortcut": "none"}],
    "results": "build/smoke/results",
}
PROFILES = {"paper": _PAPER, "short": _SHORT, "demo": _DEMO, "smoke": _SMOKE}
#: What of a profile holds Config fields that its runs share: those of most notebooks, and of some in their place.
PROTOCOLS = ("training", "sequences", "large", "dissect", "residual", "deep")
#: Those of the paper's own question; the others are those of earlier studies.
OF_THE_PAPER = ("training", "sequences", "large")


@dataclass(frozen=True)
class Profile:
    """What a notebook's grid spans: fields for every Config, and lists of depths, widths and seeds."""

    name: str
    training: dict            # Config fields that all runs of the profile share
    depths: list[int]         # layers, 6n+2
    widths: list[int]         # multiples of 16, 32, 64 channels
    width_depth: int          # layers of the network whose width is varied
    modes: list[str]          # what trains, where that is varied
    starts: list[dict]        # Config fields that differ from the protocol, where the start is varied
    stability: dict           # Config fields of short trials of whether deep networks diverge, BN only
    stability_depths: list[int]                    # their layers
    stability_changes: list[dict]                  # and the fields in which they differ: warm-up, precision
    optimizing: dict          # Config fields that all runs of the comparison of optimizers share
    optimizers: list[dict]    # Config fields of each of those runs; validation images choose among an optimizer's
    deep: dict                # Config fields of the comparison with and without batch norm on a deep network
    deep_sets: list[dict]     # those of each set of images that it is made on
    deep_optimizers: list[dict]                    # and of each optimizer
    seeds: list[int]
    sequences: dict           # Config fields of runs on sequences, in place of `training`
    large: dict               # Config fields of runs on large images, in place of `training`
    large_models: list[str]   # torchvision's networks
    large_modes: list[str]    # what trains of them
    large_seeds: list[int]
    dissect: dict             # the same of runs that take batch norm apart
    masks: list[str]          # where batch norm is in them: `positions`
    modifications: list[str]  # what is done to it, of MODIFICATIONS
    rates: list[float]        # learning rates at which vanilla and trained_bn are compared
    residual: dict            # Config fields of residual and plain networks, in place of `training`
    plain_depths: list[int]   # layers of both, 6n+2
    changes: list[dict]       # Config fields that differ from the protocol, where a residual network is changed
    results: Path             # folder of the run records

    @property
    def figures(self) -> Path:
        """Folder of the figures, beside the results."""
        return self.results.parent / "figures"


def profile(name: str, **overrides) -> Profile:
    """The profile `paper`, `short`, `demo` or `smoke`, with single settings replaced.

    An override is a field of Profile (`depths=[14, 20]`) or of Config (`epochs=3`); None keeps the profile's. preset:
    what of PRESETS takes batch norm apart, in place of 3c3d on CIFAR-10; what the profile shortens stays short.
    Raises InputError for a name that is neither.
    """
    settings = dict(PROFILES[choose("profile", name, PROFILES)])
    if (preset := overrides.pop("preset", None)) is not None:
        settings |= _taken_apart(settings, choose("preset", preset, PRESETS))
    config_fields = [f.name for f in dataclasses.fields(Config)]
    for key, value in overrides.items():
        choose("profile setting", key, [*settings, *config_fields])
        if value is not None:
            if isinstance(settings.get(key), list) and not isinstance(value, list | tuple | range):
                raise InputError(f"{key}={value!r}: must be a list, such as [{value}]")
            settings |= {key: value} if key in settings else {kind: settings[kind] | {key: value} for kind in PROTOCOLS}
    return Profile(name=name, **settings | {"results": resolve(settings["results"])})


def _taken_apart(settings: dict, preset: str) -> dict:
    """What of a profile's settings another preset changes: fields, masks, learning rates."""
    usual, wanted = PRESETS["3c3d-cifar10"], PRESETS[preset]
    shortened = {key: value for key, value in settings["dissect"].items() if usual.get(key) != value}
    masks = growing(wanted["model"]) if settings["masks"] == growing(usual["model"]) else settings["masks"]
    return {"dissect": wanted | shortened, "masks": masks,
            "rates": [float(f"{rate * wanted['lr'] / usual['lr']:.3g}") for rate in settings["rates"]]}


#: What a table tells runs apart by anyway; all other fields of Config are the profile's, or make a variant.
KEYS = ("dataset", "model", "trainable", "epochs", "seed")


def variant(config: Config, kinds: tuple[str, ...] = PROTOCOLS) -> dict:
    """What sets a run apart from its profile's protocol, such as `{"bn_init": "ones", "lr": 0.3}`; {} for a plain run.

    kinds: the protocols that it may follow; the nearest counts.
    """
    return {name: getattr(config, name) for name in _differing(seedless(config), kinds)}


def seedless(config: Config) -> Config:
    """What runs that differ in their seed alone have in common."""
    return dataclasses.replace(config, seed=Config.seed)


@cache
def _differing(config: Config, kinds: tuple[str, ...]) -> list[str]:
    keys = {key: getattr(config, key) for key in (*KEYS, "optimizer")}      # beside what another optimizer brings along
    protocols = [profile[kind] for profile in PROFILES.values() for kind in kinds]
    protocols += PRESETS.values() if "dissect" in kinds else []
    protocols = [protocol | {"warmup_epochs": min(protocol["warmup_epochs"], config.epochs)}      # it must fit
                 if "warmup_epochs" in protocol else protocol for protocol in protocols]
    differing = [["optimizer"] * (config.optimizer != Config.optimizer) + [
                  field.name for field in dataclasses.fields(Config)
                  if getattr(config, field.name) != getattr(Config(**protocol | keys), field.name)]
                 for protocol in protocols
                 if not protocol or (protocol.get("dataset", "cifar10") == config.dataset
                                     and protocol.get("optimizer", config.optimizer) == config.optimizer
                                     and protocol.get("trainable", config.trainable) == config.trainable)]
    return min(differing, key=len)


def is_trial(config: Config) -> bool:
    """Whether it is a short trial of whether deep networks diverge, of any profile, depth and seed."""
    return parse_model(config.model).family == "resnet" and dataclasses.replace(
        config, model=Config.model, seed=Config.seed) in _trials()


@cache
def _trials() -> list[Config]:
    return [Config(**p["stability"] | change) for p in PROFILES.values() for change in p["stability_changes"]]
