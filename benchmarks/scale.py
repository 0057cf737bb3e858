"""Time and memory of planning, resuming, packing, stats and report for a made-up run of many films: records only, no pictures.

Films are empty files whose probe and hash stand in the plan, as an earlier run would have left them; all stages are done,
as after a run that was stopped before its end. What reads the staged stories is the one thing replaced: it makes records from
a pattern, with media of a few bytes. All else is ``animeshooter build``, ``stats`` and ``report`` as users run them, each in a
process of its own, whose peak of resident memory is read when it ends.

Run: python -m benchmarks.scale [--films 1000 5000 29000] [--json benchmarks/results/scale.json]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animeshooter_dataset import (
    AnnotatedBy,
    Character,
    RightsRecord,
    ShotAnnotation,
    ShotRecord,
    Storyboard,
    StoryRecord,
)
from curation import job
from curation.build import build
from curation.collect import Film, Plan, _stamp
from curation.config import BuildConfig
from curation.curate import Curated, _marks_of, film_record
from curation.pack import CuratedStory
from curation.report import write_report
from curation.stats import stats
from curation.video import VideoInfo

STORIES, SHOTS = 5, 15
"""Stories a film and shots a story, about as in the paper (5.07 and 14.82)."""
SECONDS, FPS = 4, 24
WORDS = "a red ball rolls over the hill and meets the snail that lives behind the old stone wall near the sea".split()


def main() -> None:
    """Measure runs of the sizes named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", nargs="+", type=int, default=[1000, 5000, 29000])
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    measured = []
    for films in options.films:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measured.append(run(films, Path(folder)))
        print(table(measured[-1:]), flush=True)
    print(table(measured))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


def run(films: int, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of each step for so many films."""
    row: dict[str, Any] = {"films": films, "shots": films * STORIES * SHOTS}
    for name, step in (("prepare", prepare), ("build", resume), ("stats", summarise), ("report", page)):
        values, peak = apart(step, films, folder)
        if name != "prepare":
            row |= {f"{name}_{what}": round(seconds, 2) for what, seconds in values.items()} | {f"{name}_peak_mib": peak}
    return row


def apart(step: Callable[[int, Path], dict[str, float]], films: int, folder: Path) -> tuple[dict[str, float], int]:
    """What a step returns, and the peak of resident memory of the process it had to itself, in MiB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_apart, args=(step, films, folder, theirs))
    process.start()
    values = ours.recv()
    process.join()
    return values


def _apart(step: Callable[[int, Path], dict[str, float]], films: int, folder: Path, told: Any) -> None:
    values = step(films, folder)
    told.send((values, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def prepare(films: int, folder: Path) -> dict[str, float]:
    """Leave what a run leaves that was stopped when every film was through its stages."""
    home, config = folder / "out.work", BuildConfig()
    home.mkdir()
    plan = Plan.load(home / "plan.jsonl")
    for number in range(films):
        path = folder / "films" / f"{number // 1000:03d}" / f"film{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        film = film_of(number, path)
        plan.put(film)
        record = film_record(film, state="kept", stories=STORIES, shots=STORIES * SHOTS)
        rights = RightsRecord(video=film.id, sha256=film.sha256, state="kept", licence="CC0-1.0")
        place = home / film.id / f"result-{_marks_of(film, config).result}.json"
        place.parent.mkdir()
        place.write_text(Curated(record=record, rights=rights, rows="rows", dropped=[]).model_dump_json())
    return {}


def film_of(number: int, path: Path) -> Film:
    """A film that is not there."""
    seconds = float(STORIES * SHOTS * SECONDS)
    known: dict[str, Any] = {"path": path, "width": 1280, "height": 720, "fps": float(FPS), "fps_fraction": (FPS, 1)}
    known |= {"n_frames": int(seconds * FPS), "duration": seconds, "has_audio": False, "codec": "h264", "rotation": 0}
    known |= {"audio_rate": None, "audio_channels": None, "variable_frame_rate": False, "interlaced": False}
    digest = f"{number:064x}"
    return Film(f"film{number:06d}-{digest[-8:]}", path, digest, VideoInfo(**known), None, None, _stamp(path))


def resume(films: int, folder: Path) -> dict[str, float]:
    """The run that goes on: seconds of planning, of looking at every film, and of packing."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **named)
            seconds[name] = time.perf_counter() - began
            return result

        return call

    job.read_stories = stories_of  # type: ignore[assignment]
    for where, name, inside in ((job, "plan", "_plan"), (job, "look", "_curate_all"), (job.Job, "pack", "_pack")):
        setattr(where, inside, timed(name, getattr(where, inside)))
    build([folder / "films"], folder / "out", BuildConfig(), workers=2)
    return seconds


def summarise(films: int, folder: Path) -> dict[str, float]:
    """``animeshooter stats``."""
    began = time.perf_counter()
    assert stats(folder / "out")["whole"]["shots"] == films * STORIES * SHOTS
    return {"seconds": time.perf_counter() - began}


def page(films: int, folder: Path) -> dict[str, float]:
    """``animeshooter report``."""
    began = time.perf_counter()
    write_report(folder / "out", folder / "report.html")
    return {"seconds": time.perf_counter() - began}


def stories_of(rows: Path) -> Iterator[CuratedStory]:
    """Made-up stories of the film whose folder of results is ``rows.parent``."""
    video = rows.parent.name
    for number in range(STORIES):
        story, shots = one_story(video, number)
        yield Simulated(story, shots, [], rows, {})


class Simulated(CuratedStory):
    """A story with media of a few bytes."""

    def media(self, key: str, member: str) -> bytes:
        """The same bytes for every sample."""
        return small_media()[member]


@cache
def small_media() -> dict[str, bytes]:
    """A clip that is none, an empty sheet and a storyboard of grey tiles."""
    found = {"mp4": b"\x00" * 64}
    for name, size in (("png", (1, 1)), ("jpg", (5 * 16, 3 * 9))):
        stored = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8)).save(stored, "PNG" if name == "png" else "JPEG")
        found[name] = stored.getvalue()
    return found


def one_story(video: str, number: int) -> tuple[StoryRecord, list[ShotRecord]]:
    """A story and its shots."""
    origin: dict[str, Any] = {"video": video, "split": "train", "licence": "CC0-1.0", "annotator": AnnotatedBy(kind="measure")}
    key = f"{video}-{number:03d}"
    first = number * SHOTS
    annotations = [annotation(key, place, first + place) for place in range(SHOTS)]
    people = [Character(id="ball", appearance="a red ball")]
    story = StoryRecord(
        **origin,
        key=key,
        position=number,
        fps=FPS,
        source_height=720,
        source_width=1280,
        start_frame=first * SECONDS * FPS,
        end_frame=(first + SHOTS) * SECONDS * FPS,
        start_time=first * SECONDS,
        end_time=(first + SHOTS) * SECONDS,
        storyline=" ".join(WORDS[:18]),
        characters=people,
        scenes=[],
        shots=annotations,
        references=[],
        storyboard=Storyboard(columns=5, tile_height=9, tile_width=16, frames=[shot.start_frame for shot in annotations]),
    )
    shots = [
        ShotRecord(
            **origin,
            **shot.model_dump(),
            frames=SECONDS * FPS,
            fps=FPS,
            height=480,
            width=854,
            has_audio=False,
            story=key,
            shots_in_story=SHOTS,
            storyline=story.storyline,
            story_characters=people,
            story_scenes=[],
            references=[],
            characters_without_reference=["ball"],
        )
        for shot in annotations
    ]
    return story, shots


def annotation(story: str, place: int, shot: int) -> ShotAnnotation:
    """The words and times of a shot."""
    start = shot * SECONDS
    return ShotAnnotation(
        key=f"{story}-{place:03d}",
        position=place,
        start_frame=start * FPS,
        end_frame=(start + SECONDS) * FPS,
        start_time=start,
        end_time=start + SECONDS,
        clean_start_frame=start * FPS,
        clean_end_frame=(start + SECONDS) * FPS,
        transition_in="cut",
        characters=["ball"],
        narrative_caption=" ".join(WORDS[shot % 7 :][:10]),
        descriptive_caption=" ".join(WORDS),
    )


def table(measured: list[dict[str, Any]]) -> str:
    """The figures as text, one column a run."""
    names = list(measured[0])
    lines = [f"{name:<20}" + "".join(f"{row[name]:>12}" for row in measured) for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
