"""A stage and its cache of features: which entries it may take, which parts of the model it then does without."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from animeshooter_dataset import DataError
from recipes.config import Config
from recipes.parts import PART_OF, load_gen, part_hash
from streams.clips import ClipSpec
from streams.features import KIND_OF, Features, FeatureStore, identity_of, open_store

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from recipes.stage import Stage, Stream

EVERYTHING = frozenset(KIND_OF)
"""What a stage needs that does not say."""
SAID = {"latents": "latents", "first": "first frames", "last": "last frames", "text": "captions", "blank": "empty caption"}


@dataclass(frozen=True)
class Coverage:
    """What of a stage's features is cached, and which frozen parts of the model it does without."""

    without: tuple[str, ...]
    line: str


def clip_of(config: Config) -> ClipSpec:
    """The clips of a config."""
    return ClipSpec(**dataclasses.asdict(config.data.clip))


def identities(
    kinds: Collection[str], config: Config, parent: Path | None, precision: str, gen: AnimeShooterGen | None = None
) -> dict[str, dict[str, Any]]:
    """Identity of the features of each kind that this model makes of these clips.

    Args:
        kinds: of features.
        config: of the stage.
        parent: the checkpoint; None for the preset, which is then made or loaded to see its weights.
        precision: of the arithmetic.
        gen: the preset's model where it is in memory already.

    Raises:
        DataError: the checkpoint lacks a part.
    """
    if parent is None and gen is None and set(kinds) & set(PART_OF):
        gen = load_gen(config, None)
    found = {}
    for kind in kinds:
        model = part_hash(kind, parent, None if parent else gen) if kind in PART_OF else None
        found[kind] = identity_of(kind, clip_of(config), model, precision)
    return found


def open_features(stage: Stage, config: Config, data: Path, parent: Path | None, precision: str) -> Features | None:
    """What a stage may take from ``data.features``; None where that is not set.

    Args:
        stage: what it needs.
        config: its settings.
        data: the dataset, for messages.
        parent: the checkpoint it starts from; None for the preset.
        precision: of the arithmetic, as accelerate has it.

    Raises:
        DataError: no such folder, or it holds features of another model, of other clips or in another precision.
    """
    if config.data.features is None:
        return None
    root, again = Path(config.data.features), command(stage, config, data, parent)
    if not root.is_dir():
        raise DataError(f"{root}: no cache of features; make it with: {again}")
    clip = clip_of(config)
    kinds = sorted({KIND_OF[need] for need in needs_of(stage)})
    stores: dict[tuple[str, ClipSpec | None], FeatureStore] = {}
    for kind, identity in identities(kinds, config, parent, precision).items():
        try:
            store = open_store(root, identity)
        except DataError as error:
            raise DataError(f"{error}. Make it for this run: {again}") from None
        if store is not None:
            stores[kind, None if kind == "text" else clip] = store
    if not stores:
        raise DataError(f"{root}: holds none of {', '.join(kinds)}; make them with: {again}")
    return Features(stores, needs_of(stage), config.data.caption, again)


def needs_of(stage: Stage) -> frozenset[str]:
    """What a stage needs of each shot."""
    return stage.needs or EVERYTHING


def coverage_of(stage: Stage, config: Config, features: Features | None, stream: Stream) -> Coverage:
    """Compare cache and dataset: which parts of the model need not be in memory, and a line that says so.

    What is not cached is made on the fly, by a part that then is in memory. ``features`` learns what it must have.

    Raises:
        DataError: the cache is of another dataset: it has none of the shots.
    """
    needs = needs_of(stage)
    counts: Mapping[str, tuple[int, int]] = dict.fromkeys(sorted(needs), (0, 0))
    if features is not None:
        counts = features.coverage(used_rows(stream), clip_of(config))
        if not any(have for need, (have, _) in counts.items() if need != "blank"):
            raise DataError(other_dataset(features, stream))
    whole = {need for need, (have, wanted) in counts.items() if features is not None and have == wanted}
    busy = {PART_OF[KIND_OF[need]] for need in needs - whole if KIND_OF[need] in PART_OF}
    without = tuple(part for part in PART_OF.values() if part not in busy)
    absent = f"not in memory: {', '.join(without)}" if without else "VAE and text encoder in memory"
    if features is None:
        return Coverage(without, f"features: none cached; {absent}")
    features.required = frozenset(need for need in whole if PART_OF.get(KIND_OF[need]) in without)
    said = [f"{SAID[need]} {have} of {wanted}" for need, (have, wanted) in counts.items()]
    if "latents" in needs and clip_of(config).starts is None:
        said.append("clips start anywhere, so no latents (set data.clip.starts)")
    if needs - whole:
        said.append(f"what is missing is made on the fly; complete it with: {features.again}")
    return Coverage(without, f"features {config.data.features}: cached {', '.join(said)}; {absent}")


def used_rows(stream: Stream) -> pa.Table:
    """The rows of the index that a stream reads."""
    rows = np.unique(stream.sequences[stream.plan.bucket >= 0])
    return stream.index.take(pa.array(rows[rows >= 0]))


def other_dataset(features: Features, stream: Stream) -> str:
    """What differs between the dataset of a cache and that of a stream."""
    now = stream.state_dict()["fingerprint"]
    for store in features.stores.values():
        for name, told in store.datasets().items():
            was = told["fingerprint"]
            changed = [f"{key} was {was.get(key)}, is {value}" for key, value in now.items() if was.get(key) != value]
            if changed:
                return f"{store.directory}: of {name}: {'; '.join(changed)}. Make it for this dataset: {features.again}"
    return f"{next(iter(features.stores.values())).directory}: has none of this dataset's shots. Make it: {features.again}"


def command(stage: Stage, config: Config, data: Path, parent: Path | None) -> str:
    """The command that makes or completes what a stage needs."""
    parts = ["accelerate", "launch", "recipes/cache_features.py", "--stage", stage.name, "--data", str(data)]
    parts += ["--preset", config.preset] if parent is None else ["--from", str(parent)]
    parts += ["--out", str(config.data.features)] if config.data.features else []
    base = stage.presets.get(config.preset)
    for section, names in (("data.clip", None), ("data", DATA_SETTINGS), ("train", ("precision", "seed"))):
        now, was = _section(config, section), None if base is None else _section(base, section)
        for name, value in dataclasses.asdict(now).items():
            if not isinstance(value, dict) and (names is None or name in names) and getattr(was, name, None) != value:
                parts += ["--set", f"{section}.{name}={value}"]
    return shlex.join(parts)


DATA_SETTINGS = ("split", "caption", "video", "character", "prologue_and_epilogue", "rejected")
"""Settings that decide which shots and captions are cached."""


def _section(config: Config, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found
