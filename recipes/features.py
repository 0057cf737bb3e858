"""A stage and its cache of features: which entries it may take, which parts of the model it then does without."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from animeshooter_dataset import DataError
from recipes.config import Config
from recipes.data import clips_of
from recipes.parts import MADE_BY, PART_OF, load_gen, part_hash
from streams.clips import ClipSpec
from streams.features import KIND_OF, OF_CLIPS, Features, FeatureStore, identity_of, open_store

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from recipes.stage import Stage, Stream

EVERYTHING = frozenset(KIND_OF)
"""What a stage needs that does not say."""
Which = tuple[str, ClipSpec | None]
"""A kind of features, and the clips they are of where that matters."""
SAID = {"latents": "latents", "first": "first frames", "last": "last frames", "text": "captions", "blank": "empty caption"}


@dataclass(frozen=True)
class Coverage:
    """What of a stage's features is cached, and which frozen parts of the model it does without."""

    without: tuple[str, ...]
    line: str


def identities(
    kinds: Collection[str], config: Config, parent: Path | None, precision: str, gen: AnimeShooterGen | None = None
) -> dict[Which, dict[str, Any]]:
    """Identity of the features of each kind that this model makes of these clips, for every clip size where that matters.

    Args:
        kinds: of features.
        config: of the stage.
        parent: the checkpoint; None for the preset, which is then made or loaded to see its weights.
        precision: of the arithmetic.
        gen: the preset's model where it is in memory already.

    Raises:
        DataError: the checkpoint lacks a part.
    """
    if parent is None and gen is None and set(kinds) & set(MADE_BY):
        gen = load_gen(config, None)
    found: dict[Which, dict[str, Any]] = {}
    for kind in kinds:
        model = part_hash(kind, parent, None if parent else gen) if kind in MADE_BY else None
        for clip in clips_of(config) if kind in OF_CLIPS else (None,):
            found[kind, clip] = identity_of(kind, clip, model, precision)
    return found


def open_features(stage: Stage, config: Config, data: str | Path, parent: Path | None, precision: str) -> Features | None:
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
    needs = needs_of(stage, config)
    kinds = sorted({KIND_OF[need] for need in needs if (root / KIND_OF[need]).is_dir()})
    stores: dict[Which, FeatureStore] = {}
    problems: list[DataError] = []
    for (kind, clip), identity in identities(kinds, config, parent, precision).items():
        try:
            store = open_store(root, identity)
        except DataError as error:
            problems.append(error)
            continue
        if store is not None:
            stores[kind, clip] = store
    for kind in kinds:  # of several clips some may not be cached yet, but those of another model are none of ours
        if not any(one == kind for one, _ in stores):
            raise DataError(f"{problems[0]}. Make it for this run: {again}") from None
    if not stores:
        asked = sorted({KIND_OF[need] for need in needs})
        raise DataError(f"{root}: holds none of {', '.join(asked)}; make them with: {again}")
    return Features(stores, needs, config.data.caption, again)


def needs_of(stage: Stage, config: Config) -> frozenset[str]:
    """What a stage needs of each shot with these settings."""
    from recipes.conditions import condition_needs

    return (stage.needs or EVERYTHING) | condition_needs(stage.needs, config)


def coverage_of(stage: Stage, config: Config, features: Features | None, stream: Stream) -> Coverage:
    """Compare cache and dataset: which parts of the model need not be in memory, and a line that says so.

    What is not cached is made on the fly, by a part that then is in memory. ``features`` learns what it must have.

    Raises:
        DataError: the cache is of another dataset: it has none of the shots.
    """
    from recipes.conditions import needs_vae

    needs = needs_of(stage, config) - {"vision"}
    counts = dict.fromkeys(sorted(needs), (0, 0))
    if features is not None:
        counts = _counted(features, stream)
        if not any(have for need, (have, _) in counts.items() if need != "blank"):
            raise DataError(other_dataset(features, stream))
    whole = {need for need, (have, wanted) in counts.items() if features is not None and have == wanted}
    busy = {PART_OF[KIND_OF[need]] for need in needs - whole if KIND_OF[need] in PART_OF}
    busy |= {"vae"} if needs_vae(config) else set()
    without = tuple(part for part in PART_OF.values() if part not in busy)
    absent = f"not in memory: {', '.join(without)}" if without else "VAE and text encoder in memory"
    if features is None:
        return Coverage(without, f"features: none cached; {absent}")
    features.required = frozenset(need for need in whole if PART_OF.get(KIND_OF[need]) in without)
    said = [f"{SAID[need]} {have} of {wanted}" for need, (have, wanted) in counts.items()]
    if ("vision", None) in features.stores:
        said.append(f"what the MLLM sees in {features.stores['vision', None].index.num_rows} pictures")
    if "latents" in needs and clips_of(config)[0].starts is None:
        said.append("clips start anywhere, so no latents (set data.clip.starts)")
    if needs - whole:
        said.append(f"what is missing is made on the fly; complete it with: {features.again}")
    return Coverage(without, f"features {config.data.features}: cached {', '.join(said)}; {absent}")


def _counted(features: Features, stream: Stream) -> dict[str, tuple[int, int]]:
    """Entries that are there, and that there could be, by need: each shot at the size it is drawn in."""
    have: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for clip in stream.clips:
        rows = used_rows(stream, clip)
        for need, (some, all_of_them) in features.coverage(rows, clip).items() if rows.num_rows else ():
            have[need] += some
            wanted[need] += all_of_them
    return {need: (have[need], wanted[need]) for need in sorted(wanted)}


def used_rows(stream: Stream, clip: ClipSpec) -> pa.Table:
    """The rows of the index that a stream reads as clips of this size."""
    of_it = [number for number, one in enumerate(stream.buckets) if one.clip == clip]
    rows = np.unique(stream.sequences[np.isin(stream.plan.bucket, of_it)])
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


def command(stage: Stage, config: Config, data: str | Path, parent: Path | None) -> str:
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


DATA_SETTINGS = ("clips", "shots", "split", "caption", "video", "character", "prologue_and_epilogue", "rejected")
"""Settings that decide which shots and captions are cached."""


def _section(config: Config, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found
