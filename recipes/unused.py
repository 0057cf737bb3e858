"""Settings that a user gave and a stage would not look at.

Which settings a stage's own code looks at is read from that code: the names that the functions of its loss, and the functions
of ``recipes`` these call, take from objects. A setting ``dropout.reference`` is looked at where both names occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from recipes.config import Config
from recipes.stage import Stage

OF_THE_LOSS = ("dropout.", "data.caption", "data.latents", "data.references")
"""Settings that only a loss looks at."""
ONLY_WITH = {
    "train.snr_gamma": ("train.weighting", lambda config: config.train.weighting == "min_snr"),
    "train.keep": ("train.save_every", lambda config: config.train.save_every),
    "train.batch_multiple": ("train.batch_tokens", lambda config: config.train.batch_tokens),
    "train.global_batch": ("train.batch_tokens, which takes its place", lambda config: not config.train.batch_tokens),
    "data.cache_gb": ("data.cache", lambda config: config.data.cache),
    **{
        f"data.clip.{name}": ("data.clips, which take its place", lambda config: not config.data.clips)
        for name in ("frames", "height", "width", "fps")
    },
}
"""Settings that another one turns on: its name, and whether it does."""
SWITCHES = {"held_out": "every", "samples": "every", "track": "to"}
"""Which setting of a group turns the others on."""


def unused_settings(stage: Stage, config: Config, assignments: list[str]) -> list[str]:
    """A line for each setting that was given and is without effect in this stage.

    Args:
        stage: what is run.
        config: its settings, with the assignments made.
        assignments: what was given, each ``a.b=c``.
    """
    lines = []
    for name in dict.fromkeys(assignment.partition("=")[0] for assignment in assignments):
        group, _, rest = name.partition(".")
        if name in ONLY_WITH:
            other, on = ONLY_WITH[name]
            if not on(config):
                lines.append(f"{name} has no effect with {other} as it is")
        elif group in SWITCHES and rest != SWITCHES[group] and getattr(getattr(config, group), SWITCHES[group]) is None:
            lines.append(f"{name} has no effect without {group}.{SWITCHES[group]}")
        elif name.startswith(OF_THE_LOSS) and not looks_at(stage, name):
            lines.append(f"{name} has no effect: {stage.name} does not look at it")
        elif name == "train.weighting" and not looks_at(stage, "diffusion_loss"):
            lines.append(f"{name} has no effect: {stage.name} has no noise schedule")
        elif name == "train.compile" and not looks_at(stage, "diffusion_loss"):
            lines.append(f"{name} has no effect: {stage.name} does not run the video transformer")
    return lines


def looks_at(stage: Stage, setting: str) -> bool:
    """Whether a stage's loss looks at a setting such as ``dropout.reference``."""
    return _names(stage.loss).issuperset(setting.split("."))


def _names(function: Any) -> set[str]:
    """Every name that a function uses, and the functions of the recipes that it calls."""
    names: set[str] = set()
    seen: set[CodeType] = set()
    waiting = [function]
    while waiting:
        one = waiting.pop()
        if not _is_ours(one) or one.__code__ in seen:
            continue
        seen.add(one.__code__)
        mine = {name for code in _codes(one.__code__) for name in code.co_names}
        names |= mine
        waiting += [one.__globals__[name] for name in mine if name in one.__globals__]
    return names


def _is_ours(one: Any) -> bool:
    """Whether it is a function of the recipes; the recipe that is run is called ``__main__``."""
    return isinstance(one, FunctionType) and one.__module__.partition(".")[0] in ("recipes", "__main__")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions and comprehensions in it."""
    yield code
    for inside in code.co_consts:
        if isinstance(inside, CodeType):
            yield from _codes(inside)
