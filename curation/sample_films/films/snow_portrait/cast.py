"""Pola the penguin and Grum the yeti: bold dark outlines and flat colours."""

from __future__ import annotations

import math

from ...rig import Pose, Rig, brow, eye, foot, mouth, staged
from ...svg import blob, ellipse, group, limb, linear, path, polar, radial, rect, turn

INK = "#1d1836"


def _flipper(side: int, degrees: float) -> str:
    start = (side * 36, -84)
    tip = polar(*start, 46, degrees * side)
    return path(limb(start, tip, -8 * side, 11, 7), "#3a4a9c", INK, 4)


def _pola_head(p: Pose) -> str:
    pom = 5 * p.sway
    hat = [
        path(blob([(-38, -132), (-30, -162), (0, -176), (30, -162), (38, -132)], closed=False) + "Z", "url(#wool)", INK, 4),
        path("M-20 -160L-24 -140M0 -172V-140M20 -160L24 -140", "none", "#e0930f", 3),
        path("M-42 -137Q0 -152 42 -137Q46 -128 41 -123Q0 -139 -41 -123Q-46 -128 -42 -137Z", "#fff6da", INK, 4),
        ellipse(pom, -181, 13, 12, "#fff6da", INK, 4),
    ]
    face = [
        path(
            blob(
                [
                    (-28, -104),
                    (-24, -127),
                    (-6, -128),
                    (2, -118),
                    (10, -128),
                    (28, -127),
                    (32, -104),
                    (16, -86),
                    (2, -82),
                    (-12, -86),
                ]
            ),
            "#fffaf2",
        ),
        eye(-11, -112, 9, 11.5, p, line=INK, size=0.7, width=3),
        eye(15, -112, 9, 11.5, p, line=INK, size=0.7, width=3),
        ellipse(-20, -96, 6, 4, "#ff9db0"),
        ellipse(25, -96, 6, 4, "#ff9db0"),
        brow(-12, -129, 7, p, INK, -1, 4),
        brow(16, -129, 7, p, INK, 1, 4),
    ]
    open_ = 9 * p.gape
    lift = 3 * p.mouth
    if p.gape > 0.1:
        face.append(
            path(
                f"M-8 -97Q3 {-92 + 2 * open_:.1f} 16 -97Q10 {-84 + open_:.1f} 3 {-84 + open_:.1f}Q-4 {-84 + open_:.1f} -8 -97Z",
                "#c85a18",
                INK,
                3,
            )
        )
    face.append(
        path(
            f"M-9 {-98 - lift * 0.5:.1f}Q3 -112 17 {-98 - lift * 0.5:.1f}Q4 {-92 + lift:.1f} -9 {-98 - lift * 0.5:.1f}Z",
            "#ffa53a",
            INK,
            3.4,
        )
    )
    return turn([*face, *hat], p.tilt, 0, -86)


def _pola_camera(p: Pose) -> str:
    """The red camera on its strap, held up to the beak, or not there."""
    if p.prop == "none":
        return ""
    camera = (
        rect(-19, -64, 42, 28, "url(#redcam)", 6, INK, 3.6)
        + rect(-8, -70, 14, 8, "#d8dce8", 2, INK, 3)
        + ellipse(2, -50, 11, 11, "#2c3358", INK, 3)
        + ellipse(2, -50, 6, 6, "#6fd0ff")
        + ellipse(-1, -53, 2.2, 2, "#ffffff")
    )
    if p.prop == "snap":
        return group(camera, "translate(2 -46)")
    return path("M-26 -84Q2 -40 30 -84", "none", "#7a2030", 4) + camera


def draw_pola(p: Pose) -> str:
    """A navy penguin with a yellow knitted hat and a red camera."""
    feet = []
    for side in (-1, 1):
        forward, up = foot(p, side, 10, 9)
        x, y = side * 17 + forward, -3 - up
        feet.append(path(f"M{x - 16:.1f} {y + 3:.1f}q-2 -12 15 -12q19 0 17 12q-8 4 -16 0q-8 4 -16 0Z", "#ff9130", INK, 3.6))
    waddle = 5 * math.sin(2 * math.pi * p.step) if p.step >= 0 else 0.0
    body = [(-40, -58), (-38, -96), (-22, -138), (0, -148), (24, -138), (40, -96), (42, -58), (26, -10), (-24, -10)]
    parts = [
        *feet,
        _flipper(-1, p.arm_l),
        path(blob(body), "url(#navy)", INK, 4.4),
        path(blob([(-29, -54), (-26, -78), (2, -88), (28, -78), (31, -54), (18, -16), (-16, -16)]), "#fffaf2"),
        path(blob([(20, -76), (31, -54), (18, -16), (2, -14), (20, -40)]), "#dfe3f5"),
        _pola_head(p),
        _pola_camera(p),
        _flipper(1, p.arm_r),
    ]
    return staged(turn(parts, waddle, 0, 0), p)


def _shag(points: list[tuple[float, float]], tufts: int, depth: float, cx: float, cy: float) -> str:
    """`d` data of a furry outline: pointed tufts around an ellipse-like run of control radii."""
    data, n = [], len(points)
    for i in range(tufts):
        u = i * n / tufts
        a, b = points[int(u) % n], points[(int(u) + 1) % n]
        f = u - int(u)
        x, y = a[0] + (b[0] - a[0]) * f, a[1] + (b[1] - a[1]) * f
        u2 = (i + 0.55) * n / tufts
        a, b = points[int(u2) % n], points[(int(u2) + 1) % n]
        f = u2 - int(u2)
        mx, my = a[0] + (b[0] - a[0]) * f, a[1] + (b[1] - a[1]) * f
        length = math.hypot(mx - cx, my - cy) or 1
        tx, ty = mx + (mx - cx) / length * depth, my + (my - cy) / length * depth + depth * 0.55
        data.append(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}Q{(x + tx) / 2 + 2:.1f} {(y + ty) / 2:.1f} {tx:.1f} {ty:.1f}")
    return "".join(data) + "Z"


def _ring(cx: float, cy: float, rx: float, ry: float, n: int = 28) -> list[tuple[float, float]]:
    return [(cx + rx * math.sin(2 * math.pi * i / n), cy - ry * math.cos(2 * math.pi * i / n)) for i in range(n)]


def _yeti_arm(side: int, degrees: float) -> str:
    start = (side * 62, -138)
    hand = polar(*start, 78, degrees * side)
    fur = path(limb(start, hand, -14 * side, 24, 19), "url(#fur)", INK, 4.4)
    tuft = polar(*start, 60, degrees * side)
    marks = path(f"M{tuft[0] - 8:.1f} {tuft[1]:.1f}l4 9l5 -8l5 9l4 -9", "none", "#17807f", 3)
    return ellipse(*polar(*start, 90, degrees * side), 17, 16, "#c9a0ee", INK, 4) + fur + marks


def _grum_head(p: Pose) -> str:
    blow = 3 * p.sway
    horn = path("M-38 -224C-58 -232 -66 -248 -62 -264C-50 -260 -34 -250 -22 -234Z", "#ffe9bd", INK, 4) + path(
        "M-55 -244L-45 -250M-46 -235L-36 -242", "none", "#d8a860", 3
    )
    head = [
        horn,
        group(horn, "translate(4 0) scale(-1 1)"),
        path(_shag(_ring(2, -182, 62, 56), 20, 9, 2, -182), "url(#fur)", INK, 4.4),
        path(
            blob([(-40, -178), (-30, -204), (2, -198), (36, -204), (46, -178), (30, -152), (3, -146), (-26, -152)]),
            "#d9b8f5",
            INK,
            3.6,
        ),
        eye(-17, -184, 12, 14, p, line=INK, width=3.2, size=0.62),
        eye(22, -184, 12, 14, p, line=INK, width=3.2, size=0.62),
        brow(-18, -206, 12, p, "#15696c", -1, 7),
        brow(24, -206, 12, p, "#15696c", 1, 7),
        ellipse(-32, -168, 8, 5, "#ff9db0"),
        ellipse(38, -168, 8, 5, "#ff9db0"),
        path("M-6 -174q9 -6 18 0q-2 9 -9 9q-7 0 -9 -9Z", "#7a4aa8", INK, 2.6),
        mouth(3, -160, 15, p, INK, width=3.4),
    ]
    if p.mouth > 0.2 and p.gape < 0.4:
        head.append(path("M-6 -158l4 8l5 -7Z", "#fffaf0", INK, 2.2))
    tuft = path(
        f"M-16 -232Q{-10 + blow:.1f} -258 {-2 + blow * 2:.1f} -250Q{2 + blow:.1f} "
        f"-264 {12 + blow * 2:.1f} -250Q{20 + blow:.1f} -256 20 -230Z",
        "#4fd8cb",
        INK,
        4,
    )
    return turn([*head, tuft], p.tilt, 0, -140)


def draw_grum(p: Pose) -> str:
    """A huge turquoise yeti with cream horns and a lilac face."""
    feet = []
    for side in (-1, 1):
        forward, up = foot(p, side, 22, 14)
        x, y = side * 36 + forward, -8 - up
        feet.append(path(limb((side * 34, -50), (x, y - 8), 3, 24, 20), "url(#fur)", INK, 4.4))
        feet.append(
            path(
                blob([(x - 26, y + 6), (x - 20, y - 12), (x + 4, y - 15), (x + 28, y - 8), (x + 30, y + 7)]),
                "#c9a0ee",
                INK,
                4.2,
            )
        )
    body = _shag(_ring(0, -112, 80, 92), 26, 10, 0, -112)
    locks = "".join(
        path(f"M{x} {y}l5 11l6 -10l6 11l5 -11", "none", "#17807f", 3)
        for x, y in ((-44, -96), (-6, -74), (26, -104), (-30, -56), (22, -50))
    )
    parts = [
        _yeti_arm(-1, p.arm_l),
        *feet,
        path(body, "url(#fur)", INK, 4.6),
        path(
            blob([(-36, -92), (-24, -128), (4, -134), (32, -128), (42, -92), (28, -54), (-22, -54)]),
            "#8ff0e2",
            extra='opacity="0.55"',
        ),
        locks,
        _grum_head(p),
        _yeti_arm(1, p.arm_r),
    ]
    if p.prop == "camera":
        hand = polar(62, -138, 92, p.arm_r)
        parts.append(group(draw_camera(Pose()), f"translate({hand[0]:.1f} {hand[1] + 14:.1f})"))
    return staged("".join(parts), p)


def draw_camera(p: Pose) -> str:
    """The red camera by itself."""
    parts = (
        rect(-24, -32, 50, 34, "url(#redcam)", 7, INK, 4)
        + rect(-10, -40, 16, 9, "#d8dce8", 2, INK, 3.4)
        + ellipse(1, -15, 13, 13, "#2c3358", INK, 3.6)
        + ellipse(1, -15, 7, 7, "#6fd0ff")
        + ellipse(-2, -18, 2.6, 2.2, "#ffffff")
    )
    return group(parts, f"rotate({p.lean:.1f} 0 -14)")


def draw_stand(p: Pose) -> str:
    """The camera on its wooden tripod, with a red lamp that blinks with the pose's glow."""
    legs = path("M0 -76L-30 0M0 -76L30 0M0 -76L4 4", "none", INK, 11) + path(
        "M0 -76L-30 0M0 -76L30 0M0 -76L4 4", "none", "#c98a4a", 5
    )
    lamp = ellipse(17, -104, 4, 4, "#fff36b" if p.glow > 0.5 else "#5a1420")
    return legs + group(draw_camera(Pose()), "translate(0 -76)") + lamp


def draw_photo(p: Pose) -> str:
    """The photograph of the two friends, in a white frame."""
    friend = group(draw_grum(Pose(mouth=1, arm_l=20, arm_r=40)), "translate(26 26) scale(0.42)")
    pola = group(draw_pola(Pose(mouth=1, arm_r=130, prop="none")), "translate(-34 26) scale(0.46)")
    return (
        rect(-84, -104, 168, 150, "#fffaf0", 4, INK, 4)
        + rect(-72, -92, 144, 110, "url(#photosky)", 2)
        + path("M-72 -22L-30 -62L-4 -34L30 -72L72 -26V18H-72Z", "#b79be0")
        + path("M-72 4Q0 -12 72 4V18H-72Z", "#fff2f4")
        + '<clipPath id="pic"><rect x="-72" y="-92" width="144" height="110"/></clipPath>'
        + group(friend + pola, extra='clip-path="url(#pic)"')
    )


DEFS = (
    linear("navy", "#4a5cc0", "#333f92", "#262c6b")
    + linear("wool", "#ffd94a", "#f5a81c")
    + linear("redcam", "#ff5d55", "#c92a43")
    + linear("fur", "#5fe3d3", "#2bb5b2", "#178a94")
    + linear("photosky", "#ff9f8a", "#ffd7a8")
    + radial("warm", "#fff0c0/0.9", "#ffd080/0")
)

POLA = Rig(
    "pola",
    "a small navy-blue penguin with a white belly, a yellow knitted hat with a white pompom and a red camera on a strap",
    (-112, -224, 112, 15),
    draw_pola,
    DEFS,
    shadow=44,
    stride=48,
)
GRUM = Rig(
    "grum",
    "a huge shaggy turquoise yeti with a lilac face and hands, two cream-coloured horns and one small tooth",
    (-180, -308, 180, 25),
    draw_grum,
    DEFS,
    shadow=84,
    stride=80,
)
CAMERA = Rig("camera", "a red camera", (-44, -60, 44, 30), draw_camera, DEFS, tracked=False, shadow=20)
STAND = Rig("stand", "a red camera on a wooden tripod", (-46, -125, 46, 14), draw_stand, DEFS, tracked=False, shadow=26)
PHOTO = Rig("photo", "a photograph", (-92, -112, 92, 54), draw_photo, DEFS, tracked=False)
