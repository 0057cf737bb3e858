"""The data of a run as its settings say it: which clips, how many shots a sample, which stream, read how."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from animeshooter_dataset import DataError
from recipes.config import Config
from streams.clips import ClipSpec, read_clip
from streams.features import Features
from streams.store import StoreOptions
from streams.workers import warm_up

if TYPE_CHECKING:
    from recipes.stage import Stage, Stream

LEDGER = "bad_samples.jsonl"
"""Where the bad samples of a run are counted, in the folder it works in."""


def clips_of(config: Config) -> tuple[ClipSpec, ...]:
    """The clip sizes of a config: those of ``data.clips``, or the one of ``data.clip``.

    Raises:
        DataError: a size is not written like ``49x480x720@8``, is none, or stands there twice.
    """
    clip = config.data.clip
    if config.data.clips is None:
        return (ClipSpec(**dataclasses.asdict(clip)),)
    found = tuple(read_clip(text, clip.min_frames, clip.starts) for text in re.split(r"[\s,]+", config.data.clips.strip()))
    if len(set(found)) < len(found):
        raise DataError(f"data.clips: a size stands there twice ({config.data.clips}); name each once")
    return found


def shots_of(config: Config) -> int | tuple[int, int] | Literal["story"]:
    """Shots a sample: their number, the least and the most of them, or whole stories.

    Raises:
        DataError: ``data.shots`` is none of that.
    """
    shots = config.data.shots
    if isinstance(shots, int):
        return shots
    found = re.fullmatch(r"(\d+)-(\d+)", shots)
    if found:
        return int(found[1]), int(found[2])
    if shots == "story":
        return "story"
    raise DataError(f"data.shots: '{shots}' is neither a number, nor least and most like 2-4, nor 'story'")


def most_shots(config: Config) -> int:
    """The most shots that a sample can have."""
    from animeshooter_streams import LONGEST

    shots = shots_of(config)
    return LONGEST if shots == "story" else shots[1] if isinstance(shots, tuple) else shots


def check_clips(config: Config, gen: Any) -> None:
    """Whether the model can take every clip size of a config.

    Raises:
        ValueError: one does not fit; says what would.
    """
    for clip in clips_of(config):
        gen.backbone.check_size(clip.frames, clip.height, clip.width)


def store_options(config: Config) -> StoreOptions:
    """How the dataset of a config is read."""
    data = config.data
    cache = None if data.cache is None else Path(data.cache)
    return StoreOptions(cache=cache, cache_bytes=int(data.cache_gb * 2**30), verify=data.verify)


def open_stream(
    stage: Stage, config: Config, directory: str | Path, features: Features | None = None, ledger: Path | None = None
) -> Stream:
    """The stage's stream over a dataset.

    Args:
        stage: whose stream.
        config: its settings.
        directory: dataset directory or address; for some stages also clips of other kinds (``recipes.plain_clips``).
        features: a cache of features to read along.
        ledger: file in which all processes of the run count bad samples together; None counts in each process.

    Raises:
        DataError: no such dataset, or it has nothing to train on; settings that no stream takes.
    """
    from recipes.plain_clips import stream_for

    clips, settings = stream_settings(config)
    if features is not None:
        settings["features"] = features
    kind = stream_for(stage, directory) or stage.stream
    stream = kind(directory, clips, **settings, options=store_options(config))
    stream.allow_bad(config.data.bad_samples, ledger)
    if config.data.workers:
        warm_up()
    return stream


def stream_settings(config: Config) -> tuple[tuple[ClipSpec, ...], dict[str, Any]]:
    """The clips of a config's stream, and the stream's other arguments."""
    data, train = config.data, config.train
    same = ("split", "references", "require_reference", "video", "character", "prologue_and_epilogue", "rejected")
    where = [condition for condition in (data.where or "").split(";") if condition.strip()]
    size: dict[str, Any] = {"global_batch": train.global_batch}
    if train.batch_tokens is not None:
        size = {"batch_tokens": train.batch_tokens, "multiple": train.batch_multiple}
    settings = {**size, "seed": train.seed, "n": shots_of(config), "where": where}
    return clips_of(config), settings | {name: getattr(data, name) for name in same}
