"""Every choice that changes a result: the config of a run and its id."""

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
CONV_INITS = ("he_normal", "he_uniform", "orthogonal", "binary", "xavier")
BN_INITS = ("uniform", "signed", "ones", "beta_one")
SHORTCUTS = ("A", "B", "none")
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
#: What an option takes, in words and as a rule; by its default's type, but for those whose default does not say.
KINDS = {
    "True or False": lambda value: isinstance(value, bool),
    "numbers from 0 to below 1": lambda value: 0 <= value < 1,
    "a number from 0 to below 1": lambda value: 0 <= value < 1,
    "a number from 0 on": lambda value: 0 <= value < math.inf,
    "a number above 0": lambda value: 0 < value < math.inf,
    "a number above 0, or inf": lambda value: value > 0,
    "a whole number from 1 on": lambda value: 1 <= value < math.inf and value % 1 == 0,
}
_KIND_OF_TYPE = {bool: "True or False", tuple: "numbers from 0 to below 1", float: "a number from 0 on",
                 int: "a whole number from 1 on"}
_KIND_OF = {"max_eval": "a whole number from 1 on", "beta3": "a number from 0 to below 1", "d0": "a number above 0",
            "d_coef": "a number above 0", "growth_rate": "a number above 0, or inf"}
_OR_NONE = {("lbfgs", "max_eval"), ("prodigy", "beta3"), ("prodigy", "eps")}
SCHEDULES = ("milestones", "constant", "cosine", "cosine_restarts", "trapezoid")
DECAYED = ("weights", "gamma", "beta", "biases")
AUGMENTATIONS = ("crop+flip", "crop", "none", "crop+flip+once")
INPUTS = ("own", "raw", "unit", "imagenet")
LEAST_ITERATIONS = 3       # of LBFGS a step: the first goes down the gradient, the second gives the first curvature
#: The networks of DeepOBS (`bnlib.deepobs`): layers with weights, all but the last of which may have batch norm.
DEEPOBS = {"3c3d": 6, "allcnnc": 9}


def choose(field: str, value: str, choices) -> str:
    """`value` if it is one of `choices`; else an InputError with the list and the nearest of them."""
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{field}={value!r}: not one of {', '.join(choices)}{hint}")


class Model(NamedTuple):
    """What a network's name says."""

    family: str            # resnet: CIFAR's; resnet1d: for sequences; plain: no shortcuts; 3c3d; allcnnc; imagenet_…
    depth: int             # layers with weights: 6n+2, or those of DEEPOBS; torchvision's: the number in their name
    width: float           # channels, as a multiple of 16, 32 and 64; torchvision's: 2 for the wide ones


#: torchvision's networks, the 200-layer ResNet of He et al. 2016 among them; CIFAR's have names without a prefix.
IMAGENET = {f"imagenet_resnet{depth}": Model("imagenet_resnet", depth, 1) for depth in (18, 34, 50, 101, 152, 200)} | {
    "imagenet_wide_resnet50_2": Model("imagenet_wide_resnet", 50, 2),
    "imagenet_wide_resnet101_2": Model("imagenet_wide_resnet", 101, 2),
    "imagenet_vgg11_bn": Model("imagenet_vgg", 11, 1), "imagenet_vgg16_bn": Model("imagenet_vgg", 16, 1)}


def parse_model(name: str) -> Model:
    """`resnet14` → (resnet, 14, 1), `resnet14x8` → (resnet, 14, 8), `resnet14c2`, of 2, 4, 8 channels, → width 2/16.

    `plain14` is ResNet-14 without shortcuts; `3c3d` and `allcnnc` have one depth;
    `imagenet_resnet50`, `imagenet_wide_resnet50_2`, `imagenet_vgg16_bn`, … are torchvision's. Accepts the paper's
    spelling `ResNet-14-8`, and `cifar_resnet_14_8` and `cifar_freeze_14_8` of an earlier study.
    Raises InputError unless the depth is 6n+2 and the width at least 1, or the channels; or torchvision has it.
    """
    if str(name).lower().startswith("imagenet"):
        letters = re.sub(r"[-_]", "", str(name).lower())
        return IMAGENET[choose("model", next((known for known in IMAGENET if known.replace("_", "") == letters), name),
                               IMAGENET)]
    if name in DEEPOBS:
        return Model(name, DEEPOBS[name], 1)
    found = re.fullmatch(r"(?:cifar_)?(resnet1d|resnet|freeze|plain)[-_]?(\d+)(?:[-_x](\d+)|c(\d+))?",
                         str(name).lower())
    if not found:
        numbers = [int(n) for n in re.findall(r"\d+", str(name))] or [14]
        raise InputError(f"model={name!r}: not a network; choose resnet<depth>, resnet<depth>x<width>, "
                         "resnet<depth>c<channels>, the same of plain<depth>, imagenet_resnet<depth>, "
                         f"{' or '.join(DEEPOBS)}; nearest: {model_name(_nearest_depth(numbers[0]), *numbers[1:2])}")
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
    if family in DEEPOBS:
        return family
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
    options, given = dict(OPTIONS[choose("optimizer", optimizer, OPTIMIZERS)]), set()
    for word in re.split(r"[\s,]+(?=\w+\s*=)", text.strip()) if text.strip() else ():
        name, _, value = (part.strip(" ,") for part in word.partition("="))
        default = options[choose("optimizer_options", name, OPTIONS[optimizer])]
        if name in given:
            raise InputError(f"optimizer_options={text!r}: {name} is given twice")
        given.add(name)
        kind, or_none = _KIND_OF.get(name) or _KIND_OF_TYPE[type(default)], (optimizer, name) in _OR_NONE
        try:
            value = float(value) if value.lower() in ("inf", "nan") else ast.literal_eval(value)
            options[name] = None if value is None and or_none else _as(default, kind, value)
        except (ValueError, SyntaxError, TypeError, OverflowError):
            count = f"{len(default)} " if isinstance(default, tuple) else ""
            raise InputError(f"optimizer_options={word!r}: {name} is {count}{kind}{', or None' * or_none}, such as "
                             f"{compact(default)}") from None
    return options


def canonical_options(optimizer: str, text: str) -> str:
    """One spelling a choice: options in the order of OPTIONS, without those that have their default."""
    return " ".join(f"{name}={compact(value)}" for name, value in options_of(optimizer, text).items()
                    if value != OPTIONS[optimizer][name])


def _as(default, kind: str, value):
    """`value` as the type of an option's default; ValueError or TypeError where it is not of the kind."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(default):
            raise ValueError
        return tuple(_as(0.0, kind, part) for part in value)
    if isinstance(value, bool) != isinstance(default, bool) or not KINDS[kind](value):
        raise ValueError
    return value if isinstance(value, bool) else int(value) if kind.startswith("a whole") else float(value)


def compact(value) -> str:
    """A value as a config's text spells it: (0.9, 0.999) → `(0.9,0.999)`."""
    return repr(value).replace(" ", "")


def canonical_positions(positions: str, model: str) -> str:
    """Which layers of a network of DeepOBS have batch norm, one letter a layer: `first2` of 3c3d → `1,1,0,0,0`.

    Takes `all` (also said by nothing), `none`, `first<k>`, `last<k>` and the letters themselves; other networks have
    no positions, and nothing to say. Raises InputError for a wrong letter or number of them.
    """
    family, count = parse_model(model).family, parse_model(model).depth - 1
    if family not in DEEPOBS:
        if positions:
            raise InputError(f"positions={positions!r}: {model} has no layers to choose from; "
                             f"{' and '.join(DEEPOBS)} have")
        return ""
    chosen = {"": "first" + str(count), "all": "first" + str(count), "none": "first0"}.get(positions, positions)
    if found := re.fullmatch(r"(first|last)(\d+)", chosen):
        k = int(found[2])
        letters = ["1"] * k + ["0"] * (count - k)
        letters = letters if found[1] == "first" else letters[::-1]
    else:
        letters = chosen.split(",")
    if len(letters) != count or set(letters) - {"0", "1"}:
        raise InputError(f"positions={positions!r}: {model} takes {count} letters 0 or 1, such as "
                         f"{','.join('1' + '0' * (count - 1))}; or first<k>, last<k> with k up to {count}; all; none")
    return ",".join(letters)


def canonical_decay(what: str) -> str:
    """One spelling a choice of what weight decay acts on: parts in the order of DECAYED; all four are `all`."""
    parts = {choose("decay", part, ("all", *DECAYED, "none"))
             for part in str(what).replace("bn", "gamma+beta").split("+")}
    if "none" in parts and len(parts) > 1:
        raise InputError(f"decay={what!r}: 'none' stands alone")
    if "all" in parts or parts == set(DECAYED):
        return "all"
    return "+".join(part for part in (*DECAYED, "none") if part in parts)


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
    model: str = "resnet14"                        # resnet|plain|resnet1d<6n+2>, …x<width>, …c<channels>; imagenet_…
    positions: str = ""                            # of 3c3d and allcnnc: layers with BN; 1,0,0,1,1, first2, last3, none
    norm: str = "batch"                            # batch; in its place group (8 channels each), layer (all) or none
    shortcut: str = "B"                            # where shapes change: B 1×1 convolution, BN; A zero padding; none
    final_relu: bool = True                        # a ReLU after the sum that ends a block, as He et al. have it
    bn_parts: int = 1                              # BN takes statistics of the batch, or of so many processes' parts
    trainable: str = "bn"                          # all, bn, gamma, beta, output, shortcut, weights, random2, none; a+b
    bn_first: int = 0                              # epochs in which γ and β train alone, before all that trains does
    conv_init: str = "he_normal"                   # convolutions, output; or he_uniform, orthogonal, binary, xavier
    bn_init: str = "uniform"                       # γ ~ U(0, 1), β = 0; signed: U(-1, 1); ones: γ = 1; beta_one: β = 1
    optimizer: str = "sgd"                         # sgd, adam, adamw, lbfgs, adabound, adan, lion, prodigy
    optimizer_options: str = ""                    # its own, "betas=(0.9,0.99) eps=1e-6"; the rest as documented
    lr: float | None = None                        # learning rate at the start; None: the optimizer's own
    momentum: float | None = None                  # of SGD, 0.9; the others have their own among the options
    weight_decay: float | None = None              # None: the optimizer's own
    decay: str = "all"                             # what it acts on: all, none, or weights, gamma, beta, biases; a+b
    batch_size: int | None = None                  # images a step; None: 128, of LBFGS 5,000
    epochs: int = 160                              # passes over the training images
    schedule: str = "milestones"                   # or constant, cosine, cosine_restarts, trapezoid
    milestones: tuple[float, ...] | None = None    # fractions of training after which lr drops tenfold; None: ½, ¾
    warmup_epochs: float = 0.0                     # lr rises linearly from zero over so many epochs
    inputs: str = "own"                            # the set's own mean and deviation; raw 0–255, unit 0–1, imagenet's
    augment: str = "crop+flip"                     # random crop (4-pixel padding), flip; …+once: the same in each epoch
    fp32: bool = False                             # float32 everywhere, as an experiment; False: whichever is fast
    log_every: int = 0                             # γ, β and loss into the record every so many steps; 0: at epochs
    keep_affine: bool = True                       # γ, β in the record; False: kept with all other trained weights
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
        object.__setattr__(self, "positions", canonical_positions(self.positions, self.model))
        object.__setattr__(self, "decay", canonical_decay(self.decay))
        choose("conv_init", self.conv_init, CONV_INITS)
        choose("bn_init", self.bn_init, BN_INITS)
        choose("shortcut", self.shortcut, SHORTCUTS)
        choose("norm", self.norm, NORMS)
        object.__setattr__(self, "optimizer_options", canonical_options(self.optimizer, self.optimizer_options))
        choose("schedule", self.schedule, SCHEDULES)
        choose("inputs", self.inputs, INPUTS)
        choose("augment", self.augment, AUGMENTATIONS)
        self._check_architecture()
        self._check("n_train", self.n_train is None or self.n_train >= 1, "at least 1, or None for all")
        self._check("n_val", self.n_val >= 0, "at least 0")
        self._check("image_size", self.image_size is None or self.image_size >= 8, "at least 8, or None")
        self._check("lr", 0 < self.lr < math.inf, "above 0")
        self._check("momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        self._check("momentum", self.momentum == 0 or self.optimizer == "sgd", f"0 or None, as {self.optimizer} has "
                    "none; nor does it take over SGD's lr, weight_decay and batch_size: give them anew, or as None")
        if self.optimizer == "lbfgs":
            options = options_of("lbfgs", self.optimizer_options)
            if min(options["max_iter"], options["max_eval"] or math.inf) < LEAST_ITERATIONS:
                raise InputError(f"optimizer_options={self.optimizer_options!r}: max_iter and max_eval must be at "
                                 f"least {LEAST_ITERATIONS}, or LBFGS learns no curvature within a batch")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        self._check("batch_size", self.batch_size >= 2, "at least 2, since batch norm needs a batch")
        self._check("bn_parts", 1 <= self.bn_parts <= self.batch_size // 2, "from 1 to half of batch_size")
        self._check("log_every", self.log_every >= 0, "at least 0")
        if not self.keep_affine and not {"all", "weights"} & set(self.trainable.split("+")):
            raise InputError(f"keep_affine={self.keep_affine}: where trainable={self.trainable!r}, γ and β are what a "
                             "record is kept for; only with 'all' or 'weights' can it do without")
        self._check("epochs", self.epochs >= 1, "at least 1")
        self._check("bn_first", 0 <= self.bn_first < self.epochs, "at least 0 and below epochs")
        if self.bn_first and not {"all", "bn"} & set(self.trainable.split("+")):
            raise InputError(f"bn_first={self.bn_first}: γ and β never train where trainable={self.trainable!r}")
        self._check("milestones", all(0 < m < 1 for m in self.milestones)
                    and list(self.milestones) == sorted(set(self.milestones)), "rising fractions between 0 and 1")
        self._check("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "from 0 to epochs")
        if self.warmup_epochs and self.schedule in ("cosine_restarts", "trapezoid"):
            raise InputError(f"warmup_epochs={self.warmup_epochs}: schedule={self.schedule!r} takes none; "
                             "milestones, constant and cosine do")
        self._check("seed", 0 <= self.seed < 2**63, "at least 0 and below 2**63")
        self.check_sizes(DATASETS.get(self.dataset))

    def _check_architecture(self):
        """InputError for parts that this network does not have, or for training only what it does not have."""
        family, default = parse_model(self.model).family, Config.__dataclass_fields__
        fixed = {"plain": ("shortcut",), **dict.fromkeys(DEEPOBS, ("shortcut", "final_relu", "norm"))}.get(
            family, ("shortcut", "final_relu") if family.startswith("imagenet") else ())
        for field in fixed:
            if getattr(self, field) != default[field].default:
                raise InputError(f"{field}={getattr(self, field)!r}: {self.model} has no choice of it; a resnet has")
        if "shortcut" in self.trainable and (self.shortcut != "B" or "resnet" not in family):
            raise InputError(f"trainable={self.trainable!r}: {self.model} with shortcut={self.shortcut!r} has nothing "
                             "to train there; a resnet with B has")
        without = (f"positions={self.positions!r}" if family in DEEPOBS and "1" not in self.positions else
                   "norm='none'" if self.norm == "none" else "")
        if without and (set(self.trainable.split("+")) & {"bn", "gamma", "beta"} or self.bn_first):
            raise InputError(f"trainable={self.trainable!r}: there are no γ and β where {without}")

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

    @property
    def images(self) -> int:
        """Training images; of a set whose size is not known, as many as CIFAR-10 has."""
        return self.n_train or DATASETS.get(self.dataset, DATASETS["cifar10"]) - self.n_val

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
        if kind == "bool":
            return {"true": True, "false": False}[str(value).lower()]
        if kind == "float":
            return float(value)
        if isinstance(value, str):
            return value
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    wanted = {"milestones": "a list of fractions", "int": "a whole number", "float": "a number", "str": "a text",
              "bool": "true or false"}[kind] + " or None" * (type(None) in kinds)
    raise InputError(f"{field.name}={value!r}: must be {wanted}")


def _whole(value) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def generator(seed: int, purpose: str, epoch: int = 0, *index: int) -> np.random.Generator:
    """The random numbers of one seed for one purpose, `weights`, `split`, `batches`, `chosen`, `image` or `dropout`,
    and one epoch; for `image` also of one image, by its index.

    A function of its arguments alone: neither the device nor torch's global state has a say, and a resumed run
    needs no generator's state to go on with the same draws.
    """
    stream = {"weights": 0, "split": 1, "batches": 2, "chosen": 3, "image": 4, "dropout": 5}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch, *index))))


# ------------------------------------------------------------------------------------------- where it lies

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
