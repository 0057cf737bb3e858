"""Stage ``audio``: the clips of AnimeShooter-audio, cut where sound and picture change together.

Two steps, so that a film is decoded once for all clips of all its stories: :func:`choose_clips` settles, a story at a time,
which stretches become clips and what is said of them; :func:`write_clips` stores them, a film at a time.

Where an annotator gives the clips of a story, they are taken, their edges put on the shot boundaries they are meant for.
Elsewhere they are cut by measure (arXiv 2506.03126, section 3, does it with a model): stories with long speech or music are
left out; the others are divided at those shot boundaries at which what sounds all along changes too, so that clips join
without gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from animeshooter_dataset import AnnotatedBy, AudioRecord, DataError, ShotAnnotation, StoryRecord
from curation.clips import SOUND_RATE, ClipConfig, ClipInfo, ClipSpan, FilmShots, cut_clips, sample_clip, write_flac
from curation.collect import Dropped
from curation.listener import HEARD_RATE, LISTENER_FRAMES, Clip, Listener
from curation.meters import BANDS, BLOCK, STEP
from curation.script import NoAnswer, SoundScript
from curation.sound import FilmSound, steps
from curation.video import read_audio

A_WEIGHTING = np.array([-14.7, -8.6, -4.7, -1.8, 0.0, 1.0, 1.3, 1.1, 0.4])
"""Weight in dB of each of :data:`curation.sound.BANDS`: curve A of IEC 61672 at its middle."""
EVENT_LEVEL, EVENT_GAP = 10.0, 10.0
"""Level in dB over the bed from which an onset is an event, and seconds: with less than one in so many it is ambience."""
MOST_ONSETS = 8
"""Onsets whose times are told in a description."""


@dataclass(frozen=True)
class AudioConfig:
    """How the audio subset is cut.

    Attributes:
        min_seconds: clips must be longer (AnimeShooter keeps those over 3 s).
        max_seconds: a longer clip is divided where it can be, also where the sound changes little.
        max_speech: share of speech in a story above which it gives no measured clips.
        max_music: the same of music. The paper names no figures; half of a story is what "long" means here.
        change_level: mean change of the lasting sound in dB from which a shot boundary divides clips.
        snap_seconds: distance up to which an annotator's edge is put on a shot boundary.
        listener: who describes measured clips: ``openai:URL#MODEL``, or ``local:MODEL`` for an audio classifier of
            transformers; None to say only what was measured.
    """

    min_seconds: float = 3.0
    max_seconds: float = 30.0
    max_speech: float = 0.5
    max_music: float = 0.5
    change_level: float = 4.0
    snap_seconds: float = 0.35
    listener: str | None = None


@dataclass(frozen=True)
class ChosenClip:
    """A stretch that becomes a clip of the audio subset, with its words; ``origin`` are the fields all records share."""

    key: str
    position: int
    story: StoryRecord
    origin: dict[str, Any]
    words: SoundScript
    start_frame: int
    end_frame: int
    start_time: float
    end_time: float


@dataclass(frozen=True)
class _Stretch:
    """Frames and times, ends exclusive."""

    start_frame: int
    end_frame: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def choose_clips(
    whole: FilmShots,
    heard: FilmSound,
    story: StoryRecord,
    sounds: Sequence[SoundScript],
    origin: dict[str, Any],
    config: AudioConfig,
    listener: Listener | None = None,
) -> tuple[list[ChosenClip], list[Dropped]]:
    """Settle the clips of one story; nothing is decoded but what a listener is shown.

    Args:
        whole: the film.
        heard: its sound.
        story: the story.
        sounds: the clips its annotator gives; none to cut them by measure.
        origin: the fields that every record of the film shares.
        config: the settings.
        listener: who describes measured clips; None to say only what was measured.

    Returns:
        The clips, and what was dropped: clips too short or outside the film, stories with long speech or music, descriptions
        that a listener failed to give (the measured one stands in).

    Raises:
        NoAnswer: the listener could not be asked.
    """
    if sounds:
        return _noted(whole, story, sounds, origin, config)
    if not heard.has_sound:
        return [], []
    try:
        stretches = _divide(heard, story, config)
    except ValueError as problem:
        where = f"story at {story.start_time:.1f} s to {story.end_time:.1f} s"
        return [], [Dropped(whole.film.path, "audio", f"{whole.film.path}: {where} gives no audio clips: {problem}")]
    clips: list[ChosenClip] = []
    dropped: list[Dropped] = []
    for stretch in stretches:
        words, by = _measured(heard, story, stretch), AnnotatedBy(kind="measure")
        if listener is not None:
            try:
                told = listener.listen(_clip(whole, story, stretch))
                words = replace(words, **{name: text for name, text in told.model_dump().items() if text})
                by = listener.annotator
            except NoAnswer:
                raise
            except DataError as error:
                reason = f"{whole.film.path}: audio clip at {stretch.start:.1f} s keeps its measured words: {error}"
                dropped.append(Dropped(whole.film.path, "audio", reason))
        clips.append(_chosen(story, len(clips), origin | {"annotator": by}, words, stretch))
    return clips, dropped


def write_clips(
    whole: FilmShots, heard: FilmSound, chosen: Sequence[ChosenClip], config: ClipConfig, folder: Path
) -> list[AudioRecord]:
    """Store picture and sound of clips, of whatever stories of a film, in one pass over it.

    Args:
        whole: the film.
        heard: its sound.
        chosen: the clips.
        config: how clips are stored.
        folder: where ``KEY.mp4`` and ``KEY.flac`` go.

    Returns:
        Their records, in the order of ``chosen``.

    Raises:
        DataError: the film turns out to be damaged.
        OSError: a clip cannot be written.
    """
    spans = [
        ClipSpan(folder / f"{clip.key}.mp4", clip.start_frame, clip.end_frame, clip.start_time, clip.end_time)
        for clip in chosen
    ]
    infos = cut_clips(whole.film, spans, config) if spans else []
    return [_record(whole, heard, clip, span, info) for clip, span, info in zip(chosen, spans, infos, strict=True)]


def _record(whole: FilmShots, heard: FilmSound, clip: ChosenClip, span: ClipSpan, info: ClipInfo) -> AudioRecord:
    """The record of one clip, with its sound written beside it."""
    words = asdict(clip.words) | {"characters": list(clip.words.characters)}
    del words["start"], words["end"]
    return AudioRecord(
        **clip.origin,
        **asdict(info),
        **words,
        key=clip.key,
        position=clip.position,
        story=clip.story.key,
        shots=[shot.key for shot in _overlapped(clip.story, clip.start_frame, clip.end_frame)],
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        start_time=clip.start_time,
        end_time=clip.end_time,
        sample_rate=SOUND_RATE,
        channels=2,
        samples=write_flac(whole.film, span, span.path.with_suffix(".flac")),
        sound=heard.scores(clip.start_time, clip.end_time),
    )


def _chosen(story: StoryRecord, position: int, origin: dict[str, Any], words: SoundScript, stretch: _Stretch) -> ChosenClip:
    key = f"{story.key}-a{position:03d}"
    edges = stretch.start_frame, stretch.end_frame, stretch.start, stretch.end
    return ChosenClip(key, position, story, origin, words, *edges)


def _overlapped(story: StoryRecord, first: int, last: int) -> list[ShotAnnotation]:
    return [shot for shot in story.shots if shot.start_frame < last and first < shot.end_frame]


# Clips that an annotator gives


def _noted(
    whole: FilmShots, story: StoryRecord, sounds: Sequence[SoundScript], origin: dict[str, Any], config: AudioConfig
) -> tuple[list[ChosenClip], list[Dropped]]:
    clips: list[ChosenClip] = []
    dropped: list[Dropped] = []
    for sound in sounds:
        try:
            stretch = _place(whole, sound, config)
        except ValueError as problem:
            reason = f"{whole.film.path}: audio clip at {sound.start:.1f} s {problem}"
            dropped.append(Dropped(whole.film.path, "audio", reason))
        else:
            clips.append(_chosen(story, len(clips), origin, sound, stretch))
    return clips, dropped


def _place(whole: FilmShots, sound: SoundScript, config: AudioConfig) -> _Stretch:
    """Frames and times of a noted sound.

    Raises:
        ValueError: what keeps it from being a clip.
    """
    pts, end = whole.cuts.frames.pts, whole.times[-1]
    if not whole.film.info.has_audio:
        raise ValueError("is noted, but the film has no sound")
    boundaries = np.array(whole.times)

    def frame_of(time: float) -> int:
        nearest = float(boundaries[np.abs(boundaries - time).argmin()])
        return int(np.searchsorted(pts, (nearest if abs(nearest - time) <= config.snap_seconds else time) - 1e-6))

    first, last = frame_of(sound.start), frame_of(min(sound.end, end))
    if first >= last:
        raise ValueError(f"lies outside the film, which is {end:.1f} s long")
    start, stop = round(float(pts[first]), 6), round(float(pts[last]) if last < len(pts) else end, 6)
    if stop - start <= config.min_seconds:
        raise ValueError(f"is {stop - start:.1f} s long, not over {config.min_seconds:g} s")
    return _Stretch(first, last, start, stop)


# Clips by measure


def _divide(heard: FilmSound, story: StoryRecord, config: AudioConfig) -> list[_Stretch]:
    """Stretches of a story between shot boundaries at which the sound changes too.

    Of all divisions into stretches over the shortest length, the one with the greatest sum over its inner boundaries of change
    less the level, a dB less for each second over the longest length.

    Raises:
        ValueError: why there are none.
    """
    scores = heard.scores(story.start_time, story.end_time)
    for what, share, most in (("speech", scores.speech, config.max_speech), ("music", scores.music, config.max_music)):
        if share is not None and share > most:
            both = f"speech {scores.speech or 0:.0%}, music {scores.music or 0:.0%}"
            raise ValueError(f"long {what} ({both}; the limits are {config.max_speech:.0%} and {config.max_music:.0%})")
    times = [*(shot.start_time for shot in story.shots), story.end_time]
    frames = [*(shot.start_frame for shot in story.shots), story.end_frame]
    if times[-1] - times[0] <= config.min_seconds:
        raise ValueError(f"it is {times[-1] - times[0]:.1f} s long, not over {config.min_seconds:g} s")
    within = times[0], times[-1]
    worth = [0.0, *(heard.change(time, within=within) - config.change_level for time in times[1:-1]), 0.0]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for place in range(1, len(times)):
        options = [
            (best[before][0] + worth[place] - max(0.0, times[place] - times[before] - config.max_seconds), before)
            for before in range(place)
            if times[place] - times[before] > config.min_seconds and best[before][0] > -np.inf
        ]
        best.append(max(options, key=lambda option: option[0], default=(-np.inf, 0)))
    edges = [len(times) - 1]
    while edges[-1]:
        edges.append(best[edges[-1]][1])
    edges.reverse()
    return [_Stretch(frames[a], frames[b], times[a], times[b]) for a, b in pairwise(edges)]


def _clip(whole: FilmShots, story: StoryRecord, stretch: _Stretch) -> Clip:
    """A stretch as a listener gets it."""
    starts = [span.start_frame for span in whole.spans]
    frames = []
    for number in range(LISTENER_FRAMES):
        part = (number + 0.5) / LISTENER_FRAMES
        frame = stretch.start_frame + int(part * (stretch.end_frame - stretch.start_frame))
        shot = int(np.searchsorted(starts, frame, side="right")) - 1
        inside = frame - starts[shot]
        frames += [image for _, image in sample_clip(whole.clips[shot], inside, inside + 1, 1)]
    shots = _overlapped(story, stretch.start_frame, stretch.end_frame)
    return Clip(
        start=stretch.start,
        end=stretch.end,
        sound=read_audio(whole.film.path, stretch.start, stretch.end, rate=HEARD_RATE, channels=1),
        frames=frames,
        storyline=story.storyline,
        captions=[" ".join(filter(None, (shot.narrative_caption, shot.descriptive_caption))) for shot in shots],
    )


# What is said by measure


def _measured(heard: FilmSound, story: StoryRecord, stretch: _Stretch) -> SoundScript:
    """Words that say only what was measured; of the pictures, what the story's script says of the shots."""
    shots = _overlapped(story, stretch.start_frame, stretch.end_frame)
    longest = max(shots, key=lambda shot: min(shot.end_frame, stretch.end_frame) - max(shot.start_frame, stretch.start_frame))
    cuts = [f"{shot.start_time - stretch.start:.1f} s" for shot in shots[1:]]
    seen = f"{len(shots)} shots, with cuts at {', '.join(cuts)}; the longest: " if cuts else "One shot: "
    people = dict.fromkeys(name for shot in shots for name in shot.characters)
    kind, description = _describe(heard, stretch)
    return SoundScript(
        start=stretch.start,
        end=stretch.end,
        type=kind,
        sound_description=description,
        visual_context=seen + (longest.narrative_caption or longest.descriptive_caption),
        narrative_caption=" ".join(filter(None, (shot.narrative_caption for shot in shots))),
        descriptive_caption=longest.descriptive_caption,
        scene=longest.scene,
        characters=tuple(people),
    )


def _describe(heard: FilmSound, stretch: _Stretch) -> tuple[str, str]:
    """Type and description of a stretch of sound."""
    scores, onsets = heard.scores(stretch.start, stretch.end), heard.onsets(stretch.start, stretch.end)
    kind = _kind(heard, stretch, onsets)
    if kind == "silence":
        share = 1.0 if scores.silence is None else scores.silence
        return kind, f"Silent for {100 * share:.0f} % of the {stretch.seconds:.1f} s."
    loud = "Very quiet"
    if scores.loudness is not None:
        loud = ("Quiet", "Moderately loud", "Loud")[int(np.searchsorted([-30.0, -18.0], scores.loudness))]
        loud += f" ({scores.loudness:.1f} LUFS)"
    parts = [f"{loud}, {_colour(heard, stretch)}."]
    if len(onsets):
        times = ", ".join(f"{time - stretch.start:.1f}" for time in onsets[:MOST_ONSETS])
        more = f" and {len(onsets) - MOST_ONSETS} later" if len(onsets) > MOST_ONSETS else ""
        parts.append(f"{len(onsets)} sound{'s begin' if len(onsets) > 1 else ' begins'}, at {times} s{more}.")
    else:
        parts.append("No sound stands out as beginning.")
    shares = {"voices": scores.speech or 0, "music": scores.music or 0, "silence": scores.silence or 0}
    told = [f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.05]
    if told:
        parts.append(f"Shares of its time: {', '.join(told)}.")
    return kind, " ".join(parts)


def _kind(heard: FilmSound, stretch: _Stretch, onsets: np.ndarray) -> str:
    """What a stretch mostly sounds of; see :data:`curation.listener.SoundType`."""
    scores = heard.scores(stretch.start, stretch.end)
    if scores.silence is None or scores.silence >= 0.9:
        return "silence"
    if max(scores.speech or 0, scores.music or 0) >= 0.5:
        return "speech" if (scores.speech or 0) >= (scores.music or 0) else "music"
    level = np.maximum(heard.level.astype(np.float64), heard.silence_level)
    bed = np.quantile(level[steps(stretch.start, stretch.end, STEP, level.size)], 0.25)
    loud = [level[int(onset / STEP) : int(onset / STEP) + 20].max() >= bed + EVENT_LEVEL for onset in onsets]
    return "sound effect" if sum(loud) > stretch.seconds / EVENT_GAP else "ambience"


def _colour(heard: FilmSound, stretch: _Stretch) -> str:
    """Tonal or noisy, and in which band it is loudest to the ear."""
    blocks = steps(stretch.start, stretch.end, BLOCK, len(heard.bands))
    power = 10 ** (heard.bands[blocks].astype(np.float64) / 10)
    total = power.sum(1)
    tonality = float((heard.tonality[blocks].astype(np.float64) * total).sum() / max(total.sum(), 1e-12))
    nature = "noise-like" if tonality < 2.6 else "tonal" if tonality > 4 else "partly tonal"
    band = int((10 * np.log10(power.mean(0) + 1e-12) + A_WEIGHTING).argmax())
    return f"{nature}, loudest to the ear between {BANDS[band]} and {BANDS[band + 1]} Hz"
