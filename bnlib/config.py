"""Every choice that changes a result: the config of a run, its id, and the profiles that fill grids of them."""

import ast
import dataclasses
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np


class InputError(ValueError):
    """Something a person asked for that cannot be; the message is one line that says what would be right."""


# ---------------------------------------------------------------------------------------------- names

#: Sets that come with the library, can be downloaded or are well known, and their number of training images.
DATASETS = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "digits": 1_437, "sequences": 5_000,
            "large_digits": 480, "imagenet": 1_281_167, "stanford_cars_64x96": 8_144, "stanford_cars_96x96": 8_144}
TRAINABLE = ("all", "bn", "gamma", "beta", "output", "shortcut", "weights", "random<K>", "none")
CONV_INITS = ("he_normal", "he_uniform", "orthogonal", "binary")
BN_INITS = ("uniform", "signed", "ones", "beta_one")
SHORTCUTS = ("A", "B")
NORMS = ("batch", "group", "layer", "none")
_STEPS = {"momentum": 0.0, "batch_size": 128, "milestones": (0.5, 0.75)}         # SGD's protocol, for a fair comparison
#: What each optimizer sets where nothing else is given: SGD the paper's protocol; the others the rate and weight decay
#: that torch, or pytorch_optimizer from AdaBound on, document for them.
OPTIMIZERS = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-4, **_STEPS, "momentum": 0.9},
    "adam": {"lr": 1e-3, "weight_decay": 0.0, **_STEPS},                         # Kingma & Ba 2015
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2, **_STEPS},                       # Loshchilov & Hutter 2019
    "lbfgs": {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "batch_size": 5000, "milestones": ()},  # Liu & Nocedal
    "adabound": {"lr": 1e-3, "weight_decay": 0.0, **_STEPS},                     # Luo et al. 2019
    "adan": {"lr": 1e-3, "weight_decay": 0.0, **_STEPS},                         # Xie et al. 2022
    "lion": {"lr": 1e-4, "weight_decay": 0.0, **_STEPS},                         # Chen et al. 2023
    "prodigy": {"lr": 1.0, "weight_decay": 0.0, **_STEPS},                       # Mishchenko & Defazio 2023
}
_DECOUPLED = {"weight_decouple": True, "fixed_decay": False}
#: What `optimizer_options` may set, with the documented default. LBFGS's line search is always strong Wolfe; `piece`
#: is how many images of its batch go through the network, and batch norm, at once.
OPTIONS = {
    "sgd": {"dampening": 0.0, "nesterov": False},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "lbfgs": {"max_iter": 20, "max_eval": None, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "history_size": 100,
              "piece": 500},
    "adabound": {"final_lr": 0.1, "betas": (0.9, 0.999), "gamma": 1e-3, "eps": 1e-8, "ams_bound": False, **_DECOUPLED},
    "adan": {"betas": (0.98, 0.92, 0.99), "eps": 1e-8, "max_grad_norm": 0.0, "weight_decouple": False},
    "lion": {"betas": (0.9, 0.99), **_DECOUPLED},
    "prodigy": {"betas": (0.9, 0.999), "beta3": None, "d0": 1e-6, "d_coef": 1.0, "growth_rate": math.inf, "eps": 1e-8,
                "bias_correction": False, "safeguard_warmup": False, **_DECOUPLED},
}
AUGMENTATIONS = ("crop+flip", "crop", "none")


def choose(field: str, value: str, choices) -> str:
    """`value` if it is one of `choices`; else an InputError with the list and the nearest of them."""
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{field}={value!r}: not one of {', '.join(choices)}{hint}")


class Model(NamedTuple):
    """What a network's name says."""

    family: str            # resnet: CIFAR's; resnet1d: the same for sequences; imagenet_…: torchvision's
    depth: int             # 6n+2 layers; torchvision's: the number in their name
    width: float           # channels, as a multiple of 16, 32 and 64; torchvision's: 2 for the wide ones


#: torchvision's networks, the 200-layer ResNet of He et al. 2016 among them; CIFAR's have names without a prefix.
IMAGENET = {f"imagenet_resnet{depth}": Model("imagenet_resnet", depth, 1) for depth in (18, 34, 50, 101, 152, 200)} | {
    "imagenet_wide_resnet50_2": Model("imagenet_wide_resnet", 50, 2),
    "imagenet_wide_resnet101_2": Model("imagenet_wide_resnet", 101, 2),
    "imagenet_vgg11_bn": Model("imagenet_vgg", 11, 1), "imagenet_vgg16_bn": Model("imagenet_vgg", 16, 1)}


def parse_model(name: str) -> Model:
    """`resnet14` → (resnet, 14, 1), `resnet14x8` → (resnet, 14, 8), `resnet14c2`, of 2, 4, 8 channels, → width 2/16.

    `imagenet_resnet50`, `imagenet_wide_resnet50_2`, `imagenet_vgg16_bn`, … are torchvision's. Accepts the paper's
    spelling `ResNet-14-8`, and `cifar_resnet_14_8` and `cifar_freeze_14_8` of an earlier study.
    Raises InputError unless the depth is 6n+2 and the width at least 1, or the channels; or torchvision has it.
    """
    if str(name).lower().startswith("imagenet"):
        letters = re.sub(r"[-_]", "", str(name).lower())
        return IMAGENET[choose("model", next((known for known in IMAGENET if known.replace("_", "") == letters), name),
                               IMAGENET)]
    found = re.fullmatch(r"(?:cifar_)?(resnet1d|resnet|freeze)[-_]?(\d+)(?:[-_x](\d+)|c(\d+))?", str(name).lower())
    if not found:
        numbers = [int(n) for n in re.findall(r"\d+", str(name))] or [14]
        raise InputError(f"model={name!r}: not a network; choose resnet<depth>, resnet<depth>x<width>, "
                         "resnet<depth>c<channels> or imagenet_resnet<depth>; nearest: "
                         + model_name(_nearest_depth(numbers[0]), *numbers[1:2]))
    family = found[1].replace("freeze", "resnet")
    depth, width = int(found[2]), int(found[4]) / 16 if found[4] else int(found[3] or 1)
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"{name}: depth must be 6n+2 (14, 20, 26, 32, …); nearest: "
                         + model_name(_nearest_depth(depth), width, family))
    if not width:
        raise InputError(f"{name}: {'channels' if found[4] else 'width'} must be at least 1; nearest: "
                         + model_name(depth, 1 / 16 if found[4] else 1, family))
    return Model(family, depth, int(width) if width == int(width) else width)


def _nearest_depth(depth: int) -> int:
    return 6 * max(1, round((depth - 2) / 6)) + 2


def model_name(depth: int, width: float = 1, family: str = "resnet") -> str:
    """One name a network: (14, 1) → `resnet14`, (14, 8) → `resnet14x8`, (14, 2/16) → `resnet14c2`."""
    if family.startswith("imagenet"):
        return next(name for name, model in IMAGENET.items() if model == (family, depth, width))
    if width != int(width):
        return f"{family}{depth}c{round(16 * width)}"
    return f"{family}{depth}" if width <= 1 else f"{family}{depth}x{int(width)}"


def canonical_trainable(what: str, field: str = "trainable") -> str:
    """One spelling a choice: parts in the order of TRAINABLE, `gamma+beta` as `bn`, parts of other parts dropped."""
    parts = set(str(what).split("+"))
    chosen = {part for part in parts if re.fullmatch(r"random[1-9]\d*", part)}       # random2: two a channel
    parts = {choose(field, part, TRAINABLE) for part in parts - chosen}
    if "random<K>" in parts or len(chosen) > 1:
        raise InputError(f"{field}={what!r}: one random<K>, K weights of each channel, such as random2")
    if "none" in parts and len(parts | chosen) > 1:
        raise InputError(f"{field}={what!r}: 'none' stands alone")
    if {"gamma", "beta"} <= parts:
        parts.add("bn")
    if "bn" in parts:
        parts -= {"gamma", "beta"}
    if "weights" in parts:
        parts, chosen = parts - {"output"}, set()
    if "all" in parts or {"bn", "weights"} <= parts:
        parts, chosen = {"all"}, set()
    return "+".join([*(part for part in TRAINABLE if part in parts), *chosen])


def options_of(optimizer: str, text: str) -> dict:
    """All options of an optimizer, those that `text` such as `betas=(0.9,0.99) eps=1e-8` names with its values.

    Raises InputError, with what there is, for another option, and for a value that is not of its default's kind.
    """
    options = dict(OPTIONS[optimizer])
    for word in re.split(r"[\s,]+(?=\w+\s*=)", text.strip()) if text.strip() else ():
        name, _, value = (part.strip(" ,") for part in word.partition("="))
        default = options[choose("optimizer_options", name, OPTIONS[optimizer])]
        try:
            options[name] = _as(default, float(value) if value.lower() in ("inf", "nan") else ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError, OverflowError):
            raise InputError(f"optimizer_options={word!r}: must be such as {name}={_plain(default)}") from None
    return options


def canonical_options(optimizer: str, text: str) -> str:
    """One spelling a choice: options in the order of OPTIONS, without those that have their default."""
    return " ".join(f"{name}={_plain(value)}" for name, value in options_of(optimizer, text).items()
                    if value != OPTIONS[optimizer][name])


def _as(default, value):
    """`value` as the kind of an option's default: switch, whole number from 1 on, number, numbers; else it raises."""
    if isinstance(default, bool) or isinstance(value, bool):
        if not (isinstance(default, bool) and isinstance(value, bool)):
            raise ValueError
        return value
    if isinstance(default, tuple):
        if len(value) != len(default):
            raise ValueError
        return tuple(_as(0.0, part) for part in value)
    if value is None and default is None:
        return None
    number = float(value)
    if math.isnan(number) or isinstance(value, str) or (isinstance(default, int) and number % 1):
        raise ValueError
    if not isinstance(default, float) and number <= 0:
        raise ValueError
    return int(number) if not isinstance(default, float) and not number % 1 else number


def _plain(value) -> str:
    return repr(value).replace(" ", "")


def random_weights(trainable: str) -> int:
    """How many random weights of each output channel train: `bn+random2` → 2, without `random` 0."""
    found = re.search(r"random(\d+)", trainable)
    return int(found[1]) if found else 0


# --------------------------------------------------------------------------------------------- config

@dataclass(frozen=True)
class Config:
    """One training run. The defaults are the paper's protocol (Frankle et al. 2021, Sec. 3 and App. A).

    Raises InputError, naming field and rule, for a value that no run can have.
    """

    dataset: str = "cifar10"                       # cifar10, cifar100, mnist, digits, sequences, or an image folder
    n_train: int | None = None                     # training images, drawn by the seed; None: all there are
    n_val: int = 0                                 # held out of them by the seed; the paper holds out none
    image_size: int | None = None                  # pixels a side; None: 224 of streamed images, else as they are
    model: str = "resnet14"                        # resnet<6n+2>, …x<width>, …c<channels>; resnet1d…; imagenet_…
    norm: str = "batch"                            # batch; in its place group (8 channels each), layer (all), none
    shortcut: str = "B"                            # where the shape changes: B 1×1 convolution and BN, A zero padding
    trainable: str = "bn"                          # all, bn, gamma, beta, output, shortcut, weights, random2, none; a+b
    bn_first: int = 0                              # epochs in which γ and β train alone, before all that trains does
    conv_init: str = "he_normal"                   # convolutions, output; or he_uniform, orthogonal, binary (±σ)
    bn_init: str = "uniform"                       # γ ~ U(0, 1), β = 0; signed: U(-1, 1); ones: γ = 1; beta_one: β = 1
    optimizer: str = "sgd"                         # sgd, adam, adamw, lbfgs, adabound, adan, lion, prodigy
    optimizer_options: str = ""                    # its own, "betas=(0.9,0.99) eps=1e-6"; the rest as documented
    lr: float | None = None                        # learning rate at the start; None: the optimizer's, SGD 0.1
    momentum: float | None = None                  # of SGD, 0.9; the others have their own among the options
    weight_decay: float | None = None              # None: the optimizer's, SGD 1e-4
    decay: str = "all"                             # on which of what trains; the paper: γ and β too; else as trainable
    batch_size: int | None = None                  # images a step; None: 128, of LBFGS 5,000
    epochs: int = 160                              # passes over the training images
    milestones: tuple[float, ...] | None = None    # fractions of training after which lr drops tenfold; None: ½, ¾
    warmup_epochs: float = 0.0                     # lr rises linearly from zero over so many epochs
    augment: str = "crop+flip"                     # random crop after 4-pixel padding, horizontal flip
    seed: int = 0                                  # draws weights, validation split, order and augmentation

    def __post_init__(self):
        for name, own in OPTIMIZERS[choose("optimizer", self.optimizer, OPTIMIZERS)].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, own)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", self.dataset):
            raise InputError(f"dataset={self.dataset!r}: a name of letters, digits and _; {', '.join(DATASETS)}, "
                             "or a folder of images under the data folder")
        family, depth, width = parse_model(self.model)
        if self.model.startswith("cifar_freeze") and canonical_trainable(self.trainable) != "bn":
            raise InputError(f"{self.model} trains batch norm alone, but trainable={self.trainable!r}; "
                             f"for that: {model_name(depth, width)}")
        object.__setattr__(self, "model", model_name(depth, width, family))
        object.__setattr__(self, "trainable", canonical_trainable(self.trainable))
        if family.startswith("imagenet") and self.shortcut != "B":
            raise InputError(f"shortcut={self.shortcut!r}: {self.model} has B; A is for CIFAR's networks")
        if family == "imagenet_vgg" and "shortcut" in self.trainable:
            raise InputError(f"trainable={self.trainable!r}: {self.model} has no shortcuts")
        if "shortcut" in self.trainable and self.shortcut != "B":
            raise InputError(f"trainable={self.trainable!r}: shortcut={self.shortcut!r} has nothing to train; B has")
        choose("conv_init", self.conv_init, CONV_INITS)
        choose("bn_init", self.bn_init, BN_INITS)
        choose("shortcut", self.shortcut, SHORTCUTS)
        choose("norm", self.norm, NORMS)
        if self.norm == "none" and not family.startswith("imagenet"):
            raise InputError(f"norm='none': for torchvision's networks, such as imagenet_resnet18, not {self.model}")
        if self.norm == "none" and ({"bn", "gamma", "beta"} & set(self.trainable.split("+")) or self.bn_first):
            raise InputError(f"trainable={self.trainable!r}: norm='none' has no γ and β to train")
        object.__setattr__(self, "optimizer_options", canonical_options(self.optimizer, self.optimizer_options))
        object.__setattr__(self, "decay", canonical_trainable(self.decay, "decay"))
        choose("augment", self.augment, AUGMENTATIONS)
        self._check("n_train", self.n_train is None or self.n_train >= 1, "at least 1, or None for all")
        self._check("n_val", self.n_val >= 0, "at least 0")
        self._check("image_size", self.image_size is None or self.image_size >= 8, "at least 8, or None")
        self._check("lr", 0 < self.lr < math.inf, "above 0")
        self._check("momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        self._check("momentum", self.momentum == 0 or self.optimizer == "sgd", f"0, as {self.optimizer} has none; what "
                    "SGD's lr, momentum, weight_decay and batch_size were must be given anew, or as None")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        self._check("batch_size", self.batch_size >= 2, "at least 2, since batch norm needs a batch")
        self._check("epochs", self.epochs >= 1, "at least 1")
        self._check("bn_first", 0 <= self.bn_first < self.epochs, "at least 0 and below epochs")
        if self.bn_first and not {"all", "bn"} & set(self.trainable.split("+")):
            raise InputError(f"bn_first={self.bn_first}: γ and β never train where trainable={self.trainable!r}")
        self._check("milestones", all(0 < m < 1 for m in self.milestones)
                    and list(self.milestones) == sorted(set(self.milestones)), "rising fractions between 0 and 1")
        self._check("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "from 0 to epochs")
        self._check("seed", 0 <= self.seed < 2**63, "at least 0 and below 2**63")
        self.check_sizes(DATASETS.get(self.dataset))

    def _check(self, field: str, holds: bool, rule: str):
        if not holds:
            raise InputError(f"{field}={getattr(self, field)!r}: must be {rule}")

    def check_sizes(self, available: int | None):
        """InputError unless a training set of `available` images has `n_train` and `n_val` of them."""
        wanted = (self.n_train or 1) + self.n_val
        if available is not None and wanted > available:
            raise InputError(f"n_train={self.n_train} and n_val={self.n_val}: {self.dataset} has {available:,} "
                             "training images for both")

    @property
    def id(self) -> str:
        """`<dataset>-<model>-<trainable>-s<seed>-<hash>`; the hash is over the fields that differ from their
        defaults, so that a new field leaves old ids alone."""
        own = OPTIMIZERS[self.optimizer]
        differing = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                     if getattr(self, f.name) != own.get(f.name, f.default)}
        digest = hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.model}-{self.trainable}-s{self.seed}-{digest}"

    @property
    def depth(self) -> int:
        return parse_model(self.model).depth

    @property
    def width(self) -> float:
        return parse_model(self.model).width

    def to_dict(self) -> dict:
        """All fields as JSON knows them; `Config.from_dict` is its inverse."""
        return dataclasses.asdict(self) | {"milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        """A config from JSON's dict; a field it lacks has its default, an unknown one is an InputError."""
        for name in fields:
            choose("Config field", name, [f.name for f in dataclasses.fields(cls)])
        return cls(**fields)


def _typed(field: dataclasses.Field, value):
    """`value` as the field's type, so that 1 and 1.0, list and tuple give one id; InputError where it is none."""
    kinds = get_args(field.type) or (field.type,)                # float | None → float, None
    kind = "milestones" if field.name == "milestones" else kinds[0].__name__
    try:
        if value is None and type(None) in kinds:
            return None
        if kind == "milestones":
            return tuple(float(m) for m in value)
        if kind == "int":
            return _whole(value)
        if kind == "float":
            return float(value)
        if isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    wanted = {"milestones": "a list of fractions", "int": "a whole number", "float": "a number", "str": "a text"}[kind]
    wanted += " or None" * (type(None) in kinds)
    raise InputError(f"{field.name}={value!r}: must be {wanted}")


def _whole(value) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def generator(seed: int, purpose: str, epoch: int = 0, *index: int) -> np.random.Generator:
    """The random numbers of one seed for one purpose, `weights`, `split`, `batches`, `chosen` or `image`, and one
    epoch; for `image` also of one image, by its index.

    A function of its arguments alone: neither the device nor torch's global state has a say, and a resumed run
    needs no generator's state to go on with the same draws.
    """
    stream = {"weights": 0, "split": 1, "batches": 2, "chosen": 3, "image": 4}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch, *index))))


# ------------------------------------------------------------------------------------------- profiles

#: What may train, in the order of `04_what_trains`; random<K> is K random weights of each channel.
_MODES = ["all", "weights", "bn+output", "bn", "gamma", "beta", "output", "shortcut", *(
    f"random{k}" for k in (2, 4, 8, 16, 32))]
#: Ways to start, of `06_initialisation`: fields that differ from the protocol, one at a time.
_STARTS = [*({"bn_init": how} for how in BN_INITS[1:]), *({"conv_init": how} for how in CONV_INITS[1:]),
           *({"lr": lr} for lr in (0.01, 0.03, 0.3, 1.0))]
#: What `11_optimizers` compares, on the network that `optimizing` describes: the settings of each optimizer that the
#: validation images choose among. An epoch of LBFGS is about seven passes, so that 3 of them are 21 beside 16.
_SEARCH = [*({"optimizer": "sgd", "lr": lr} for lr in (0.03, 0.1, 0.3)),
           *({"optimizer": name, "lr": lr} for name in ("adam", "adabound") for lr in (0.001, 0.003, 0.01)),
           *({"optimizer": "lbfgs", "batch_size": size, "epochs": 3, "optimizer_options": f"max_iter=5 {memory}"}
             for size, memory in ((5000, "history_size=10"), (5000, "history_size=50"), (15000, "history_size=10")))]

#: What a profile sets: `training` goes into each Config, the rest spans the grids of the notebooks.
_PAPER = {
    "training": {},                                # Config's defaults are the paper's protocol
    "depths": [14, 32, 56, 110, 218, 434, 866],
    "widths": [1, 2, 4, 8, 16, 32],
    "width_depth": 14,                             # the depth at which width is varied
    "modes": _MODES,
    "starts": _STARTS,
    "optimizing": {"model": "resnet32", "shortcut": "A", "n_val": 5000},
    "optimizers": [o | {"epochs": 20} if "epochs" in o else o for o in _SEARCH],
    "seeds": [0, 1, 2, 3, 4],
    # a sequence turned round is another one, hence no flip; 5,000 of them make few steps, hence small batches
    "sequences": {"dataset": "sequences", "batch_size": 32, "augment": "none"},
    # what the paper's author trains ImageNet with: github.com/facebookresearch/open_lth, models/imagenet_resnet.py
    "large": {"dataset": "imagenet", "batch_size": 1024, "lr": 0.4, "epochs": 90, "warmup_epochs": 5,
              "milestones": (30 / 90, 60 / 90, 80 / 90)},
    "large_models": list(IMAGENET),
    "large_modes": ["all", "bn", "output", "random2"],
    "large_seeds": [0, 1, 2],
    "results": "results",
}
_SHORT = _PAPER | {
    "training": {"epochs": 16},
    "sequences": _PAPER["sequences"] | {"epochs": 16},
    "large": _PAPER["large"] | {"batch_size": 256, "lr": 0.1, "epochs": 16, "warmup_epochs": 1},
    "large_models": ["imagenet_resnet18", "imagenet_resnet50"],
    "large_seeds": [0],
    "optimizers": _SEARCH,
    "depths": [14, 32, 56, 110],
    "widths": [1, 2, 4],
    "seeds": [0, 1, 2],
}
_DEMO = {
    # a mirrored digit is no digit, hence no flip; small batches, or 1,437 images would make 11 steps an epoch
    "training": {"dataset": "digits", "epochs": 10, "batch_size": 32, "augment": "crop"},
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
    "seeds": [0, 1],
    "sequences": _PAPER["sequences"] | {"epochs": 5},
    "large": {"dataset": "large_digits", "image_size": 32, "epochs": 2, "batch_size": 32, "augment": "crop"},
    "large_models": ["imagenet_resnet18"],
    "large_modes": ["all", "bn", "output", "random2"],
    "large_seeds": [0],
    "results": "build/demo/results",
}
_SMOKE = _DEMO | {
    "training": {"dataset": "digits", "n_train": 128, "epochs": 1, "batch_size": 64, "augment": "crop"},
    "depths": [8, 14],
    "widths": [1, 2],
    "modes": ["all", "weights", "bn", "random2"],
    "starts": [{"bn_init": "ones"}, {"lr": 0.5}],
    "sequences": _PAPER["sequences"] | {"n_train": 128, "epochs": 1},
    "large": _DEMO["large"] | {"n_train": 64, "epochs": 1},
    "large_modes": ["bn", "output"],
    "optimizing": {"model": "resnet8", "shortcut": "A", "n_val": 100},
    "optimizers": [{"optimizer": "sgd"}, {"optimizer": "adam"}, {"optimizer": "adabound"},
                   {"optimizer": "lbfgs", "batch_size": 128, "optimizer_options": "max_iter=2"}],
    "results": "build/smoke/results",
}
PROFILES = {"paper": _PAPER, "short": _SHORT, "demo": _DEMO, "smoke": _SMOKE}


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
    optimizing: dict          # Config fields that all runs of the comparison of optimizers share
    optimizers: list[dict]    # Config fields of each of those runs; validation images choose among an optimizer's
    seeds: list[int]
    sequences: dict           # Config fields of runs on sequences, in place of `training`
    large: dict               # Config fields of runs on large images, in place of `training`
    large_models: list[str]   # torchvision's networks
    large_modes: list[str]    # what trains of them
    large_seeds: list[int]
    results: Path             # folder of the run records

    @property
    def figures(self) -> Path:
        """Folder of the figures, beside the results."""
        return self.results.parent / "figures"


def profile(name: str, **overrides) -> Profile:
    """The profile `paper`, `short`, `demo` or `smoke`, with single settings replaced.

    An override is a field of Profile (`depths=[14, 20]`) or of Config (`epochs=3`); None keeps the profile's.
    Raises InputError for a name that is neither.
    """
    settings = dict(PROFILES[choose("profile", name, PROFILES)])
    training = dict(settings.pop("training"))
    config_fields = [f.name for f in dataclasses.fields(Config)]
    for key, value in overrides.items():
        choose("profile setting", key, [*settings, *config_fields])
        if value is not None:
            if isinstance(settings.get(key), list) and not isinstance(value, list | tuple | range):
                raise InputError(f"{key}={value!r}: must be a list, such as [{value}]")
            (settings if key in settings else training)[key] = value
    return Profile(name=name, training=training, **settings | {"results": resolve(settings["results"])})


#: What a table tells runs apart by anyway; all other fields of Config are the profile's, or make a variant.
KEYS = ("dataset", "model", "trainable", "epochs", "seed")


def variant(config: Config) -> str:
    """What sets a run apart from its profile's protocol, such as `lr=0.3, bn_init=ones`; empty for a plain run."""
    keys = {key: getattr(config, key) for key in (*KEYS, "optimizer")}      # beside what another optimizer brings along
    protocols = [profile[kind] for profile in PROFILES.values() for kind in ("training", "sequences", "large")]
    differing = [["optimizer"] * (config.optimizer != Config.optimizer) + [
                  field.name for field in dataclasses.fields(Config)
                  if getattr(config, field.name) != getattr(Config(**protocol | keys), field.name)]
                 for protocol in protocols
                 if protocol.get("dataset", "cifar10") == config.dataset or not protocol]
    return ", ".join(f"{name}={getattr(config, name)}" for name in min(differing, key=len))


def resolve(path: str | Path) -> Path:
    """`path`, a relative one taken from the project's root, so that a notebook and the shell mean the same folder.

    The root is the nearest folder at or above the current one that holds `bnlib/` and `notebooks/`; elsewhere
    a relative path stays relative to the current folder.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "bnlib").is_dir() and (folder / "notebooks").is_dir():
            return folder / path
    return here / path
