"""The first half of the storyboard: set-up and mishap."""

from __future__ import annotations

from ...storyboard import Act, Cue, Shot, pop

DIM = {"glow": ((0.0, 0.06),), "mouth": ((0.0, -0.8),), "lids": ((0.0, 0.25),)}

BEGINNING = (
    Shot(
        "heaven",
        4.5,
        ((0, 320, 20, 1.0), (4.5, 320, 180, 1.0)),
        (
            Act(
                "nova",
                ((0, 320, 322),),
                "float",
                0.95,
                tracks={"mouth": ((0, 0.8),), "look_x": ((0, -0.8), (1.4, -0.8), (1.8, 0.8), (3.2, 0.8), (3.6, 0))},
            ),
        ),
        "High above the world the youngest star of the sky plays all by herself.",
        "A deep blue night sky full of stars with a drawn constellation; the camera sinks to banks of pale "
        "cloud where a plump golden star with pink cheeks floats and glows beneath the title letters.",
        span=20,
        role="prologue",
        card="Fallen Star",
        cues=(Cue(1.2, "chime", "nova", 0.6),),
    ),
    Shot(
        "roof",
        5.0,
        ((0, 150, 178, 1.0), (5, 300, 182, 1.12)),
        (
            Act(
                "bolt",
                ((0, 40, 308), (3.4, 292, 308)),
                ((0, "walk"), (3.4, "idle")),
                0.82,
                tracks={"look_y": ((3.4, 0), (3.9, -0.9)), "tilt": ((3.4, 0), (3.9, -6))},
            ),
            Act(
                "inky", ((0, 404, 310),), "idle", 0.9, face=-1, tracks={"look_x": ((0, 1),), "look_y": ((3.2, 0), (3.7, -0.7))}
            ),
        ),
        "Bolt comes up for his evening round, and Inky the cat is already waiting for him.",
        "A tiled rooftop at night below a full moon, lit windows in the distance: a small teal robot with a red "
        "antenna bulb walks right past the chimney to a violet cat with an orange collar, and both look up.",
        cues=(Cue(0.2, "robot", "bolt", 0.7, -0.4), Cue(3.6, "meow", "inky", 0.6, 0.3)),
        steps="metal_step",
    ),
    Shot(
        "roof",
        2.5,
        ((0, 298, 214, 2.3), (2.5, 294, 208, 2.45)),
        (
            Act(
                "bolt",
                ((0, 292, 308),),
                "idle",
                0.82,
                tracks={
                    "look_x": ((0, 0.9), (0.9, 0.9), (1.9, -0.9)),
                    "look_y": ((0, -0.9), (1.9, -0.2)),
                    "wide": ((0.6, 0), (1.0, 1)),
                    "mouth": ((0, 0.5), (0.8, 0)),
                    "gape": ((0.8, 0), (1.1, 0.7)),
                    "tilt": ((0.9, 6), (1.9, -6)),
                },
            ),
            pop("exclaim", 358, 204, 0.7, 1.7, 0.8),
        ),
        "Something bright moves across the sky, and he cannot take his eyes off it.",
        "Close-up of the robot's round teal head: the cyan eyes on his dark screen grow large "
        "and follow something from upper right to left while a yellow mark of surprise pops up.",
        cues=(Cue(0.6, "ping", "bolt", 0.7), Cue(0.9, "whistle", "nova", 0.22)),
        blur=5,
    ),
    Shot(
        "roof",
        4.0,
        ((0, 330, 60, 1.0), (1.6, 200, 170, 1.12), (4, 190, 176, 1.15)),
        (
            Act("streak", ((0.1, 620, -90), (1.5, 176, 286)), "still", 1.0, enter=0.1, leave=1.5, blink=False, shadow=False),
            Act(
                "glow",
                ((1.5, 176, 284),),
                "still",
                1.9,
                enter=1.5,
                leave=3.2,
                tracks={"glow": ((1.5, 1), (3.1, 0))},
                blink=False,
            ),
            pop("puff", 150, 300, 1.55, 1.5, 1.6),
            pop("puff", 196, 302, 1.65, 1.6, 1.9),
            pop("puff", 176, 290, 1.8, 1.9, 1.5),
        ),
        "A star falls out of the sky and strikes the roof with a crash.",
        "Wide night view over the roof and city: a burning streak races down from the upper right, the camera "
        "follows it and shakes as it lands beside the brick chimney in a flare of light and puffs of smoke.",
        cues=(Cue(0.05, "whistle", "nova", 0.8, 0.3), Cue(1.5, "boom", "nova", 1.0, -0.2)),
        shake=(1.5, 11),
    ),
    Shot(
        "roof",
        4.0,
        ((0, 400, 226, 1.75), (2.4, 268, 230, 1.6), (4, 250, 232, 1.68)),
        (
            Act(
                "bolt",
                ((0, 470, 310), (2.4, 284, 310)),
                ((0, "run"), (2.4, "idle")),
                0.82,
                face=-1,
                tracks={"wide": ((0, 0.6),), "brow": ((0, -0.8),), "mouth": ((0, -0.1),), "look_y": ((2.3, 0), (2.7, 0.9))},
            ),
            Act(
                "inky",
                ((0, 560, 314), (2.8, 356, 314)),
                ((0, "run"), (2.8, "idle")),
                0.82,
                face=-1,
                z=11,
                tracks={"wide": ((0, 0.8),), "look_y": ((2.8, 0), (3.2, 0.6))},
            ),
            Act("nova", ((0, 186, 322),), "still", 0.62, tracks={**DIM, "lids": ((0, 1),)}, z=11, blink=False),
            pop("puff", 170, 318, 0.0, 1.8, 1.3),
            pop("puff", 206, 318, 0.3, 2.0, 1.1),
        ),
        "The two friends hurry over and find a little grey thing lying in the smoke.",
        "On the purple tiles the teal robot and behind him the violet cat run in from the right and stop "
        "short; before them a dull grey star lies still with closed eyes in thinning smoke beside the chimney.",
        cues=(Cue(2.8, "robot", "bolt", 0.6), Cue(3.2, "meow", "inky", 0.5, 0.4)),
        steps="metal_step",
    ),
    Shot(
        "roof",
        3.0,
        ((0, 188, 284, 3.0), (3, 188, 282, 3.2)),
        (
            Act(
                "nova",
                ((0, 186, 320),),
                "idle",
                0.68,
                tracks={
                    "glow": ((0, 0.06),),
                    "mouth": ((0, -1),),
                    "lids": ((0, 1), (0.9, 1), (1.2, 0.2)),
                    "look_x": ((1.2, 0), (1.8, 0.8)),
                    "look_y": ((1.2, 0), (1.8, -0.5)),
                    "tilt": ((0, 0),),
                },
                prop="tear",
                blink=False,
            ),
        ),
        "Nova wakes up far from home, and her light is out.",
        "Very close on the fallen star's face, now grey-blue instead of gold: she opens "
        "her dark eyes slowly, her mouth droops and a pale tear hangs on her pink cheek.",
        cues=(Cue(1.0, "sniff", "nova"),),
        blur=5,
    ),
    Shot(
        "roof",
        4.0,
        ((0, 228, 236, 1.8), (4, 234, 222, 1.95)),
        (
            Act(
                "bolt",
                ((0, 262, 310),),
                "idle",
                0.82,
                face=-1,
                tracks={
                    "squash": ((0, 0.02), (0.8, 0.14), (1.5, 0.14), (2.2, 0.0)),
                    "arm_r": ((0, 30), (0.8, 62), (2.2, 96)),
                    "arm_l": ((0, 20), (2.4, 40)),
                    "look_y": ((0, 0.8), (2.4, 0.3)),
                    "mouth": ((0, 0.2), (2.4, 0.8)),
                    "brow": ((0, -0.7), (2.4, 0)),
                },
                z=10,
            ),
            Act(
                "nova",
                ((0, 196, 322), (1.0, 198, 320), (2.2, 198, 272)),
                "still",
                0.6,
                tracks={
                    "glow": ((0, 0.06), (2.4, 0.06), (3.0, 0.2)),
                    "mouth": ((0, -0.8), (2.6, -0.1)),
                    "look_x": ((0, 0.9),),
                    "look_y": ((0, -0.6),),
                    "wide": ((0.6, 0), (1.0, 0.8), (2.4, 0)),
                },
                z=11,
                ease=True,
                shadow=False,
            ),
        ),
        "Gently he lifts her from the tiles and promises to help.",
        "Medium shot beside the chimney: the teal robot bends his knees, takes the grey star on "
        "his amber hand and raises her to his shoulder, his screen face turning to a soft smile.",
        cues=(Cue(0.8, "hum", "bolt", 0.7), Cue(2.4, "robot", "bolt", 0.7)),
        blur=2,
    ),
    Shot(
        "workshop",
        5.0,
        ((0, 250, 176, 1.0), (5, 310, 182, 1.1)),
        (
            Act("nova", ((0, 320, 238),), "idle", 0.62, tracks={**DIM, "look_x": ((0, -0.8),)}),
            Act(
                "bolt",
                ((0, -60, 322), (2.6, 196, 322)),
                ((0, "walk"), (2.6, "idle")),
                0.86,
                tracks={"arm_r": ((2.6, 12), (3.2, 84), (4.0, 60), (4.6, 90)), "look_x": ((0, 0.8),)},
                z=12,
            ),
            Act("inky", ((0, 520, 326),), "idle", 0.95, face=-1, tracks={"look_x": ((0, 0.9),), "look_y": ((0, -0.4),)}, z=12),
        ),
        "Down in his workshop he lays her on the bench and searches for what is wrong.",
        "A brick-red workshop with coloured jars, gears and a cone of lamplight: the grey star sits on the "
        "bench as the teal robot walks in from the left and the violet cat watches from the floor on the right.",
        cues=(Cue(0.0, "door", None, 0.7, -0.6), Cue(3.2, "ratchet", "bolt", 0.7), Cue(4.2, "ratchet", "bolt", 0.6)),
        steps="metal_step",
    ),
    Shot(
        "workshop",
        2.5,
        ((0, 322, 206, 2.9), (2.5, 322, 204, 3.05)),
        (
            Act(
                "nova",
                ((0, 320, 240),),
                "shiver",
                0.74,
                tracks={
                    "glow": ((0, 0.06), (0.8, 0.06), (1.0, 0.4), (1.2, 0.06), (1.6, 0.06), (1.8, 0.3), (2.0, 0.05)),
                    "mouth": ((0, -0.7),),
                    "look_x": ((0, -0.7), (1.2, -0.7), (1.6, 0.6)),
                    "wide": ((0, 0.3),),
                    "lids": ((0, 0),),
                },
            ),
        ),
        "Her glow flickers once, twice, and goes out again.",
        "Close-up of the star on the wooden bench under the lamp: grey and trembling, she flashes "
        "faintly gold for a blink and dims again while her big eyes look from side to side.",
        cues=(Cue(0.85, "zap", "nova", 0.35), Cue(1.65, "zap", "nova", 0.3)),
        blur=4,
    ),
)
