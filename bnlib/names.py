"""What a config may name, and one spelling for each choice: data sets, networks, what trains, where batch norm is."""

import difflib
import re
from typing import NamedTuple


class InputError(ValueError):
    """Something a person asked for that cannot be; the message is one line that says what would be right."""


#: Sets that come with the library, can be downloaded or are well known, and their number of training images.
DATASETS = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "digits": 1_437, "sequences": 5_000,
            "large_digits": 480, "imagenet": 1_281_167, "stanford_cars_64x96": 8_144, "stanford_cars_96x96": 8_144}
TRAINABLE = ("all", "bn", "gamma", "beta", "output", "shortcut", "weights", "random<K>", "none")
CONV_INITS = ("he_normal", "he_uniform", "orthogonal", "binary", "xavier")
BN_INITS = ("uniform", "signed", "ones", "beta_one")
SHORTCUTS = ("A", "B", "none")
NORMS = ("batch", "group", "layer", "none")
SCHEDULES = ("milestones", "constant", "cosine", "cosine_restarts", "trapezoid")
DECAYED = ("weights", "gamma", "beta", "biases")
AUGMENTATIONS = ("crop+flip", "crop", "none", "crop+flip+once")
INPUTS = ("own", "raw", "unit", "imagenet")
#: The networks of DeepOBS (`bnlib.deepobs`): layers with weights, all but the last of which may have batch norm.
DEEPOBS = {"3c3d": 6, "allcnnc": 9}


def choose(field: str, value: str, choices) -> str:
    """`value` if it is one of `choices`; else an InputError with the list and the nearest of them."""
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{field}={value!r}: not one of {', '.join(choices)}{hint}")


def dataset_name(name: str) -> str:
    """`name`, if a set of images may have it: it is part of paths and of a run's id; else an InputError."""
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
        return name
    raise InputError(f"dataset={name!r}: a name of letters, digits and _; {', '.join(DATASETS)}, or a folder of images "
                     "under the data folder")


# -------------------------------------------------------------------------------------------- networks

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


# -------------------------------------------------------------------------- what trains, what is normalised

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
