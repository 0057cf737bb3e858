"""The demo's page: one HTML file beside its pictures and clips, made from what the demo left on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from animeshooter_dataset import StoryRecord, read_records
from curation.report import tile
from recipes.demo import STAGES, DemoRun

TEMPLATE = Path(__file__).with_name("demo_page.html")
TRAINS = {
    "align": ("Condition alignment", "Trains adapter and queries; loss: distance to the text encoder's features."),
    "single_shot": ("Single shot", "Trains adapter, queries and a LoRA on the MLLM; diffusion loss."),
    "multi_shot": ("Multi-shot", "The same on three consecutive shots, all in the loss."),
    "lora": ("LoRA enhancement", "Trains a LoRA on the video transformer, on the shots of one film."),
}


def write_page(demo: DemoRun) -> Path:
    """Write ``index.html`` and its ``assets`` into the demo's folder; captions and names are escaped."""
    assets = demo.out / "assets"
    assets.mkdir(exist_ok=True)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    films = _films(demo.data, assets)
    stages = [_stage(demo.out, name) for name in STAGES]
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        films=films,
        minutes=f"{demo.minutes:.1f} minutes",
        numbers=_numbers(demo, films),
        lint_line=demo.lint_line,
        dropped=demo.dropped,
        stages=stages,
        steps_in_all=sum(stage["steps"] for stage in stages),
        generated=_generated(demo),
        data=demo.data,
        commands=_commands(demo),
        places=_places(demo),
    )
    page = demo.out / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def _films(data: Path, assets: Path) -> list[dict[str, Any]]:
    """What the page shows of each film, with its media written to ``assets``."""
    shots, audio = _clips(data, assets, "shots"), _clips(data, assets, "audio")
    films: dict[str, dict[str, Any]] = {}
    for story, pictures in read_records(data, "stories"):
        film = films.setdefault(story.video, {"title": story.title or story.video, "stories": []})
        film["stories"].append(_story(story, pictures, shots, audio, assets))
    return list(films.values())


def _story(story: StoryRecord, pictures: dict[str, bytes], shots: dict, audio: dict, assets: Path) -> dict[str, Any]:
    for extension in ("jpg", "png"):
        (assets / f"{story.key}.{extension}").write_bytes(pictures[extension])
    board = Image.open(io.BytesIO(pictures["jpg"]))
    for place, shot in enumerate(story.shots):
        poster = tile(board, story, place)
        poster.save(assets / f"{shot.key}.jpg", quality=85)
        shots[story.key][shot.position]["poster"] = f"assets/{shot.key}.jpg"
    for clip in audio.get(story.key, []):
        clip["poster"] = f"assets/{clip['shots'][0]}.jpg"
    return {
        **story.model_dump(include={"storyline", "characters", "scenes", "licence"}),
        "annotator": story.annotator.kind,
        "shown": {image.character for image in story.references},
        "seconds": round(story.end_time - story.start_time),
        "board": f"assets/{story.key}.jpg",
        "sheet": f"assets/{story.key}.png",
        "shots": shots[story.key],
        "audio": audio.get(story.key, []),
    }


def _clips(data: Path, assets: Path, config: str) -> dict[str, list[dict[str, Any]]]:
    """Clips of a config by story, each written to ``assets``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record, members in read_records(data, config):
        (assets / f"{record.key}.mp4").write_bytes(members["mp4"])
        seconds = f"{record.end_time - record.start_time:.1f}"
        row = record.model_dump() | {"clip": f"assets/{record.key}.mp4", "seconds": seconds}
        found.setdefault(record.story, []).append(row)
    return found


def _stage(out: Path, name: str) -> dict[str, Any]:
    lines = (out / "checkpoints" / name / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    title, trains = TRAINS[name]
    line = f"{len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return {"title": title, "trains": trains, "line": line, "steps": len(losses), "svg": loss_curve(losses)}


def loss_curve(losses: list[float], width: int = 300, height: int = 120) -> Markup:
    """A loss curve as SVG: one point a step, the axis from the least to the greatest loss."""
    low, high = min(losses), max(losses)
    spread, left, top, bottom = (high - low) or 1.0, 44, 8, height - 16
    points = [
        (left + (width - left - 6) * step / max(1, len(losses) - 1), bottom - (bottom - top) * (loss - low) / spread)
        for step, loss in enumerate(losses)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" font-size="10" fill="#6b6878">{value:.3g}</text>'
        f'<line x1="{left}" x2="{width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e4e0ea"/>'
        for value, y in ((high, top), (low, bottom))
    )
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss by step">{marks}'
        f'<polyline points="{line}" fill="none" stroke="#d6452b" stroke-width="2" stroke-linejoin="round"/>'
        f'<text x="{width}" y="{height - 2}" text-anchor="end" font-size="10" fill="#6b6878">step {len(losses)}</text></svg>'
    )


def _generated(demo: DemoRun) -> dict[str, Any]:
    shots = [{"clip": f"story/shot_{number}.mp4", "caption": text} for number, text in enumerate(demo.captions, 1)]
    return {"film": "story/story.mp4", "reference": "reference.png", "character": demo.character, "shots": shots}


def _numbers(demo: DemoRun, films: list[dict[str, Any]]) -> list[tuple[str, str]]:
    stories = [story for film in films for story in film["stories"]]
    shots = [shot for story in stories for shot in story["shots"]]
    referenced = sum(bool(shot["references"]) for shot in shots)
    footage = sum(story["seconds"] for story in stories)
    numbers = [
        (str(len(films)), "films"),
        (f"{footage // 60}:{footage % 60:02d}", "minutes of footage"),
        (str(len(stories)), "stories"),
        (str(len(shots)), "shots"),
        (str(referenced), "shots with a reference from another shot"),
    ]
    return numbers + ([(str(demo.rows["audio"]), "audio clips")] if "audio" in demo.rows else [])


def _commands(demo: DemoRun) -> list[str]:
    lora = demo.out / "checkpoints" / "lora"
    return [
        f"animeshooter build my_films/ --out {demo.data}",
        f"animeshooter lint {demo.data}",
        f"accelerate launch recipes/align.py --data {demo.data} --out checkpoints/align",
        f"animeshooter generate {lora} --reference {demo.out}/reference.png --script {demo.out}/script.json --out stories/mine",
    ]


def _places(demo: DemoRun) -> list[tuple[str, Path, str]]:
    places = [
        ("sample films and their truth", "films", demo.out / "films"),
        ("dataset", "dataset", demo.data),
        ("checkpoints and logs", "training", demo.out / "checkpoints"),
        ("generated story", "story", demo.out / "story"),
    ]
    return [(what, path, f"{demo.seconds[link]:.0f} s") for what, link, path in places if path.exists()]
