"""Many short drawn stories of three characters in many colours, as a dataset directory, with the truth of every pixel.

The characters and places are those of the sample films. Each story has one character in one colour (its body is drawn anew in
another hue; eyes, scarf and collar stay), four shots of nine frames, and says in each caption the place, what happens and on
which side. Descriptive captions name the colour, narrative ones do not: what reads them has to take it from the reference.
Some pairs of character and colour occur only in held-out stories (split ``validation``); stories of the other pairs that no
training sees make up the split ``test``.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animeshooter_dataset import (
    AnnotatedBy,
    Character,
    FilmRecord,
    Reference,
    RightsRecord,
    Scene,
    ShotAnnotation,
    ShotRecord,
    Storyboard,
    StoryRecord,
)
from animeshooter_records import split_of
from curation.pack import CuratedStory, Packer
from curation.sample_films.rig import Pose, Rig
from curation.sample_films.storyboard import Act, Film, Shot
from curation.sample_films.storyboard import Scene as Place

FRAMES, FPS, HEIGHT, WIDTH = 9, 8, 64, 96
"""Of every clip."""
DRAWN_FPS = 24
COLOURS: dict[str, float] = {
    "red": 0,
    "orange": 27,
    "yellow": 52,
    "green": 115,
    "cyan": 180,
    "blue": 220,
    "purple": 275,
    "pink": 322,
}
"""Hue of each colour in degrees; a story's own lies within :data:`JITTER` of it."""
JITTER = 5.0
HELD_OUT = {"frog": ("red", "blue"), "robot": ("yellow", "purple"), "cat": ("green", "orange")}
"""The colours in which a character is seen in the split ``validation`` only."""
PLACES = {"street": "in the street", "evening": "by the pond", "hut": "in the hut", "slope": "in the snow"}
SIDES = {"left": (242.0, 1), "middle": (320.0, 1), "right": (398.0, -1)}
"""Where the feet stand, in units of the drawing, and which way the character looks."""
ACTIONS = {"idle": "waits", "wave": "waves", "hop": "jumps"}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Of the packer, which decides by a hash of the name: names are chosen so that every story falls where it belongs."""


@dataclass(frozen=True)
class Body:
    """A character: its rig in a sample film, the hues of its body in degrees, its size and name."""

    film: str
    rig: str
    hues: tuple[float, float]
    size: float
    name: str


BODIES = {
    "frog": Body("paper_boat", "toto", (80, 160), 1.12, "Toto"),
    "robot": Body("fallen_star", "bolt", (150, 195), 1.0, "Bolt"),
    "cat": Body("fallen_star", "inky", (250, 295), 1.35, "Inky"),
}


@dataclass(frozen=True)
class Told:
    """One shot of a story."""

    place: str
    side: str
    action: str


@dataclass(frozen=True)
class Story:
    """A story to draw: who, in which colour and hue, and its shots; ``split`` says who may see it."""

    number: int
    body: str
    colour: str
    hue: float
    shots: tuple[Told, ...]
    split: str

    @property
    def video(self) -> str:
        """The name of its film: the first of its kind that the packer puts into its split."""
        names = (f"{self.body}-{self.colour}-{self.number:03}-{letter}" for letter in itertools.count())
        return next(name for name in names if split_of(name, SHARES) == self.split)

    def caption(self, place: int, kind: str) -> str:
        """The caption of a shot: ``descriptive`` with the colour, ``narrative`` without."""
        told = self.shots[place]
        colour = f"{self.colour} " if kind == "descriptive" else ""
        return f"The {colour}{self.body} {ACTIONS[told.action]} on the {told.side}, {PLACES[told.place]}."


# ---- which stories ----


def stories(each: int, held_out: int, seed: int = 0, shots: int = 4) -> list[Story]:
    """Stories of every pair of character and colour.

    Args:
        each: training stories of every pair that training may see, and as many again / 4 for the split ``test``.
        held_out: stories of every pair it may not.
        seed: of places, sides, actions and hues.
        shots: of a story, all different.
    """
    rng = np.random.default_rng(seed)
    made: list[Story] = []
    ways = [Told(*way) for way in itertools.product(PLACES, SIDES, ACTIONS)]
    for body, colour in itertools.product(BODIES, COLOURS):
        hidden = colour in HELD_OUT[body]
        splits = ["validation"] * held_out if hidden else ["train"] * each + ["test"] * max(1, each // 6)
        for split in splits:
            chosen = tuple(ways[number] for number in rng.choice(len(ways), shots, replace=False))
            hue = (COLOURS[colour] + rng.uniform(-JITTER, JITTER)) % 360
            made.append(Story(len(made), body, colour, hue, chosen, split))
    return made


# ---- drawing ----


def recoloured(text: str, hues: tuple[float, float], hue: float) -> str:
    """SVG text with every colour whose hue lies within ``hues`` turned to ``hue`` degrees; greys stay."""

    def turn(found: re.Match[str]) -> str:
        red, green, blue = (int(found[0][place : place + 2], 16) / 255 for place in (1, 3, 5))
        was, light, full = colorsys.rgb_to_hls(red, green, blue)
        if full < 0.15 or not hues[0] <= was * 360 <= hues[1]:
            return found[0]
        light = light if light < 0.35 else 0.35 + (light - 0.35) * 0.7
        turned = colorsys.hls_to_rgb(hue / 360, light, max(full, 0.75))
        return "#" + "".join(f"{round(255 * value):02x}" for value in turned)

    return re.sub(r"#[0-9a-fA-F]{6}", turn, text)


def _draw(rig: Rig, hues: tuple[float, float], hue: float, pose: Pose) -> str:
    return recoloured(rig.draw(pose), hues, hue)


@dataclass
class Studio:
    """Draws stories; what is painted once serves all of them."""

    scenes: dict[str, Place] = field(default_factory=dict)
    rigs: dict[str, Rig] = field(default_factory=dict)
    planes: dict[Any, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from curation.sample_films.render import FILMS, load_film

        for name in FILMS:
            film = load_film(name)
            self.scenes |= {scene.id: replace(scene, air=()) for scene in film.scenes}
            self.rigs |= {rig.id: rig for rig in film.rigs}

    def draw(self, story: Story) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """The shots of a story.

        Returns:
            Of each shot: frames uint8 [FRAMES, HEIGHT, WIDTH, 3], the character's share of every pixel, float32 [FRAMES,
            HEIGHT, WIDTH], and a cut-out of it from the middle frame, uint8 [h, w, 4].
        """
        import cv2

        from curation.sample_films.compositor import Stage

        cv2.setNumThreads(1)
        body = BODIES[story.body]
        rig = self.rigs[body.rig]
        rig = replace(rig, draw=partial(_draw, rig, body.hues, story.hue), defs=recoloured(rig.defs, body.hues, story.hue))
        shots = tuple(self._shot(body, told) for told in story.shots)
        film = Film("story", "", "", (rig,), tuple(self.scenes[name] for name in PLACES), shots, (), (), "#000000", "#ffffff")
        stage = Stage(film)
        stage.planes = self.planes
        frames, shares, cutouts = [], [], []
        for number in range(len(shots)):
            pictures = [stage._shot_picture(number, stage.time.starts[number] + DRAWN_FPS // FPS * n) for n in range(FRAMES)]
            frames.append(np.stack([_small(picture.image[:, :, ::-1]) for picture in pictures]))
            masks = [picture.masks[body.rig] for picture in pictures]
            shares.append(np.stack([_small(mask.astype(np.float32)) for mask in masks]))
            middle = FRAMES // 2
            cutouts.append(_cutout(pictures[middle].image[:, :, ::-1], masks[middle]))
        return frames, shares, cutouts

    def _shot(self, body: Body, told: Told) -> Shot:
        x, face = SIDES[told.side]
        act = Act(body.rig, ((0, x, 338.0),), told.action, body.size, face, blink=False, quiet=True)
        seconds = (FRAMES * DRAWN_FPS // FPS + 1) / DRAWN_FPS
        # Soft focus leaves out the planes in front of the character.
        return Shot(told.place, seconds, ((0, 320, 228, 1.5),), (act,), "", "", blur=2.0)


def _small(image: np.ndarray) -> np.ndarray:
    """The middle of a picture, scaled to the size of the clips."""
    import cv2

    height = image.shape[0]
    wide = height * WIDTH // HEIGHT
    left = (image.shape[1] - wide) // 2
    return cv2.resize(np.ascontiguousarray(image[:, left : left + wide]), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def _cutout(image: np.ndarray, mask: np.ndarray, side: int = 96) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    rgba = Image.fromarray(np.dstack([image[box], mask[box].astype(np.uint8) * 255]))
    rgba.thumbnail((side, side))
    return np.asarray(rgba)


# ---- packing ----


@dataclass(frozen=True)
class Drawn(CuratedStory):
    """A story whose media are in memory."""

    kept: Mapping[tuple[str, str], bytes] = field(default_factory=dict)

    def media(self, key: str, member: str) -> bytes:
        """The bytes of one member of one of its samples."""
        return self.kept[key, member]


def write(directory: Path, wanted: Sequence[Story], progress: Iterable[Any] | None = None) -> dict[str, np.ndarray]:
    """Draw stories and pack them as a dataset directory.

    Args:
        directory: to write; ``truth.npz`` beside it (``<directory>.truth.npz``) takes the character's share of every pixel.
        wanted: the stories.
        progress: an iterator advanced by one for every story, such as a progress bar.

    Returns:
        Of every shot by its key, the character's share of each pixel, float16 [FRAMES, HEIGHT, WIDTH].
    """
    directory.mkdir(parents=True)
    studio, ticks = Studio(), iter(progress or ())
    truth: dict[str, np.ndarray] = {}
    with Packer(directory, SHARES, 256 * 2**20) as packer:
        for story in wanted:
            frames, shares, cutouts = studio.draw(story)
            curated = _curated(story, studio, frames, cutouts)
            truth |= {shot.key: share.astype(np.float16) for shot, share in zip(curated.shots, shares, strict=True)}
            rights = RightsRecord(video=story.video, licence="CC0-1.0", state="kept", sha256="0" * 64)
            counts: Any = {"stories": 1, "shots": len(curated.shots)}
            packer.add_film(FilmRecord(video=story.video, film=f"{story.video}.mp4", state="kept", **counts), rights)
            packer.add(curated)
            next(ticks, None)
        packer.finish({"settings": {"shares": SHARES}, "tools": {}, "rules": []})
    np.savez_compressed(truth_of(directory), **truth)  # type: ignore[arg-type]
    return truth


def truth_of(directory: Path) -> Path:
    """Where the truth of a dataset that :func:`write` made lies."""
    return directory.with_name(f"{directory.name}.truth.npz")


def _curated(story: Story, studio: Studio, frames: list[np.ndarray], cutouts: list[np.ndarray]) -> Drawn:
    key, body = f"{story.video}-000", BODIES[story.body]
    keys = [f"{key}-{place:03}" for place in range(len(frames))]
    told = [_annotation(story, place, keys[place]) for place in range(len(frames))]
    who = [Character(id=body.name, appearance=f"a {story.colour} {story.body}")]
    used = dict.fromkeys(shot.place for shot in story.shots)
    where = [Scene(id=name, environment=studio.scenes[name].environment) for name in used]
    same: dict[str, Any] = {"video": story.video, "split": story.split, "licence": "CC0-1.0"}
    same["annotator"] = AnnotatedBy(kind="sidecar")
    media: dict[tuple[str, str], bytes] = {}
    shots = []
    for place, annotation in enumerate(told):
        others = [other for other in range(len(frames)) if other != place]
        sheet, references = _sheet(body.name, [(keys[other], other, cutouts[other]) for other in others])
        media[keys[place], "mp4"], media[keys[place], "png"] = encoded(frames[place]), sheet
        shots.append(
            ShotRecord(
                **annotation.model_dump(),
                **same,
                frames=FRAMES,
                fps=FPS,
                height=HEIGHT,
                width=WIDTH,
                has_audio=False,
                story=key,
                shots_in_story=len(frames),
                storyline=f"A day of the {story.body}.",
                story_characters=who,
                story_scenes=where,
                references=references,
                characters_without_reference=[],
            )
        )
    end = told[-1]
    board = Storyboard(columns=len(told), tile_height=HEIGHT, tile_width=WIDTH, frames=[one.start_frame + 4 for one in told])
    record = StoryRecord(
        **same,
        key=key,
        position=0,
        fps=FPS,
        source_height=HEIGHT,
        source_width=WIDTH,
        start_frame=0,
        end_frame=end.end_frame,
        start_time=0.0,
        end_time=end.end_time,
        storyline=shots[0].storyline,
        characters=who,
        scenes=where,
        shots=told,
        references=shots[-1].references,
        storyboard=board,
    )
    media[key, "png"] = media[keys[-1], "png"]
    media[key, "jpg"] = _file(Image.fromarray(np.hstack([shot[FRAMES // 2] for shot in frames])), "JPEG")
    return Drawn(record, shots, [], Path(), {}, media)


def _annotation(story: Story, place: int, key: str) -> ShotAnnotation:
    start = place * FRAMES
    return ShotAnnotation(
        key=key,
        position=place,
        start_frame=start,
        end_frame=start + FRAMES,
        start_time=start / FPS,
        end_time=(start + FRAMES) / FPS,
        clean_start_frame=start,
        clean_end_frame=start + FRAMES,
        transition_in="cut" if place else "start",
        scene=story.shots[place].place,
        characters=[BODIES[story.body].name],
        narrative_caption=story.caption(place, "narrative"),
        descriptive_caption=story.caption(place, "descriptive"),
    )


def _sheet(name: str, images: Sequence[tuple[str, int, np.ndarray]]) -> tuple[bytes, list[Reference]]:
    """A reference sheet, and what is on it: one image from each shot named."""
    height, width = max(image.shape[0] for *_, image in images), sum(image.shape[1] for *_, image in images)
    sheet, references, left = np.zeros((height, width, 4), np.uint8), [], 0
    for key, shot, image in images:
        tall, wide = image.shape[:2]
        sheet[:tall, left : left + wide] = image
        box, source = (left, 0, left + wide, tall), (0, 0, min(wide, WIDTH), min(tall, HEIGHT))
        frame = shot * FRAMES + FRAMES // 2
        references.append(Reference(character=name, box=box, shot=key, frame=frame, source_box=source))
        left += wide
    return _file(Image.fromarray(sheet), "PNG"), references


def _file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def encoded(frames: np.ndarray) -> bytes:
    """Frames uint8 [F, H, W, 3] as the bytes of an mp4, nearly without loss."""
    import av

    from curation.video import X264_REPRODUCIBLE

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": "6", "preset": "fast", **X264_REPRODUCIBLE}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number * 1000 // FPS, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
