"""The optimizers, the options that each takes, and how a config's text spells them."""

import ast
import math
import re

from bnlib.names import InputError, choose

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
_KINDS = {
    "True or False": lambda value: isinstance(value, bool),
    "number from 0 to below 1": lambda value: 0 <= value < 1,
    "number from 0 on": lambda value: 0 <= value < math.inf,
    "number above 0": lambda value: 0 < value < math.inf,
    "number above 0, or inf": lambda value: value > 0,
    "whole number from 1 on": lambda value: 1 <= value < math.inf and value % 1 == 0,
}
_KIND_OF_TYPE = {bool: "True or False", tuple: "number from 0 to below 1", float: "number from 0 on",
                 int: "whole number from 1 on"}
_KIND_OF = {"max_eval": "whole number from 1 on", "beta3": "number from 0 to below 1", "d0": "number above 0",
            "d_coef": "number above 0", "growth_rate": "number above 0, or inf"}
_OR_NONE = {("lbfgs", "max_eval"), ("prodigy", "beta3"), ("prodigy", "eps")}
LEAST_ITERATIONS = 3       # of LBFGS a step: the first goes down the gradient, the second gives the first curvature


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
            wanted = (f"{len(default)} {kind.replace('number', 'numbers')}" if isinstance(default, tuple) else
                      kind if isinstance(default, bool) else f"a {kind}") + ", or None" * or_none
            raise InputError(f"optimizer_options={word!r}: {name} is {wanted}, such as {compact(default)}") from None
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
    if isinstance(value, bool) != isinstance(default, bool) or not _KINDS[kind](value):
        raise ValueError
    return value if isinstance(value, bool) else int(value) if kind.startswith("whole") else float(value)


def compact(value) -> str:
    """A value as a config's text spells it: (0.9, 0.999) → `(0.9,0.999)`."""
    return repr(value).replace(" ", "")
