"""The storyboard as data: films, scenes, shots, acts, cues; and the frames at which things happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .rig import Rig

FPS = 24
WIDTH, HEIGHT = 640, 360
CAMERA_KEY = tuple[float, float, float, float]  # seconds, x, y, zoom
Keys = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layer:
    """One painted plane of a scene."""

    paint: Callable[[int], str]  # seed -> SVG elements in world units
    box: tuple[float, float, float, float]
    z: float  # paint order; the characters stand at 10 unless they say otherwise
    parallax: float = 1.0  # 0 stays with the camera, 1 moves with the action
    scale: float = 1.2  # pixels a unit
    drift: tuple[float, float, float] = (0.0, 0.0, 1.0)  # swing in x, in y (units), period (s)
    near: bool = False  # in front of the characters even in close shots (a table they sit at)


@dataclass(frozen=True)
class Scene:
    """A place: its planes, its light, what falls through its air."""

    id: str
    environment: str
    layers: tuple[Layer, ...]
    centre: tuple[float, float] = (320.0, 180.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # light on the characters, red-green-blue
    air: tuple[str, ...] = ()
    shade: str = "#1b1030"  # colour of contact shadows
    defs: str = ""


@dataclass(frozen=True)
class Act:
    """What one character or prop does during a shot; times are seconds from the start of the shot."""

    who: str
    at: tuple[tuple[float, float, float], ...]  # (seconds, x, y) of the feet
    action: str | tuple[tuple[float, str], ...] = "idle"
    size: float = 1.0
    face: int = 1  # 1 looks to the right, -1 to the left
    turn: float | None = None  # when it turns to face the other way
    z: float = 10.0
    tracks: Mapping[str, Keys] = field(default_factory=dict)  # pose parameter -> (seconds, value) keys
    prop: str = ""
    ease: bool = False  # movement eases in and out
    arc: float = 0.0  # height of the arc of a leap along the path, units
    blink: bool = True
    quiet: bool = False  # no sounds from the action itself
    shadow: bool = True
    enter: float = 0.0  # seconds of the shot from which it is there
    leave: float = 1e9


def pop(who: str, x: float, y: float, start: float, length: float = 0.8, size: float = 1.0, z: float = 15) -> Act:
    """An effect (a splash, a heart) that runs once, from a time of the shot on."""
    keys = {"glow": ((start, 0.0), (start + length, 1.0))}
    return Act(who, ((0, x, y),), "still", size, z=z, tracks=keys, enter=start, leave=start + length, blink=False)


@dataclass(frozen=True)
class Cue:
    """A sound at a time of the shot."""

    t: float
    sound: str
    who: str | None = None
    gain: float = 1.0
    pan: float = 0.0  # -1 left, 1 right


@dataclass(frozen=True)
class Shot:
    """One shot of the storyboard."""

    scene: str | None
    seconds: float
    camera: tuple[CAMERA_KEY, ...]
    acts: tuple[Act, ...]
    narrative: str
    descriptive: str
    cues: tuple[Cue, ...] = ()
    into: Literal["cut", "dissolve", "fade"] = "cut"  # how this shot begins
    span: int = 0  # frames of that transition
    flash: float | None = None
    shake: tuple[float, float] | None = None  # (seconds, units)
    blur: float = 0.0  # softness of the planes behind, pixels
    role: Literal["prologue", "epilogue"] | None = None
    card: str | None = None
    air: tuple[str, ...] | None = None  # instead of the scene's own
    steps: str = "step"  # sound of a foot on this ground

    @property
    def frames(self) -> int:
        """Length in frames, always even so that drawings on twos do not straddle a cut."""
        return 2 * round(self.seconds * FPS / 2)


@dataclass(frozen=True)
class Bed:
    """Sound that lies under several shots: ambience or music."""

    sound: str
    first: int  # shot
    last: int  # shot, inclusive
    gain: float = 1.0
    tune: tuple[int, ...] = ()  # MIDI notes, 0 for a rest; for music
    beat: float = 0.3  # seconds a note


@dataclass(frozen=True)
class AudioNote:
    """An entry of the script's audio list; covers whole shots `first` to `last`."""

    first: int
    last: int
    type: Literal["sound effect", "ambience", "music", "speech"]
    sound: str
    context: str
    narrative: str
    descriptive: str
    scene: str | None
    characters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Film:
    """A whole film."""

    name: str
    title: str
    storyline: str
    rigs: tuple[Rig, ...]
    scenes: tuple[Scene, ...]
    shots: tuple[Shot, ...]
    beds: tuple[Bed, ...]
    audio: tuple[AudioNote, ...]
    ink: str  # colour of the letters on cards
    halo: str  # their outline

    @property
    def cast(self) -> tuple[Rig, ...]:
        """The characters, without the props."""
        return tuple(r for r in self.rigs if r.tracked)


@dataclass(frozen=True)
class Timeline:
    """Frame numbers of a film: shot starts, cuts, gradual spans, flashes."""

    starts: tuple[int, ...]
    n_frames: int
    cuts: tuple[int, ...]
    gradual: tuple[tuple[int, int], ...]
    flashes: tuple[tuple[int, int], ...]

    def shot_at(self, frame: int) -> int:
        """Index of the shot a frame belongs to."""
        return max(i for i, s in enumerate(self.starts) if s <= frame)


FLASH = (1.0, 0.92, 0.7, 0.42, 0.2, 0.08)  # share of white, frame by frame


def timeline(film: Film) -> Timeline:
    """Work out a film's frame numbers from its storyboard.

    A dissolve of n frames lies half before and half after the shot boundary; a fade fills n frames at the end of the shot
    before (to black) and n at the start of the shot (from black), which is one gradual span; the first shot fades in
    and the last fades out over the span of its own `span`, or one second.
    """
    starts, cuts, gradual, flashes, frame = [], [], [], [], 0
    for i, shot in enumerate(film.shots):
        starts.append(frame)
        if i == 0:
            gradual.append((0, shot.span - 1))
        elif shot.into == "cut":
            cuts.append(frame)
        elif shot.into == "dissolve":
            gradual.append((frame - shot.span // 2, frame + shot.span // 2 - 1))
        else:
            gradual.append((frame - shot.span, frame + shot.span - 1))
        if shot.flash is not None:
            first = frame + 2 * round(shot.flash * FPS / 2)
            flashes.append((first, first + len(FLASH) - 1))
        frame += shot.frames
    gradual.append((frame - FPS, frame - 1))
    return Timeline(tuple(starts), frame, tuple(cuts), tuple(gradual), tuple(flashes))
