"""Colours as people name them: words and hex codes of a text as ranges in CIE LCh, and names for measured colours."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Colour:
    """A colour as a soft range in CIE LCh: typical lightness (0..100), chroma (0..about 130) and hue (degrees).

    ``spread`` holds one standard deviation of lightness and of hue. A colour of chroma under 10 is a grey.
    """

    lightness: float
    chroma: float
    hue: float
    spread: tuple[float, float] = (18.0, 20.0)

    def affinity(self, lab: np.ndarray) -> np.ndarray:
        """How well colours fit this one, 0..1; ``lab`` is float [..., 3], CIE Lab."""
        light, chroma, hue = lch(lab)
        off = np.maximum(np.abs(light - self.lightness) - 10, 0) / self.spread[0]
        if self.chroma < 10:
            return np.exp(-0.5 * (off**2 + (np.maximum(chroma - 4, 0) / 9) ** 2))
        turn = np.abs((hue - self.hue + 180) % 360 - 180) / self.spread[1]
        vivid = np.clip((chroma / self.chroma - 0.15) / 0.6, 0, 1)
        loud = np.maximum(chroma / self.chroma - 2.2, 0) / 0.5
        return np.exp(-0.5 * (off**2 + turn**2 + loud**2)) * vivid


NAMED = {
    "black": Colour(10, 0, 0, (9, 0)),
    "grey": Colour(52, 0, 0, (12, 0)),
    "white": Colour(96, 0, 0, (9, 0)),
    "red": Colour(48, 65, 33),
    "orange": Colour(66, 68, 62, (18, 16)),
    "yellow": Colour(84, 66, 92, (18, 14)),
    "green": Colour(55, 48, 135, (25, 26)),
    "turquoise": Colour(65, 33, 195, (25, 20)),
    "blue": Colour(50, 42, 270, (25, 27)),
    "purple": Colour(45, 50, 316, (25, 18)),
    "pink": Colour(74, 36, 358, (15, 22)),
    "brown": Colour(38, 32, 60, (11, 20)),
    "beige": Colour(80, 20, 80, (11, 22)),
}
"""The basic colours, in the order in which ties are settled."""

SYNONYMS = {
    "gray": "grey", "silver": "grey", "charcoal": "black", "crimson": "red", "scarlet": "red", "maroon": "red",
    "ruby": "red", "ginger": "orange", "amber": "orange", "rust": "orange", "copper": "orange", "coral": "pink",
    "gold": "yellow", "golden": "yellow", "blond": "yellow", "blonde": "yellow", "mustard": "yellow",
    "lime": "green", "olive": "green", "emerald": "green", "mint": "green", "teal": "turquoise",
    "cyan": "turquoise", "aqua": "turquoise", "navy": "blue", "azure": "blue", "violet": "purple",
    "lilac": "purple", "lavender": "purple", "magenta": "pink", "rose": "pink", "chestnut": "brown",
    "chocolate": "brown", "tan": "beige", "cream": "beige", "ivory": "white", "sandy": "beige",
}  # fmt: skip
SHADES = {"light": 14, "pale": 16, "bright": 6, "dark": -18, "deep": -12}
SMALL_PARTS = set(
    "eye eyes eyed nose nosed muzzle beak pupil pupils tooth teeth lip lips whisker whiskers tip tips button buttons stripe "
    "stripes dot dots spot spots freckles cheek cheeks collar sock socks".split()
)
_WORDS = re.compile(
    r"#[0-9a-f]{6}\b|(?:\b(?P<shade>" + "|".join(SHADES) + r")[ -])?"
    r"\b(?P<name>" + "|".join([*NAMED, *SYNONYMS]) + r")(?:ish)?\b(?:[ -](?P<next>\w+))?",
    re.IGNORECASE,
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (float32, L 0..100) of RGB uint8 [..., 3]."""
    import cv2

    flat = np.ascontiguousarray(rgb, np.uint8).reshape(-1, 1, 3).astype(np.float32) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape).astype(np.float32)


def lch(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lightness, chroma and hue (degrees 0..360) of CIE Lab [..., 3]; the hue of vivid blues is turned back from the
    purple at which Lab is known to put them.
    """
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    purpled = np.clip((chroma - 55) / 30, 0, 1) * np.clip(1 - np.abs(hue - 298) / 20, 0, 1)
    return lab[..., 0], chroma, hue - 30 * purpled


def colours_in(text: str) -> list[tuple[Colour, float]]:
    """The colours that a text names, with weights in 0..1.

    The first is taken for the body and weighs 1, later ones less; colours of small parts (eyes, nose) hardly count.
    Hex codes such as ``#b8b4ac`` are exact and make the words beside them superfluous.
    """
    codes = re.findall(r"#([0-9a-f]{6})\b", text, re.IGNORECASE)
    if codes:
        return [(_of_code(code), weight) for code, weight in zip(codes, _falling(len(codes)), strict=True)]
    large: dict[Colour, None] = {}
    small: dict[Colour, None] = {}
    for match in _WORDS.finditer(text):
        name = match["name"].lower()
        base = NAMED[SYNONYMS.get(name, name)]
        shift = SHADES.get((match["shade"] or "").lower(), 0)
        colour = Colour(min(max(base.lightness + shift, 4), 98), base.chroma, base.hue, base.spread)
        (small if (match["next"] or "").lower() in SMALL_PARTS else large)[colour] = None
    return [*zip(large, _falling(len(large)), strict=True), *((colour, 0.3) for colour in small if colour not in large)]


def affinity(text: str, lab: np.ndarray) -> np.ndarray | None:
    """How well colours fit what a text says, 0..1 [...] for CIE Lab [..., 3]; None where the text names no colour."""
    found = colours_in(text)
    if not found:
        return None
    return np.max([weight * colour.affinity(lab) for colour, weight in found], axis=0)


def name_of(rgb: np.ndarray) -> str:
    """The name of one measured colour, RGB [3] in 0..255, such as "dark blue"."""
    lab = to_lab(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))
    fits = {name: float(colour.affinity(lab)) for name, colour in NAMED.items()}
    name = max(fits, key=lambda key: fits[key])
    if fits[name] < 0.02:  # between all ranges: settle by lightness, as a grey, or by the nearest hue
        name = _nearest(lab)
    off = float(lab[0]) - NAMED[name].lightness
    if name in ("black", "white"):
        return name
    return f"light {name}" if off > 16 else f"dark {name}" if off < -16 else name


def hex_of(rgb: np.ndarray) -> str:
    """RGB [3] in 0..255 as ``#rrggbb``."""
    return "#" + "".join(f"{int(value):02x}" for value in np.clip(np.rint(rgb), 0, 255))


def _nearest(lab: np.ndarray) -> str:
    light, chroma, hue = (float(value) for value in lch(lab))
    if chroma < 14:
        return "black" if light < 20 else "white" if light > 88 else "grey"
    vivid = {name: colour for name, colour in NAMED.items() if colour.chroma >= 10}
    return min(vivid, key=lambda name: abs((vivid[name].hue - hue + 180) % 360 - 180))


def _falling(count: int) -> list[float]:
    return [max(1.0 - 0.15 * i, 0.5) for i in range(count)]


def _of_code(code: str) -> Colour:
    light, chroma, hue = lch(to_lab(np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.uint8)))
    return Colour(float(light), float(chroma), float(hue), (9.0, 12.0))
