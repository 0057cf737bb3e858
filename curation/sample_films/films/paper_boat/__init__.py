"""The Paper Boat: a fox folds a boat on a rainy day, a storm takes it, a frog brings it back."""

from __future__ import annotations

from ...props import EXCLAIM, HEART, SHEET, SPLASH
from ...storyboard import AudioNote, Bed, Film
from .beginning import BEGINNING
from .cast import BOAT, MINA, TOTO
from .ending import ENDING
from .scenery import SCENES

FILM = Film(
    name="paper_boat",
    title="The Paper Boat",
    storyline="On a rainy day the young fox Mina folds a paper boat and sets it afloat "
    "in the street, but the stream carries it off into a stormy pond. "
    "The frog Toto dives after it and brings it back to her. When the "
    "sun returns, the two new friends sail it together under a rainbow.",
    rigs=(MINA, TOTO, BOAT, SPLASH, EXCLAIM, HEART, SHEET),
    scenes=SCENES,
    shots=(*BEGINNING, *ENDING),
    beds=(
        Bed("rain", 0, 0, 0.5),
        Bed("rain_window", 1, 3, 0.4),
        Bed("rain", 4, 7, 0.6),
        Bed("rain", 8, 13, 0.75),
        Bed("wind", 8, 13, 0.35),
        Bed("birds", 15, 17, 0.5),
        Bed("water", 15, 17, 0.3),
        Bed("musicbox", 0, 3, 0.5, (69, 72, 76, 72, 74, 72, 69, 0, 67, 71, 74, 71, 72, 69, 0, 0), 0.3),
        Bed("pluck", 4, 7, 0.4, (57, 64, 69, 64, 60, 67, 72, 67, 55, 62, 67, 62, 57, 64, 69, 71), 0.2),
        Bed("pad", 8, 13, 0.4, (45, 48, 52, 44, 47, 52), 2.4),
        Bed("musicbox", 14, 17, 0.55, (72, 76, 79, 76, 77, 76, 72, 0, 74, 77, 81, 77, 79, 76, 72, 0), 0.3),
    ),
    audio=(
        AudioNote(
            0,
            0,
            "ambience",
            "Steady rain on a street with a few music-box notes",
            "rain falls on village houses behind the title",
            "Rain announces a long grey day.",
            "A rainy village street with a paper boat in the gutter; soft rain noise and a music box open the film.",
            "street",
        ),
        AudioNote(
            1,
            2,
            "ambience",
            "Muffled rain against a window, a sigh, then a bright ping",
            "a fox indoors looks at the wet window and has an idea",
            "Mina is bored until an idea strikes.",
            "Inside a warm attic a fox in a yellow raincoat sighs at the rain-streaked window, then brightens with a ping.",
            "attic",
            ("mina",),
        ),
        AudioNote(
            3,
            3,
            "sound effect",
            "Paper rustling three times, a pop and a giggle",
            "paws fold paper at a table until a boat springs up",
            "Mina folds her boat and rejoices.",
            "At a table the fox's paws crease a white sheet with rustles; a boat pops up and she giggles.",
            "attic",
            ("mina",),
        ),
        AudioNote(
            4,
            7,
            "sound effect",
            "A door, quick splashing footsteps, a plop and a yelp in the rain",
            "a fox runs along a wet street beside a floating boat",
            "Mina launches the boat and loses it to the stream.",
            "On wet cobbles the fox in yellow runs with splashing steps, "
            "drops the boat in with a plop and cries out as it gets away.",
            "street",
            ("mina",),
        ),
        AudioNote(
            8,
            10,
            "sound effect",
            "A crash of rolling thunder over heavy rain and wind, a frog's croak",
            "lightning whitens a pond where a paper boat tips on waves",
            "The storm threatens the boat and Toto notices.",
            "A dark pond lit by lightning; thunder rolls, water slaps a white paper boat and a green frog croaks in alarm.",
            "pond",
            ("toto",),
        ),
        AudioNote(
            11,
            11,
            "sound effect",
            "A springy leap and two big splashes",
            "a frog jumps into the pond and surfaces with the boat",
            "Toto saves the boat.",
            "A green frog springs off his lily pad with a boing, hits "
            "the teal water with a splash and breaks the surface again.",
            "pond",
            ("toto",),
        ),
        AudioNote(
            12,
            14,
            "ambience",
            "Rain and sniffing, then gentle water, giggles and croaks",
            "a sad fox on the bank is given her boat back",
            "Grief turns to friendship on the shore.",
            "A shivering fox sniffs in the rain; the frog paddles in with small splashes and she giggles while he croaks.",
            "pond",
            ("mina", "toto"),
        ),
        AudioNote(
            15,
            17,
            "music",
            "A cheerful music box with birdsong and lapping water",
            "friends enjoy the sunny pond beneath a rainbow",
            "The friends sail in peace.",
            "On a golden pond with a rainbow the frog rides in the boat "
            "and the fox waves, to music box, birds and small waves.",
            "evening",
            ("mina", "toto"),
        ),
    ),
    ink="#ffd23c",
    halo="#2f4a78",
)
