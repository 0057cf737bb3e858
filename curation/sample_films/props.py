"""Drawn effects any film may use; `glow` is how far each has run, from 0 to 1."""

from __future__ import annotations

import math

from .rig import Pose, Rig
from .svg import blob, ellipse, group, path, polar, rect


def draw_splash(p: Pose) -> str:
    """A crown of drops over spreading rings."""
    u = p.glow
    fade = f'opacity="{max(0.0, 1 - u) ** 0.6:.2f}"'
    parts = [
        ellipse(0, 0, 14 + 52 * u, 3 + 11 * u, "none", "#eaf8ff", 3),
        ellipse(0, 0, 6 + 30 * u, 2 + 6 * u, "none", "#ffffff", 2.4),
    ]
    for i in range(9):
        angle = -64 + 16 * i
        far = 58 * u * (0.75 + 0.25 * math.cos(3 * i))
        x = far * math.sin(math.radians(angle))
        y = -(86 * u * (1 - u) * 1.9) * math.cos(math.radians(angle)) * (0.8 + 0.2 * math.sin(5 * i))
        r = 5.5 * (1 - 0.5 * u)
        parts.append(ellipse(x, y, r * 0.8, r * 1.25, "#d8f1ff", "#5fa3c4", 1.4))
    return group(parts, extra=fade)


def draw_puff(p: Pose) -> str:
    """A puff that opens and thins out."""
    r = 7 + 24 * p.glow**0.6
    dots = ((0, 0, 1.0), (-0.95, 0.25, 0.7), (0.95, 0.2, 0.75), (-0.45, -0.7, 0.7), (0.5, -0.75, 0.6))
    puffs = [ellipse(x * r, -18 - 16 * p.glow + y * r, r * k, r * k, "#fff5ff") for x, y, k in dots]
    return group(puffs, extra=f'opacity="{0.9 * max(0.0, 1 - p.glow):.2f}"')


def draw_sparks(p: Pose) -> str:
    """Short-lived sparks thrown from a point."""
    parts = []
    for i in range(11):
        angle = 33 * i + 140 * p.glow * (1 if i % 2 else -1)
        near, far = 8 + 22 * ((p.glow * 3 + i * 0.37) % 1.0), 14 + 34 * ((p.glow * 3 + i * 0.37) % 1.0)
        (x0, y0), (x1, y1) = polar(0, 0, near, angle), polar(0, 0, far, angle)
        parts.append(path(f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}", "none", ("#fff6b0", "#ffd24a", "#8ff2ff")[i % 3], 3))
    return ellipse(0, 0, 16, 16, "#ffffff", extra='opacity="0.8"') + "".join(parts)


def draw_exclaim(p: Pose) -> str:
    """An exclamation mark that pops up."""
    grow = 0.3 + 0.7 * min(p.glow * 2, 1) + 0.25 * math.sin(min(p.glow * 2, 1) * math.pi)
    mark = path("M-7 -46Q0 -50 7 -46L4 -18H-4Z", "#ffdf3f", "#3a1f2a", 3.4) + ellipse(0, -8, 5, 5, "#ffdf3f", "#3a1f2a", 3.4)
    return group(mark, f"scale({grow:.2f})")


def draw_heart(p: Pose) -> str:
    """A heart that floats up."""
    heart = path("M0 0C-26 -18 -22 -38 -10 -38Q-3 -38 0 -30Q3 -38 10 -38C22 -38 26 -18 0 0Z", "#ff5f86", "#8c1f4a", 3)
    shine = ellipse(-9, -29, 3, 4, "#ffd0dc")
    return group(
        heart + shine,
        f"translate({6 * math.sin(p.glow * 9):.1f} {-40 * p.glow:.1f}) scale({0.5 + 0.6 * p.glow:.2f})",
        f'opacity="{min(1.0, 3 * (1 - p.glow)):.2f}"',
    )


def draw_trail(p: Pose) -> str:
    """A comet's tail pointing down."""
    tail = path(blob([(-30, -10), (0, -30), (30, -10), (12, 90), (0, 170), (-12, 90)]), "#ffe27a", extra='opacity="0.35"')
    return tail + path(blob([(-16, -10), (0, -20), (16, -10), (6, 60), (0, 120), (-6, 60)]), "#fffbe0", extra='opacity="0.55"')


def draw_gust(p: Pose) -> str:
    """Curled lines of wind blowing to the left."""
    slide = -220 * p.glow
    lines = "".join(
        path(f"M{160 + slide * k:.0f} {y}h-120q-30 0 -30 -18q0 -14 16 -14q14 0 12 14", "none", "#ffffff", 5)
        for y, k in ((-120, 1.0), (-70, 1.3), (-20, 0.85))
    )
    return group(lines, extra=f'opacity="{0.85 * min(1.0, 4 * p.glow, 4 * (1 - p.glow)):.2f}"')


def draw_ticket(p: Pose) -> str:
    """A white sheet of paper."""
    return rect(-40, -8, 80, 9, "#fffdf4", 2, "#41607f", 2.4)


SPLASH = Rig("splash", "splash", (-72, -90, 72, 18), draw_splash, tracked=False)
PUFF = Rig("puff", "puff", (-70, -90, 70, 20), draw_puff, tracked=False)
SPARKS = Rig("sparks", "sparks", (-60, -60, 60, 60), draw_sparks, tracked=False)
EXCLAIM = Rig("exclaim", "surprise", (-16, -66, 16, 6), draw_exclaim, tracked=False)
HEART = Rig("heart", "heart", (-36, -92, 36, 8), draw_heart, tracked=False)
TRAIL = Rig("trail", "trail", (-36, -40, 36, 180), draw_trail, tracked=False)
GUST = Rig("gust", "wind", (-320, -160, 180, 20), draw_gust, tracked=False)
SHEET = Rig("sheet", "paper", (-46, -14, 46, 6), draw_ticket, tracked=False)
PROPS = (SPLASH, PUFF, SPARKS, EXCLAIM, HEART, TRAIL, GUST, SHEET)
