"""Writing on films for tests: subtitles, signs, logos, title cards and credits, drawn onto decoded pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVuSans-Bold.ttf", "LiberationSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSerif-Italic.ttf")
WORDS = (
    "the boat never came back with morning wind and nobody asked why you left before dawn please wait for me here "
    "lantern river mountain quiet stories are only true once we forget them listen closely something moves under snow"
).split()


@dataclass(frozen=True)
class Style:
    """How subtitles look: letter height and place in shares of the picture's height."""

    size: float = 0.055
    centre: float = 0.9
    fill: tuple[int, int, int] = (255, 255, 255)
    outline: bool = True
    font: int = 0
    align: str = "centre"


@cache
def font(number: int, pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of the machine, or Pillow's own where it has none of ours."""
    for name in FONTS[number % len(FONTS) :] + FONTS:
        try:
            return ImageFont.truetype(name, pixels)
        except OSError:
            continue
    return ImageFont.load_default(pixels)


def dialogue(seconds: float, seed: int = 0, *, spoken: float = 0.5, rows: int = 1) -> list[tuple[float, float, str]]:
    """Lines of 1.5 to 4 s with gaps between, so that about ``spoken`` of the time has one: (start, end, text)."""
    pick, now, lines = random.Random(seed), 1.0, []
    while now < seconds - 2:
        length = pick.uniform(1.5, 4)
        text = "\n".join(" ".join(pick.choices(WORDS, k=pick.randint(3, 7))).capitalize() for _ in range(pick.randint(1, rows)))
        lines.append((now, now + length, text))
        now += length / spoken * pick.uniform(0.7, 1.3)
    return lines


def write(image: np.ndarray, text: str, style: Style, at: tuple[float, float] | None = None) -> np.ndarray:
    """The picture with a text on it, centred at ``at`` (shares of width and height) or where the style says."""
    height, width = image.shape[:2]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    pixels = max(8, round(style.size * height))
    x, y = at or ({"centre": 0.5, "left": 0.08}[style.align], style.centre)
    draw.multiline_text(
        (x * width, y * height),
        text,
        fill=style.fill,
        font=font(style.font, pixels),
        anchor="mm" if style.align == "centre" else "lm",
        align="center" if style.align == "centre" else "left",
        stroke_width=max(1, pixels // 14) if style.outline else 0,
        stroke_fill=(0, 0, 0),
    )
    return np.asarray(canvas)


def subtitled(
    pictures: Iterable[np.ndarray], fps: float, lines: list[tuple[float, float, str]], style: Style
) -> Iterator[np.ndarray]:
    """The pictures with the lines of a dialogue burnt in."""
    for number, image in enumerate(pictures):
        text = next((text for start, end, text in lines if start <= number / fps < end), None)
        yield image if text is None else write(image, text, style)


def marked(pictures: Iterable[np.ndarray], draw: Callable[[int, np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures, each drawn upon: ``draw`` is given its number and the picture."""
    for number, image in enumerate(pictures):
        yield draw(number, image)


def card(text: str, size: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 0), letters: float = 0.09) -> np.ndarray:
    """A title card of (width, height)."""
    image = np.full((size[1], size[0], 3), colour, np.uint8)
    return write(image, text, Style(size=letters, centre=0.5, outline=False))


def world(
    seconds: float, fps: int, size: tuple[int, int] = (320, 180), *, shot: float = 3.0, seed: int = 0
) -> Iterator[np.ndarray]:
    """A film without text: shots of hills, sun and a walker under a moving camera, other colours in each shot."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    for number in range(round(seconds * fps)):
        pick = np.random.default_rng([seed, int(number / fps / shot)])
        sky, ground, coat = pick.uniform(90, 235, (3, 3))
        pan = number / fps * pick.uniform(20, 60) * width / 320
        image = sky + (0.4 * (y / height - 0.5))[..., None] * 80
        for layer in (1, 2, 3):
            ridge = height * (
                0.4 + 0.14 * layer + 0.07 * np.sin((x + pan * layer / 2 + pick.uniform(0, 300)) * 6.3 / (width / layer))
            )
            image = np.where((y > ridge)[..., None], ground * (1 - 0.18 * layer), image)
        cx, cy = width * (0.3 + 0.4 * pick.uniform()) + 12 * np.sin(number / 4), height * 0.62
        image[((x - cx) / 0.06 / width) ** 2 + ((y - cy) / 0.22 / height) ** 2 < 1] = coat * 0.6
        yield np.clip(image, 0, 255).astype(np.uint8)
