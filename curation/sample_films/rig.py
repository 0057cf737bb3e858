"""Character rigs: a pose is a few numbers, an action gives a pose for a time, a rig draws a pose as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from . import svg


@dataclass(frozen=True)
class Pose:
    """One drawing of a character; angles in degrees, everything else a share of the character's own range."""

    step: float = -1.0  # walk phase in [0, 1); negative: standing
    bob: float = 0.0  # height above the ground, units
    squash: float = 0.0  # positive: lower and wider; negative: stretched
    lean: float = 0.0  # whole body, positive towards where it faces
    tilt: float = 0.0  # head
    look_x: float = 0.35
    look_y: float = 0.0
    lids: float = 0.0  # 0 open, 1 closed
    wide: float = 0.0  # 1 wide-eyed
    mouth: float = 0.4  # -1 sad, 1 smiling
    gape: float = 0.0  # 0 closed, 1 wide open
    brow: float = 0.0  # -1 worried, 1 stern
    arm_l: float = 12.0  # 0 hangs, 90 away from the body, 180 up
    arm_r: float = 12.0
    sway: float = 0.0  # tail, scarf, antenna: secondary motion
    glow: float = 1.0  # light the character gives off
    prop: str = ""  # what it holds


@dataclass(frozen=True)
class Rig:
    """A character's model sheet: how to draw a pose about its feet at (0, 0), y downwards."""

    id: str
    appearance: str
    box: svg.Box
    draw: Callable[[Pose], str]
    defs: str = ""
    tracked: bool = True  # False for props: no mask is kept
    shadow: float = 0.0  # half-width of the contact shadow, units; 0 for none
    stride: float = 62.0  # ground covered in one walk cycle, units


def staged(parts: str, pose: Pose) -> str:
    """The drawn parts under the pose's squash and lean, about the feet; the bob is left to the compositor."""
    sx, sy = 1 + pose.squash * 0.8, 1 - pose.squash
    return svg.group(parts, f"rotate({num2(pose.lean)}) scale({sx:.3f} {sy:.3f})")


def num2(value: float) -> str:
    """A number with one decimal, as the drawings use."""
    return svg.num(value)


def eye(
    x: float,
    y: float,
    rx: float,
    ry: float,
    pose: Pose,
    *,
    line: str,
    white: str = "#fffdf6",
    pupil: str = "#2a1a22",
    iris: str = "",
    width: float = 2.4,
    size: float = 0.62,
) -> str:
    """An eye with a pupil that follows the look, a highlight, and lids."""
    if pose.lids > 0.75:
        arc = f"M{num2(x - rx)} {num2(y + 1)}Q{num2(x)} {num2(y + ry * 0.55)} {num2(x + rx)} {num2(y + 1)}"
        return svg.path(arc, "none", line, width + 0.8)
    grow = 1 + 0.22 * pose.wide
    ey = ry * grow * (1 - 0.62 * pose.lids)
    ex = rx * (1 + 0.1 * pose.wide)
    shrink = size * (1 - 0.22 * pose.wide)
    px, py = min(ex, ey) * shrink, min(ry * shrink * 1.12, ey * 0.94)
    cx, cy = x + pose.look_x * (ex - px) * 0.95, y + pose.look_y * max(ey - py, 0) * 0.95
    parts = [svg.ellipse(x, y, ex, ey, white, line, width)]
    if iris:
        parts.append(svg.ellipse(cx, cy, px * 1.12, py * 1.06, iris))
        px, py = px * 0.72, py * 0.74
    parts.append(svg.ellipse(cx, cy, px, py, pupil))
    parts.append(svg.ellipse(cx + px * 0.32, cy - py * 0.42, px * 0.36, py * 0.32, "#ffffff"))
    return "".join(parts)


def mouth(x: float, y: float, half: float, pose: Pose, line: str, *, width: float = 2.6, tongue: str = "#f2857d") -> str:
    """A mouth: a curve that smiles or droops, or an open shape with a tongue."""
    bend = pose.mouth * half * 0.9
    left, right = x - half, x + half
    if pose.gape < 0.12:
        d = f"M{num2(left)} {num2(y - bend * 0.3)}Q{num2(x)} {num2(y + bend)} {num2(right)} {num2(y - bend * 0.3)}"
        return svg.path(d, "none", line, width)
    drop = half * (0.5 + 1.3 * pose.gape)
    top = y - bend * 0.3
    narrow = half * (1 - 0.35 * pose.gape * (pose.mouth < 0.2))
    d = (
        f"M{num2(x - narrow)} {num2(top)}Q{num2(x)} {num2(top + bend * 0.25)} {num2(x + narrow)} {num2(top)}"
        f"C{num2(x + narrow)} {num2(top + drop)} {num2(x - narrow)} {num2(top + drop)} {num2(x - narrow)} {num2(top)}Z"
    )
    return svg.path(d, "#6b1f33", line, width) + svg.ellipse(x, top + drop * 0.6, narrow * 0.5, drop * 0.16, tongue)


def brow(x: float, y: float, half: float, pose: Pose, line: str, side: int, width: float = 3.4) -> str:
    """An eyebrow; `side` is -1 for the left one, 1 for the right."""
    slope = -pose.brow * side * half * 0.7
    lift = -5 * pose.wide + 2 * max(pose.brow, 0)
    d = f"M{num2(x - half)} {num2(y + lift - slope)}Q{num2(x)} {num2(y + lift - 3)} {num2(x + half)} {num2(y + lift + slope)}"
    return svg.path(d, "none", line, width)


def foot(pose: Pose, side: int, reach: float, lift: float) -> svg.Point:
    """Where a walking foot is, relative to its standing place: (forward, up) in units."""
    if pose.step < 0:
        return 0.0, 0.0
    phase = (pose.step + (0.5 if side > 0 else 0.0)) % 1.0
    if phase < 0.5:  # on the ground, moving back under the body
        return reach * (1 - 4 * phase), 0.0
    swing = (phase - 0.5) * 2
    return reach * (2 * swing - 1), lift * math.sin(math.pi * swing)


def _idle(t: float) -> dict[str, float]:
    t = math.floor(t * 6 + 1e-6) / 6  # breathing needs only every second drawing
    breath = math.sin(2 * math.pi * t / 2.0)
    return {"squash": round(0.012 * breath, 3), "sway": round(0.5 * math.sin(math.pi * t), 1)}


def _walk(t: float, rate: float = 1.5, swing: float = 26) -> dict[str, float]:
    phase = (t * rate) % 1.0
    wave = math.sin(2 * math.pi * phase)
    return {
        "step": phase,
        "bob": 3.5 * abs(math.cos(2 * math.pi * phase)),
        "squash": 0.025 * math.cos(4 * math.pi * phase),
        "arm_l": 12 + swing * wave,
        "arm_r": 12 - swing * wave,
        "sway": math.sin(2 * math.pi * phase - 0.8),
        "tilt": 2.0 * wave,
        "lean": 2.0,
    }


def _run(t: float) -> dict[str, float]:
    pose = _walk(t, 2.4, 48)  # five drawings a cycle
    pose.update(lean=9.0, bob=pose["bob"] * 2.2, squash=pose["squash"] * 2.2)
    return pose


def _hop(t: float, period: float = 0.75, height: float = 34, arms: float = 126) -> dict[str, float]:
    phase = (t / period) % 1.0
    if phase < 0.25:  # gather
        squash, rise = 0.16 * math.sin(math.pi * phase / 0.25), 0.0
    else:
        air = (phase - 0.25) / 0.75
        rise = 4 * air * (1 - air)
        squash = -0.09 * (1 - rise)
    wave = 12 * math.sin(2 * math.pi * phase)
    lift = arms * (0.55 + 0.45 * rise)
    return {"bob": height * rise, "squash": squash, "arm_l": lift + wave, "arm_r": lift - wave, "sway": 1 - 2 * rise}


def _shiver(t: float) -> dict[str, float]:
    return {"tilt": 2.2 * (-1) ** round(t * 12), "squash": 0.03, "arm_l": 42, "arm_r": 42, "sway": 0.4 * (-1) ** round(t * 6)}


def _wave(t: float) -> dict[str, float]:
    swing = math.sin(2 * math.pi * t * 1.5)
    return {**_idle(t), "arm_r": 118 + 22 * swing, "tilt": 3 * swing, "sway": 0.6 * swing}


def _float(t: float) -> dict[str, float]:
    return {"bob": 6 * math.sin(2 * math.pi * t / 2.0), "lean": 4 * math.sin(math.pi * t), "sway": math.sin(math.pi * t + 0.8)}


def _rock(t: float) -> dict[str, float]:
    return {
        "bob": 3 * math.sin(2 * math.pi * t),
        "lean": 9 * math.sin(2 * math.pi * t / 1.5),
        "sway": math.sin(2 * math.pi * t / 1.5 + 0.8),
    }


def _still(t: float) -> dict[str, float]:
    return {}


ACTIONS: dict[str, Callable[[float], dict[str, float]]] = {
    "idle": _idle,
    "walk": _walk,
    "run": _run,
    "hop": _hop,
    "shiver": _shiver,
    "wave": _wave,
    "float": _float,
    "rock": _rock,
    "still": _still,
}

# Seconds between two sounds an action makes by itself, and the first of them: a foot touches down twice a walk cycle.
CONTACTS: dict[str, tuple[float, float]] = {"walk": (1 / 3.0, 0.0), "run": (1 / 4.8, 0.0), "hop": (0.75, 0.0)}
