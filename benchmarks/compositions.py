"""Films whose shot boundaries are true by construction, for measuring detectors of cuts.

Stretches from inside the shots of checked films, and drawn scenes of limited animation, are joined in random order by hard
cuts and by gradual transitions of many kinds. Inside shots things happen that are no boundary: flashes, lightning, shake,
fast pans, crash zooms, small pictures popping in, swapped lettering. The whole is then carried at some frame rate and treated
as some kind of film looks. Everything follows from a seed; stretches with even numbers serve tuning, odd ones the held-out
test, so that the two share no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from curation.video import read_frames

WIDTH, HEIGHT = 320, 180
MOST = 120
"""Frames taken from one shot."""
Pictures = np.ndarray
"""uint8 RGB (frames, HEIGHT, WIDTH, 3)."""


@dataclass
class Truth:
    """What a composition holds: cuts, gradual spans with their kind, and moments that are no boundary with theirs."""

    n_frames: int = 0
    cuts: list[int] = field(default_factory=list)
    gradual: list[tuple[int, int, str]] = field(default_factory=list)
    events: list[tuple[int, int, str]] = field(default_factory=list)

    def moved(self, place: Callable[[int], int], n_frames: int) -> Truth:
        """The same after frames went elsewhere; ``place`` gives the new index of the first copy of a frame."""

        def spans(old: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
            return [(place(first), max(place(first), place(last + 1) - 1), kind) for first, last, kind in old]

        return Truth(n_frames, [place(cut) for cut in self.cuts], spans(self.gradual), spans(self.events))


def truth_beside(film: Path) -> Path:
    """``NAME.cuts.json`` or ``NAME.truth.json`` beside a film.

    Raises:
        FileNotFoundError: There is neither.
    """
    for suffix in (".cuts.json", ".truth.json"):
        if film.with_suffix(suffix).exists():
            return film.with_suffix(suffix)
    raise FileNotFoundError(f"{film}: neither {film.stem}.cuts.json nor {film.stem}.truth.json beside it; write one")


def read_stretches(film: Path) -> list[Pictures]:
    """Stretches from inside the shots of a checked film, at most :data:`MOST` frames of each, repeats taken out.

    Args:
        film: A film with ``NAME.cuts.json`` or ``NAME.truth.json`` beside it, which hold ``cuts`` and ``gradual`` and may
            hold ``ambiguous`` and ``flashes``.
    """
    truth = json.loads(truth_beside(film).read_text())
    spans = truth["gradual"] + truth.get("ambiguous", []) + truth.get("flashes", [])
    marks = sorted({0, truth["n_frames"], *truth["cuts"], *(f for a, b in spans for f in (a - 2, b + 3))})
    wanted = []
    for first, end in pairwise(marks):
        middle = (first + end) / 2
        if end - first > 40 and not any(a <= middle <= b for a, b in spans):
            start = max(first + 3, int(middle) - MOST // 2)
            wanted.append((start, min(end - 3, start + MOST)))
    taken: list[list[np.ndarray]] = [[] for _ in wanted]
    for frame in read_frames(film, size=(WIDTH, HEIGHT)):
        for stretch, (first, end) in zip(taken, wanted):
            if first <= frame.index < end and not (stretch and cv2.absdiff(stretch[-1], frame.image).mean() < 0.3):
                stretch.append(frame.image)
    return [np.stack(stretch) for stretch in taken if len(stretch) >= 36 and max(map(np.std, stretch)) > 6]


def draw_scene(rng: np.random.Generator, kind: str, count: int = MOST) -> Pictures:
    """A drawn shot: ``still`` (only the mouth moves), ``walk`` (on threes), ``pan`` (the world scrolls), ``line`` (ink)."""
    wide = np.full((HEIGHT, WIDTH * 2, 3), rng.integers(30, 230, 3), np.uint8)
    horizon = int(rng.integers(60, 140))
    wide[horizon:] = rng.integers(30, 230, 3)
    for _ in range(26):
        corner, far = rng.integers(0, (WIDTH * 2, HEIGHT)), rng.integers(8, 70, 2)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.rectangle(wide, tuple(map(int, corner)), tuple(map(int, corner + far)), colour, -1)
        else:
            cv2.ellipse(wide, tuple(map(int, corner)), tuple(map(int, far // 2 + 1)), 0, 0, 360, colour, -1)
    skin, hair = (tuple(int(v) for v in rng.integers(20, 250, 3)) for _ in range(2))
    x, y, size = int(rng.integers(90, 230)), int(rng.integers(80, 130)), int(rng.integers(22, 60))
    pace = float(rng.uniform(1, 4))
    pictures = []
    for i in range(count):
        pan = int(i * pace) % WIDTH if kind == "pan" else 0
        image = wide[:, pan : pan + WIDTH].copy()
        at = (x + (int((i // 3 * 3 - count / 2) * pace / 2) if kind == "walk" else 0), y)
        cv2.circle(image, (at[0], at[1] + 2 * size), int(size * 1.4), hair, -1)
        cv2.circle(image, at, size, skin, -1)
        for side in (-1, 1):
            cv2.circle(image, (at[0] + side * size // 3, at[1] - size // 5), max(2, size // 8), (10, 10, 15), -1)
        mouth = max(1, int(size * (0.05 + 0.2 * (i // 3 % 4 in (1, 2)))))
        cv2.ellipse(image, (at[0], at[1] + size // 2), (size // 3, mouth), 0, 0, 360, (120, 20, 30), -1)
        if kind == "line":
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            ink = 255 - cv2.dilate(cv2.Canny(grey, 20, 60), np.ones((2, 2), np.uint8))
            image = np.repeat(ink[..., None], 3, axis=2)
        pictures.append(image)
    return np.stack(pictures)


DRAWN = ("still", "walk", "pan", "line")


def mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) a + share b, rounded."""
    return cv2.addWeighted(a, 1 - share, b, share, 0)


def zoomed(image: np.ndarray, scale: float, dx: float = 0, dy: float = 0) -> np.ndarray:
    """The picture enlarged about its middle and moved by pixels, borders mirrored."""
    height, width = image.shape[:2]
    matrix = np.array([[scale, 0, (1 - scale) * width / 2 + dx], [0, scale, (1 - scale) * height / 2 + dy]])
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def join(a: Pictures, b: Pictures, kind: str, rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
    """The frames of a transition from the end of ``a`` to the start of ``b``, and how many it takes of each."""
    most = int(0.4 * min(len(a), len(b)))  # what happens inside shots lies outside this part
    if kind == "fade":
        half, held = int(rng.integers(6, 20)), int(rng.integers(0, 14))
        half = min(half, most)
        colour = np.array([(0, 0, 0), (255, 255, 255), rng.integers(0, 256, 3)][rng.choice(3, p=[0.6, 0.2, 0.2])], np.uint8)
        plain = np.broadcast_to(colour, a[0].shape).copy()
        out = [mix(a[len(a) - half + i], plain, (i + 1) / (half + 1)) for i in range(half)]
        return [*out, *[plain] * held, *(mix(plain, b[i], (i + 1) / (half + 1)) for i in range(half))], half
    shortest, longest = {"dissolve": (4, 60), "wipe": (8, 30), "slide": (8, 20), "iris": (10, 30), "whip": (5, 9)}[kind]
    count = min(int(np.exp(rng.uniform(np.log(shortest), np.log(longest + 1)))), most)
    side, upright = int(rng.integers(2)), bool(rng.integers(2))
    frames = []
    for i in range(count):
        old, new, share = a[len(a) - count + i], b[i], (i + 1) / (count + 1)
        if kind == "dissolve":
            frames.append(mix(old, new, share))
        elif kind == "whip":
            blur = cv2.blur(np.concatenate([new, old], axis=1) if side else np.concatenate([old, new], axis=1), (61, 1))
            left = int(share * WIDTH)
            left = WIDTH - left if side else left
            frames.append(np.ascontiguousarray(blur[:, left : left + WIDTH]))
        else:
            frames.append(_geometric(old, new, share, kind, side, upright))
    return frames, count


def _geometric(old: np.ndarray, new: np.ndarray, share: float, kind: str, side: int, upright: bool) -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    if kind == "iris":
        radius = share * np.hypot(WIDTH, HEIGHT) / 2
        inside = np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < radius
        return np.where(inside[..., None], new, old)
    if kind == "wipe":
        way = y / HEIGHT if upright else (x + 0.3 * y) / (WIDTH + 0.3 * HEIGHT)
        return np.where(((way if side else 1 - way) < share)[..., None], new, old)
    pushed = (new, old) if side else (old, new)
    both = np.concatenate(pushed, axis=0 if upright else 1)
    length = HEIGHT if upright else WIDTH
    start = int((1 - share if side else share) * length)
    return both[start : start + HEIGHT] if upright else both[:, start : start + WIDTH]


EVENTS = ("flash", "lightning", "strobe", "shake", "pan", "crash zoom", "inset", "lettering", "light", "slow zoom", "passer-by")
GRADUAL = ("dissolve", "dissolve", "fade", "fade", "wipe", "slide", "iris", "whip")


def happen(shot: Pictures, kind: str, rng: np.random.Generator, other: Pictures) -> tuple[Pictures, tuple[int, int]]:
    """A shot with something happening in its middle that is no boundary; returns it and the frames of the happening."""
    out, count = shot.copy(), len(shot)
    start = int(rng.integers(6, max(7, count // 4)))
    length = {"flash": 3, "lightning": 12, "strobe": 16, "crash zoom": 7, "pan": 14}.get(kind, count)
    length = min(length, count * 3 // 5 - start)
    angle, height = rng.uniform(0, 2 * np.pi), int(rng.integers(40, 130))
    white = np.full_like(shot[0], 255)
    small = cv2.resize(other[0], (WIDTH * 2 // 5, HEIGHT * 2 // 5), interpolation=cv2.INTER_AREA)
    for i in range(length):
        image, share = shot[start + i], (i + 1) / length
        if kind == "flash" or (kind == "lightning" and i in (0, 1, 5, 6, 7)):
            image = mix(image, white, 0.95 if kind == "flash" else 0.7)
        elif kind == "strobe":
            image = image if i // 2 % 2 else mix(image, white * 0, 0.6)
        elif kind == "shake":
            image = zoomed(image, 1.08, *(rng.normal(0, 6, 2)))
        elif kind == "pan":
            image = zoomed(image, 1.0, *(np.array([np.cos(angle), np.sin(angle)]) * 220 * share))
        elif kind == "crash zoom":
            image = zoomed(image, 1 + 2 * share)
        elif kind == "slow zoom":
            image = zoomed(image, 1 + 0.6 * share)
        elif kind == "inset":
            image = image.copy()
            image[12 : 12 + small.shape[0], 16 : 16 + small.shape[1]] = small
        elif kind == "lettering":
            image = image.copy()
            text = ("NEXT DAY", "THE LAST CARD")[i >= length // 2]
            cv2.putText(image, text, (30, height), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (250, 250, 250), 2)
        elif kind == "light":
            image = mix(image, white * 0, 0.7 * min(1, 2 * share))
        else:
            image = image.copy()
            cv2.rectangle(image, (int(share * 2 * WIDTH) - WIDTH // 2, 0), (int(share * 2 * WIDTH), HEIGHT), (40, 30, 35), -1)
        out[start + i] = image
    if kind in ("pan", "crash zoom", "slow zoom", "light"):  # the camera and the light stay where they went
        last = {
            "pan": lambda image: zoomed(image, 1.0, *(np.array([np.cos(angle), np.sin(angle)]) * 220)),
            "crash zoom": lambda image: zoomed(image, 3),
            "slow zoom": lambda image: zoomed(image, 1.6),
            "light": lambda image: mix(image, white * 0, 0.7),
        }[kind]
        out[start + length :] = np.stack([last(image) for image in shot[start + length :]])
    return out, (start, start + length)


def compose(stretches: Sequence[Pictures], rng: np.random.Generator, seconds: float) -> tuple[list[np.ndarray], Truth]:
    """Joins stretches in random order until a length is reached, at 24 frames a second."""
    truth = Truth()
    frames: list[np.ndarray] = []
    order = iter(rng.permutation(len(stretches)).tolist() * 4)
    shot = _next_shot(stretches, order, rng)
    while True:
        if rng.random() < 0.45:
            kind = str(rng.choice(EVENTS))
            shot, (first, last) = happen(shot, kind, rng, stretches[int(rng.integers(len(stretches)))])
            truth.events.append((len(frames) + first, len(frames) + last, kind))
        following = _next_shot(stretches, order, rng)
        draw = rng.random()
        if draw < 0.58:
            frames += list(shot)
            truth.cuts.append(len(frames))
        elif draw < 0.64:
            frames += list(shot)
            truth.cuts.append(len(frames))
            frames += [np.zeros_like(shot[0])] * int(rng.integers(5, 60))
            truth.cuts.append(len(frames))
        else:
            kind = str(rng.choice(GRADUAL))
            between, taken = join(shot, following, kind, rng)
            frames += list(shot[: len(shot) - taken])
            truth.gradual.append((len(frames), len(frames) + len(between) - 1, kind))
            frames += between
            following = following[taken:]
        shot = following
        if len(frames) > seconds * 24:
            truth.n_frames = len(frames := frames + list(shot))
            return frames, truth


def _next_shot(stretches: Sequence[Pictures], order: Iterator[int], rng: np.random.Generator) -> Pictures:
    shot = stretches[next(order)]
    return shot[: int(rng.integers(min(36, len(shot)), len(shot) + 1))]


RATES = ("24", "24", "25", "30 repeating", "60 repeating", "twos", "threes", "fours", "30 drawn")


def carry(frames: list[np.ndarray], truth: Truth, rate: str) -> tuple[list[np.ndarray], Truth, Fraction]:
    """Carries 24 frames a second at another rate: repeated, held, or simply played faster."""
    count = len(frames)
    plain = {"24": 24, "25": 25, "30 drawn": 30}
    if rate in plain:
        return frames, truth, Fraction(plain[rate])
    if rate in ("30 repeating", "60 repeating"):
        up = Fraction(5, 4) if rate.startswith("30") else Fraction(5, 2)
        total = int(count * up)
        return (
            [frames[min(count - 1, int(i / up))] for i in range(total)],
            truth.moved(lambda k: min(total, -int(-k * up // 1)), total),
            24 * up,
        )
    hold = {"twos": 2, "threes": 3, "fours": 4}[rate]
    marks = sorted({0, *truth.cuts, *(f for a, b, _ in truth.gradual for f in range(a, b + 2))})
    source, start = [], 0
    for i in range(count):
        while marks and marks[0] <= i:
            start = marks.pop(0)
        source.append(start + (i - start) // hold * hold)
    return [frames[k] for k in source], truth, Fraction(24)


LOOKS = (
    "plain",
    "plain",
    "grey line",
    "low contrast",
    "dark",
    "noise",
    "grain",
    "low bitrate",
    "letterbox",
    "tiny",
    "4:3",
    "black and white",
)


def treat(frames: list[np.ndarray], look: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Makes the pictures look like some kind of film."""
    for image in frames:
        if look == "low contrast":
            image = mix(image, np.full_like(image, 128), 0.7)
        elif look == "dark":
            image = (255 * (image / 255.0) ** 2 * 0.25).astype(np.uint8)
        elif look in ("noise", "grain"):
            strength = 6 if look == "noise" else 16
            grain = rng.normal(0, strength, image.shape[:2])[..., None]
            image = np.clip(image + grain, 0, 255).astype(np.uint8)
        elif look == "letterbox":
            image = image.copy()
            image[:24] = image[-24:] = 0
        elif look == "tiny":
            image = cv2.resize(image, (96, 54), interpolation=cv2.INTER_AREA)
        elif look == "4:3":
            image = np.ascontiguousarray(image[:, 40:280])
        elif look in ("black and white", "grey line"):
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            if look == "grey line":
                blurred = cv2.GaussianBlur(grey, (0, 0), 4).astype(int)
                grey = np.where(grey < blurred - 4, 40, 240).astype(np.uint8)
            image = np.repeat(grey[..., None], 3, axis=2)
        yield image


def write(path: Path, pictures: Iterator[np.ndarray], fps: Fraction, crf: int) -> None:
    """Stores pictures as H.264."""
    with av.open(str(path), "w") as container:
        video: Any = None
        for image in pictures:
            if video is None:
                video = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"})
                video.height, video.width, video.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
                video.codec_context.thread_count = 1
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))


def build(library: Sequence[Pictures], folder: Path, number: int, held_out: bool, seconds: float) -> Path:
    """Writes composition ``number`` and its truth into a folder, unless it is there; returns the film's path."""
    rng = np.random.default_rng([number, int(held_out)])
    look, rate = LOOKS[number % len(LOOKS)], RATES[(number * 5 + number // len(LOOKS)) % len(RATES)]
    path = folder / f"{'test' if held_out else 'tune'}-{number:03d}.mp4"
    if path.exists():
        return path
    drawn = [draw_scene(rng, kind) for kind in DRAWN * 2]
    own = [*library[int(held_out) :: 2], *drawn]
    frames, truth = compose(own, rng, seconds)
    frames, truth, fps = carry(frames, truth, rate)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.mp4")
    write(partial, treat(frames, look, rng), fps, 38 if look == "low bitrate" else 20)
    record = {"look": look, "rate": rate, "fps": float(fps), **vars(truth)}
    path.with_suffix(".truth.json").write_text(json.dumps(record))
    partial.rename(path)
    return path
