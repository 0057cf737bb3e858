"""Snow Portrait: a penguin wants a picture of the mountain and makes a picture of a friend instead."""

from __future__ import annotations

from ...props import EXCLAIM, GUST, HEART, PUFF
from ...storyboard import AudioNote, Bed, Film
from .beginning import BEGINNING
from .cast import CAMERA, GRUM, PHOTO, POLA, STAND
from .ending import ENDING
from .scenery import SCENES

FILM = Film(
    name="snow_portrait",
    title="Snow Portrait",
    storyline="The penguin Pola sets out to photograph the great mountain for the last empty "
    "frame on her wall, while the shy yeti Grum watches her from behind a pine. "
    "His sneeze sends her camera tumbling into an ice cave, and he gives it back "
    "to her. The picture that ends up in the frame is one of the two new friends.",
    rigs=(POLA, GRUM, CAMERA, STAND, PHOTO, EXCLAIM, GUST, HEART, PUFF),
    scenes=SCENES,
    shots=(*BEGINNING, *ENDING),
    beds=(
        Bed("wind", 0, 0, 0.4),
        Bed("fire", 1, 2, 0.6),
        Bed("wind", 3, 9, 0.45),
        Bed("cave", 10, 13, 0.6),
        Bed("wind", 14, 14, 0.35),
        Bed("fire", 15, 15, 0.6),
        Bed("wind", 16, 16, 0.3),
        Bed("pluck", 0, 3, 0.45, (60, 64, 67, 64, 62, 65, 69, 65, 59, 62, 67, 62, 60, 64, 67, 72), 0.24),
        Bed("pluck", 4, 7, 0.4, (57, 0, 60, 0, 56, 0, 59, 0, 57, 0, 60, 64, 63, 0, 0, 0), 0.2),
        Bed("pad", 10, 12, 0.4, (43, 50, 46, 41), 2.2),
        Bed("musicbox", 13, 16, 0.5, (72, 76, 79, 76, 77, 81, 79, 0, 74, 77, 81, 77, 76, 79, 72, 0), 0.28),
    ),
    audio=(
        AudioNote(
            0,
            0,
            "music",
            "Plucked strings over a light wind",
            "mountains at dusk appear behind the title",
            "The mountains wait.",
            "Violet peaks and falling snow under the title; plucked strings and soft wind.",
            "slope",
        ),
        AudioNote(
            1,
            2,
            "sound effect",
            "Waddling steps on boards, a puzzled hum, a crackling stove and a camera shutter",
            "a penguin in a hut looks at an empty frame and tests her camera",
            "Pola decides what is missing.",
            "By a crackling stove the navy penguin steps across the boards, hums at an empty frame and clicks her red camera.",
            "hut",
            ("pola",),
        ),
        AudioNote(
            3,
            3,
            "sound effect",
            "A door shuts, then squeaking steps in snow and wind",
            "a penguin waddles up a snowy slope",
            "Pola sets out.",
            "A penguin in a yellow hat crunches through snow under violet mountains after a door thuds.",
            "slope",
            ("pola",),
        ),
        AudioNote(
            4,
            7,
            "sound effect",
            "Clacking tripod, a deep murmur, a gasp and a hum over plucked notes",
            "a yeti watches a penguin from behind a pine",
            "Grum spies on Pola and hides.",
            "The penguin clacks her tripod together; the turquoise yeti murmurs behind a pine and she gasps and hums.",
            "slope",
            ("pola", "grum"),
        ),
        AudioNote(
            8,
            9,
            "sound effect",
            "An enormous sneeze, rushing wind, clacks of a falling camera and quick steps",
            "a yeti sneezes and a camera flies away",
            "The sneeze costs Pola her camera.",
            "The shaggy yeti sneezes with a roar; the red camera clatters "
            "down the snow and the penguin runs after it with a yelp.",
            "slope",
            ("pola", "grum"),
        ),
        AudioNote(
            10,
            12,
            "sound effect",
            "Something sliding on ice, slow heavy steps, a yelp and a deep murmur in a hollow cave",
            "a camera slides into an ice cave and a yeti picks it up",
            "Pola meets Grum in the cave.",
            "In an echoing blue cave the red camera scrapes over ice, the "
            "yeti stomps near, the penguin yelps and he murmurs kindly.",
            "cave",
            ("pola", "grum"),
        ),
        AudioNote(
            13,
            14,
            "sound effect",
            "Giggles, a bright ping, running steps in snow, four beeps and a camera shutter",
            "a happy penguin poses with a yeti for the camera",
            "The friends take their portrait.",
            "The penguin giggles in the cave, then dashes over snow while the tripod camera beeps and fires its shutter.",
            None,
            ("pola", "grum"),
        ),
        AudioNote(
            15,
            16,
            "music",
            "A warm music box over a crackling stove and wind",
            "the finished photograph hangs on the wall and friends walk away",
            "The frame is filled by a friend.",
            "In the firelit hut penguin and yeti admire their photograph, then walk through snow to a music box.",
            None,
            ("pola", "grum"),
        ),
    ),
    ink="#ff6f61",
    halo="#fff8ee",
)
