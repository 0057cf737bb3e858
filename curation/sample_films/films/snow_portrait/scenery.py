"""Places of "Snow Portrait": a hut full of photographs, a snowy slope at dusk, a cave of ice."""

from __future__ import annotations

import random

from ...storyboard import Layer, Scene
from ...svg import ellipse, group, linear, path, polygon, radial, rect

INK = "#1d1836"


def _frame(x: float, y: float, w: float, h: float, content: str) -> str:
    return (
        rect(x - 7, y - 7, w + 14, h + 14, "#e0a54e", 4, INK, 4)
        + rect(x, y, w, h, "#fdf1de", 2)
        + content
        + rect(x, y, w, h, "none", 2, INK, 2.4)
    )


def _hut(seed: int) -> str:
    rng = random.Random(seed + 41)
    logs = "".join(
        rect(-220, y, 1080, 38, "#a4503f" if i % 2 else "#ae5945", 10, "#6e2c30", 3)
        + path(f"M{rng.uniform(-180, 600):.0f} {y + 14}h{rng.uniform(40, 110):.0f}", "none", "#7d3535", 3, 'opacity="0.6"')
        for i, y in enumerate(range(-120, 290, 38))
    )
    sunset = (
        rect(60, 60, 92, 64, "#ffb48a")
        + ellipse(106, 108, 20, 20, "#fff0b0")
        + path("M60 112L92 88L112 108L134 92L152 112V124H60Z", "#7a6ab8")
    )
    whale = rect(186, 44, 80, 60, "#8fd4e8") + path(
        "M196 84q10 -26 40 -20q16 2 20 -12q8 14 -4 24q-8 16 -30 16q-20 0 -26 -8Z", "#34589c"
    )
    fish = rect(186, 132, 80, 48, "#b7e3c8") + path("M204 156q20 -18 40 0l14 -10v20l-14 -10q-20 18 -40 0Z", "#f2884b")
    window = (
        rect(462, 40, 128, 116, "#5b2430", 10, INK, 4)
        + rect(474, 52, 104, 92, "url(#dusk)")
        + path("M474 128L508 96L534 118L560 92L578 112V144H474Z", "#cfb2e6")
        + path("M526 52V144M474 98H578", "none", "#5b2430", 7)
        + rect(452, 154, 148, 14, "#d9814e", 5, INK, 3.6)
    )
    stove = (
        rect(650, 150, 110, 136, "#3a3558", 12, INK, 4.4)
        + rect(694, -120, 24, 272, "#4a4470", 2, INK, 4)
        + rect(670, 186, 70, 58, "#1d1836", 8)
        + path("M676 240q4 -34 18 -44q2 18 12 12q10 -14 8 -20q18 18 20 52Z", "#ff8a3a")
        + path("M688 240q4 -22 14 -26q8 4 16 -6q6 14 4 32Z", "#ffdf6a")
    )
    return (
        logs
        + rect(-220, 286, 1080, 220, "url(#boards)")
        + "".join(
            path(f"M{x} 290L{x * 1.5 - 160:.0f} 460", "none", "#5c3230", 2.6, 'opacity="0.6"') for x in range(-160, 860, 70)
        )
        + rect(-220, 278, 1080, 12, "#6e2c30", 0, INK, 3)
        + ellipse(705, 216, 190, 150, "url(#warm)")
        + _frame(60, 60, 92, 64, sunset)
        + _frame(186, 44, 80, 60, whale)
        + _frame(186, 132, 80, 48, fish)
        + window
        + stove
        + ellipse(330, 336, 230, 34, "#3c4fa0", INK, 4)
        + ellipse(330, 336, 180, 25, "none", "#ffd36a", 5)
        + ellipse(330, 336, 120, 16, "none", "#fff3dc", 4)
    )


def _empty_frame(seed: int) -> str:
    return _frame(
        320, 56, 104, 84, path("M346 112L366 88L378 102L392 82L404 112", "none", "#c9b79a", 3, 'stroke-dasharray="5 5"')
    )


def _dusk(seed: int) -> str:
    rng = random.Random(seed + 42)
    clouds = ""
    for _ in range(7):
        x, y, s = rng.uniform(-220, 900), rng.uniform(10, 120), rng.uniform(0.6, 1.3)
        clouds += group(
            path("M-80 0q6 -22 34 -18q14 -26 44 -12q30 -10 36 14q26 0 30 16Z", "#fff1e6"),
            f"translate({x:.0f} {y:.0f}) scale({s:.2f})",
            'opacity="0.7"',
        )
    return (
        rect(-500, -300, 1900, 900, "url(#dusk)")
        + ellipse(150, 150, 200, 200, "url(#warm)")
        + ellipse(150, 150, 46, 46, "#fff3c4")
        + clouds
    )


def _peaks(seed: int, far: bool) -> str:
    if far:
        spec = ((-180, 210), (20, 160), (240, 236), (470, 180), (700, 230), (930, 190))
        rock, snow, shade = "#b695d8", "#ffe6ea", "#9a7cc8"
    else:
        spec = ((-300, 150), (-60, 190), (180, 140), (430, 204), (660, 150), (900, 190))
        rock, snow, shade = "#8a74c4", "#fff4f2", "#6f5cb0"
    out = ""
    for x, h in spec:
        top = 300 - h
        out += path(polygon([(x - h * 0.95, 310), (x, top), (x + h * 0.95, 310)]), rock, INK if not far else None, 3)
        out += path(
            polygon([(x, top), (x + h * 0.95, 310), (x + h * 0.2, 310), (x - h * 0.06, top + h * 0.5)]),
            shade,
            extra='opacity="0.8"',
        )
        out += path(
            f"M{x} {top}L{x - h * 0.33:.0f} {top + h * 0.35:.0f}l{h * 0.12:.0f} {-h * 0.06:.0f}l{h * 0.1:.0f} "
            f"{h * 0.13:.0f}l{h * 0.13:.0f} {-h * 0.12:.0f}l{h * 0.12:.0f} {h * 0.1:.0f}l{h * 0.19:.0f} {-h * 0.05:.0f}Z",
            snow,
        )
    return out + rect(-500, 296, 1900, 60, snow if far else "#e9d8f5")


def _pine(x: float, base: float, h: float, dark: bool = False) -> str:
    leaf, light = ("#2c5f6e", "#3c7f88") if dark else ("#2f7f78", "#46a392")
    out = rect(x - h * 0.05, base - h * 0.16, h * 0.1, h * 0.18, "#7a4a44", 3, INK, 3)
    for w, y in ((0.34, 0.12), (0.27, 0.38), (0.19, 0.62)):
        top = base - h * (y + 0.4)
        out += path(
            f"M{x} {top:.0f}L{x - h * w:.0f} {base - h * y:.0f}Q{x} "
            f"{base - h * (y - 0.07):.0f} {x + h * w:.0f} {base - h * y:.0f}Z",
            leaf,
            INK,
            3.4,
        )
        out += path(
            f"M{x} {top + 4:.0f}L{x - h * w * 0.8:.0f} {base - h * (y + 0.03):.0f}Q{x - h * w * 0.3:.0f} "
            f"{base - h * (y + 0.02):.0f} {x} {base - h * (y + 0.1):.0f}Z",
            light,
        )
        out += path(
            f"M{x} {top:.0f}L{x - h * w * 0.42:.0f} {top + h * 0.17:.0f}q{h * 0.06:.0f} "
            f"{-h * 0.03:.0f} {h * w * 0.3:.0f} 2q{h * 0.05:.0f} {-h * 0.05:.0f} {h * w * 0.5:.0f} 0Z",
            "#fffafc",
            INK,
            2.4,
        )
    return out


def _forest(seed: int) -> str:
    rng = random.Random(seed + 43)
    xs = [-300, -220, -130, -60, 60, 470, 590, 660, 760, 850, 960]
    return "".join(_pine(x + rng.uniform(-14, 14), 296, rng.uniform(80, 132), True) for x in xs)


def _snowfield(seed: int) -> str:
    rng = random.Random(seed + 44)
    out = path("M-420 292Q-200 268 60 288Q300 300 520 280Q760 264 1160 296V520H-420Z", "url(#snow)", INK, 3.6)
    out += path("M-420 340Q-100 316 200 336Q500 352 1160 322V520H-420Z", "#e3cdf0", extra='opacity="0.55"')
    for _ in range(30):
        x, y = rng.uniform(-350, 1080), rng.uniform(300, 400)
        out += path(f"M{x:.0f} {y:.0f}q12 -5 24 0", "none", "#c5aede", 2.4)
    return out


def _big_pine(seed: int) -> str:
    return _pine(470, 318, 226)


def _bank(seed: int) -> str:
    return path("M-500 372Q-300 328 -60 356Q160 384 380 360Q620 336 1260 372V560H-500Z", "#fff8fb", INK, 4) + path(
        "M-420 366Q-250 346 -80 366M400 372Q620 350 820 362", "none", "#d9c0ea", 4
    )


def _crystal(x: float, base: float, h: float, lean: float, colour: str, light: str) -> str:
    w = h * 0.24
    tip = (x + lean, base - h)
    return path(
        polygon(
            [
                (x - w, base),
                (x - w * 0.8 + lean * 0.6, base - h * 0.68),
                tip,
                (x + w * 0.8 + lean * 0.6, base - h * 0.62),
                (x + w, base),
            ]
        ),
        colour,
        INK,
        3.6,
    ) + path(
        polygon(
            [
                (x - w, base),
                (x - w * 0.8 + lean * 0.6, base - h * 0.68),
                tip,
                (x - w * 0.1 + lean * 0.3, base - h * 0.5),
                (x - w * 0.1, base),
            ]
        ),
        light,
    )


def _cave(seed: int) -> str:
    rng = random.Random(seed + 45)
    out = rect(-320, -160, 1280, 560, "url(#cavewall)")
    out += path("M-320 -160H40Q-10 40 -60 120Q-100 210 -90 300H-320Z", "url(#mouth)")
    out += path("M-60 -160L40 -160L330 330H-40Z", "url(#shaft)")
    for _ in range(14):
        x, y, s = rng.uniform(60, 880), rng.uniform(-60, 220), rng.uniform(20, 56)
        out += path(
            polygon([(x, y), (x + s, y - s * 0.4), (x + s * 1.4, y + s * 0.5), (x + s * 0.4, y + s * 0.8)]),
            "#ffffff",
            extra='opacity="0.05"',
        )
    for x, y, s in ((150, 120, 150), (420, 90, 190), (660, 150, 160), (300, 210, 120), (560, 230, 110)):
        out += path(
            polygon([(x - s, y), (x - s * 0.3, y - s * 0.7), (x + s * 0.6, y - s * 0.4), (x + s * 0.2, y + s * 0.4)]),
            "#8fd0ff",
            extra='opacity="0.1"',
        )
        out += path(
            polygon([(x + s * 0.6, y - s * 0.4), (x + s * 0.9, y + s * 0.2), (x + s * 0.2, y + s * 0.4)]),
            "#0f1850",
            extra='opacity="0.18"',
        )
    for x in range(-20, 960, 62):
        h = 60 + 100 * rng.random()
        out += path(
            polygon([(x - 20, -160), (x + rng.uniform(-5, 5), -20 + h), (x + 22, -160)]), "#8fd0f0", INK, 3, 'opacity="0.85"'
        )
    for x, h, lean, c, light in (
        (236, 40, 8, "#5a7fe0", "#9cc4ff"),
        (330, 62, -8, "#3fb8d8", "#a0f0ff"),
        (368, 42, 10, "#7a6ae0", "#b6a8ff"),
        (700, 60, 12, "#5a7fe0", "#9cc4ff"),
        (90, 96, -18, "#5a7fe0", "#9cc4ff"),
        (140, 66, 12, "#7a6ae0", "#b6a8ff"),
        (560, 130, 16, "#3fb8d8", "#a0f0ff"),
        (612, 84, 26, "#7a6ae0", "#b6a8ff"),
        (516, 70, -16, "#5a7fe0", "#9cc4ff"),
        (800, 120, -10, "#3fb8d8", "#a0f0ff"),
    ):
        out += ellipse(x, 280 - h * 0.5, h, h * 0.8, "url(#crystalglow)") + _crystal(x, 292, h, lean, c, light)
    return out


def _cave_floor(seed: int) -> str:
    return path("M-320 286Q-60 270 180 290Q420 302 960 280V520H-320Z", "url(#icefloor)", INK, 4) + path(
        "M40 330q80 -10 170 0M330 352q90 -12 190 0M480 318q50 -6 120 0M-120 350q60 -8 120 0",
        "none",
        "#ffffff",
        4,
        'opacity="0.5"',
    )


def _cave_front(seed: int) -> str:
    return (
        _crystal(-40, 430, 150, -26, "#2f3f94", "#4a62c4")
        + _crystal(20, 430, 90, 16, "#3a3488", "#5a52b4")
        + _crystal(690, 430, 160, 24, "#2f3f94", "#4a62c4")
        + _crystal(630, 430, 84, -12, "#3a3488", "#5a52b4")
    )


DEFS = (
    linear("boards", "#a8664a", "#6b3c38")
    + linear("dusk", "#8f7fe0", "#f29ab4", "#ffc39a", "#ffe6b8")
    + radial("warm", "#ffe6a0/0.75", "#ffc070/0.2", "#ffc070/0", r=0.5)
    + linear("snow", "#fffafa", "#f3e2f5", "#d9c2ec")
    + linear("cavewall", "#1c2260", "#2c4a9a", "#3a7cc0")
    + linear("mouth", "#ffd9b0", "#ffb8b0", "#e8a8d0")
    + linear("shaft", "#fff0d0/0.4", "#fff0d0/0")
    + linear("icefloor", "#b8ecff", "#78bdea", "#3f74bc")
    + radial("crystalglow", "#9ff0ff/0.5", "#9ff0ff/0", r=0.5)
)

HUT = Scene(
    "hut",
    "A red log hut with framed photographs on the wall, a window on "
    "the mountains, a blue rug and a black stove; warm firelight.",
    (Layer(_hut, (-220, -120, 860, 460), 0, scale=1.6), Layer(_empty_frame, (306, 42, 438, 154), 1, scale=2.2)),
    air=("motes",),
    shade="#2c1020",
    tint=(1.0, 0.97, 0.94),
    defs=DEFS,
)
SLOPE = Scene(
    "slope",
    "A snowy mountain slope at dusk with violet peaks, teal pines and pink clouds; drifting flakes and low peach-coloured sun.",
    (
        Layer(_dusk, (-420, -220, 1120, 480), 0, 0.06, 0.8),
        Layer(lambda s: _peaks(s, True), (-420, 40, 1120, 356), 1, 0.16, 1.0),
        Layer(lambda s: _peaks(s, False), (-480, 80, 1160, 356), 2, 0.35, 1.0),
        Layer(_forest, (-380, 130, 1060, 310), 3, 0.7, 1.2),
        Layer(_snowfield, (-420, 260, 1160, 500), 4, 1.0, 1.2),
        Layer(_big_pine, (370, 80, 570, 330), 9, 1.0, 1.8),
        Layer(_bank, (-500, 330, 1260, 480), 22, 1.25, 1.0),
    ),
    air=("snow",),
    tint=(1.0, 0.95, 0.97),
    shade="#6a4a9c",
    defs=DEFS,
)
CAVE = Scene(
    "cave",
    "A cave of blue ice with glowing cyan and violet crystals, icicles "
    "overhead and a peach shaft of light from the mouth on the left.",
    (
        Layer(_cave, (-320, -160, 900, 400), 0, 0.9, 1.3),
        Layer(_cave_floor, (-320, 266, 900, 500), 2, 1.0, 1.2),
        Layer(_cave_front, (-110, 250, 760, 440), 22, 1.25, 1.2),
    ),
    tint=(0.87, 0.93, 1.0),
    shade="#1c3a80",
    defs=DEFS,
)
SCENES = (HUT, SLOPE, CAVE)
