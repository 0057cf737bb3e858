"""Stage ``rows``: the records and media of every story of a film, each file under the name it will have in its tar."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animeshooter_dataset import (
    AudioRecord,
    DataError,
    Reference,
    ShotAnnotation,
    ShotRecord,
    Storyboard,
    StoryRecord,
)
from curation.annotators import annotator_of
from curation.audio import cut_audio
from curation.clips import FilmShots, sample_clip
from curation.collect import Dropped
from curation.config import BuildConfig
from curation.pack import CuratedStory
from curation.references import ReferenceImage, find_references, sheet
from curation.script import NoAnswer, Sample, StoryScript, StoryView
from curation.segment import ClassicalSegmenter
from curation.sidecar import SidecarScript
from curation.stories import split_stories


def write_stories(whole: FilmShots, script: SidecarScript | None, config: BuildConfig, folder: Path) -> None:
    """Write records and media of every story of a film to ``folder``; what is lost is recorded with its reason."""
    results, dropped = [], []
    for number, numbers in enumerate(split_stories(whole.spans, whole.cuts.frames.pts, config.stories)):
        key = f"{whole.film.id}-{number:03d}"
        try:
            curated, lost = _write_story(whole, numbers, key, script, config, folder)
        except NoAnswer:
            raise  # nothing is wrong with the story: not to be staged as dropped, but asked again by the next run
        except DataError as error:
            dropped.append(Dropped(whole.film.path, "script", str(error)))
            continue
        dropped += lost
        results.append(
            {
                "story": curated.story.model_dump(mode="json"),
                "shots": [shot.model_dump(mode="json") for shot in curated.shots],
                "audio": [clip.model_dump(mode="json") for clip in curated.audio],
                "refused": dict(curated.refused),
            }
        )
    (folder / "stories.json").write_text(
        json.dumps({"stories": results, "dropped": [[str(loss.path), loss.stage, loss.reason] for loss in dropped]})
    )


def read_stories(folder: Path) -> tuple[list[CuratedStory], list[Dropped]]:
    """Read back what stage ``rows`` wrote."""
    found = json.loads((folder / "stories.json").read_text())
    stories = [
        CuratedStory(
            StoryRecord.model_validate(entry["story"]),
            [ShotRecord.model_validate(shot) for shot in entry["shots"]],
            [AudioRecord.model_validate(clip) for clip in entry["audio"]],
            folder,
            entry["refused"],
        )
        for entry in found["stories"]
    ]
    return stories, [Dropped(Path(path), stage, reason) for path, stage, reason in found["dropped"]]


def _write_story(
    whole: FilmShots, numbers: Sequence[int], key: str, script: SidecarScript | None, config: BuildConfig, folder: Path
) -> tuple[CuratedStory, list[Dropped]]:
    view = _view(whole, numbers, script, config)
    told = annotator_of(whole.film, script, config).annotate(view)
    found = find_references(told, view, config.references, ClassicalSegmenter())
    references = found.images
    annotations = [_annotation(view, told, place, f"{key}-{place:03d}") for place in range(len(numbers))]
    origin: dict[str, Any] = {
        "video": whole.film.id,
        "split": "train",  # settled when all films are known, see curation.pack
        "licence": script.rights.licence if script else None,
        "attribution": script.rights.attribution if script else None,
        "annotator": told.annotator,
    }
    story_sheet, boxes = sheet(references)
    _save_png(story_sheet, folder / f"{key}.png")
    board = _save_storyboard(view, folder / f"{key}.jpg", config.storyboard_tile)
    story = StoryRecord(
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
        shots=annotations,
        references=[_reference(image, box, key) for image, box in zip(references, boxes)],
        storyboard=board,
    )
    shot_records = []
    for place, number in enumerate(numbers):
        _link(whole.clips[number], folder / f"{annotations[place].key}.mp4")
        info = asdict(whole.infos[number])
        shot_records.append(_shot_record(annotations[place], story, references, origin | info, config, folder))
    audio, dropped = cut_audio(whole, told.sounds, story, origin, config, folder)
    refused = Counter(re.sub(r"\d[\d.]*", "#", rejected.reason) for rejected in found.rejected)
    return CuratedStory(story, shot_records, audio, folder, refused), dropped


def _view(whole: FilmShots, numbers: Sequence[int], script: SidecarScript | None, config: BuildConfig) -> StoryView:
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
        title=script.title if script else None,
        spans=spans,
        times=[round(whole.times[number], 6) for number in (*numbers, numbers[-1] + 1)],
        samples=samples,
        colours=[whole.cuts.frames.mean_rgb[part] for part in frames],
        motion=[whole.cuts.frames.difference[part] for part in frames],
    )


def _annotation(view: StoryView, told: StoryScript, place: int, key: str) -> ShotAnnotation:
    span, words = view.spans[place], told.shots[place]
    annotated, best = words.annotated or (None, None), words.representative or (None, None)
    return ShotAnnotation(
        key=key,
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
        prologue_or_epilogue=words.prologue_or_epilogue,
        scene=words.scene,
        characters=list(words.characters),
        narrative_caption=words.narrative_caption,
        descriptive_caption=words.descriptive_caption,
    )


def _reference(image: ReferenceImage, box: Sequence[int], story: str) -> Reference:
    left, top, right, bottom = (int(edge) for edge in box)
    return Reference(
        character=image.character,
        box=(left, top, right, bottom),
        shot=f"{story}-{image.position:03d}",
        frame=image.frame,
        source_box=image.box,
    )


def _shot_record(
    annotation: ShotAnnotation,
    story: StoryRecord,
    references: Sequence[ReferenceImage],
    rest: dict[str, Any],
    config: BuildConfig,
    folder: Path,
) -> ShotRecord:
    """The record of a shot, with its sheet written: for each of its characters the best images from other shots."""
    chosen: list[ReferenceImage] = []
    for character in annotation.characters:
        others = [image for image in references if image.character == character and image.position != annotation.position]
        chosen += others[: config.references_per_shot]
    picture, boxes = sheet(chosen)
    _save_png(picture, folder / f"{annotation.key}.png")
    return ShotRecord(
        **rest,
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
