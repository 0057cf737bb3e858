"""Places of "Fallen Star": a city roof at night, a workshop, a tower top, and the sky above the clouds."""

from __future__ import annotations

import math
import random

from ...storyboard import Layer, Scene
from ...svg import ellipse, group, linear, path, polar, radial, rect


def _stars(seed: int, count: int, box: tuple[float, float, float, float]) -> str:
    rng = random.Random(seed + 11)
    out = ""
    for _ in range(count):
        x, y, r = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3]), rng.choice((0.9, 1.2, 1.7, 2.4))
        out += ellipse(x, y, r, r, rng.choice(("#fff8e0", "#cfe4ff", "#ffd9f0")), extra=f'opacity="{rng.uniform(0.5, 1):.2f}"')
    return out


def _moon(x: float, y: float, r: float) -> str:
    return (
        ellipse(x, y, r * 2.1, r * 2.1, "url(#moonglow)")
        + ellipse(x, y, r, r, "url(#moon)")
        + ellipse(x - r * 0.3, y - r * 0.2, r * 0.2, r * 0.17, "#e8c88f", extra='opacity="0.6"')
        + ellipse(x + r * 0.32, y + r * 0.3, r * 0.26, r * 0.2, "#e8c88f", extra='opacity="0.5"')
        + ellipse(x + r * 0.2, y - r * 0.48, r * 0.11, r * 0.09, "#e8c88f", extra='opacity="0.6"')
    )


def _night(seed: int) -> str:
    return rect(-500, -400, 1900, 1000, "url(#night)") + _stars(seed, 150, (-400, -260, 1000, 200)) + _moon(505, 62, 44)


def _skyline(seed: int, wall: str, window: str, low: float, high: float, lit: float) -> str:
    rng = random.Random(seed)
    out, x = "", -420.0
    while x < 1150:
        w, h = rng.uniform(46, 96), rng.uniform(low, high)
        y = 330 - h
        out += rect(x, y, w, h + 60, wall, 4)
        kind = rng.random()
        if kind < 0.25:
            out += path(f"M{x:.0f} {y + 2:.0f}L{x + w / 2:.0f} {y - 34:.0f}L{x + w:.0f} {y + 2:.0f}Z", wall)
        elif kind < 0.45:
            out += ellipse(x + w / 2, y + 2, w * 0.46, w * 0.38, wall)
        elif kind < 0.65:
            out += rect(x + w * 0.45, y - 30, 5, 32, wall)
        for wx in range(int(x + 9), int(x + w - 13), 15):
            for wy in range(int(y + 14), 330, 20):
                if rng.random() < lit:
                    out += rect(wx, wy, 7, 10, rng.choice((window, window, "#ffd27a", "#7de3f0")), 1.5, extra='opacity="0.9"')
        x += w + rng.uniform(-4, 8)
    return out


def _roof(seed: int) -> str:
    tiles = "".join(
        path(f"M{x} {y}q16 12 32 0", "none", "#4a3a86", 2.2, 'opacity="0.7"')
        for y in range(300, 420, 16)
        for x in range(-330 + (y % 32), 960, 32)
    )
    chimney = (
        rect(96, 196, 58, 96, "url(#brick)")
        + rect(88, 184, 74, 16, "#8b4f86", 4)
        + "".join(path(f"M96 {y}h58M{112 + (y % 24)} {y}v12", "none", "#6b3a70", 2) for y in range(210, 290, 12))
    )
    tank = (
        path("M540 284L548 200M640 284L632 200M590 284V200", "none", "#3a2c6e", 7)
        + rect(534, 118, 112, 88, "url(#tank)", 8)
        + path("M526 122L590 74L654 122Z", "#5f4aa8")
        + path("M534 146h112M534 178h112", "none", "#3a2c6e", 3)
    )
    hatch = (
        rect(-96, 196, 96, 94, "#4a3a86", 6)
        + rect(-82, 210, 68, 80, "#ffb45e", 4)
        + rect(-82, 210, 68, 80, "url(#hatchglow)", 4)
    )
    return (
        rect(-400, 284, 1500, 220, "url(#tiles)")
        + tiles
        + rect(-400, 280, 1500, 8, "#7d68c8")
        + ellipse(-50, 300, 120, 26, "url(#amberpool)")
        + chimney
        + tank
        + hatch
    )


def _railing(seed: int) -> str:
    posts = "".join(rect(x, 330, 7, 80, "#231a4e") for x in range(-380, 1150, 62))
    bulbs = "".join(
        ellipse(x + 34, 352 + 7 * math.sin(x), 16, 16, "url(#bulb)") + ellipse(x + 34, 352 + 7 * math.sin(x), 4, 4, "#ffe9a8")
        for x in range(-380, 1150, 62)
    )
    return (
        rect(-400, 326, 1560, 8, "#231a4e", 3)
        + posts
        + path("M-400 340" + "".join("q31 26 62 0" for _ in range(25)), "none", "#231a4e", 2.4)
        + bulbs
    )


def _gear(x: float, y: float, r: float, colour: str) -> str:
    teeth = "".join(
        rect(x - r * 0.15, y - r * 1.22, r * 0.3, r * 0.4, colour, 2, extra=f'transform="rotate({a} {x} {y})"')
        for a in range(0, 360, 45)
    )
    return teeth + ellipse(x, y, r, r, colour) + ellipse(x, y, r * 0.42, r * 0.42, "#4a2436")


def _workshop(seed: int) -> str:
    rng = random.Random(seed + 21)
    bricks = "".join(
        rect(rng.uniform(-180, 780), rng.choice(range(-90, 270, 22)), 38, 14, "#ffffff", 3, extra='opacity="0.05"')
        for _ in range(70)
    )
    shelf = rect(-110, 120, 214, 10, "#5a2f3c", 3) + rect(-110, 190, 214, 10, "#5a2f3c", 3)
    jars = ""
    for x, y, colour in (
        (-92, 120, "#52c7c0"),
        (-52, 120, "#f2698a"),
        (-14, 120, "#ffd05a"),
        (44, 120, "#8f7be0"),
        (-80, 190, "#ff9c54"),
        (60, 190, "#52c7c0"),
    ):
        jars += (
            rect(x, y - 38, 28, 38, colour, 7, extra='opacity="0.85"')
            + rect(x + 3, y - 44, 22, 8, "#f5e0c0", 2)
            + rect(x + 5, y - 32, 5, 24, "#ffffff", 2, extra='opacity="0.45"')
        )
    tools = "".join(
        path(f"M{x} 60v{h}", "none", c, 7) + ellipse(x, 60 + h, 10, 7, "#d7dbe8")
        for x, h, c in ((250, 46, "#c7472f"), (280, 60, "#3a8f9a"), (310, 40, "#d69a3a"), (338, 54, "#8f5fc0"))
    )
    window = (
        ellipse(490, 100, 74, 74, "#5a2f3c")
        + ellipse(490, 100, 64, 64, "#2c2a6a")
        + group(_stars(seed, 16, (440, 50, 540, 150)))
        + ellipse(510, 86, 22, 22, "url(#moon)")
        + path("M490 36V164M426 100H554", "none", "#5a2f3c", 6)
    )
    return (
        rect(-220, -120, 1080, 420, "url(#warmwall)")
        + bricks
        + rect(-220, 288, 1080, 200, "url(#planks)")
        + "".join(
            path(f"M{x} 290L{x * 1.5 - 160:.0f} 460", "none", "#4a2436", 2, 'opacity="0.5"') for x in range(-160, 860, 64)
        )
        + rect(-220, 280, 1080, 10, "#5a2f3c")
        + shelf
        + jars
        + _gear(18, 165, 20, "#d69a3a")
        + _gear(-26, 172, 13, "#b0b8d0")
        + rect(236, 52, 118, 10, "#5a2f3c", 3)
        + tools
        + window
        + _gear(650, 200, 44, "#c7783a")
        + _gear(706, 150, 28, "#d69a3a")
        + path("M600 280V232h130v48Z", "#3a5f78")
        + "".join(ellipse(622 + 28 * i, 256, 7, 7, c) for i, c in enumerate(("#ff5a5a", "#ffd05a", "#6ee07a", "#58c8ff")))
        + path("M320 -120V-20", "none", "#3a1c2c", 4)
        + path("M280 14Q284 -24 320 -24Q356 -24 360 14Z", "#2f8f8a")
        + path("M284 14L150 330H490L356 14Z", "url(#cone)")
        + ellipse(320, 15, 34, 7, "#fff3c0")
    )


def _bench(seed: int) -> str:
    return (
        rect(196, 240, 250, 16, "url(#amberwood)", 5)
        + rect(212, 256, 18, 66, "#6b3a34")
        + rect(412, 256, 18, 66, "#6b3a34")
        + rect(236, 262, 90, 24, "#8a4f3e", 3)
        + ellipse(281, 274, 4, 4, "#ffd05a")
        + path("M404 240q6 -30 26 -34", "none", "#d7dbe8", 4)
        + ellipse(431, 205, 6, 6, "#ff5a5a")
    )


def _tower_sky(seed: int) -> str:
    return rect(-500, -500, 1900, 1200, "url(#violet)") + _stars(seed + 3, 170, (-400, -420, 1000, 240)) + _moon(250, 60, 128)


def _cloudbank(colour: str, seed: int, y: float, opacity: float) -> str:
    rng = random.Random(seed + 31)
    out = ""
    for i in range(26):
        x, r = -460 + i * 66 + rng.uniform(-16, 16), rng.uniform(36, 70)
        out += ellipse(x, y + rng.uniform(-12, 20), r * 1.25, r * 0.72, colour)
    return group(out + rect(-600, y + 10, 2000, 360, colour), extra=f'opacity="{opacity}"')


def _tower(seed: int) -> str:
    blocks = "".join(
        rect(20 + (x % 90) + 60 * (x // 90), 318 + 26 * (x % 4), 44, 14, "#ffffff", 4, extra='opacity="0.06"')
        for x in range(0, 700, 37)
    )
    flag = path("M566 290V110", "none", "#3b2a6e", 6) + path(
        "M566 112Q600 96 634 114Q604 124 628 142Q596 136 566 150Z", "#ff6b8a"
    )
    clock = rect(-40, 292, 720, 220, "url(#stone)", 10) + rect(-60, 280, 760, 22, "#8f7fd0", 8) + blocks
    scope = path("M70 284L86 214M118 284L98 214M94 284V214", "none", "#3b2a6e", 6) + group(
        rect(-44, -13, 92, 26, "url(#brass)", 8) + rect(44, -17, 16, 34, "#c98a3a", 4), "translate(94 206) rotate(-34)"
    )
    return clock + flag + scope


def _heaven(seed: int) -> str:
    milky = group([ellipse(x, 0, 190, 74, "url(#mist)") for x in range(-360, 1100, 120)], "translate(0 60) rotate(-11)")
    return rect(-500, -500, 1900, 1200, "url(#heaven)") + milky + _stars(seed + 5, 300, (-400, -420, 1050, 330))


def _constellation(seed: int) -> str:
    spots = ((120, 76), (196, 22), (292, 50), (400, 6), (500, 56), (548, 128))
    lines = path("M" + "L".join(f"{x} {y}" for x, y in spots), "none", "#ffffff", 1.6, 'opacity="0.3"')
    out = lines
    for x, y in spots:
        rays = [polar(x, y, 9 if i % 2 == 0 else 3, 45 * i) for i in range(8)]
        out += ellipse(x, y, 16, 16, "url(#bulb)") + path("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in rays) + "Z", "#fff6d8")
    return out


DEFS = (
    linear("night", "#0e1440", "#2a2468", "#6a3a8c", "#c4608f")
    + radial("moonglow", "#fff0c0/0.5", "#ffdfa0/0.14", "#ffdfa0/0", r=0.5)
    + radial("moon", "#fffbe6", "#ffe9b8", "#f5cf90", cx=0.38, cy=0.34, r=0.75)
    + linear("tiles", "#5b48a6", "#372a78", "#251c58")
    + linear("brick", "#a8608f", "#7a4278", x2=1, y2=0.2)
    + linear("tank", "#8a6fe0", "#5140a0", x2=1, y2=0.1)
    + radial("hatchglow", "#fff2b0/0.9", "#ffb45e/0")
    + radial("amberpool", "#ffb45e/0.55", "#ffb45e/0", r=0.5)
    + radial("bulb", "#ffe9a8/0.7", "#ffe9a8/0", r=0.5)
    + linear("warmwall", "#8f4650", "#b8624e", "#cf7f52")
    + linear("planks", "#7a4234", "#4a2630")
    + linear("cone", "#fff0b0/0.5", "#fff0b0/0")
    + linear("amberwood", "#e09a58", "#b06a3c")
    + linear("violet", "#10123e", "#35297e", "#8650a8", "#e88aa0")
    + linear("stone", "#7867bc", "#4b3d92", "#2c2366")
    + linear("brass", "#ffdc8a", "#d8923c")
    + radial("mist", "#c9b4ff/0.3", "#a08cf0/0.1", "#a08cf0/0", r=0.5)
    + linear("heaven", "#070b30", "#18206a", "#3a3f9c", "#7a64c8")
)

ROOF = Scene(
    "roof",
    "A tiled city rooftop at night with a brick chimney and a water tank, "
    "lit windows far below; indigo and magenta sky with a full moon.",
    (
        Layer(_night, (-400, -260, 1050, 480), 0, 0.06, 0.9),
        Layer(lambda s: _skyline(s + 101, "#3b2f78", "#ffbf6a", 60, 150, 0.25), (-420, 120, 1100, 390), 1, 0.25, 1.0),
        Layer(lambda s: _skyline(s + 102, "#2a215e", "#ffd98a", 30, 105, 0.4), (-420, 180, 1100, 390), 2, 0.5, 1.0),
        Layer(_roof, (-400, 60, 1050, 480), 3, 1.0, 1.4),
        Layer(_railing, (-390, 322, 1100, 410), 22, 1.22, 1.0),
    ),
    tint=(0.9, 0.9, 1.0),
    shade="#120c36",
    defs=DEFS,
)
WORKSHOP = Scene(
    "workshop",
    "A cluttered tinkerer's workshop: brick-red walls, shelves of coloured "
    "jars, brass gears and a round window; a lamp's amber cone of light.",
    (Layer(_workshop, (-220, -120, 860, 480), 0, scale=1.5), Layer(_bench, (190, 190, 450, 330), 9, scale=1.8)),
    air=("motes",),
    tint=(1.0, 0.97, 0.93),
    shade="#2a101c",
    defs=DEFS,
)
TOWER = Scene(
    "tower",
    "The flat top of a stone tower above a sea of lilac clouds, a flag and "
    "a brass telescope against an enormous moon; violet and rose light.",
    (
        Layer(_tower_sky, (-400, -440, 1050, 480), 0, 0.06, 0.9),
        Layer(lambda s: _cloudbank("#a87cc4", s, 236, 0.85), (-500, 130, 1150, 480), 1, 0.25, 0.9, (8, 0, 6.0)),
        Layer(lambda s: _cloudbank("#7c62b4", s + 1, 286, 0.95), (-500, 180, 1150, 560), 2, 0.5, 0.9, (-10, 0, 5.0)),
        Layer(_tower, (-70, 80, 720, 520), 3, 1.0, 1.4),
    ),
    tint=(0.95, 0.91, 1.0),
    shade="#1b1248",
    defs=DEFS,
)
HEAVEN = Scene(
    "heaven",
    "High above the clouds: a deep blue sky crowded with stars, a drawn "
    "constellation and banks of pale cloud; cool, glittering light.",
    (
        Layer(_heaven, (-400, -440, 1050, 480), 0, 0.06, 0.9),
        Layer(_constellation, (90, -24, 580, 158), 1, 0.3, 1.4),
        Layer(lambda s: _cloudbank("#8f86d8", s + 4, 330, 0.8), (-500, 230, 1150, 560), 2, 0.6, 0.9, (10, 0, 5.0)),
        Layer(lambda s: _cloudbank("#c9c4f5", s + 5, 392, 0.95), (-500, 290, 1150, 620), 22, 1.2, 0.9, (-12, 0, 4.0)),
    ),
    defs=DEFS,
)
SCENES = (ROOF, WORKSHOP, TOWER, HEAVEN)
