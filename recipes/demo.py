"""``animeshooter demo``: the whole chain on sample films, from pictures to a generated story, and a page that shows it.

Every link is run as a user would run it: the builder, lint, ``datasets``, ``accelerate launch`` for the four stages, and the
generator on the last checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from animeshooter_dataset import MEMBERS, DataError, StoryRecord, features, read_records, read_rights, splits

STAGES = {"align": 24, "single_shot": 16, "multi_shot": 10, "lora": 10}
"""Stages of the demo in order, and their steps: enough to see that each runs, far too few to learn."""
MARK = ".animeshooter-demo"
"""File that says a folder is a demo's, and which dataset it built."""
SHOTS_TOLD = 4
"""Shots of the generated story: one more than a training sequence holds, as the paper does."""


@dataclass
class DemoRun:
    """What the demo made, for the page and the closing summary."""

    out: Path
    data: Path
    minutes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    lint_line: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    character: str = ""
    captions: list[str] = field(default_factory=list)


def run_demo(out: Path, data: Path, *, films: Sequence[Path] | None = None, small: bool = False, workers: int = 2) -> Path:
    """Run the demo; returns the page.

    Args:
        out: folder for films, checkpoints, the story and ``index.html``; an earlier demo there is replaced.
        data: the dataset directory to write.
        films: the user's own films; None for the sample films.
        small: one film and two steps a stage.
        workers: processes for rendering and building.

    Raises:
        DataError: a link of the chain broke; the line says which and why.
    """
    from recipes.demo_page import write_page

    began = time.monotonic()
    demo = DemoRun(out, data)
    _fresh(out, data)
    with _link(demo, "films", "render the sample films" if films is None else "take the films given"):
        paths = list(films) if films is not None else _render(out / "films", small, workers)
    with _link(demo, "dataset", "build the dataset"):
        _build(demo, paths, workers)
    with _link(demo, "lint", "lint it, to the last frame"):
        _lint(demo)
    with _link(demo, "load", "load each config through datasets"):
        _load(demo)
    with _link(demo, "training", "train the four stages with accelerate launch"):
        _train(demo, small)
    with _link(demo, "story", "generate a story of four shots"):
        _tell(demo)
    demo.minutes = (time.monotonic() - began) / 60
    page = write_page(demo)
    _summary(demo, page)
    return page


@contextmanager
def _link(demo: DemoRun, name: str, label: str) -> Iterator[None]:
    order = ("films", "dataset", "lint", "load", "training", "story")
    print(f"[{order.index(name) + 1}/{len(order)}] {label}", flush=True)
    began = time.monotonic()
    yield
    demo.seconds[name] = time.monotonic() - began
    print(f"      done in {demo.seconds[name]:.0f} s", flush=True)


def _fresh(out: Path, data: Path) -> None:
    """An empty folder for the demo; an earlier demo and its dataset may go, nothing else may."""
    mark = out / MARK
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an earlier demo; name another --out or move it away")
    if data.exists() and not (mark.exists() and mark.read_text() == _digest(data)) and not _of_sample_films(data):
        raise DataError(f"{data}: holds something that no demo made; name another --data or move it away")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.touch()


def _digest(data: Path) -> str:
    """Hash of a dataset's manifest, which holds the hashes of all its files."""
    manifest = data / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""


def _of_sample_films(data: Path) -> bool:
    rights = read_rights(data) if (data / "rights.jsonl").is_file() else []
    return bool(rights) and all(line.uploader == "AnimeShooter sample films" for line in rights)


def _bar(label: str) -> tuple[tqdm, Callable[..., None]]:
    bar = tqdm(desc=f"      {label}", file=sys.stderr, disable=None, leave=False)

    def to(done: int, total: int, note: str = "") -> None:
        bar.total, bar.n = total, done
        bar.set_postfix_str(note)

    return bar, to


def _render(folder: Path, small: bool, workers: int) -> list[Path]:
    from curation.sample_films import FILMS, render_films

    bar, to = _bar("frames")
    with bar:
        return render_films(folder, names=FILMS[:1] if small else FILMS, workers=workers, progress=to)


def _build(demo: DemoRun, films: Sequence[Path], workers: int) -> None:
    from curation.build import build

    bar, to = _bar("stages")
    with bar:
        report = build(films, demo.data, workers=workers, progress=to)
    (demo.out / MARK).write_text(_digest(demo.data))
    demo.dropped = list(report.first_dropped)
    for reason in demo.dropped:
        print(f"      dropped at {reason}")
    print(f"      {report.films} films, {report.stories} stories, {report.shots} shots, {report.audio} audio clips")


def _lint(demo: DemoRun) -> None:
    from curation.lint import lint

    report = lint(demo.data)
    if report.problems:
        raise DataError(f"{demo.data}: lint found {len(report.problems)} problems, the first: {report.problems[0]}")
    samples = ", ".join(f"{number} {config}" for config, number in report.samples.items())
    demo.lint_line = f"{samples}; {report.frames:,} frames decoded"
    print(f"      clean: {demo.lint_line}")


def _load(demo: DemoRun) -> None:
    """Load every config as anyone would, map-style and streaming, with a cache of its own."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        for config in (config for config in MEMBERS if splits(demo.data, config)):
            split = splits(demo.data, config)[0]
            asked: dict[str, Any] = {"split": split, "features": features(config, decode=False)}
            table = datasets.load_dataset(str(demo.data), config, cache_dir=cache, **asked)
            stream = datasets.load_dataset(str(demo.data), config, streaming=True, **asked)
            first = next(iter(stream))
            if first["__key__"] != table["__key__"][0]:
                raise DataError(f"{demo.data}: config {config} streams {first['__key__']} first, its table holds another row")
            demo.rows[config] = len(table)
            print(f"      {config}: {len(table)} rows in '{split}', the first is {first['__key__']}")


def _train(demo: DemoRun, small: bool) -> None:
    """Run each stage as a process of its own, from the checkpoint of the stage before it."""
    recipes, parent = Path(__file__).parent, None
    # One thread each: at this size more threads gain nothing, and wait on one another where others are at work.
    quiet = {"OMP_NUM_THREADS": "1", **os.environ}
    story = story_to_tell(demo.data)
    for stage, steps in STAGES.items():
        target = demo.out / "checkpoints" / stage
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipes / "launch" / "cpu_1.yaml")]
        command += [str(recipes / f"{stage}.py"), "--data", str(demo.data), "--out", str(target)]
        command += ["--set", f"train.steps={2 if small else steps}"]
        command += ["--from", str(parent)] if parent else ["--preset", "tiny"]
        command += ["--video", story.video] if stage == "lora" else []
        log = demo.out / f"{stage}.log"
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=quiet, check=False).returncode
        if code:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise DataError(f"{log}: stage {stage} ended with exit code {code}: {''.join(last)}")
        record = json.loads((target / "training.json").read_text())
        print(
            f"      {stage}: {record['steps']} steps, loss {record['loss_first']:.3f} to {record['loss_last']:.3f}", flush=True
        )
        parent = target


def story_to_tell(data: Path) -> StoryRecord:
    """The first story with a reference image, or the first of all."""
    stories = [story for story, _ in read_records(data, "stories", ("json",))]
    return next((story for story in stories if story.references), stories[0])


def _tell(demo: DemoRun) -> None:
    """Generate a story: captions of consecutive shots of the dataset, and the reference of who is in most of them."""
    from recipes.generate import generate

    story = story_to_tell(demo.data)
    shots = [shot for shot in story.shots if shot.characters and not shot.prologue_or_epilogue] or story.shots
    names = [name for shot in shots for name in shot.characters if name in {image.character for image in story.references}]
    demo.character = max(sorted(set(names)), key=names.count, default="none (a blank picture)")
    told = [shot for shot in shots if demo.character in shot.characters or not names][:SHOTS_TOLD]
    demo.captions = [shot.descriptive_caption for shot in (told * SHOTS_TOLD)[:SHOTS_TOLD]]
    reference, script = demo.out / "reference.png", demo.out / "script.json"
    _save_reference(demo.data, story, demo.character, reference)
    script.write_text(json.dumps({"captions": demo.captions}, indent=1, ensure_ascii=False), encoding="utf-8")
    generate(demo.out / "checkpoints" / "lora", reference, script, demo.out / "story")


def _save_reference(data: Path, story: StoryRecord, character: str, path: Path) -> None:
    image = next((image for image in story.references if image.character == character), None)
    if image is None:
        Image.new("RGB", (64, 64), "white").save(path)
        return
    for told, members in read_records(data, "stories", ("json", "png")):
        if told.key == story.key:
            Image.open(io.BytesIO(members["png"])).crop(image.box).save(path)


def _summary(demo: DemoRun, page: Path) -> None:
    lines = {
        "page": page,
        "dataset": demo.data,
        "films": demo.out / "films",
        "checkpoints": demo.out / "checkpoints",
        "story": demo.out / "story",
    }
    print(f"\nall done in {demo.minutes:.1f} minutes; open the page in a browser")
    for name, path in lines.items():
        if path.exists():
            print(f"  {name:<12} {path}")
    print(f'\nload it:  load_dataset("{demo.data}", "shots")')
