"""Stage ``audio``: the clips of AnimeShooter-audio, cut where sound and picture change together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from animeshooter_dataset import AudioRecord, StoryRecord
from curation.clips import SOUND_RATE, ClipInfo, ClipSpan, FilmShots, cut_clips, write_flac
from curation.collect import Dropped, Film
from curation.config import BuildConfig
from curation.script import SoundScript


def cut_audio(
    whole: FilmShots,
    sounds: Sequence[SoundScript],
    story: StoryRecord,
    origin: dict[str, Any],
    config: BuildConfig,
    folder: Path,
) -> tuple[list[AudioRecord], list[Dropped]]:
    """Store picture and sound of each noted clip of a story, cut from the film itself.

    Args:
        whole: the film.
        sounds: what the annotator noted.
        story: the story they belong to.
        origin: the fields that every record of the film shares.
        config: the settings.
        folder: where the media go, under their keys.

    Returns:
        The records, and what was dropped: clips shorter than the settings allow, outside the film, or of a silent film.
    """
    kept: list[tuple[SoundScript, ClipSpan]] = []
    dropped: list[Dropped] = []
    for sound in sounds:
        path = folder / f"{story.key}-a{len(kept):03d}.mp4"
        try:
            kept.append((sound, _span(whole, sound, path, config)))
        except ValueError as problem:
            reason = f"{whole.film.path}: audio clip at {sound.start:.1f} s {problem}"
            dropped.append(Dropped(whole.film.path, "audio", reason))
    infos = cut_clips(whole.film, [span for _, span in kept], config.clips) if kept else []
    records = [
        _record(whole.film, sound, span, info, story, origin | {"position": position})
        for position, ((sound, span), info) in enumerate(zip(kept, infos))
    ]
    return records, dropped


def _record(
    film: Film, sound: SoundScript, span: ClipSpan, info: ClipInfo, story: StoryRecord, rest: dict[str, Any]
) -> AudioRecord:
    """The record of one clip, with its sound written beside it."""
    words = asdict(sound)
    values: dict[str, Any] = {**rest, **asdict(info), **words, "characters": list(sound.characters)}
    del values["start"], values["end"]
    return AudioRecord(
        **values,
        key=span.path.stem,
        story=story.key,
        shots=[shot.key for shot in story.shots if shot.start_frame < span.end_frame and span.start_frame < shot.end_frame],
        start_frame=span.start_frame,
        end_frame=span.end_frame,
        start_time=span.start_time,
        end_time=span.end_time,
        sample_rate=SOUND_RATE,
        channels=2,
        samples=write_flac(film, span, span.path.with_suffix(".flac")),
    )


def _span(whole: FilmShots, sound: SoundScript, path: Path, config: BuildConfig) -> ClipSpan:
    """Frames and times of a noted sound.

    Raises:
        ValueError: what keeps it from being a clip.
    """
    pts, end = whole.cuts.frames.pts, whole.times[-1]
    first = int(np.searchsorted(pts, sound.start - 1e-6))
    last = int(np.searchsorted(pts, min(sound.end, end) - 1e-6))
    if not whole.film.info.has_audio:
        raise ValueError("is noted, but the film has no sound")
    if first >= last:
        raise ValueError(f"lies outside the film, which is {end:.1f} s long")
    start, stop = round(float(pts[first]), 6), round(float(pts[last]) if last < len(pts) else end, 6)
    if stop - start < config.min_audio_seconds:
        raise ValueError(f"is {stop - start:.1f} s long, under {config.min_audio_seconds:g} s")
    return ClipSpan(path, first, last, start, stop)
