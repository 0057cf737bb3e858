"""One story: its script, references and sound, as records and media. See ``curation.rows`` for the film it is part of."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from animeshooter_dataset import (
    AnnotatedBy,
    AudioRecord,
    DataError,
    Reference,
    ShotAnnotation,
    ShotRecord,
    ShotScores,
    Storyboard,
    StoryRecord,
)
from curation.annotators import annotator_of
from curation.audio import ChosenClip, choose_clips
from curation.captions import check_captions
from curation.clips import FilmShots, sample_clip
from curation.collect import Dropped, rights_of, title_of
from curation.config import BuildConfig
from curation.judge import Judge
from curation.listener import listener_of
from curation.references import ReferenceImage, ReferenceResult, find_references, sheet
from curation.script import NoAnswer, Sample, StoryScript, StoryView
from curation.segment_models import segmenter_of
from curation.sidecar import SidecarScript
from curation.sound import FilmSound
from curation.verify import verifier_of

if TYPE_CHECKING:
    from curation.align import AlignedStory

RELEASE_LICENCE = "CC BY-NC 4.0"
"""Licence of the words and masks of the official AnimeShooter release, as its project page states it."""
Picture = tuple[int, int, int, int]
"""A box (x0, y0, x1, y1) in pixels, ends exclusive."""


@dataclass(frozen=True)
class StudiedFilm:
    """A film's shots with all that was measured of them.

    Attributes:
        whole: the film and its stored clips.
        picture: what lies inside black bars, in pixels of the clips; None for all of it.
        scores: measures of each shot's pictures.
        sound: measures of the film's sound.
    """

    whole: FilmShots
    picture: Picture | None
    scores: Sequence[ShotScores]
    sound: FilmSound


class StoredStory(BaseModel):
    """A story as it is staged."""

    story: StoryRecord
    shots: list[ShotRecord]
    audio: list[AudioRecord] = []
    refused: dict[str, int]


@dataclass(frozen=True)
class StoryWriter:
    """Writes the stories of one film.

    Attributes:
        studied: the film.
        script: the script beside it, if there is one.
        config: the settings.
        judge: who looks at reference images; None for nobody.
        folder: where media go, under their keys.
        titles: for every shot of the film whether it is prologue or epilogue, as measured.
    """

    studied: StudiedFilm
    script: SidecarScript | None
    config: BuildConfig
    judge: Judge | None
    folder: Path
    titles: Sequence[Any]

    def write(
        self, numbers: Sequence[int], key: str, aligned: AlignedStory | None = None
    ) -> tuple[StoredStory, list[ChosenClip], list[Dropped]]:
        """Make one story of the shots ``numbers`` of the film, with its media but those of its audio clips.

        ``aligned`` is what the official release tells of it; without that an annotator is asked.

        Raises:
            DataError: no script could be made of it.
            NoAnswer: a model could not be asked.
        """
        view = self._view(numbers)
        whole, config = self.studied.whole, self.config
        told = aligned.script if aligned else annotator_of(whole.film, self.script, config).annotate(view)
        found = self._references(told, view, aligned)
        annotations = [self._annotation(view, told, place, key, numbers) for place in range(len(numbers))]
        origin = self._origin(told, RELEASE_LICENCE if aligned else None)
        story = self._story(view, told, annotations, found.images, origin, key)
        shots = []
        for place, number in enumerate(numbers):
            _link(whole.clips[number], self.folder / f"{annotations[place].key}.mp4")
            shot = self._shot(annotations[place], story, found.images, origin, number)
            shots.append(_with_cuts(shot, aligned.cuts_inside[place]) if aligned else shot)
        clips, dropped = self._sounds(told, story, origin, measured=aligned is None)
        refused = Counter(re.sub(r"\d[\d.]*", "#", rejected.reason) for rejected in found.rejected)
        language = config.language if told.annotator.model else None
        doubts = [problem for problem in check_captions(told, language) if problem.fatal]
        if doubts:
            more = f" and {len(doubts) - 1} more" if len(doubts) > 1 else ""
            dropped.append(
                Dropped(whole.film.path, "captions", f"{whole.film.path}: {key}: {doubts[0]}{more} (kept, want a look)")
            )
        return StoredStory(story=story, shots=shots, refused=dict(sorted(refused.items()))), clips, dropped

    def _sounds(
        self, told: StoryScript, story: StoryRecord, origin: dict[str, Any], *, measured: bool
    ) -> tuple[list[ChosenClip], list[Dropped]]:
        """The story's audio clips; where its script gives none, they are found by measure if that is wanted."""
        config = self.config
        if not measured:
            from curation.align import AUDIO_MODEL

            if not told.sounds:
                return [], []
            origin = origin | {"annotator": AnnotatedBy(kind="release", model=AUDIO_MODEL)}
            config = replace(config, audio=replace(config.audio, snap_seconds=max(1.0, config.audio.snap_seconds)))
        listener = listener_of(config.audio.listener, config.ask, config.limits, language=config.language)
        return choose_clips(self.studied.whole, self.studied.sound, story, told.sounds, origin, config.audio, listener)

    def _view(self, numbers: Sequence[int]) -> StoryView:
        whole, config = self.studied.whole, self.config
        spans = [whole.spans[number] for number in numbers]
        frames = [slice(span.start_frame, span.end_frame) for span in spans]
        samples = []
        for number, span in zip(numbers, spans):
            start, end = span.clean_start - span.start_frame, span.clean_end - span.start_frame
            seconds = (end - start) / whole.infos[number].fps
            count = min(max(1, round(seconds * config.samples_per_second)), config.max_samples)
            pictures = sample_clip(whole.clips[number], start, end, count)
            samples.append([Sample(span.start_frame + index, image) for index, image in pictures])
        return StoryView(
            film=whole.film.path,
            title=title_of(whole.film, self.script),
            spans=spans,
            times=[round(whole.times[number], 6) for number in (*numbers, numbers[-1] + 1)],
            samples=samples,
            colours=[whole.cuts.frames.mean_rgb[part] for part in frames],
            motion=[whole.cuts.frames.difference[part] for part in frames],
        )

    def _references(self, told: StoryScript, view: StoryView, aligned: AlignedStory | None) -> ReferenceResult:
        if aligned:
            from curation.released import release_references

            return release_references(aligned, self.studied.whole, self.config.released)
        config = self.config.references
        try:
            segmenter = segmenter_of(config.segmenter, device=config.device, dtype=config.dtype)
        except DataError as error:
            raise NoAnswer(str(error)) from None  # the model is at fault and not the story
        return find_references(told, view, config, segmenter, verifier_of(config.verifier, self.judge))

    def _origin(self, told: StoryScript, annotation_licence: str | None) -> dict[str, Any]:
        rights = rights_of(self.studied.whole.film, self.script)
        return {
            "video": self.studied.whole.film.id,
            "split": "train",  # settled when all films are known, see curation.pack
            "licence": rights.licence,
            "attribution": rights.attribution,
            "annotation_licence": annotation_licence,
            "annotator": told.annotator,
        }

    def _annotation(self, view: StoryView, told: StoryScript, place: int, key: str, numbers: Sequence[int]) -> ShotAnnotation:
        span, words = view.spans[place], told.shots[place]
        annotated, best = words.annotated or (None, None), words.representative or (None, None)
        measured = None if told.annotator.kind in ("sidecar", "release") else self.titles[numbers[place]]
        pts = self.studied.whole.cuts.frames.pts
        doubts = {*self.studied.whole.cuts.possible, *(int(np.searchsorted(pts, time - 1e-6)) for time in words.possible_cuts)}
        return ShotAnnotation(
            key=f"{key}-{place:03d}",
            position=place,
            start_frame=span.start_frame,
            end_frame=span.end_frame,
            start_time=view.times[place],
            end_time=view.times[place + 1],
            clean_start_frame=span.clean_start,
            clean_end_frame=span.clean_end,
            transition_in=span.transition_in,
            annotated_start_time=annotated[0],
            annotated_end_time=annotated[1],
            representative_start_time=best[0],
            representative_end_time=best[1],
            possible_cuts=sorted(frame for frame in doubts if span.start_frame < frame < span.end_frame),
            prologue_or_epilogue=words.prologue_or_epilogue or measured,
            scene=words.scene,
            characters=list(words.characters),
            narrative_caption=words.narrative_caption,
            descriptive_caption=words.descriptive_caption,
        )

    def _story(
        self,
        view: StoryView,
        told: StoryScript,
        annotations: Sequence[ShotAnnotation],
        images: Sequence[ReferenceImage],
        origin: dict[str, Any],
        key: str,
    ) -> StoryRecord:
        whole = self.studied.whole
        picture, boxes = sheet(images)
        _save_png(picture, self.folder / f"{key}.png")
        return StoryRecord(
            **origin,
            key=key,
            position=int(key.rpartition("-")[2]),
            title=view.title,
            fps=whole.cuts.fps,
            source_height=whole.film.info.height,
            source_width=whole.film.info.width,
            start_frame=view.spans[0].start_frame,
            end_frame=view.spans[-1].end_frame,
            start_time=view.times[0],
            end_time=view.times[-1],
            storyline=told.storyline,
            characters=list(told.characters),
            scenes=list(told.scenes),
            shots=list(annotations),
            references=[_reference(image, box, key) for image, box in zip(images, boxes)],
            storyboard=_save_storyboard(view, self.folder / f"{key}.jpg", self.config.storyboard_tile),
            sound=self.studied.sound.scores(view.times[0], view.times[-1]),
        )

    def _shot(
        self,
        annotation: ShotAnnotation,
        story: StoryRecord,
        images: Sequence[ReferenceImage],
        origin: dict[str, Any],
        number: int,
    ) -> ShotRecord:
        """The record of a shot, with its sheet written: for each of its characters the best images from other shots."""
        chosen: list[ReferenceImage] = []
        for character in annotation.characters:
            others = [image for image in images if image.character == character and image.position != annotation.position]
            chosen += others[: self.config.references_per_shot]
        picture, boxes = sheet(chosen)
        _save_png(picture, self.folder / f"{annotation.key}.png")
        return ShotRecord(
            **origin,
            **asdict(self.studied.whole.infos[number]),
            **annotation.model_dump(),
            story=story.key,
            shots_in_story=len(story.shots),
            storyline=story.storyline,
            story_characters=story.characters,
            story_scenes=story.scenes,
            references=[_reference(image, box, story.key) for image, box in zip(chosen, boxes)],
            characters_without_reference=[
                character for character in annotation.characters if character not in {image.character for image in chosen}
            ],
            scores=self.studied.scores[number],
            sound=self.studied.sound.scores(annotation.start_time, annotation.end_time),
            picture=self.studied.picture,
        )


def _with_cuts(shot: ShotRecord, inside: int) -> ShotRecord:
    return shot.model_copy(update={"scores": shot.scores.model_copy(update={"cuts_inside": float(inside)})})


def _reference(image: ReferenceImage, box: Sequence[int], story: str) -> Reference:
    left, top, right, bottom = (int(edge) for edge in box)
    return Reference(
        character=image.character,
        box=(left, top, right, bottom),
        shot=f"{story}-{image.position:03d}",
        frame=image.frame,
        source_box=image.box,
        score=image.score,
        agreement=image.agreement,
        verifier=image.verifier,
    )


def _save_png(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image, "RGBA").save(path, optimize=False, compress_level=6)


def _save_storyboard(view: StoryView, path: Path, tile: int) -> Storyboard:
    """One tile a shot, from the middle of its samples."""
    middles = [samples[len(samples) // 2] for samples in view.samples]
    height, width = middles[0].image.shape[:2]
    size = (tile, max(2, round(tile * height / width)))
    columns = min(5, len(middles))
    board = Image.new("RGB", (size[0] * columns, size[1] * -(-len(middles) // columns)))
    for place, sample in enumerate(middles):
        picture = Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS)
        board.paste(picture, (place % columns * size[0], place // columns * size[1]))
    board.save(path, quality=88)
    return Storyboard(columns=columns, tile_width=size[0], tile_height=size[1], frames=[sample.frame for sample in middles])


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
