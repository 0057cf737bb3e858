"""What is true of a rendered film, frame by frame: cuts, sounds, and every character's visible pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .storyboard import FPS, HEIGHT, WIDTH, Film, Timeline


class Recorder:
    """Collects masks while a film is rendered, as run lengths inside each mask's own box."""

    def __init__(self, characters: list[str]) -> None:
        self.characters = characters
        self.boxes: list[np.ndarray] = []
        self.runs: list[np.ndarray] = []
        self.counts: list[int] = []

    def add(self, masks: dict[str, np.ndarray]) -> None:
        """Record the next frame's masks (character -> bool [H, W], absent ones left out)."""
        boxes = np.full((len(self.characters), 4), -1, np.int16)
        for i, who in enumerate(self.characters):
            mask = masks.get(who)
            if mask is None or not mask.any():
                self.counts.append(0)
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            boxes[i] = x0, y0, x1, y1
            flat = mask[y0:y1, x0:x1].ravel()
            edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
            runs = np.diff(edges, prepend=0)
            self.runs.append(runs.astype(np.uint32))
            self.counts.append(len(runs))
        self.boxes.append(boxes)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the .npz file."""
        n, c = len(self.boxes), len(self.characters)
        runs = np.concatenate(self.runs) if self.runs else np.zeros(0, np.uint32)
        return {
            "boxes": np.stack(self.boxes) if n else np.zeros((0, c, 4), np.int16),
            "runs": runs,
            "counts": np.array(self.counts, np.uint32).reshape(n, c),
            "size": np.array([HEIGHT, WIDTH], np.int32),
            "characters": np.array(self.characters),
        }


@dataclass(frozen=True)
class Truth:
    """The truth beside a sample film.

    A character's pixels include what it holds; a photograph of it is not it. During a dissolve the masks are those of the
    shot that makes up more than half of the picture; while a fade is darker than half there are none.

    Attributes:
        facts: The content of `NAME.truth.json`: frame numbers, shots and sounds.
        characters: Character ids, in the order of `boxes`.
        boxes: int16 [n_frames, n_characters, 4], x0 y0 x1 y1 (ends exclusive) of the visible pixels, -1 where absent.
    """

    facts: dict[str, Any]
    characters: tuple[str, ...]
    boxes: np.ndarray
    _runs: np.ndarray
    _starts: np.ndarray
    _size: tuple[int, int]

    def mask(self, frame: int, character: str) -> np.ndarray:
        """Visible pixels of a character in a frame, bool [height, width]; all False where it is absent.

        A run-length list alternates background and character, background first, row by row inside the character's box.
        """
        i = self.characters.index(character)
        out = np.zeros(self._size, bool)
        x0, y0, x1, y1 = (int(v) for v in self.boxes[frame, i])
        if x0 < 0:
            return out
        k = frame * len(self.characters) + i
        runs = self._runs[self._starts[k] : self._starts[k + 1]]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        out[y0:y1, x0:x1] = flat.reshape(y1 - y0, x1 - x0)
        return out


def load_truth(path: str | Path) -> Truth:
    """Read the truth of a film.

    Args:
        path: The film (`NAME.mp4`) or one of its truth files; the others lie beside it.

    Raises:
        FileNotFoundError: The truth files are not there.
    """
    path = Path(path)
    stem = path.name.split(".")[0]
    facts = json.loads((path.parent / f"{stem}.truth.json").read_text(encoding="utf-8"))
    with np.load(path.parent / f"{stem}.truth.npz", allow_pickle=False) as data:
        counts = data["counts"].ravel().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        height, width = (int(v) for v in data["size"])
        return Truth(facts, tuple(str(c) for c in data["characters"]), data["boxes"], data["runs"], starts, (height, width))


def facts(film: Film, time: Timeline, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `NAME.truth.json` for a whole film."""
    ids = [r.id for r in film.cast]
    shots = []
    for i, shot in enumerate(film.shots):
        start = time.starts[i]
        shots.append(
            {
                "start_frame": start,
                "end_frame": start + shot.frames,
                "scene": shot.scene,
                "characters": [c for c in ids if any(a.who == c for a in shot.acts)],
            }
        )
    return {
        "film": film.name,
        "fps": FPS,
        "n_frames": time.n_frames,
        "cuts": list(time.cuts),
        "gradual": [list(span) for span in time.gradual],
        "flashes": [list(span) for span in time.flashes],
        "shots": shots,
        "sounds": events,
        "characters": ids,
    }
