"""Places of "The Paper Boat": an attic, a street in the rain, a pond in a storm, the same pond in the evening sun."""

from __future__ import annotations

import random

from ...storyboard import Layer, Scene
from ...svg import ellipse, group, linear, path, polygon, radial, rect


def _attic(seed: int) -> str:
    rng = random.Random(seed)
    planks = "".join(path(f"M{x} -100V330", "none", "#c98b5c", 2, 'opacity="0.5"') for x in range(-160, 820, 58))
    drops = "".join(
        path(
            f"M{rng.uniform(345, 535):.0f} {rng.uniform(40, 190):.0f}l-3 {rng.uniform(8, 18):.0f}",
            "none",
            "#dceefb",
            2.2,
            'opacity="0.75"',
        )
        for _ in range(34)
    )
    colours = ("#c8553d", "#f2c14e", "#588b8b", "#8f5d8c", "#e08e45", "#4a6fa5")
    books, x = "", -6.0
    while x < 120:
        w, h = rng.uniform(9, 17), rng.uniform(34, 52)
        books += rect(x, 116 - h, w, h, rng.choice(colours), 2)
        x += w + 1.5
    return (
        rect(-200, -120, 1060, 480, "url(#wall)")
        + planks
        + rect(-200, 286, 1060, 200, "url(#floor)")
        + "".join(path(f"M-200 {y}H860", "none", "#7d4a35", 2, 'opacity="0.5"') for y in (308, 336, 372))
        + path("M-200 -120L-40 -120L-170 300H-200ZM700 -120H860V300H832Z", "#8f5740")
        + rect(-200, 276, 1060, 12, "#8f5740")
        + ellipse(440, 116, 122, 122, "#7d4a35")
        + ellipse(440, 116, 108, 108, "url(#pane)")
        + path(
            "M340 178Q372 132 404 168Q424 120 462 160Q500 128 542 172L530 200Q440 240 348 196Z",
            "#6f8fa6",
            extra='opacity="0.7"',
        )
        + drops
        + path("M440 8V224M332 116H548", "none", "#7d4a35", 8)
        + path("M360 66Q390 30 420 22L398 100H346Q348 80 360 66Z", "#ffffff", extra='opacity="0.16"')
        + rect(322, 226, 236, 16, "#a86a48", 5)
        + rect(-20, 116, 156, 10, "#7d4a35", 3)
        + books
        + rect(-20, 196, 156, 10, "#7d4a35", 3)
        + ellipse(24, 178, 20, 18, "#6aa4a0")
        + path("M24 162Q8 130 -2 140M24 162Q24 128 34 122M24 162Q46 140 54 146", "none", "#5d8f4e", 6)
        + rect(70, 160, 44, 36, "#e3b37a", 4)
        + path("M70 178H114", "none", "#b9814c", 3)
        + ellipse(170, 40, 150, 150, "url(#lamp)")
        + path("M170 -120V14", "none", "#5d3a2c", 4)
        + path("M138 44Q142 8 170 8Q198 8 202 44Z", "#e8664a")
        + ellipse(170, 46, 22, 7, "#fff3b0")
        + ellipse(350, 330, 300, 42, "#b8543e")
        + ellipse(350, 330, 250, 33, "none", "#f0b87a", 4)
    )


def _table(seed: int) -> str:
    return (
        path("M150 306H560L600 346H110Z", "#c9834f")
        + path("M150 306H560L566 312H144Z", "#e0a06c")
        + rect(110, 344, 490, 120, "#9c5f3c")
        + path("M330 312l74 -8l22 18l-78 10Z", "#fffdf4")
        + path("M470 316l40 4M478 324l22 3", "none", "#e8664a", 5)
    )


def _house(x: float, base: float, w: float, h: float, wall: str, roof: str, rng: random.Random) -> str:
    top = base - h
    lean = rng.uniform(-6, 6)
    out = path(polygon([(x, base), (x + lean, top), (x + w + lean, top), (x + w, base)]), wall)
    out += path(
        polygon([(x + w * 0.62, base), (x + w * 0.62 + lean, top), (x + w + lean, top), (x + w, base)]),
        "#22324a",
        extra='opacity="0.1"',
    )
    out += path(f"M{x - 12 + lean} {top + 4}L{x + w * 0.5 + lean * 2} {top - h * 0.42}L{x + w + 12 + lean} {top + 4}Z", roof)
    out += rect(x + w * 0.68 + lean, top - h * 0.36, w * 0.12, h * 0.26, "#7a5a55")
    for row in range(max(1, int(h // 62))):
        for column in range(2):
            lit = rng.random() < 0.55
            wx, wy = x + w * (0.18 + 0.4 * column) + lean * 0.7, top + 20 + row * 58
            out += rect(wx - 3, wy - 3, w * 0.24 + 6, 38, "#fff4e2", 4, extra='opacity="0.55"')
            out += rect(wx, wy, w * 0.24, 32, "#ffdf8a" if lit else "#567089", 3)
            out += path(f"M{wx + w * 0.12:.1f} {wy}v32M{wx} {wy + 15}h{w * 0.24:.1f}", "none", "#5a4a50", 2)
    return out


def _far_houses(seed: int) -> str:
    rng = random.Random(seed + 1)
    out, x = "", -260.0
    while x < 1300:
        w = rng.uniform(70, 120)
        out += _house(x, 280, w, rng.uniform(110, 190), rng.choice(("#8fa6b8", "#9cb0bb", "#a3a9bd")), "#77899f", rng)
        x += w - 2
    return out + rect(-300, 200, 1700, 110, "url(#mist)")


def _near_houses(seed: int) -> str:
    rng = random.Random(seed + 2)
    walls = ("#e9b98f", "#d98c7a", "#9fc2a6", "#e8d3a2", "#b79ac0")
    roofs = ("#a84d44", "#5d6f8f", "#8a5470", "#4f7a78")
    out, x, i = "", -300.0, 0
    while x < 1700:
        w = rng.uniform(118, 165)
        out += _house(x, 268, w, rng.uniform(132, 196), walls[i % 5], roofs[i % 4], rng)
        if i % 2:
            dx = x + w * 0.5
            out += path(f"M{dx:.0f} 268v-44q16 -20 32 0v44Z", "#6b4638") + ellipse(dx + 26, 246, 2.5, 2.5, "#f6d88a")
        x += w + (36 if i % 3 == 2 else 0)
        i += 1
    return out


def _street(seed: int) -> str:
    rng = random.Random(seed + 3)
    stones = "".join(
        ellipse(rng.uniform(-300, 1700), y, 15, 4, "#ffffff", extra=f'opacity="{rng.uniform(0.05, 0.14):.2f}"')
        for y in (276, 284, 293, 303)
        for _ in range(46)
    )
    puddles = "".join(ellipse(x, 297, 58, 7, "#a9c9de", extra='opacity="0.65"') for x in (60, 420, 830, 1240, 1560))
    waves = "".join(
        path(f"M{x} {y}q14 -5 28 0t28 0", "none", "#d9f0f7", 2.4, 'opacity="0.7"')
        for y in (330, 342, 354)
        for x in range(-300 + y % 40, 1700, 84)
    )
    return (
        rect(-300, 262, 2000, 52, "url(#cobble)")
        + stones
        + puddles
        + rect(-300, 312, 2000, 10, "#8b8e9c")
        + rect(-300, 312, 2000, 3, "#c4c9d4")
        + rect(-300, 321, 2000, 90, "url(#gutter)")
        + waves
    )


def _lamp_posts(seed: int) -> str:
    post = (
        ellipse(0, 60, 120, 120, "url(#lamp)")
        + rect(-5, 70, 10, 320, "#33424f", 4)
        + path("M-18 70H18L24 36H-24Z", "#ffe9a0")
        + path("M-28 38Q0 8 28 38ZM-20 70H20V78H-20Z", "#33424f")
        + rect(-12, 300, 24, 90, "#33424f", 4)
    )
    return "".join(group(post, f"translate({x} 0)") for x in (-150, 560, 1300))


def _sky(top: str, seed: int, cloud: str, opacity: float) -> str:
    rng = random.Random(seed + 4)
    out = rect(-500, -300, 1900, 900, f"url(#{top})")
    for _ in range(9):
        x, y, s = rng.uniform(-250, 950), rng.uniform(-30, 130), rng.uniform(0.7, 1.5)
        puff = ellipse(0, 0, 86, 22, cloud) + ellipse(-30, -14, 40, 22, cloud) + ellipse(22, -20, 46, 28, cloud)
        out += group(puff, f"translate({x:.0f} {y:.0f}) scale({s:.2f})", f'opacity="{opacity}"')
    return out


def _hills(colours: tuple[str, str, str], seed: int) -> str:
    rng = random.Random(seed + 5)
    a, b, tree = colours
    out = path("M-400 240Q-200 120 0 190Q160 90 340 180Q520 110 700 185Q860 120 1100 240V330H-400Z", a)
    out += path("M-400 250Q-220 190 -60 226Q160 170 380 224Q600 176 1100 250V330H-400Z", b)
    for _ in range(26):
        x, h = rng.uniform(-300, 1000), rng.uniform(30, 62)
        out += ellipse(x, 236 - h * 0.5, h * 0.36, h * 0.52, tree) + rect(x - 2, 236 - h * 0.3, 4, h * 0.4, "#4a3b3a")
    return out


def _water(gradient: str, shine: str, seed: int) -> str:
    rng = random.Random(seed + 6)
    out = rect(-400, 226, 1600, 360, f"url(#{gradient})")
    for _ in range(60):
        x, y = rng.uniform(-350, 1100), rng.uniform(234, 430)
        w = 12 + (y - 226) * 0.22
        out += path(f"M{x:.0f} {y:.0f}q{w / 2:.0f} -4 {w:.0f} 0t{w:.0f} 0", "none", shine, 2.2, 'opacity="0.4"')
    return out


def _lily(x: float, y: float, r: float, flower: bool, colour: str) -> str:
    pad = ellipse(x, y + 4, r, r * 0.3, "#173d3a", extra='opacity="0.35"')
    pad += path(f"M{x} {y}L{x + r} {y - r * 0.1:.1f}A{r} {r * 0.3:.1f} 0 1 1 {x + r * 0.85:.1f} {y - r * 0.17:.1f}Z", colour)
    pad += path(
        f"M{x} {y}L{x - r * 0.7:.1f} {y - 3}M{x} {y}L{x - r * 0.2:.1f} {y + r * 0.22:.1f}",
        "none",
        "#ffffff",
        1.6,
        'opacity="0.3"',
    )
    if flower:
        for k in (-1, -0.5, 0, 0.5, 1):
            pad += ellipse(
                0, -9, 5, 11, "#f7a8c4", extra=f'transform="translate({x - r * 0.4:.1f} {y - 2:.1f}) rotate({k * 48})"'
            )
        pad += ellipse(x - r * 0.4, y - 5, 5, 4, "#ffe27a")
    return pad


def _pads(colour: str) -> str:
    spots = (
        (60, 268, 40, True),
        (250, 250, 28, False),
        (470, 262, 62, False),
        (640, 300, 46, True),
        (150, 330, 54, False),
        (820, 264, 40, True),
        (-90, 300, 48, False),
    )
    return "".join(_lily(x, y, r, f, colour) for x, y, r, f in spots)


def _shore(colour: str, edge: str, flowers: bool, seed: int) -> str:
    rng = random.Random(seed + 7)
    out = path("M-420 280Q-200 268 -60 282Q40 292 90 318Q60 344 -60 372L-60 560H-420Z", edge)
    out += path("M-420 272Q-200 260 -60 274Q30 284 76 308Q40 332 -80 356L-80 560H-420Z", colour)
    for _ in range(30):
        x, y = rng.uniform(-330, 20), rng.uniform(284, 340)
        out += path(f"M{x:.0f} {y:.0f}q-3 -9 -6 -11M{x:.0f} {y:.0f}q1 -10 3 -13", "none", edge, 2)
        if flowers and rng.random() < 0.5:
            out += ellipse(x + 8, y - 8, 4, 4, rng.choice(("#ff8fa3", "#fff3b0", "#c9a0ff"))) + ellipse(
                x + 8, y - 8, 1.6, 1.6, "#f2a33a"
            )
    return out


def _reeds(stem: str, head: str, seed: int) -> str:
    rng = random.Random(seed + 8)
    out = ""
    for base in (-300, 690, 790, 930):
        for _ in range(8):
            x, h = base + rng.uniform(-46, 46), rng.uniform(90, 180)
            tip = x + rng.uniform(-18, 18)
            out += path(f"M{x:.0f} 440Q{x:.0f} {420 - h * 0.6:.0f} {tip:.0f} {420 - h:.0f}", "none", stem, 5)
            if rng.random() < 0.5:
                out += ellipse(tip, 420 - h, 6, 19, head)
            else:
                out += path(
                    f"M{x:.0f} 440Q{x + 22:.0f} {400 - h * 0.4:.0f} {tip + 36:.0f} {430 - h * 0.7:.0f}", "none", stem, 4
                )
    return out


def _rainbow(seed: int) -> str:
    out = ellipse(560, 20, 170, 170, "url(#sun)") + ellipse(560, 20, 42, 42, "#fff6cf")
    for i, colour in enumerate(("#f2616b", "#f79a4e", "#fbd95b", "#7fcf7a", "#5fb4e0", "#9a86dc")):
        r = 300 - 13 * i
        out += path(f"M{240 - r} 250A{r} {r} 0 0 1 {240 + r} 250", "none", colour, 13.5, 'opacity="0.62"')
    return out


DEFS = (
    linear("wall", "#eebb88", "#dd9a6a")
    + linear("floor", "#b4704c", "#7d4630")
    + linear("pane", "#7d9db8", "#b6cedb")
    + radial("lamp", "#fff0b8/0.75", "#ffdf80/0.2", "#ffdf80/0", r=0.5)
    + linear("rainsky", "#64788f", "#93a7b6", "#b9c6cc")
    + linear("mist", "#b9c6cc/0", "#b9c6cc/0.85")
    + linear("cobble", "#7d8496", "#9aa0ae")
    + linear("gutter", "#4f93ae", "#2f6a8c")
    + linear("stormsky", "#27364a", "#41566a", "#64787f")
    + linear("stormwater", "#54747d", "#2f505f", "#1f3a4c")
    + linear("goldsky", "#5fb8e8", "#a8dcec", "#ffeab8", "#ffd594")
    + linear("goldwater", "#ffe2a0", "#74cbd0", "#3a9cb8", "#2a7fa5")
    + radial("sun", "#fff6c8/0.95", "#ffe59a/0.4", "#ffe59a/0", r=0.5)
)
WIDE = (-420.0, -220.0, 1120.0, 480.0)

ATTIC = Scene(
    "attic",
    "A cosy attic room with terracotta planks, a shelf of books and "
    "a round window; warm lamp light inside, blue-grey rain outside.",
    (
        Layer(_attic, (-200, -120, 860, 460), 0, scale=1.6),
        Layer(_table, (100, 296, 610, 460), 20, 1.08, scale=1.6, near=True),
    ),
    air=("motes",),
    shade="#4a2018",
    defs=DEFS,
)
STREET = Scene(
    "street",
    "A crooked village street in steady rain: pastel houses with lit "
    "windows, wet cobbles and a blue gutter stream; soft grey light.",
    (
        Layer(lambda s: _sky("rainsky", s, "#c9d3da", 0.35), (-420, -260, 1060, 420), 0, 0.08, 0.8),
        Layer(_far_houses, (-280, -20, 1300, 312), 1, 0.4, 1.0),
        Layer(_near_houses, (-300, -20, 1700, 270), 2, 0.88, 1.25),
        Layer(_street, (-300, 262, 1700, 410), 3, 1.0, 1.25),
        Layer(_lamp_posts, (-290, -70, 1440, 400), 22, 1.25, 0.9),
    ),
    tint=(0.94, 0.97, 1.0),
    air=("rain",),
    shade="#28304a",
    defs=DEFS,
)
POND = Scene(
    "pond",
    "A lily pond under a storm: slate-blue clouds, dark hills, teal water pocked with rain, reeds in front; cold dim light.",
    (
        Layer(lambda s: _sky("stormsky", s, "#1f2c3d", 0.5), WIDE, 0, 0.08, 0.8),
        Layer(lambda s: _hills(("#33495a", "#2a4450", "#21424a"), s), (-400, 60, 1100, 330), 1, 0.35, 1.0),
        Layer(lambda s: _water("stormwater", "#a9c9d0", s), (-400, 226, 1200, 480), 2, 1.0, 1.0, (5, 0, 3.0)),
        Layer(lambda s: _pads("#3f8f5c"), (-150, 220, 880, 360), 3, 1.0, 1.5, (3, 2, 3.0)),
        Layer(lambda s: _shore("#4d6a4c", "#2f4a3e", False, s), (-420, 250, 110, 480), 4, 1.0, 1.25),
        Layer(lambda s: _reeds("#2c4a3f", "#5b4232", s), (-330, 210, 1010, 440), 22, 1.2, 0.9, (4, 0, 2.0)),
    ),
    tint=(0.84, 0.9, 0.98),
    air=("rain",),
    shade="#10222c",
    defs=DEFS,
)
EVENING = Scene(
    "evening",
    "The lily pond after the storm: golden evening sun, a wide "
    "rainbow, turquoise water with bright lilies and a flowering bank.",
    (
        Layer(lambda s: _sky("goldsky", s, "#ffffff", 0.75), WIDE, 0, 0.08, 0.8),
        Layer(_rainbow, (-80, -160, 740, 260), 0.5, 0.16, 0.9),
        Layer(lambda s: _hills(("#9ccf9a", "#79bd83", "#5aa36a"), s), (-400, 60, 1100, 330), 1, 0.35, 1.0),
        Layer(lambda s: _water("goldwater", "#fffbe0", s), (-400, 226, 1200, 480), 2, 1.0, 1.0, (5, 0, 3.0)),
        Layer(lambda s: _pads("#6cc46a"), (-150, 220, 880, 360), 3, 1.0, 1.5, (3, 2, 3.0)),
        Layer(lambda s: _shore("#8fcf6a", "#5da24e", True, s), (-420, 250, 110, 480), 4, 1.0, 1.25),
        Layer(lambda s: _reeds("#5c9c4c", "#a8693c", s), (-330, 210, 1010, 440), 22, 1.2, 0.9, (4, 0, 3.0)),
    ),
    tint=(1.0, 0.98, 0.93),
    air=("motes",),
    shade="#2a5a52",
    defs=DEFS,
)
SCENES = (ATTIC, STREET, POND, EVENING)
