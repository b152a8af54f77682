"""How networks, data sets and what trains are called in sentences, tables and figures."""

from collections.abc import Iterable

import numpy as np

from bnlib.config import Config


class Sentences(list):
    """Sentences with computed numbers; a notebook shows them as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"* {sentence}" for sentence in self) or "Nothing to show here yet."


_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "digits": "scikit-learn's digits",
             "sequences": "synthetic sequences", "imagenet": "ImageNet",
             "large_digits": "digits of many sizes and colours"}
#: How a half of batch norm's affine transformation is written.
SYMBOL = {"gamma": "γ", "beta": "β"}
#: How an optimizer is called.
OPTIMIZER = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lbfgs": "LBFGS", "adabound": "AdaBound", "adan": "Adan",
             "lion": "Lion", "prodigy": "Prodigy"}
#: How the presence of batch norm, or what stands in its place, is called.
NORM = {"batch": "with batch norm", "none": "without batch norm", "group": "group norm", "layer": "layer norm"}
#: What stands of batch norm where each modification of `profiles.MODIFICATIONS` was made.
HALVES = {"vanilla": "no batch norm", "trained_bn": "all of batch norm", "fixed_bn": "normalisation alone",
          "fixed_gamma": "with β, without γ", "fixed_beta": "with γ, without β"}
#: How a field of another value than the protocol's is called; what is not here is called by its own name.
_CHANGED = {
    "bn_init": {"ones": "γ starts at 1", "beta_one": "β starts at 1", "signed": "γ starts between −1 and 1"}.get,
    "conv_init": {"he_uniform": "He's uniform weights", "orthogonal": "orthogonal weights",
                  "xavier": "Xavier's weights", "binary": "weights of one size, random signs"}.get,
    "norm": NORM.get, "optimizer": OPTIMIZER.get, "optimizer_options": str,
    "shortcut": {"A": "shortcuts of option A", "none": "no shortcut where shapes change"}.get,
    "lr": "learning rate {}".format, "bn_first": "γ and β alone for {} epochs".format,
    "n_train": lambda n: f"{n:,} training images" if n else "all training images", "n_val": "{:,} held out".format,
    "warmup_epochs": lambda epochs: with_warmup(epochs),                       # which stands further down
    "fp32": {True: "float32"}.get,
    "weight_decay": "weight decay {}".format, "decay": lambda on: f"weight decay {decay_on(on)}",
    "batch_size": "batches of {:,}".format, "final_relu": {False: "no ReLU behind the sums"}.get,
    "inputs": {"raw": "inputs 0–255", "unit": "inputs 0–1", "imagenet": "ImageNet's mean and deviation"}.get,
    "augment": {"none": "no augmentation", "crop": "crops alone",
                "crop+flip+once": "crops and flips once and for all"}.get,
    "log_every": lambda steps: "every step logged" if steps == 1 else f"every {steps} steps logged",
    "positions": lambda letters: "batch norm at " + (", ".join(
        f"layer {layer}" for layer, letter in enumerate(letters.split(","), 1) if letter == "1") or "no layer")}


def name(model: str) -> str:
    """`resnet14x8` → `ResNet-14-8`, the paper's spelling; `resnet1d14` → `1-D ResNet-14`;
    `imagenet_resnet50` → `ImageNet ResNet-50`; `plain20` → `plain-20`, He et al.'s."""
    if model.startswith("imagenet"):
        model = model.removeprefix("imagenet_").removesuffix("_bn").replace("vgg", "VGG-").replace("_", "-")
        return "ImageNet " + model.replace("wide-resnet", "Wide ResNet-").replace("resnet", "ResNet-")
    model = model.replace("resnet1d", "1-D resnet").replace("resnet", "ResNet-").replace("plain", "plain-")
    return model.replace("x", "-")


def shown(dataset: str) -> str:
    """How a set of images is called in sentences: `cifar10` → `CIFAR-10`, a folder of images by its name."""
    return _DATASETS.get(dataset, dataset)


def trained(what: str) -> str:
    """How a choice of `trainable` is called in sentences and legends: `bn` → `BN only`."""
    names = {"all": "all parameters", "bn": "BN", "gamma": "γ", "beta": "β", "output": "output layer",
             "shortcut": "shortcuts", "weights": "all but γ and β", "none": "nothing trained"}
    if what in ("beta+weights", "gamma+weights"):
        return "all but γ" if what.startswith("beta") else "all but β"
    parts = what.split("+")
    named = [names.get(part) or f"{part.removeprefix('random')} random weights a channel" for part in parts]
    alone = parts[0] in names.keys() - {"all", "weights", "none"} or len(parts) > 1
    return " and ".join(named) + " only" * alone


def half(modification: str) -> str:
    """What a modification leaves of batch norm: `fixed_beta alone` → `with γ, without β; weights frozen`."""
    name = modification.removesuffix(" alone")
    return HALVES.get(name, name) + "; weights frozen" * (name != modification)


def decay_on(on: str) -> str:
    """What weight decay acts on (`Config.decay`), as is said where γ and β alone train: `all` → `on γ and β`."""
    names = {"gamma": "γ", "beta": "β", "all": "γ and β"}
    parts = [names.get(part, part) for part in on.split("+")]
    return "on neither" if on == "none" else f"on {' and '.join(parts)}" + " alone" * (on in ("gamma", "beta"))


def changed(variant: dict) -> str:
    """A variant (`profiles.variant`) in words: bn_init `ones`, lr 0.3 → `γ starts at 1, learning rate 0.3`."""
    said = {field: _CHANGED.get(field, lambda _: None)(value) or f"{field}={value}" for field, value in variant.items()}
    if {"weight_decay", "decay"} <= said.keys():       # how much, and on what
        said["weight_decay"] += f" {decay_on(variant['decay'])}"
        del said["decay"]
    return ", ".join(said.values())


def setting(config: Config, **unsaid) -> str:
    """What was chosen for an optimizer: `lr 0.003`, of LBFGS `batch 5,000, max_iter=5 history_size=10`; and whatever
    else is its own, where it is not as documented. unsaid: other values of fields that go without saying."""
    usual = Config(optimizer=config.optimizer, **unsaid)
    always = "batch_size" if config.optimizer == "lbfgs" else "lr"
    batch = f"batch {min(config.batch_size, config.n_train or config.batch_size):,}"
    said = {"batch_size": batch, "lr": f"lr {config.lr:g}"}
    differing = [field for field in ("lr", "batch_size", "momentum", "schedule", "milestones", "weight_decay")
                 if field != always and getattr(config, field) != getattr(usual, field)]
    return ", ".join([said[always], *filter(None, [config.optimizer_options]),
                      *(said.get(field) or f"{field.replace('_', ' ')} {getattr(config, field)}"
                        for field in differing),
                      *([with_warmup(config.warmup_epochs)] if config.warmup_epochs else [])])


def spread(row) -> str:
    """`43.4 ± 0.3 % (3 seeds)`, or what there is of it; with how many more seeds diverged."""
    if not row.n:
        return f"diverged ({seeds_of(row.diverged)})"
    more = f"; {row.diverged} more diverged" * bool(row.diverged)
    return f"{plus_minus(row.mean, row.std)} % ({seeds_of(row.n)}{more})"


def plus_minus(mean: float, deviation: float) -> str:
    """`43.4 ± 0.3`; without the deviation where there is none."""
    return f"{mean:.1f}" + ("" if np.isnan(deviation) else f" ± {deviation:.1f}")


def gained(points: float) -> str:
    """`+0.8 points`, `−3.4 points`."""
    return f"{points:+.1f} points".replace("-", "−")


def machine(device: str) -> str:
    """A device as its records name it, in good English: `AMD EPYC, 1 thread`."""
    return device.replace(" 1 threads", " 1 thread")


def with_warmup(epochs: float) -> str:
    """`no warm-up`, `1 epoch of warm-up`."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'} of warm-up" if epochs else "no warm-up"


def seeds_of(n: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def listed(values: Iterable) -> str:
    """Each value once, in order, with commas: `0, 1, 2`."""
    return ", ".join(map(str, sorted(set(values))))
