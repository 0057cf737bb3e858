"""What falls through the air of a scene, and the letters of cards."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from .storyboard import HEIGHT, WIDTH


@lru_cache(maxsize=8)
def _rain_tile(seed: int, count: int, length: int, grey: int) -> np.ndarray:
    """A wrap-around tile of slanted streaks, uint8 [H, W]."""
    rng = np.random.default_rng([seed, length])
    tile = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(count):
        x, y, n = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), length * rng.uniform(0.6, 1.2)
        for dx in (-WIDTH, 0, WIDTH):
            for dy in (-HEIGHT, 0, HEIGHT):
                start = (int((x + dx) * 16), int((y + dy) * 16))
                end = (int((x + dx - n * 0.22) * 16), int((y + dy + n) * 16))
                cv2.line(tile, start, end, int(grey), 1, cv2.LINE_AA, 4)
    return tile


@lru_cache(maxsize=8)
def _dot_tile(seed: int, count: int, radius: float, grey: int) -> np.ndarray:
    """A wrap-around tile of soft dots, uint8 [H, W]."""
    rng = np.random.default_rng([seed, count])
    tile = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(count):
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), radius * rng.uniform(0.6, 1.3)
        for dx in (-WIDTH, 0, WIDTH):
            for dy in (-HEIGHT, 0, HEIGHT):
                cv2.circle(tile, (int((x + dx) * 16), int((y + dy) * 16)), int(r * 16), grey, -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(tile, (0, 0), max(radius * 0.4, 0.6))


def _add(canvas: np.ndarray, tile: np.ndarray, dx: float, dy: float) -> None:
    """Brighten the canvas by a tile shifted by (dx, dy), wrapped around."""
    shifted = np.roll(tile, (round(dy) % HEIGHT, round(dx) % WIDTH), (0, 1))
    canvas[:] = cv2.add(canvas, cv2.cvtColor(shifted, cv2.COLOR_GRAY2BGRA))


def rain(canvas: np.ndarray, frame: int, seed: int, camera: tuple[float, float, float]) -> None:
    """Two sheets of rain, falling on twos."""
    beat = frame // 2
    _add(canvas, _rain_tile(seed, 120, 20, 34), -beat * 7 - camera[0] * 0.4, beat * 46)
    _add(canvas, _rain_tile(seed, 60, 38, 52), -beat * 13 - camera[0] * 1.2, beat * 77)


def snow(canvas: np.ndarray, frame: int, seed: int, camera: tuple[float, float, float]) -> None:
    """Two depths of flakes that sway as they sink."""
    beat = frame // 2
    sway = 10 * math.sin(beat / 9)
    _add(canvas, _dot_tile(seed, 60, 1.4, 120), sway - beat * 1.2 - camera[0] * 0.5, beat * 3)
    _add(canvas, _dot_tile(seed, 26, 2.9, 170), -sway * 1.6 - beat * 2 - camera[0] * 1.3, beat * 5)


def motes(canvas: np.ndarray, frame: int, seed: int, camera: tuple[float, float, float]) -> None:
    """Dust or fireflies drifting up in warm light."""
    beat = frame // 2
    _add(canvas, _dot_tile(seed, 22, 1.6, 70), 8 * math.sin(beat / 7) - camera[0] * 0.8, -beat * 0.8)


AIR: dict[str, Callable[[np.ndarray, int, int, tuple[float, float, float]], None]] = {
    "rain": rain,
    "snow": snow,
    "motes": motes,
}


def letters(text: str, ink: str, halo: str) -> list[tuple[np.ndarray, float, float, float]]:
    """The letters of a card: (premultiplied image, centre x, centre y, second it appears), from Pillow's own font."""
    from PIL import Image, ImageDraw, ImageFont

    lines = text.split("\n")
    size = 62 if max(map(len, lines)) < 13 else 50
    font = ImageFont.load_default(size)
    out, order = [], 0
    for row, line in enumerate(lines):
        widths = [font.getlength(ch) + 3 for ch in line]
        x = WIDTH / 2 - sum(widths) / 2
        y = HEIGHT * 0.42 + (row - (len(lines) - 1) / 2) * size * 1.12
        for ch, w in zip(line, widths):
            if ch != " ":
                image = Image.new("RGBA", (int(w) + 24, int(size * 1.5)), (0, 0, 0, 0))
                draw = ImageDraw.Draw(image)
                centre = (image.width / 2, image.height / 2)
                draw.text((centre[0] + 2, centre[1] + 4), ch, font=font, anchor="mm", fill=(20, 10, 30, 90), stroke_width=6)
                draw.text(centre, ch, font=font, anchor="mm", fill=halo, stroke_width=6, stroke_fill=halo)
                draw.text(centre, ch, font=font, anchor="mm", fill=ink, stroke_width=2, stroke_fill=ink)
                rgba = np.asarray(image).astype(np.float32)
                rgba[:, :, :3] *= rgba[:, :, 3:] / 255
                out.append((np.ascontiguousarray(rgba[:, :, [2, 1, 0, 3]].astype(np.uint8)), x + w / 2, y, 0.4 + 0.08 * order))
                order += 1
            x += w
    return out
