"""Every choice that changes a result: the config of a run, its id, and the profiles that fill grids of them."""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class InputError(ValueError):
    """Something a person asked for that cannot be; the message is one line that says what would be right."""


# ---------------------------------------------------------------------------------------------- names

#: Sets that come with the library or can be downloaded, and their number of training images.
DATASETS = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "digits": 1_437, "sequences": 5_000}
TRAINABLE = ("all", "bn", "gamma", "beta", "output", "shortcut", "weights", "random<K>", "none")
CONV_INITS = ("he_normal", "he_uniform", "orthogonal", "binary", "xavier")
BN_INITS = ("uniform", "signed", "ones", "beta_one")
SHORTCUTS = ("A", "B", "none")
NORMS = ("batch", "group", "layer", "none")
OPTIMIZERS = ("sgd",)
SCHEDULES = ("milestones", "constant", "cosine", "cosine_restarts", "trapezoid")
DECAYED = ("weights", "gamma", "beta", "biases")
AUGMENTATIONS = ("crop+flip", "crop", "none", "crop+flip+once")
INPUTS = ("own", "raw", "unit", "imagenet")
#: The networks of DeepOBS (`bnlib.deepobs`): layers with weights, all but the last of which may have batch norm.
DEEPOBS = {"3c3d": 6, "allcnnc": 9}


def choose(field: str, value: str, choices) -> str:
    """`value` if it is one of `choices`; else an InputError with the list and the nearest of them."""
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{field}={value!r}: not one of {', '.join(choices)}{hint}")


class Model(NamedTuple):
    """What a network's name says."""

    family: str            # resnet: CIFAR's; resnet1d: the same for sequences; plain: without shortcuts; 3c3d; allcnnc
    depth: int             # layers with weights, 6n+2 of them, or those of DEEPOBS
    width: float           # channels, as a multiple of 16, 32 and 64


def parse_model(name: str) -> Model:
    """`resnet14` → (resnet, 14, 1), `resnet14x8` → (resnet, 14, 8), `resnet14c2`, of 2, 4, 8 channels, → width 2/16.

    `plain14` is ResNet-14 without shortcuts; `3c3d` and `allcnnc` have one depth.
    Accepts the paper's spelling `ResNet-14-8`, and `cifar_resnet_14_8` and `cifar_freeze_14_8` of an earlier study.
    Raises InputError unless the depth is 6n+2 and the width at least 1, or the channels.
    """
    if name in DEEPOBS:
        return Model(name, DEEPOBS[name], 1)
    found = re.fullmatch(r"(?:cifar_)?(resnet1d|resnet|freeze|plain)[-_]?(\d+)(?:[-_x](\d+)|c(\d+))?",
                         str(name).lower())
    if not found:
        numbers = [int(n) for n in re.findall(r"\d+", str(name))] or [14]
        raise InputError(f"model={name!r}: not a network; choose resnet<depth>, resnet<depth>x<width>, "
                         f"resnet<depth>c<channels>, the same of plain<depth>, or {', '.join(DEEPOBS)}; "
                         f"nearest: {model_name(_nearest_depth(numbers[0]), *numbers[1:2])}")
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
    if family in DEEPOBS:
        return family
    if width != int(width):
        return f"{family}{depth}c{round(16 * width)}"
    return f"{family}{depth}" if width <= 1 else f"{family}{depth}x{int(width)}"


def canonical_trainable(what: str) -> str:
    """One spelling a choice: parts in the order of TRAINABLE, `gamma+beta` as `bn`, parts of other parts dropped."""
    parts = set(str(what).split("+"))
    chosen = {part for part in parts if re.fullmatch(r"random[1-9]\d*", part)}       # random2: two a channel
    parts = {choose("trainable", part, TRAINABLE) for part in parts - chosen}
    if "random<K>" in parts or len(chosen) > 1:
        raise InputError(f"trainable={what!r}: one random<K>, K weights of each channel, such as random2")
    if "none" in parts and len(parts | chosen) > 1:
        raise InputError(f"trainable={what!r}: 'none' stands alone")
    if {"gamma", "beta"} <= parts:
        parts.add("bn")
    if "bn" in parts:
        parts -= {"gamma", "beta"}
    if "weights" in parts:
        parts, chosen = parts - {"output"}, set()
    if "all" in parts or {"bn", "weights"} <= parts:
        parts, chosen = {"all"}, set()
    return "+".join([*(part for part in TRAINABLE if part in parts), *chosen])


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
    parts = {choose("decay", part, ("all", *DECAYED, "none")) for part in str(what).split("+")}
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
    model: str = "resnet14"                        # resnet|plain|resnet1d<6n+2>, …x<width>, …c<channels>; 3c3d; allcnnc
    positions: str = ""                            # of 3c3d and allcnnc: layers with BN; 1,0,0,1,1, first2, last3, none
    norm: str = "batch"                            # batch; in its place group (8 channels each), layer (all) or none
    shortcut: str = "B"                            # where shapes change: B 1×1 convolution, BN; A zero padding; none
    final_relu: bool = True                        # a ReLU after the sum that ends a block, as He et al. have it
    bn_parts: int = 1                              # BN takes statistics of the batch, or of so many processes' parts
    trainable: str = "bn"                          # all, bn, gamma, beta, output, shortcut, weights, random2, none; a+b
    bn_first: int = 0                              # epochs in which γ and β train alone, before all that trains does
    conv_init: str = "he_normal"                   # convolutions, output; or he_uniform, orthogonal, binary, xavier
    bn_init: str = "uniform"                       # γ ~ U(0, 1), β = 0; signed: U(-1, 1); ones: γ = 1; beta_one: β = 1
    optimizer: str = "sgd"                         # SGD with momentum
    lr: float = 0.1                                # learning rate at the start
    momentum: float = 0.9                          # of SGD
    weight_decay: float = 1e-4                     # on all that trains, γ and β too, as in the paper
    decay: str = "all"                             # what it acts on: all, none, or weights, gamma, beta, biases; a+b
    batch_size: int = 128                          # images a step
    epochs: int = 160                              # passes over the training images
    schedule: str = "milestones"                   # or constant, cosine, cosine_restarts, trapezoid
    milestones: tuple[float, ...] = (0.5, 0.75)    # fractions of training after which lr drops tenfold
    warmup_epochs: float = 0.0                     # lr rises linearly from zero over so many epochs
    inputs: str = "own"                            # the set's own mean and deviation; raw 0–255, unit 0–1, imagenet's
    augment: str = "crop+flip"                     # random crop (4-pixel padding), flip; …+once: the same in each epoch
    log_every: int = 0                             # γ, β and loss into the record every so many steps; 0: at epochs
    seed: int = 0                                  # draws weights, validation split, order and augmentation

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", self.dataset):
            raise InputError(f"dataset={self.dataset!r}: a name of letters, digits and _; {', '.join(DATASETS)}, "
                             "or a folder of images under the data folder")
        if self.model.startswith("cifar_freeze") and canonical_trainable(self.trainable) != "bn":
            raise InputError(f"{self.model} trains batch norm alone, but trainable={self.trainable!r}; "
                             f"for that: {model_name(self.depth, self.width)}")
        object.__setattr__(self, "model", model_name(self.depth, self.width, parse_model(self.model).family))
        object.__setattr__(self, "trainable", canonical_trainable(self.trainable))
        object.__setattr__(self, "positions", canonical_positions(self.positions, self.model))
        object.__setattr__(self, "decay", canonical_decay(self.decay))
        choose("conv_init", self.conv_init, CONV_INITS)
        choose("bn_init", self.bn_init, BN_INITS)
        choose("shortcut", self.shortcut, SHORTCUTS)
        choose("norm", self.norm, NORMS)
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("schedule", self.schedule, SCHEDULES)
        choose("inputs", self.inputs, INPUTS)
        choose("augment", self.augment, AUGMENTATIONS)
        self._check_architecture()
        self._check("n_train", self.n_train is None or self.n_train >= 1, "at least 1, or None for all")
        self._check("n_val", self.n_val >= 0, "at least 0")
        self._check("lr", 0 < self.lr < math.inf, "above 0")
        self._check("momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        self._check("batch_size", self.batch_size >= 2, "at least 2, since batch norm needs a batch")
        self._check("bn_parts", 1 <= self.bn_parts <= self.batch_size // 2, "from 1 to half of batch_size")
        self._check("log_every", self.log_every >= 0, "at least 0")
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
        fixed = ("shortcut", "final_relu", "norm") if family in DEEPOBS else ("shortcut",) if family == "plain" else ()
        for field in fixed:
            if getattr(self, field) != default[field].default:
                raise InputError(f"{field}={getattr(self, field)!r}: {self.model} has no choice of it; a resnet has")
        if "shortcut" in self.trainable and (self.shortcut != "B" or family not in ("resnet", "resnet1d")):
            raise InputError(f"trainable={self.trainable!r}: {self.model} with shortcut={self.shortcut!r} has nothing "
                             "to train there; a resnet with B has")
        without = (f"positions={self.positions!r}" if family in DEEPOBS and "1" not in self.positions else
                   "norm='none'" if self.norm == "none" else "")
        if without and set(self.trainable.split("+")) <= {"bn", "gamma", "beta"}:
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
        differing = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                     if getattr(self, f.name) != f.default}
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
    kind = field.name if field.name in ("n_train", "milestones") else type(field.default).__name__
    try:
        if kind == "n_train":
            return None if value is None else _whole(value)
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
    wanted = {"n_train": "a whole number or None", "milestones": "a list of fractions", "int": "a whole number",
              "float": "a number", "bool": "true or false", "str": "a text"}[kind]
    raise InputError(f"{field.name}={value!r}: must be {wanted}")


def _whole(value) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def generator(seed: int, purpose: str, epoch: int = 0) -> np.random.Generator:
    """The random numbers of one seed, one epoch and one purpose: `weights`, `split`, `batches`, `chosen` or `dropout`.

    A function of its arguments alone: neither the device nor torch's global state has a say, and a resumed run
    needs no generator's state to go on with the same draws.
    """
    stream = {"weights": 0, "split": 1, "batches": 2, "chosen": 3, "dropout": 4}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch))))


# ------------------------------------------------------------------------------------------- profiles

#: What may train, in the order of `04_what_trains`; random<K> is K random weights of each channel.
_MODES = ["all", "weights", "bn+output", "bn", "gamma", "beta", "output", "shortcut", *(
    f"random{k}" for k in (2, 4, 8, 16, 32))]
#: Ways to start, of `06_initialisation`: fields that differ from the protocol, one at a time.
_STARTS = [*({"bn_init": how} for how in BN_INITS[1:]), *({"conv_init": how} for how in CONV_INITS[1:]),
           *({"lr": lr} for lr in (0.01, 0.03, 0.3, 1.0))]

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
}
#: What that study does to the batch norms that a network has, as `trainable`; then the same with all else frozen.
MODIFICATIONS = {
    "vanilla": "all",                              # with positions="none": no batch norm at all
    "trained_bn": "all", "fixed_bn": "weights", "fixed_gamma": "beta+weights", "fixed_beta": "gamma+weights",
    "trained_bn alone": "bn", "fixed_bn alone": "none", "fixed_gamma alone": "beta", "fixed_beta alone": "gamma",
}


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
_CHANGES = [{"shortcut": "A"}, {"shortcut": "none"}, {"final_relu": False}, {"norm": "none"},
            {"norm": "none", "lr": 0.001},                         # at the protocol's rate it may diverge
            *({"inputs": how} for how in INPUTS[1:]), {"augment": "none"}, {"augment": "crop+flip+once"},
            {"batch_size": 256}]

#: What a profile sets: `training` goes into each Config, the rest spans the grids of the notebooks.
_PAPER = {
    "training": {},                                # Config's defaults are the paper's protocol
    "depths": [14, 32, 56, 110, 218, 434, 866],
    "widths": [1, 2, 4, 8, 16, 32],
    "width_depth": 14,                             # the depth at which width is varied
    "modes": _MODES,
    "starts": _STARTS,
    "seeds": [0, 1, 2, 3, 4],
    # a sequence turned round is another one, hence no flip; 5,000 of them make few steps, hence small batches
    "sequences": {"dataset": "sequences", "batch_size": 32, "augment": "none"},
    "dissect": PRESETS["3c3d-cifar10"],
    "masks": [*(f"{end}{k}" for k in range(5, 0, -1) for end in ("first", "last"))],
    "modifications": [*MODIFICATIONS],
    "rates": [0.00226, 0.0226, 0.226],
    "residual": {},
    "plain_depths": [20, 32, 44, 56, 14],
    "changes": _CHANGES,
    "results": "results",
}
_SHORT = _PAPER | {
    "training": {"epochs": 16},
    "sequences": _PAPER["sequences"] | {"epochs": 16},
    "dissect": _PAPER["dissect"] | {"epochs": 16},
    "masks": ["all"],
    "modifications": [m for m in MODIFICATIONS if m != "fixed_bn alone"],
    "residual": {"epochs": 16},
    "plain_depths": [20, 32],
    "depths": [14, 32, 56, 110],
    "widths": [1, 2, 4],
    "seeds": [0, 1, 2],
}
_DEMO = {
    # a mirrored digit is no digit, hence no flip; small batches, or 1,437 images would make 11 steps an epoch
    "training": {"dataset": "digits", "epochs": 12, "batch_size": 32, "augment": "crop"},
    "depths": [8, 14, 20],
    "widths": [1, 2, 3],
    "width_depth": 8,
    "modes": ["all", "weights", "bn+output", "bn", "gamma", "beta", "output", "shortcut", "random2", "random8"],
    "starts": [{"bn_init": "ones"}, {"bn_init": "signed"}, {"conv_init": "orthogonal"}, {"conv_init": "binary"},
               {"lr": 0.01}, {"lr": 0.5}],
    "seeds": [0, 1],
    "sequences": _PAPER["sequences"] | {"epochs": 5},
    # seconds a run: a part of the digits, a few epochs
    "dissect": _PAPER["dissect"] | {"dataset": "digits", "n_train": 256, "epochs": 4, "batch_size": 32,
                                    "augment": "crop"},
    "masks": ["all", "last3"],
    "modifications": [m for m in MODIFICATIONS if m != "fixed_bn alone"],
    "rates": [0.00226, 0.0226, 0.226],
    "residual": {"dataset": "digits", "n_train": 512, "epochs": 4, "batch_size": 32, "augment": "crop"},
    "plain_depths": [8, 14],
    "changes": [{"shortcut": "A"}, {"shortcut": "none"}, {"final_relu": False}, {"inputs": "raw"},
                {"augment": "none"}],
    "results": "build/demo/results",
}
_SMOKE = _DEMO | {
    "training": {"dataset": "digits", "n_train": 128, "epochs": 1, "batch_size": 64, "augment": "crop"},
    "depths": [8, 14],
    "widths": [1, 2],
    "modes": ["all", "weights", "bn", "random2"],
    "starts": [{"bn_init": "ones"}, {"lr": 0.5}],
    "sequences": _PAPER["sequences"] | {"n_train": 128, "epochs": 1},
    "dissect": _DEMO["dissect"] | {"n_train": 64, "epochs": 1},
    "masks": ["all"],
    "modifications": ["vanilla", "trained_bn", "fixed_gamma"],
    "rates": [0.0226],
    "residual": _DEMO["residual"] | {"n_train": 128, "epochs": 1, "batch_size": 64},
    "plain_depths": [8],
    "changes": [{"shortcut": "A"}],
    "results": "build/smoke/results",
}
PROFILES = {"paper": _PAPER, "short": _SHORT, "demo": _DEMO, "smoke": _SMOKE}
#: What of a profile holds Config fields that its runs share: those of most notebooks, and of some in their place.
PROTOCOLS = ("training", "sequences", "dissect", "residual")


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
    seeds: list[int]
    sequences: dict           # Config fields of runs on sequences, in place of `training`
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

    An override is a field of Profile (`depths=[14, 20]`) or of Config (`epochs=3`); None keeps the profile's.
    Raises InputError for a name that is neither.
    """
    settings = dict(PROFILES[choose("profile", name, PROFILES)])
    config_fields = [f.name for f in dataclasses.fields(Config)]
    for key, value in overrides.items():
        choose("profile setting", key, [*settings, *config_fields])
        if value is not None:
            if isinstance(settings.get(key), list) and not isinstance(value, list | tuple | range):
                raise InputError(f"{key}={value!r}: must be a list, such as [{value}]")
            settings |= {key: value} if key in settings else {kind: settings[kind] | {key: value} for kind in PROTOCOLS}
    return Profile(name=name, **settings | {"results": resolve(settings["results"])})


#: What a table tells runs apart by anyway; all other fields of Config are the profile's, or make a variant.
KEYS = ("dataset", "model", "trainable", "epochs", "seed")


def variant(config: Config) -> str:
    """What sets a run apart from its profile's protocol, such as `lr=0.3, bn_init=ones`; empty for a plain run."""
    keys = {key: getattr(config, key) for key in KEYS}
    protocols = [profile[kind] for profile in PROFILES.values() for kind in PROTOCOLS] + [*PRESETS.values()]
    differing = [[field.name for field in dataclasses.fields(Config)
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
