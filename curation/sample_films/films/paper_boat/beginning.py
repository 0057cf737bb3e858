"""The first half of the storyboard: set-up and mishap."""

from __future__ import annotations

from ...storyboard import Act, Cue, Shot, pop

BEGINNING = (
    Shot(
        "street",
        4.5,
        ((0, 250, 176, 1.0), (4.5, 330, 180, 1.08)),
        (Act("boat", ((0, 60, 345), (4.5, 330, 345)), "rock", 0.7, z=12, shadow=False),),
        "On a day of endless rain a small boat drifts past the houses, and the story begins.",
        "A village street in the rain with pastel houses and glowing windows; a white paper boat "
        "floats along the gutter stream while the title letters bounce in and the camera drifts right.",
        span=20,
        role="prologue",
        card="The Paper\nBoat",
    ),
    Shot(
        "attic",
        4.5,
        ((0, 300, 178, 1.0), (4.5, 325, 176, 1.16)),
        (
            Act(
                "mina",
                ((0, 258, 322),),
                "idle",
                0.86,
                tracks={
                    "mouth": ((0, -0.6),),
                    "look_x": ((0, 0.9),),
                    "look_y": ((0, -0.5), (2.5, -0.5), (3, 0.5)),
                    "brow": ((0, -0.8),),
                },
            ),
        ),
        "Mina waits at the window for the rain to end and slowly loses hope of playing outside.",
        "In a warm attic with a bookshelf and a hanging lamp, a young orange fox in a yellow raincoat "
        "and red boots gazes up at a big round window streaked with rain; the camera pushes in slowly.",
        cues=(Cue(3.0, "sigh", "mina"),),
    ),
    Shot(
        "attic",
        3.0,
        ((0, 300, 218, 2.35), (3, 304, 214, 2.5)),
        (
            Act(
                "mina",
                ((0, 296, 322),),
                "idle",
                0.86,
                tracks={
                    "mouth": ((0, -0.6), (1.2, -0.5), (1.5, 1.0)),
                    "look_x": ((0, 0.1), (1.0, 0.1), (1.3, 0.7)),
                    "look_y": ((0, 0.6), (1.0, 0.6), (1.3, 0.3)),
                    "wide": ((1.1, 0), (1.4, 1), (2.4, 0.3)),
                    "brow": ((0, -0.8), (1.2, 0)),
                    "squash": ((1.1, 0), (1.25, 0.06), (1.45, -0.05), (1.7, 0)),
                },
            ),
            pop("exclaim", 352, 196, 1.35, 1.6, 0.8),
        ),
        "A piece of paper catches her eye and an idea lights up her face.",
        "Close-up of the fox's round face in her yellow hood against the blurred window: her sad "
        "eyes blink, then widen and brighten, and a yellow exclamation mark pops up beside her.",
        cues=(Cue(1.35, "ping", "mina"),),
        blur=5,
    ),
    Shot(
        "attic",
        4.5,
        ((0, 350, 246, 1.5), (4.5, 350, 244, 1.6)),
        (
            Act(
                "mina",
                ((0, 316, 346),),
                ((0, "idle"), (2.7, "hop")),
                0.86,
                quiet=True,
                tracks={
                    "look_y": ((0, 0.9), (2.4, 0.8), (2.8, 0.1)),
                    "look_x": ((0, 0.1),),
                    "mouth": ((0, 0.3), (2.4, 1.0)),
                    "arm_l": ((0, 58), (0.4, 80), (0.8, 50), (1.2, 84), (1.6, 50), (2.0, 80), (2.7, 60), (2.8, 130)),
                    "arm_r": ((0, 50), (0.4, 66), (0.8, 80), (1.2, 48), (1.6, 76), (2.0, 54), (2.7, 60), (2.8, 130)),
                    "gape": ((2.5, 0), (2.8, 0.7)),
                },
            ),
            Act(
                "sheet",
                ((0, 375, 312), (0.6, 376, 308), (1.2, 374, 312), (1.8, 375, 307)),
                "still",
                1.0,
                z=21,
                tracks={"squash": ((0, 0), (0.8, -0.8), (1.6, -2.4))},
                leave=2.1,
            ),
            Act(
                "boat",
                ((0, 392, 316),),
                "still",
                0.8,
                z=21,
                tracks={"squash": ((2.1, 0.6), (2.35, -0.2), (2.6, 0.06), (2.8, 0))},
                enter=2.1,
            ),
        ),
        "She folds the sheet this way and that until a proud little boat stands on the table.",
        "At a wooden table in the attic the fox in the yellow raincoat moves her paws over a white "
        "sheet; it springs up as a paper boat with a red flag and she jumps for joy behind it.",
        cues=(
            Cue(0.3, "rustle", "mina"),
            Cue(0.9, "rustle", "mina"),
            Cue(1.5, "rustle", "mina"),
            Cue(2.12, "pop"),
            Cue(2.8, "giggle", "mina"),
        ),
        blur=2,
    ),
    Shot(
        "street",
        4.5,
        ((0, 120, 178, 1.0), (4.5, 260, 184, 1.06)),
        (
            Act(
                "mina",
                ((0, -190, 306), (3.4, 250, 306)),
                ((0, "run"), (3.4, "idle")),
                0.84,
                prop="boat",
                tracks={"arm_r": ((0, 78),), "mouth": ((0, 1.0),), "gape": ((0, 0.5), (3.4, 0))},
            ),
        ),
        "Out of the door she dashes, carrying the boat straight through the puddles.",
        "Wide view of the rainy street with wet cobbles: the fox in the yellow raincoat runs in from the left "
        "with the paper boat in her paw, splashing through puddles, and stops at the gutter as the camera pans.",
        cues=(Cue(0.0, "door", None, 0.9, -0.7),),
        steps="splash_step",
    ),
    Shot(
        "street",
        3.5,
        ((0, 436, 258, 1.75), (3.5, 466, 268, 1.85)),
        (
            Act(
                "mina",
                ((0, 392, 312),),
                "idle",
                0.84,
                tracks={
                    "squash": ((0, 0), (0.7, 0.16), (2.0, 0.16), (2.5, 0.02)),
                    "look_y": ((0, 0.8),),
                    "look_x": ((0, 0.8),),
                    "arm_r": ((0, 60), (0.8, 92), (2.0, 60)),
                    "mouth": ((0, 0.9),),
                },
            ),
            Act("boat", ((0.6, 440, 296), (1.1, 482, 344)), "still", 0.62, z=12, arc=14, shadow=False, leave=1.15),
            Act("boat", ((1.1, 482, 344), (2.0, 486, 346), (3.5, 560, 346)), "rock", 0.62, z=12, shadow=False, enter=1.15),
            pop("splash", 482, 346, 1.1, 0.8, 0.7),
        ),
        "She sets it down on the racing water, and the boat takes its very first ride.",
        "Low close shot at the kerb: the fox bends down in her yellow coat and lets the paper boat "
        "drop with a plop into the blue gutter stream, where it rocks and begins to drift away.",
        cues=(Cue(1.1, "plop", None),),
        blur=2,
    ),
    Shot(
        "street",
        5.0,
        ((0, 500, 190, 1.12), (5.0, 1080, 190, 1.12)),
        (
            Act(
                "mina",
                ((0, 410, 306), (5.0, 930, 306)),
                "run",
                0.84,
                tracks={
                    "mouth": ((0, 1.0), (3.4, 1.0), (4.0, -0.4)),
                    "gape": ((0, 0.6),),
                    "look_x": ((0, 0.9),),
                    "look_y": ((0, 0.4),),
                },
            ),
            Act("boat", ((0, 520, 348), (3.0, 880, 348), (5.0, 1240, 348)), "rock", 0.66, z=12, shadow=False),
        ),
        "Laughing, she races along beside it, but the stream runs faster and faster.",
        "Tracking shot to the right along the pastel houses: the fox in yellow runs over the wet "
        "cobbles while the white paper boat bobs ahead in the stream and gains on her in the rain.",
        cues=(Cue(0.3, "giggle", "mina"),),
        steps="splash_step",
    ),
    Shot(
        "street",
        2.5,
        ((0, 1012, 232, 2.3), (2.5, 1062, 228, 2.5)),
        (
            Act(
                "mina",
                ((0, 1000, 312), (2.5, 1050, 312)),
                "run",
                0.84,
                tracks={
                    "mouth": ((0, -0.5),),
                    "gape": ((0, 0.8),),
                    "wide": ((0, 1),),
                    "brow": ((0, -1),),
                    "look_x": ((0, 1.0),),
                    "arm_r": ((0, 96), (2.5, 110)),
                    "lean": ((0, 8),),
                },
            ),
        ),
        "The boat slips out of reach, and Mina cries after it in dismay.",
        "Close-up of the running fox, hood dripping, eyes wide and paw stretched "
        "forward; the street slides past behind her, soft and grey in the rain.",
        cues=(Cue(0.4, "yelp", "mina"),),
        blur=4,
        steps="splash_step",
    ),
    Shot(
        "pond",
        5.5,
        ((0, 330, 178, 1.0), (5.5, 345, 188, 1.14)),
        (Act("boat", ((0, 60, 276), (5.5, 360, 300)), "rock", 0.62, tracks={"sway": ((0, 0.5),)}, shadow=False),),
        "Swept into a dark pond, the tiny boat is alone when the sky cracks open.",
        "A wide pond under slate storm clouds with lily pads and dark hills; the small white boat with "
        "its red flag is carried to the middle, and lightning turns the whole picture white for a moment.",
        flash=2.2,
        cues=(Cue(2.3, "thunder", None, 1.0),),
    ),
)
