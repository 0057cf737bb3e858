"""The second half of the storyboard: rescue and resolution."""

from __future__ import annotations

from ...storyboard import Act, Cue, Shot, pop

ENDING = (
    Shot(
        "pond",
        3.0,
        ((0, 486, 196, 2.0), (3, 478, 196, 2.15)),
        (
            Act(
                "toto",
                ((0, 476, 268),),
                "idle",
                0.8,
                face=-1,
                tracks={
                    "look_x": ((0, 0.9),),
                    "look_y": ((0, 0.5),),
                    "wide": ((0, 0), (0.8, 1)),
                    "mouth": ((0, 0.2), (0.8, -0.4)),
                    "tilt": ((0, 0), (1.0, 5), (2.0, -4)),
                },
            ),
        ),
        "From his lily pad Toto has seen everything and knows the boat is in trouble.",
        "Close on a round green frog with a red and white striped scarf sitting on a lily pad in "
        "the rain; his amber eyes open wide as he stares to the left at something on the water.",
        cues=(Cue(0.8, "ribbit", "toto"),),
        blur=3,
    ),
    Shot(
        "pond",
        2.5,
        ((0, 350, 276, 2.7), (2.5, 356, 282, 2.5)),
        (
            Act(
                "boat",
                ((0, 340, 306), (2.5, 358, 318)),
                "rock",
                0.75,
                tracks={
                    "lean": ((0, -14), (0.5, 16), (1.0, -20), (1.5, 22), (2.0, -26), (2.5, 20)),
                    "sway": ((0, -1), (0.5, 1), (1, -1), (1.5, 1), (2, -1)),
                },
                shadow=False,
            ),
            pop("splash", 296, 312, 0.4, 0.8, 0.8, 9),
            pop("splash", 400, 318, 1.3, 0.8, 0.9, 12),
        ),
        "Waves throw it from side to side and water begins to creep over its edge.",
        "Very close view of the white paper boat tipping steeply on teal water, "
        "its red flag whipping while drops and ripples burst around the hull.",
        cues=(Cue(0.4, "plop", None, 0.8, -0.3), Cue(1.3, "plop", None, 0.9, 0.3)),
    ),
    Shot(
        "pond",
        4.5,
        ((0, 390, 190, 1.25), (4.5, 350, 200, 1.35)),
        (
            Act(
                "toto",
                ((0.5, 476, 266), (1.2, 360, 312)),
                ((0, "idle"), (0.5, "still")),
                0.7,
                face=-1,
                arc=110,
                leave=1.25,
                tracks={
                    "squash": ((0, 0), (0.35, 0.25), (0.55, -0.22), (1.1, -0.1)),
                    "arm_l": ((0.4, 12), (0.7, 150)),
                    "arm_r": ((0.4, 12), (0.7, 150)),
                    "lean": ((0.5, 0), (1.2, 16)),
                },
            ),
            Act("boat", ((0, 350, 312),), "rock", 0.62, leave=1.3, shadow=False, z=9),
            pop("splash", 356, 316, 1.2, 1.0, 1.5),
            pop("splash", 350, 318, 2.5, 1.0, 1.3),
            Act(
                "toto",
                ((2.5, 346, 352), (2.8, 346, 306)),
                ((0, "still"), (2.8, "hop")),
                0.7,
                face=-1,
                prop="boat",
                enter=2.5,
                quiet=True,
                shadow=False,
                tracks={"mouth": ((0, 1),), "gape": ((2.8, 0.6),), "bob": ((2.8, 0), (3.2, 6), (3.6, 0), (4.0, 6), (4.5, 0))},
            ),
        ),
        "Without a second thought the frog leaps, vanishes under, and comes up with the boat on his head.",
        "On the stormy pond the green frog in the striped scarf jumps from his lily pad in a high "
        "arc, plunges in with a great splash, and rises again in the middle carrying the paper boat.",
        cues=(Cue(0.5, "boing", "toto"), Cue(1.2, "splash", "toto"), Cue(2.5, "splash", "toto", 0.7)),
    ),
    Shot(
        "pond",
        3.0,
        ((0, 22, 232, 1.8), (3, 18, 228, 1.95)),
        (
            Act(
                "mina",
                ((0, 0, 318),),
                "shiver",
                0.84,
                tracks={
                    "mouth": ((0, -0.9),),
                    "brow": ((0, -1),),
                    "look_x": ((0, 0.8),),
                    "look_y": ((0, 0.6),),
                    "lids": ((0, 0.2),),
                },
            ),
        ),
        "Mina reaches the bank too late, sure that her boat is lost for good.",
        "The fox in the yellow raincoat stands shivering on the grassy bank with drooping "
        "mouth and worried brows, staring over dark water while rain streaks past her.",
        cues=(Cue(0.7, "sniff", "mina"),),
        blur=3,
    ),
    Shot(
        "pond",
        5.0,
        ((0, 90, 208, 1.2), (5, 78, 214, 1.36)),
        (
            Act(
                "mina",
                ((0, 4, 318),),
                ((0, "idle"), (2.0, "hop")),
                0.84,
                tracks={
                    "mouth": ((0, -0.8), (1.7, -0.4), (2.0, 1)),
                    "gape": ((1.8, 0), (2.1, 0.8)),
                    "wide": ((1.2, 0), (1.6, 1), (2.4, 0.2)),
                    "look_x": ((0, 1),),
                },
                quiet=True,
            ),
            Act(
                "toto",
                ((0, 330, 338), (2.2, 150, 334)),
                "float",
                0.7,
                face=-1,
                z=12,
                prop="boat",
                shadow=False,
                tracks={"mouth": ((0, 1),), "arm_l": ((0, 100), (0.5, 70), (1, 100), (1.5, 70), (2, 100), (2.4, 20))},
            ),
            pop("splash", 170, 336, 2.1, 0.9, 0.9, 13),
        ),
        "Then a stranger paddles up to her with the treasure balanced on his head.",
        "Two-shot at the shore in the rain: the green frog with the red striped scarf swims in from the "
        "right wearing the paper boat like a hat, and the fox in yellow jumps up and down in delight.",
        cues=(
            Cue(0.4, "plop", "toto", 0.5, 0.4),
            Cue(1.4, "plop", "toto", 0.6, 0.2),
            Cue(2.1, "giggle", "mina"),
            Cue(2.2, "splash", "toto", 0.5),
        ),
    ),
    Shot(
        "pond",
        3.0,
        ((0, 156, 232, 2.3), (3, 156, 224, 2.2)),
        (
            Act(
                "toto",
                ((0, 158, 326),),
                "idle",
                0.8,
                face=-1,
                prop="boat",
                shadow=False,
                tracks={
                    "mouth": ((0, 1),),
                    "look_x": ((0, 0.7),),
                    "gape": ((0.6, 0), (0.9, 0.6), (1.5, 0)),
                    "lids": ((1.6, 0), (1.9, 1), (2.6, 1), (2.8, 0)),
                },
            ),
            pop("heart", 214, 206, 1.2, 1.7, 0.8),
        ),
        "He grins from ear to ear, for today he has found a friend.",
        "Close-up of the wet frog beaming under the paper boat, cheeks pink, eyes "
        "closing happily as a red heart floats up beside him and the rain thins out.",
        cues=(Cue(0.7, "ribbit", "toto"), Cue(1.3, "ping", "toto", 0.6)),
        blur=4,
        air=(),
    ),
    Shot(
        "evening",
        6.5,
        ((0, 60, 176, 1.08), (6.5, 236, 172, 1.0)),
        (
            Act(
                "mina",
                ((0, -70, 318), (4.0, 30, 318)),
                ((0, "walk"), (4.0, "wave")),
                0.8,
                tracks={"mouth": ((0, 1),), "gape": ((4.0, 0), (4.3, 0.6))},
            ),
            Act(
                "toto",
                ((0, 124, 300), (6.5, 394, 296)),
                "rock",
                0.62,
                z=11,
                shadow=False,
                tracks={"mouth": ((0, 1),), "arm_r": ((0, 40), (3, 40), (3.5, 150), (4.2, 120), (5, 150), (6, 120))},
            ),
            Act("boat", ((0, 150, 318), (6.5, 420, 314)), "rock", 1.15, z=12, shadow=False),
        ),
        "When the storm has passed, Toto sails as captain and Mina cheers him on from the bank.",
        "Golden evening on the lily pond with a wide rainbow: the frog in the striped scarf rides in "
        "the paper boat to the right while the fox in yellow walks along the flowering bank and waves.",
        into="dissolve",
        span=20,
        cues=(Cue(0.8, "plop", None, 0.4), Cue(4.2, "giggle", "mina", 0.8, -0.4), Cue(5.0, "ribbit", "toto", 0.7, 0.4)),
        steps="grass_step",
    ),
    Shot(
        "evening",
        4.0,
        ((0, -10, 246, 1.75), (4, 0, 240, 1.85)),
        (
            Act(
                "mina",
                ((0, -48, 322),),
                "idle",
                0.8,
                tracks={
                    "mouth": ((0, 1),),
                    "look_x": ((0, 0.9), (1.5, 0.9), (2, 0.2)),
                    "tilt": ((0, 0), (1, 7)),
                    "lids": ((2.2, 0), (2.5, 1), (3.4, 1), (3.6, 0)),
                },
            ),
            Act(
                "toto",
                ((0, 48, 326),),
                "idle",
                0.74,
                face=-1,
                tracks={
                    "mouth": ((0, 1),),
                    "look_x": ((0, 0.8), (2, 0.1)),
                    "tilt": ((0, 0), (1.2, 6)),
                    "gape": ((0.8, 0), (1.1, 0.7), (1.6, 0)),
                },
            ),
            pop("heart", 0, 214, 1.6, 2.0, 0.9),
        ),
        "Side by side the two friends watch the last light, and neither feels alone any more.",
        "Medium two-shot on the green bank among flowers: the orange fox in the yellow coat and the "
        "green frog in the red scarf lean towards each other, smiling, with a heart between them.",
        cues=(Cue(1.0, "ribbit", "toto", 0.7), Cue(1.7, "ping", None, 0.7)),
        blur=3,
    ),
    Shot(
        "evening",
        4.5,
        ((0, 420, 150, 1.0), (4.5, 380, 110, 0.96)),
        (Act("boat", ((0, 300, 300), (4.5, 430, 296)), "rock", 0.6, shadow=False),),
        "The paper boat sails on under the rainbow, and the story closes.",
        "Wide view of the calm golden pond and the rainbow; the white paper boat glides over "
        "the turquoise water while the end letters appear above and the picture fades to black.",
        into="fade",
        span=18,
        role="epilogue",
        card="The End",
    ),
)
