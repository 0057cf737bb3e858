"""The script as a film's maker would hand it in: the sidecar file beside a film."""

from __future__ import annotations

from typing import Any

import numpy as np

from .storyboard import FPS, Film, Timeline

RIGHTS = {
    "licence": "CC0-1.0",
    "uploader": "AnimeShooter sample films",
    "source": "rendered by animeshooter",
    "attribution": None,
    "retrieved": None,
}


def script(film: Film, time: Timeline, seed: int) -> dict[str, Any]:
    """The content of `NAME.script.json`; shot times carry a human's imprecision of up to 0.25 s, fixed by the seed."""
    rng = np.random.default_rng([seed, 404])
    ids = [r.id for r in film.cast]
    edges = [s / FPS for s in time.starts] + [time.n_frames / FPS]
    noted = [edges[0]]
    for edge in edges[1:-1]:
        slip = float(rng.uniform(0.05, 0.25)) * (1 if rng.random() < 0.5 else -1)
        noted.append(round(edge + slip, 1))
    noted.append(round(edges[-1], 2))
    shots = [
        {
            "start": noted[i],
            "end": noted[i + 1],
            "scene": shot.scene,
            "characters": [c for c in ids if any(a.who == c for a in shot.acts)],
            "narrative_caption": shot.narrative,
            "descriptive_caption": shot.descriptive,
            "prologue_or_epilogue": shot.role,
        }
        for i, shot in enumerate(film.shots)
    ]
    audio = [
        {
            "start": round(edges[note.first], 2),
            "end": round(edges[note.last + 1], 2),
            "type": note.type,
            "sound_description": note.sound,
            "visual_context": note.context,
            "narrative_caption": note.narrative,
            "descriptive_caption": note.descriptive,
            "scene": note.scene,
            "characters": list(note.characters),
        }
        for note in film.audio
    ]
    return {
        "format": "animeshooter-script",
        "version": 1,
        "title": film.title,
        "rights": RIGHTS,
        "characters": [{"id": r.id, "appearance": r.appearance} for r in film.cast],
        "scenes": [{"id": s.id, "environment": s.environment} for s in film.scenes],
        "stories": [{"start": 0.0, "end": round(time.n_frames / FPS, 2), "storyline": film.storyline}],
        "shots": shots,
        "audio": audio,
    }
