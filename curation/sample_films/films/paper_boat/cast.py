"""Mina the fox, Toto the frog, and the paper boat: soft colours, each outlined in its own dark."""

from __future__ import annotations

from ...rig import Pose, Rig, brow, eye, foot, mouth, staged
from ...svg import blob, ellipse, group, limb, linear, path, polar, radial, turn

BROWN, GREEN, NAVY = "#5f2f22", "#1f5a3a", "#41607f"


def _mina_arm(side: int, degrees: float, front: bool) -> str:
    x, y = side * 23, -80
    hand = polar(x, y, 37, degrees * side)
    sleeve = path(limb((x, y), hand, -5 * side, 9, 11), "url(#coat)", BROWN)
    return path(limb(hand, polar(*hand, 9, degrees * side), 0, 7, 8), "#ef7d2c", BROWN) + sleeve


def _mina_head(p: Pose) -> str:
    ear = "M-34 -146C-40 -172 -38 -184 -33 -188C-22 -182 -10 -170 -6 -158Z"
    inner = "M-29 -152C-33 -168 -32 -176 -30 -179C-23 -174 -17 -167 -14 -159Z"
    ears = path(ear, "#ef7d2c", BROWN) + path(inner, "#5b3040")
    parts = [
        ears,
        group(ears, "translate(6 0) scale(-1 1)"),
        path(
            blob([(-46, -112), (-36, -150), (4, -165), (42, -150), (50, -112), (32, -82), (2, -74), (-30, -82)]),
            "url(#coat)",
            BROWN,
        ),
        path(
            blob([(-34, -114), (-22, -144), (6, -150), (34, -143), (44, -112), (28, -88), (5, -82), (-20, -88)]),
            "#ef7d2c",
            BROWN,
            2.4,
        ),
        path(blob([(-32, -108), (-14, -104), (6, -116), (26, -104), (42, -107), (27, -89), (5, -83), (-20, -89)]), "#fff3e0"),
        ellipse(-21, -101, 6.5, 4, "#f7a6a0"),
        ellipse(34, -101, 6, 4, "#f7a6a0"),
        eye(-11, -119, 9.5, 12, p, line=BROWN, pupil="#33202a", size=0.7),
        eye(23, -119, 9, 12, p, line=BROWN, pupil="#33202a", size=0.7),
        brow(-12, -137, 7, p, BROWN, -1, 3),
        brow(24, -137, 7, p, BROWN, 1, 3),
        mouth(8, -97, 7.5, p, BROWN, width=2.2),
        path("M2 -109Q8 -113 14 -109Q12 -103 8 -102Q4 -103 2 -109Z", "#3a1f2a"),
        path("M-28 -143Q2 -160 34 -142", "none", "#ffe889", 3, 'opacity="0.8"'),
    ]
    return turn(parts, p.tilt, 2, -86)


def draw_mina(p: Pose) -> str:
    """A young fox in a yellow raincoat with red boots."""
    sway = p.sway
    tail = [
        (-14, -30),
        (-42, -24),
        (-66, -42 - 6 * sway),
        (-72, -74 - 8 * sway),
        (-58, -96 - 9 * sway),
        (-48, -70 - 5 * sway),
        (-30, -52),
    ]
    tip = [(-73, -72 - 8 * sway), (-70, -88 - 9 * sway), (-58, -96 - 9 * sway), (-52, -78 - 6 * sway), (-60, -70 - 7 * sway)]
    legs = []
    for side in (-1, 1):
        forward, up = foot(p, side, 17, 13)
        hip, toe = (side * 12, -36), (side * 12 + forward, -8 - up)
        legs.append(path(limb(hip, toe, 2, 8, 8), "#ef7d2c", BROWN))
        x, y = toe
        boot = f"M{x - 9:.1f} {y - 10:.1f}H{x + 8:.1f}V{y - 1:.1f}Q{x + 19:.1f} {y:.1f} {x + 18:.1f} {y + 8:.1f}H{x - 10:.1f}Z"
        legs.append(path(boot, "url(#boot)", BROWN))
    flap = 3 * sway
    coat = (
        f"M-19 -90C-30 -70 -38 -48 {-43 - flap:.1f} -27Q{-20 - flap:.1f} "
        f"-17 0 -19Q22 -17 {42 - flap:.1f} -27C38 -48 30 -70 20 -90Z"
    )
    hem = f"M{-41 - flap:.1f} -35Q0 -24 {40 - flap:.1f} -35"
    body = (
        path(coat, "url(#coat)", BROWN) + path(hem, "none", "#fff0a0", 4) + path("M2 -84Q4 -50 2 -22", "none", "#d99a12", 2.2)
    )
    buttons = "".join(ellipse(9, y, 3.2, 3.2, "#fffbe0", "#c98a10", 1.4) for y in (-70, -54, -39))
    parts = [
        path(blob(tail), "url(#fur)", BROWN),
        path(blob(tip), "#fff3e0"),
        _mina_arm(-1, p.arm_l, False),
        *legs,
        body,
        buttons,
        _mina_head(p),
        _mina_arm(1, p.arm_r, True),
    ]
    if p.prop == "boat":
        hand = polar(23, -80, 46, p.arm_r)
        parts.append(group(draw_boat(Pose()), f"translate({hand[0] + 6:.1f} {hand[1] + 8:.1f}) rotate(-6) scale(0.62)"))
    return staged("".join(parts), p)


def draw_toto(p: Pose) -> str:
    """A round green frog with a red and white striped scarf."""
    legs = []
    for side in (-1, 1):
        forward, up = foot(p, side, 12, 9)
        x = side * 30
        foot_d = f"M{x - 16 + forward:.1f} {-1 - up:.1f}q-5 -9 6 -9q4 -5 9 0q5 -5 10 0q11 0 6 9Z"
        legs.append(path(foot_d, "#5fb548", GREEN))
        legs.append(path(blob([(x - 15, -18), (x, -36), (x + 15, -18), (x + 8, -6), (x - 8, -6)]), "url(#frog)", GREEN))
    arms = []
    for side, degrees in ((-1, p.arm_l), (1, p.arm_r)):
        start = (side * 30, -62)
        hand = polar(*start, 34, degrees * side)
        arms.append(path(limb(start, hand, -6 * side, 7, 6), "#6cc24a", GREEN) + ellipse(*hand, 8, 8, "#7fd25a", GREEN))
    swing = 9 * p.sway
    tail = (
        f"M-26 -66C{-34 - swing:.1f} -52 {-32 - swing:.1f} -40 {-38 - 1.6 * swing:.1f} "
        f"-26L{-22 - 1.6 * swing:.1f} -22C{-18 - swing:.1f} -40 -18 -50 -12 -62Z"
    )
    stripe = f"M{-33 - swing:.1f} -46L{-17 - swing:.1f} -42M{-36 - 1.4 * swing:.1f} -34L{-20 - 1.4 * swing:.1f} -30"
    head = [
        *(ellipse(side * 25, -124, 19, 19, "url(#frog)", GREEN) for side in (-1, 1)),
        path(
            blob([(-56, -92), (-44, -116), (-16, -120), (16, -120), (44, -116), (56, -92), (36, -70), (0, -66), (-36, -70)]),
            "url(#frog)",
            GREEN,
        ),
        path(blob([(-16, -119), (16, -119), (22, -110), (0, -106), (-22, -110)]), "#86d860"),
        eye(-24, -125, 12.5, 13, p, line=GREEN, pupil="#22301a", iris="#f0a830", size=0.74),
        eye(26, -125, 12.5, 13, p, line=GREEN, pupil="#22301a", iris="#f0a830", size=0.74),
        ellipse(-40, -92, 8, 5, "#f59c8c", extra='opacity="0.8"'),
        ellipse(42, -92, 8, 5, "#f59c8c", extra='opacity="0.8"'),
        ellipse(-6, -102, 1.8, 1.4, GREEN),
        ellipse(8, -102, 1.8, 1.4, GREEN),
        mouth(2, -89, 25 if p.gape < 0.12 else 17, p, GREEN, width=3),
    ]
    parts = [
        *legs,
        path(blob([(-36, -34), (-33, -64), (0, -78), (33, -64), (36, -34), (20, -8), (-20, -8)]), "url(#frog)", GREEN),
        path(blob([(-22, -34), (-18, -54), (0, -60), (18, -54), (22, -34), (12, -13), (-12, -13)]), "#eaf3b0"),
        *arms,
        path(tail, "#e23b4a", "#7d1626"),
        path(stripe, "none", "#fff2ea", 5),
        path("M-37 -72Q0 -50 37 -72L36 -58Q0 -38 -36 -58Z", "#e23b4a", "#7d1626"),
        path("M-20 -64L-21 -52M0 -60V-46M20 -64L21 -52", "none", "#fff2ea", 5),
        turn(head, p.tilt, 0, -74),
    ]
    if p.prop == "boat":
        parts.append(group(draw_boat(Pose()), "translate(2 -132) scale(0.8)"))
    return staged("".join(parts), p)


def draw_boat(p: Pose) -> str:
    """A folded paper boat with a little red flag."""
    flag = 4 * p.sway
    parts = [
        path("M0 -62V-90", "none", "#7a5a3a", 3),
        path(f"M1 -90Q12 {-94 + flag:.1f} 22 {-86 - flag:.1f}Q12 {-84 + flag:.1f} 1 -76Z", "#e8453c", "#7d1626", 2),
        path("M0 -64L-30 -18H30Z", "#fdfcf4", NAVY),
        path("M0 -64L30 -18H8Z", "#cfdfee"),
        path("M-58 -32L-20 -18H22L58 -32L36 2H-36Z", "#fffefa", NAVY),
        path("M58 -32L22 -18L12 2H36Z", "#d5e3f0"),
        path("M-58 -32L-20 -18L-12 2", "none", "#9db6cf", 2),
        path("M0 -64L-30 -18H30ZM-58 -32L-20 -18H22L58 -32L36 2H-36Z", "none", NAVY),
    ]
    return staged("".join(parts), p)


DEFS = (
    linear("coat", "#ffe14a", "#ffc61f", "#f2a212")
    + linear("fur", "#f79a45", "#e4641d")
    + linear("boot", "#f0524b", "#b92736")
    + linear("frog", "#9be26b", "#58b545", "#3d9640")
    + radial("lamp", "#fff3b0/0.9", "#ffe28a/0")
)

MINA = Rig(
    "mina",
    "a young orange fox with a white muzzle, a bushy tail with a "
    "white tip, a bright yellow hooded raincoat and red rubber boots",
    (-104, -216, 138, 20),
    draw_mina,
    DEFS,
    shadow=48,
)
TOTO = Rig(
    "toto",
    "a round green frog with big amber eyes on top of his wide head, a pale belly and a red scarf with white stripes",
    (-112, -232, 112, 30),
    draw_toto,
    DEFS,
    shadow=50,
)
BOAT = Rig("boat", "a white folded paper boat with a small red flag", (-86, -114, 86, 34), draw_boat, tracked=False)
