"""A film with two characters, a script and sound, and the dataset built from it, for tests of what comes after."""

import json
from pathlib import Path

import films
import numpy as np

from curation.build import build
from curation.config import BuildConfig

WIDTH, HEIGHT, FPS = 192, 108, 12
SHOT_FRAMES = 30
PLACES = [(70, 110, 60), (60, 70, 130), (190, 170, 110), (90, 50, 90), (20, 40, 40), (150, 160, 180)]
WHO = {"Red": (220, 40, 40), "Blue": (40, 80, 230)}
SHOTS = [("Red",), ("Blue",), ("Red",), ("Red", "Blue"), ("Blue",), ("Red",)]


def picture(index, width, height):
    """Flat places with soft texture, hard cuts between them, and coloured figures that walk."""
    shot, step = index // SHOT_FRAMES, index % SHOT_FRAMES
    y, x = np.mgrid[0:height, 0:width]
    shade = 25 * np.sin((x * np.cos(shot) + y * np.sin(shot)) / (5.0 + 3 * shot) + shot) + 15 * np.cos(y / (4.0 + 2 * shot))
    image = np.clip(np.array(PLACES[shot])[None, None] + shade[..., None], 0, 255)
    for row, name in enumerate(SHOTS[shot % len(SHOTS)]):
        cx, cy = 30 + 95 * row + 1.4 * step, height * 0.55
        body = ((x - cx) / 22) ** 2 + ((y - cy) / 34) ** 2 < 1
        image[body] = WHO[name]
    return image.astype(np.uint8)


def script():
    shots, length = len(SHOTS), SHOT_FRAMES / FPS
    return {
        "format": "animeshooter-script",
        "version": 1,
        "title": "Two walkers",
        "rights": {"licence": "CC0-1.0", "uploader": "tests"},
        "characters": [{"id": "Red", "appearance": "a red oval"}, {"id": "Blue", "appearance": "a blue oval"}],
        "scenes": [{"id": f"place {number}", "environment": "a flat place"} for number in range(len(PLACES))],
        "stories": [{"start": 0, "end": shots * length, "storyline": "Two ovals walk."}],
        "shots": [
            {
                "start": number * length + 0.05,
                "end": (number + 1) * length + 0.05,
                "scene": f"place {number}",
                "characters": list(SHOTS[number % len(SHOTS)]),
                "narrative_caption": f"Walk number {number}.",
                "descriptive_caption": f"Ovals <b>walk</b> for the {number}th time.",
            }
            for number in range(shots)
        ],
        "audio": [
            {
                "start": 1.0,
                "end": 5.0,
                "type": "sound effect",
                "sound_description": "a steady tone",
                "visual_context": "walking",
                "narrative_caption": "They walk on.",
                "descriptive_caption": "A red and a blue oval walk.",
                "characters": ["Red"],
            },
            {
                "start": 6.0,
                "end": 7.0,
                "type": "sound effect",
                "sound_description": "too short",
                "visual_context": "",
                "narrative_caption": "",
                "descriptive_caption": "",
            },
        ],
    }


def write_walkers(folder: Path, name: str = "walkers") -> Path:
    frames = SHOT_FRAMES * len(SHOTS)
    film = films.write_film(
        folder / f"{name}.mp4", size=(WIDTH, HEIGHT), fps=FPS, frames=frames, picture=picture, sound=films.tone(frames / FPS)
    )
    film.with_name(f"{name}.script.json").write_text(json.dumps(script()))
    return film


def build_walkers(folder: Path) -> Path:
    film = write_walkers(folder)
    build([film], folder / "animeshooter", BuildConfig())
    return folder / "animeshooter"
