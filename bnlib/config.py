"""Every choice that changes a result: the config of a run and its id."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from bnlib.names import (
    AUGMENTATIONS,
    BN_INITS,
    CONV_INITS,
    DATASETS,
    DEEPOBS,
    INPUTS,
    NORMS,
    SCHEDULES,
    SHORTCUTS,
    InputError,
    canonical_decay,
    canonical_positions,
    canonical_trainable,
    choose,
    dataset_name,
    model_name,
    parse_model,
)
from bnlib.options import LEAST_ITERATIONS, OPTIMIZERS, canonical_options, options_of


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
    norm: str = "batch"                            # batch; in its place group (some 8 channels each), layer (all), none
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
    inputs: str = "own"                            # the set's own moments (streamed: imagenet); raw 0–255, unit 0–1
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
        dataset_name(self.dataset)
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
