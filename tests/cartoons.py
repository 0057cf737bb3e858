"""Small drawn stories for tests of pixels: coloured figures before textured, panning backgrounds, with true masks."""

from pathlib import Path

import cv2
import numpy as np

from animeshooter_dataset import AnnotatedBy, Character
from curation.cuts import Span
from curation.script import Sample, ShotScript, StoryScript, StoryView

HEIGHT, WIDTH = 180, 320
RED = ((200, 45, 35), (240, 225, 205))
BLUE = ((45, 75, 205), (250, 215, 60))
PLACES = {"meadow": ((120, 170, 90), (150, 200, 225)), "dusk": ((90, 85, 110), (150, 130, 150))}


def background(place: str, pan: int) -> np.ndarray:
    """A hilly, speckled place, seen from ``pan`` pixels to the right; RGB uint8."""
    low, high = PLACES[place]
    rng = np.random.default_rng(sum(map(ord, place)))
    wide = np.empty((HEIGHT, WIDTH * 2, 3), np.uint8)
    line = (95 + 12 * np.sin(np.arange(WIDTH * 2) / 40)).astype(int)
    rows = np.arange(HEIGHT)[:, None] > line[None]
    wide[:] = np.where(rows[..., None], low, high)
    for x, y, r in zip(rng.integers(0, WIDTH * 2, 400), rng.integers(0, HEIGHT, 400), rng.integers(2, 7, 400)):
        shade = np.clip(wide[y, x].astype(int) + rng.integers(-35, 35), 0, 255)
        cv2.circle(wide, (int(x), int(y)), int(r), tuple(int(v) for v in shade), -1)
    return wide[:, pan : pan + WIDTH].copy()


def figure(image: np.ndarray, colours: tuple, x: float, y: float, size: float) -> np.ndarray:
    """Draw a round figure with a pale belly into ``image``; returns the mask of its pixels."""
    body, belly = colours
    mask = np.zeros(image.shape[:2], np.uint8)
    at = (round(x), round(y))
    for target, value in ((image, body), (mask, 1)):
        cv2.ellipse(target, at, (round(size * 0.8), round(size)), 0, 0, 360, value, -1)
        cv2.circle(target, (at[0], round(y - size * 1.1)), round(size * 0.6), value, -1)
    cv2.ellipse(image, (at[0], round(y + size * 0.25)), (round(size * 0.4), round(size * 0.5)), 0, 0, 360, belly, -1)
    cv2.circle(image, (round(x - size * 0.2), round(y - size * 1.15)), max(round(size * 0.1), 1), (15, 15, 20), -1)
    cv2.circle(image, (round(x + size * 0.2), round(y - size * 1.15)), max(round(size * 0.1), 1), (15, 15, 20), -1)
    return mask > 0


class Cartoon:
    """A story of shots; each is (place, {character: (colours, x0, x1, y, size)}, pan in all, number of samples)."""

    def __init__(self, shots: list, appearances: dict[str, str], black: tuple[int, ...] = ()) -> None:
        self.masks: dict[tuple[str, int], np.ndarray] = {}
        samples, spans, frame = [], [], 0
        for k, (place, cast, pan, count) in enumerate(shots):
            taken = []
            for i in range(count):
                part = i / max(count - 1, 1)
                image = background(place, round(20 + pan * part))
                for name, (colours, x0, x1, y, size) in cast.items():
                    self.masks[name, frame + 12 * i] = figure(image, colours, x0 + (x1 - x0) * part, y, size)
                taken.append(Sample(frame + 12 * i, image * 0 if k in black else image))
            spans.append(Span(frame, frame + 12 * count, frame, frame + 12 * count, "cut" if k else "start"))
            frame += 12 * count
            samples.append(taken)
        colours = [np.repeat([s.image.mean((0, 1)) for s in shot], 12, 0) for shot in samples]
        motion = [np.full(len(colour), 2.0) for colour in colours]
        times = [span.start_frame / 24 for span in spans] + [frame / 24]
        self.view = StoryView(Path("cartoon.mp4"), "Cartoon", spans, times, samples, colours, motion)
        self.script = StoryScript(
            storyline="A cartoon.",
            characters=tuple(Character(id=name, appearance=text) for name, text in appearances.items()),
            scenes=(),
            shots=tuple(ShotScript("narrative", "descriptive", characters=tuple(cast)) for _, cast, _, _ in shots),
            annotator=AnnotatedBy(kind="sidecar"),
        )


def two_friends() -> Cartoon:
    """Five shots: red alone, blue alone, both, red alone elsewhere, nobody."""
    return Cartoon(
        [
            ("meadow", {"red": (RED, 90, 190, 120, 34)}, 0, 6),
            ("dusk", {"blue": (BLUE, 200, 140, 115, 32)}, 60, 6),
            ("meadow", {"red": (RED, 80, 110, 120, 33), "blue": (BLUE, 240, 200, 120, 32)}, 0, 6),
            ("dusk", {"red": (RED, 120, 220, 118, 36)}, 40, 6),
            ("dusk", {}, 0, 4),
        ],
        {"red": "a red hen with a cream belly", "blue": "a round blue bird with a yellow belly"},
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))
