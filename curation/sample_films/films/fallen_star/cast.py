"""Bolt the robot, Nova the star and Inky the cat: no outlines, only gradients, rims of light and glow."""

from __future__ import annotations

import math

from ...rig import Pose, Rig, foot, staged
from ...svg import blob, ellipse, group, limb, linear, path, polar, radial, rect, turn

SCREEN = [(-36.0, -119.0), (-27, -143), (3, -149), (33, -143), (42, -119), (33, -95), (3, -89), (-27, -95)]


def _screen_eyes(p: Pose) -> str:
    """Two glowing eyes on Bolt's screen face; lids and brows shape them."""
    out = []
    dx, dy = 7 * p.look_x, 6 * p.look_y
    for side in (-1, 1):
        x, y = 3 + side * 17 + dx, -122 + dy
        if p.lids > 0.75:
            out.append(path(f"M{x - 9:.1f} {y:.1f}Q{x:.1f} {y + 5:.1f} {x + 9:.1f} {y:.1f}", "none", "#7df6ff", 4))
            continue
        if p.mouth > 0.85 and p.wide < 0.2:  # happy arcs
            out.append(path(f"M{x - 9:.1f} {y + 4:.1f}Q{x:.1f} {y - 13:.1f} {x + 9:.1f} {y + 4:.1f}", "none", "#7df6ff", 6))
            continue
        ry = 12 * (1 + 0.25 * p.wide) * (1 - 0.6 * p.lids)
        out.append(ellipse(x, y, 16, ry + 7, "url(#eyeglow)"))
        out.append(ellipse(x, y, 8.5 * (1 + 0.15 * p.wide), ry, "#7df6ff"))
        out.append(ellipse(x + 2.5, y - ry * 0.4, 2.8, ry * 0.25, "#ffffff"))
        if abs(p.brow) > 0.2:
            tilt = -6 * p.brow * side
            d = (
                f"M{x - 12:.1f} {y - ry - 1 - tilt:.1f}L{x + 12:.1f} "
                f"{y - ry - 1 + tilt:.1f}L{x + 12:.1f} {y - ry - 9:.1f}H{x - 12:.1f}Z"
            )
            out.append(path(d, "#16233f"))
    bend = 6 * p.mouth
    x, y = 3 + dx * 0.7, -103 + dy * 0.5
    if p.gape > 0.15:
        out.append(ellipse(x, y + 2, 5 + 3 * p.gape, 3 + 6 * p.gape, "#7df6ff"))
    else:
        out.append(
            path(
                f"M{x - 9:.1f} {y - bend * 0.3:.1f}Q{x:.1f} {y + bend:.1f} {x + 9:.1f} {y - bend * 0.3:.1f}",
                "none",
                "#7df6ff",
                3.4,
            )
        )
    return "".join(out)


def _bolt_arm(side: int, degrees: float) -> str:
    start = (side * 33, -72)
    hand = polar(*start, 36, degrees * side)
    claw = ellipse(*hand, 10, 10, "url(#amber)") + ellipse(hand[0] - 2, hand[1] - 3, 4, 3, "#ffe9ad", extra='opacity="0.7"')
    return path(limb(start, hand, -7 * side, 6.5, 5.5), "#2c8f93") + ellipse(*start, 9, 9, "#1f6f78") + claw


def draw_bolt(p: Pose) -> str:
    """A round-headed teal robot with a screen face, a red antenna bulb and amber hands."""
    legs = []
    for side in (-1, 1):
        forward, up = foot(p, side, 15, 10)
        x, y = side * 15 + forward, -6 - up
        legs.append(path(limb((side * 14, -34), (x, y - 4), 2, 6, 6), "#2c8f93"))
        legs.append(path(f"M{x - 13:.1f} {y + 6:.1f}q0 -16 14 -16q16 0 17 16Z", "url(#amber)"))
    bend = 10 * p.sway
    bulb = (2 + bend, -186 + abs(bend) * 0.25)
    antenna = path(f"M2 -158Q2 -172 {bulb[0]:.1f} {bulb[1]:.1f}", "none", "#1f6f78", 4)
    head = [
        antenna,
        ellipse(*bulb, 20, 20, "url(#redglow)"),
        ellipse(*bulb, 8, 8, "#ff4d57"),
        ellipse(bulb[0] - 2.5, bulb[1] - 3, 2.6, 2, "#ffd0d0"),
        ellipse(-46, -120, 9, 15, "#1f6f78"),
        ellipse(48, -120, 9, 15, "#1f6f78"),
        path(
            blob([(-46, -120), (-34, -154), (1, -163), (36, -154), (48, -120), (36, -88), (1, -80), (-34, -88)]), "url(#shell)"
        ),
        path(blob([(-33, -146), (0, -158), (34, -148), (20, -152), (0, -154), (-20, -150)]), "#d8fff4", extra='opacity="0.55"'),
        path(blob(SCREEN), "#16233f"),
        group(_screen_eyes(p), extra='clip-path="url(#face)"'),
        path("M-24 -138Q-12 -146 2 -146Q-16 -138 -26 -124Z", "#ffffff", extra='opacity="0.13"'),
    ]
    parts = [
        _bolt_arm(-1, p.arm_l),
        *legs,
        path(blob([(-36, -54), (-30, -84), (0, -92), (30, -84), (36, -54), (24, -26), (-24, -26)]), "url(#shell)"),
        path(blob([(20, -84), (34, -56), (24, -29), (29, -54)]), "#8ff5e0", extra='opacity="0.6"'),
        ellipse(2, -55, 14, 14, "#14505c"),
        ellipse(2, -55, 10.5, 10.5, "url(#dial)"),
        path("M2 -55L8 -61", "none", "#14505c", 2.4),
        path("M-27 -84Q0 -72 29 -84L29 -76Q0 -63 -29 -76Z", "url(#amber)"),
        turn(head, p.tilt, 0, -84),
        _bolt_arm(1, p.arm_r),
    ]
    return staged("".join(parts), p)


def draw_nova(p: Pose) -> str:
    """A plump five-pointed star; its light follows the pose's glow."""
    bright = min(max(p.glow, 0.0), 1.0)
    points = []
    for i in range(10):
        radius = (52 if i % 2 == 0 else 33) * (1 + 0.04 * math.sin(i * 2 + 3 * p.sway))
        points.append(polar(0, -50, radius, 180 + 36 * i + 4 * p.sway))
    halo = ellipse(0, -50, 98, 98, "url(#halo)", extra=f'opacity="{bright * 0.95:.2f}"')
    dim = path(blob(points, tension=1.25), "#7f86b8", extra=f'opacity="{(1 - bright) * 0.9:.2f}"')
    eyes = []
    for side in (-1, 1):
        x, y = side * 14 + 4 * p.look_x, -54 + 3 * p.look_y
        if p.lids > 0.75 or (p.mouth > 0.9 and p.wide < 0.2):
            up = 7 if p.lids <= 0.75 else -5
            eyes.append(
                path(
                    f"M{x - 6:.1f} {y + up * 0.4:.1f}Q{x:.1f} {y - up:.1f} {x + 6:.1f} {y + up * 0.4:.1f}",
                    "none",
                    "#53264a",
                    3.2,
                )
            )
        else:
            ry = 8.5 * (1 + 0.2 * p.wide) * (1 - 0.55 * p.lids)
            eyes.append(ellipse(x, y, 6, ry, "#53264a") + ellipse(x + 1.8, y - ry * 0.4, 2.1, ry * 0.3, "#ffffff"))
    bend = 7 * p.mouth
    smile = (
        path(f"M-8 {-40 - bend * 0.3:.1f}Q0 {-40 + bend:.1f} 8 {-40 - bend * 0.3:.1f}", "none", "#53264a", 2.8)
        if p.gape < 0.15
        else path(
            f"M-8 -42Q0 -40 8 -42Q7 {-36 + 10 * p.gape:.1f} 0 {-35 + 10 * p.gape:.1f}Q-7 {-36 + 10 * p.gape:.1f} -8 -42Z",
            "#8c2f55",
        )
    )
    parts = [
        halo,
        path(blob(points, tension=1.25), "url(#star)"),
        dim,
        ellipse(-14, -70, 9, 5, "#ffffff", extra=f'opacity="{0.15 + 0.45 * bright:.2f}" transform="rotate(-38 -14 -70)"'),
        ellipse(-26, -43, 6.5, 4.5, "#ff7fa0", extra='opacity="0.75"'),
        ellipse(27, -43, 6.5, 4.5, "#ff7fa0", extra='opacity="0.75"'),
        *eyes,
        smile,
    ]
    if p.prop == "tear":
        parts.append(path("M20 -46q-5 9 0 12q6 -2 0 -12Z", "#a8e6ff"))
    return staged(group(parts, "translate(0 7)"), p)


def draw_inky(p: Pose) -> str:
    """A violet cat with green eyes and an orange collar; sits, and walks with a high tail."""
    wave = p.sway
    tail = [(-26, -14), (-52, -16), (-62 - 4 * wave, -42), (-54 - 12 * wave, -70), (-44 - 16 * wave, -82)]
    legs = []
    for side in (-1, 1):
        forward, up = foot(p, side, 11, 8)
        legs.append(ellipse(6 + side * 11 + forward, -6 - up, 10, 7, "#6a3aa8"))
    ears = path("M-30 -92L-34 -122Q-18 -118 -8 -104Z", "url(#cat)") + path("M-27 -98L-29 -114Q-20 -111 -15 -104Z", "#f2a0c8")
    eyes = []
    for side in (-1, 1):
        x, y = 5 + side * 14, -82
        if p.lids > 0.75 or (p.mouth > 0.9 and p.wide < 0.2):
            eyes.append(path(f"M{x - 7:.1f} {y:.1f}Q{x:.1f} {y + 5:.1f} {x + 7:.1f} {y:.1f}", "none", "#d9ff9a", 3))
            continue
        ry = 9 * (1 + 0.25 * p.wide) * (1 - 0.6 * p.lids)
        eyes.append(ellipse(x, y, 8, ry, "#c8f562"))
        eyes.append(ellipse(x + 4 * p.look_x, y + 3 * p.look_y, 2.8 + 2 * p.wide, ry * 0.8, "#2a1440"))
        eyes.append(ellipse(x + 4 * p.look_x + 1.5, y - ry * 0.35, 1.6, 1.8, "#ffffff"))
    whisk = "M-16 -70L-38 -74M-16 -66L-37 -64M28 -70L50 -74M28 -66L49 -64"
    opening = 3 + 9 * p.gape
    head = [
        ears,
        group(ears, "translate(10 0) scale(-1 1)"),
        path(blob([(-32, -80), (-24, -104), (5, -110), (34, -104), (42, -80), (28, -58), (5, -54), (-18, -58)]), "url(#cat)"),
        *eyes,
        path("M1 -72H9L5 -67Z", "#ff9ec4"),
        path(
            f"M-3 -64Q1 -61 5 -65Q9 -61 13 -64M5 -65Q{5 - opening:.1f} {-62 + opening:.1f} "
            f"5 {-62 + opening:.1f}Q{5 + opening:.1f} {-62 + opening:.1f} 5 -65Z",
            "#8c2f55" if p.gape > 0.1 else "none",
            "#38195c",
            2,
        ),
        path(whisk, "none", "#cdb4f0", 1.4),
    ]
    parts = [
        path(blob(tail, closed=False), "none", "#5b2f96", 11),
        path(blob([(-28, -16), (-20, -46), (4, -62), (24, -46), (28, -16), (14, -2), (-18, -2)]), "url(#cat)"),
        *legs,
        path("M-15 -56Q5 -46 26 -56L25 -50Q5 -40 -14 -50Z", "#ff9a3c"),
        ellipse(6, -44, 5, 5, "#ffe27a"),
        turn(head, p.tilt, 4, -58),
    ]
    return staged("".join(parts), p)


def draw_pad(p: Pose) -> str:
    """A launching pad: a coiled spring under a cushion; squash compresses the coil."""
    height = 46 * (1 - p.glow * 0.6)
    coil = "".join(
        path(
            f"M-20 {-8 - height * i / 4:.1f}Q0 {-2 - height * i / 4:.1f} 20 {-8 - height * (i + 0.5) / 4:.1f}",
            "none",
            "#b9c4e6",
            5,
        )
        for i in range(4)
    )
    return (
        rect(-34, -10, 68, 12, "#6d4b8f", 5)
        + coil
        + path(f"M-38 {-10 - height:.1f}q0 -14 38 -14q38 0 38 14q-38 10 -76 0Z", "url(#amber)")
    )


def draw_glow(p: Pose) -> str:
    """A disc of light."""
    return ellipse(0, 0, 60, 60, "url(#halo)", extra=f'opacity="{min(p.glow, 1):.2f}"')


def draw_streak(p: Pose) -> str:
    """A shooting star with its tail, flying down to the left."""
    return (
        path("M0 0L190 -150L196 -140Z", "url(#tail)") + ellipse(0, 0, 34, 34, "url(#halo)") + ellipse(0, 0, 10, 10, "#fffbe0")
    )


DEFS = (
    f'<clipPath id="face">{path(blob(SCREEN))}</clipPath>'
    + linear("shell", "#7fead2", "#35b3ab", "#1d7f8c", x2=0.4)
    + linear("amber", "#ffd070", "#f08a2c")
    + radial("dial", "#fff2b8", "#ffb63c")
    + radial("eyeglow", "#58e8ff/0.5", "#58e8ff/0", r=0.5)
    + radial("redglow", "#ff5560/0.6", "#ff5560/0", r=0.5)
    + radial("halo", "#fff6c8/0.9", "#ffd76a/0.35", "#ffb05a/0", r=0.5)
    + linear("star", "#fff3a0", "#ffd23f", "#ff9d3a", x2=0.3)
    + linear("cat", "#9a5fe0", "#6a3aa8", "#4c2585", x2=0.3)
    + '<linearGradient id="tail" x1="0" y1="1" x2="1" y2="0"><stop offset="0" '
    'stop-color="#fff6c8"/><stop offset="1" stop-color="#ffd76a" stop-opacity="0"/></linearGradient>'
)

BOLT = Rig(
    "bolt",
    "a small round-headed teal robot with a dark screen face and "
    "glowing cyan eyes, a red antenna bulb and amber hands and feet",
    (-98, -218, 98, 15),
    draw_bolt,
    DEFS,
    shadow=46,
)
NOVA = Rig(
    "nova",
    "a plump golden five-pointed star with dark round eyes and pink "
    "cheeks, glowing when she is well and grey when her light is out",
    (-100, -152, 100, 50),
    draw_nova,
    DEFS,
    shadow=40,
)
INKY = Rig(
    "inky",
    "a small violet cat with lime-green eyes, long whiskers and an orange collar with a golden bell",
    (-98, -146, 88, 14),
    draw_inky,
    DEFS,
    shadow=36,
)
PAD = Rig("pad", "a spring with a cushion", (-50, -80, 50, 10), draw_pad, DEFS, tracked=False)
GLOW = Rig("glow", "light", (-62, -62, 62, 62), draw_glow, DEFS, tracked=False)
STREAK = Rig("streak", "a shooting star", (-40, -170, 210, 40), draw_streak, DEFS, tracked=False)
