"""Fallen Star: a robot and a cat find a star that has lost its light, mend it, and send it home."""

from __future__ import annotations

from ...props import EXCLAIM, HEART, PUFF, SPARKS, TRAIL
from ...storyboard import AudioNote, Bed, Film
from .beginning import BEGINNING
from .cast import BOLT, GLOW, INKY, NOVA, PAD, STREAK
from .ending import ENDING
from .scenery import SCENES

FILM = Film(
    name="fallen_star",
    title="Fallen Star",
    storyline="One night a star crashes onto the roof where the robot "
    "Bolt and the cat Inky keep watch, and her light goes out. "
    "In his workshop Bolt mends the star Nova with a mighty spark. From the "
    "top of the tower the friends launch her back to her place in the sky.",
    rigs=(BOLT, NOVA, INKY, PAD, GLOW, STREAK, EXCLAIM, HEART, PUFF, SPARKS, TRAIL),
    scenes=SCENES,
    shots=(*BEGINNING, *ENDING),
    beds=(
        Bed("city", 1, 6, 0.5),
        Bed("machines", 7, 11, 0.6),
        Bed("wind", 12, 15, 0.3),
        Bed("city", 16, 16, 0.5),
        Bed("musicbox", 0, 2, 0.5, (76, 0, 79, 83, 81, 0, 79, 76, 74, 0, 76, 79, 71, 0, 0, 0), 0.32),
        Bed("pad", 3, 6, 0.4, (45, 52, 48, 43), 2.2),
        Bed("pluck", 7, 9, 0.4, (57, 60, 64, 60, 57, 60, 65, 60, 55, 59, 62, 59, 57, 60, 64, 67), 0.22),
        Bed("musicbox", 11, 17, 0.5, (72, 76, 79, 84, 83, 79, 76, 0, 77, 81, 84, 81, 79, 76, 74, 0), 0.3),
        Bed("pad", 14, 17, 0.35, (48, 55, 53, 48), 2.4),
    ),
    audio=(
        AudioNote(
            0,
            0,
            "music",
            "A slow music box and a sparkling chime",
            "a golden star floats above the clouds behind the title",
            "Nova plays alone in the sky.",
            "A starry sky with a glowing golden star; a music box and a chime open the film.",
            "heaven",
            ("nova",),
        ),
        AudioNote(
            1,
            2,
            "sound effect",
            "Metallic footsteps, robot chirps, a meow and a high falling whistle",
            "a robot and a cat on a roof look up at the night sky",
            "Bolt and Inky notice a falling light.",
            "On a night roof a teal robot clanks along, chirps to a violet cat, and stares as a whistle falls from the sky.",
            "roof",
            ("bolt", "inky"),
        ),
        AudioNote(
            3,
            3,
            "sound effect",
            "A falling whistle that ends in a deep crash",
            "a burning streak hits the roof and smoke rises",
            "The star crashes.",
            "A streak of fire whistles across the night and slams into the tiles with a boom.",
            "roof",
        ),
        AudioNote(
            4,
            6,
            "sound effect",
            "Quick metal steps, a meow, sniffing and gentle chirps over city hum",
            "robot and cat find a grey star in the smoke",
            "The friends comfort the fallen star.",
            "The robot and the cat run up to a dull grey star that sniffs; the robot chirps softly and lifts her.",
            "roof",
            ("bolt", "nova", "inky"),
        ),
        AudioNote(
            7,
            9,
            "sound effect",
            "A door, ratchets and electric crackle over humming machines",
            "a robot works on a grey star at his bench",
            "Bolt tries to mend the star.",
            "In a brick workshop ratchets click and sparks crackle as the teal robot works on the dim star.",
            "workshop",
            ("bolt", "nova", "inky"),
        ),
        AudioNote(
            10,
            11,
            "sound effect",
            "A loud electric zap, a sparkling chime and a meow",
            "white light fills a workshop and a star glows gold",
            "Nova shines again and everybody marvels.",
            "A zap whitens the workshop; the golden star chimes, the robot cheers and the violet cat meows.",
            "workshop",
            ("bolt", "nova", "inky"),
        ),
        AudioNote(
            12,
            13,
            "sound effect",
            "Wind on a tower, three beeps, a springy bounce and a whoosh",
            "a star on a spring is launched from a tower",
            "Nova is sent on her way.",
            "Above lilac clouds three beeps count down and the golden star bounces off a spring with a boing.",
            "tower",
            ("bolt", "nova", "inky"),
        ),
        AudioNote(
            14,
            17,
            "music",
            "A bright music box with warm chords, chimes and a distant meow",
            "a star returns to the sky while friends wave",
            "Nova is home and her friends watch over her.",
            "The golden star climbs to her constellation to a glad music box; robot and cat wave from far below.",
            None,
            ("bolt", "nova", "inky"),
        ),
    ),
    ink="#ffe08a",
    halo="#3c2a7e",
)
