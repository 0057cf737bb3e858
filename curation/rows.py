"""Stage ``rows``: the records and media of every story of a film, each file under the name it will have in its tar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from animeshooter_dataset import AudioRecord, DataError
from curation.audio import ChosenClip, write_clips
from curation.clips import FilmShots
from curation.collect import Dropped
from curation.config import BuildConfig
from curation.cuts import flat_shots
from curation.judge import Judge
from curation.pack import CuratedStory
from curation.script import NoAnswer
from curation.sidecar import SidecarScript
from curation.stories import split_stories
from curation.story import StoredStory, StoryWriter, StudiedFilm
from curation.titles import find_titles

if TYPE_CHECKING:
    from curation.align import AlignedStory, Alignment


def write_stories(
    studied: StudiedFilm,
    script: SidecarScript | None,
    config: BuildConfig,
    judge: Judge | None,
    folder: Path,
    told: Alignment | None = None,
) -> None:
    """Write records and media of every story of a film to ``folder``; what is lost is recorded with its reason.

    ``told`` is what the official release tells of the film: its stories and its words, instead of ones made here.

    Raises:
        NoAnswer: a model could not be asked: nothing is wrong with the story, the next run asks again.
    """
    whole = studied.whole
    writer = StoryWriter(studied, script, config, judge, folder, titles_of(studied))
    dropped = [Dropped(whole.film.path, "release", f"{whole.film.path}: {line}") for line in told.dropped] if told else []
    written: list[StoredStory] = []
    chosen: list[ChosenClip] = []
    for number, numbers, aligned in _stories(whole, config, told):
        try:
            stored, clips, lost = writer.write(numbers, f"{whole.film.id}-{number:03d}", aligned)
        except NoAnswer:
            raise
        except DataError as error:
            dropped.append(Dropped(whole.film.path, "script", str(error)))
            continue
        dropped += lost
        written.append(stored)
        chosen += clips
    sounds: dict[str, list[AudioRecord]] = {}
    for record in write_clips(whole, studied.sound, chosen, config.clips, folder):
        sounds.setdefault(record.story, []).append(record)
    with (folder / "stories.jsonl").open("w", encoding="utf-8") as lines:
        for stored in written:
            whole_story = stored.model_copy(update={"audio": sounds.get(stored.story.key, [])})
            lines.write(whole_story.model_dump_json() + "\n")
    summary = {
        "stories": len(written),
        "shots": sum(len(stored.shots) for stored in written),
        "dropped": [[loss.stage, loss.reason] for loss in dropped],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def _stories(
    whole: FilmShots, config: BuildConfig, told: Alignment | None
) -> Iterator[tuple[int, Sequence[int], AlignedStory | None]]:
    """The stories of a film: their numbers, their shots, and what the official release tells of them."""
    if told is not None:
        yield from ((story.segment.number - 1, story.numbers, story) for story in told.stories)
        return
    flat = flat_shots(whole.cuts, whole.spans)
    for number, numbers in enumerate(split_stories(whole.spans, whole.cuts.frames.pts, config.stories, flat=flat)):
        yield number, numbers, None


def titles_of(studied: StudiedFilm) -> Sequence[str | None]:
    """For every shot of a film whether it is prologue or epilogue, as measured."""
    return find_titles(studied.whole.spans, studied.whole.times, studied.scores, studied.whole.cuts.frames)


def read_stories(folder: Path) -> Iterator[CuratedStory]:
    """Read back what stage ``rows`` wrote, one story at a time."""
    with (folder / "stories.jsonl").open(encoding="utf-8") as lines:
        for text in lines:
            stored = StoredStory.model_validate_json(text)
            yield CuratedStory(stored.story, stored.shots, stored.audio, folder, stored.refused)
