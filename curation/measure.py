"""Annotator ``measure``: says of a story only what was measured in its pixels, without any model.

Its text names colours, sizes, places and motion; it never says what a thing is or what happens. Its figures' appearance
carries hex colours, by which :class:`curation.segment.ClassicalSegmenter` finds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from animeshooter_dataset import AnnotatedBy, Character, DataError, Scene
from curation import colours
from curation.figures import Figure, Region, discover_figures, link
from curation.foreground import Palette, Shot, analyse_story
from curation.script import Sample, ShotScript, StoryScript, StoryView

WINDOW = 4.0
"""Length of the representative window, seconds (arXiv 2506.03126, section 3)."""


@dataclass(frozen=True)
class Measure:
    """The annotator that needs no model.

    Attributes:
        figures: most figures named in a story.
        scenes: most scenes named in a story; shots like none of them have no scene.
    """

    figures: int = 3
    scenes: int = 3

    def annotate(self, view: StoryView) -> StoryScript:
        """Measure one story; see :meth:`curation.script.Annotator.annotate`."""
        samples = view.samples
        if not all(samples):
            raise DataError(f"{view.film}: shot {list(map(bool, samples)).index(False) + 1} has no frame to measure")
        analysed = analyse_story(view)
        palette, shots = analysed.palette, [shot for shot in analysed.shots if shot is not None]
        figures = discover_figures(shots, palette, self.figures)
        scenes, places = _scenes(shots, palette, view, self.scenes)
        measured = [_Measured.of(view, i, shots[i], samples[i], palette, figures) for i in range(len(shots))]
        spoken = _distinct([_descriptive(each) for each in measured])
        return StoryScript(
            storyline=_storyline(measured, len(scenes)),
            characters=tuple(
                Character(id=f"figure_{k + 1}", appearance=_appearance(figure)) for k, figure in enumerate(figures)
            ),
            scenes=tuple(scenes),
            shots=tuple(
                ShotScript(
                    narrative_caption=_narrative(each),
                    descriptive_caption=text,
                    scene=place,
                    characters=tuple(f"figure_{k + 1}" for k, _ in each.figures),
                    representative=representative(view, each.position),
                )
                for each, text, place in zip(measured, spoken, places, strict=True)
            ),
            annotator=AnnotatedBy(kind="measure"),
        )


@dataclass(frozen=True)
class _Measured:
    """What was measured of one shot; shares are of the frame, speeds in widths (or zoom factors) a second."""

    position: int
    count: int
    seconds: float
    main: list[tuple[str, float]]
    brightness: float
    contrast: float
    motion: float
    peak: float
    pan: tuple[float, float]
    zoom: float
    figures: list[tuple[int, list[Region]]]

    @classmethod
    def of(
        cls,
        view: StoryView,
        position: int,
        shot: Shot,
        samples: Sequence[Sample],
        palette: Palette,
        figures: Sequence[Figure],
    ) -> _Measured:
        seconds = view.times[position + 1] - view.times[position]
        between = seconds * max(samples[-1].frame - samples[0].frame, 1) / max(len(view.colours[position]), 1)
        light = np.concatenate([palette.lab[labels][::2, ::2, 0].ravel() for labels in shot.labels])
        motion = np.asarray(view.motion[position], float)[1:]
        pan, zoom = _camera(shot, between)
        return cls(
            position,
            len(view.spans),
            seconds,
            _main_colours(shot.labels, palette),
            float(light.mean()),
            float(light.std()),
            float(motion.mean()) if motion.size else 0.0,
            float((motion.argmax() + 1) / (motion.size + 1)) * seconds if motion.size else 0.0,
            pan,
            zoom,
            [(k, figure.regions[position]) for k, figure in enumerate(figures) if position in figure.regions],
        )


def representative(view: StoryView, position: int) -> tuple[float, float] | None:
    """The four seconds of a longer shot with most motion; None for shots up to 4 s.

    Black frames and those of gradual transitions count as motionless.
    """
    start, end = view.times[position], view.times[position + 1]
    motion = np.array(view.motion[position], float)
    if end - start <= WINDOW or motion.size < 2:
        return None
    motion[0] = 0  # the difference to the shot before
    span = view.spans[position]
    motion[: span.clean_start - span.start_frame] = 0
    motion[span.clean_end - span.start_frame :] = 0
    bright = np.asarray(view.colours[position], float).mean(-1) > 8
    length = min(max(round(WINDOW * motion.size / (end - start)), 1), motion.size)
    total = np.concatenate([[0], np.cumsum((motion + 1e-3) * bright)])
    first = int((total[length:] - total[:-length]).argmax())
    begin = min(start + first * (end - start) / motion.size, end - WINDOW)
    return round(begin, 3), round(begin + WINDOW, 3)


def _scenes(shots: Sequence[Shot], palette: Palette, view: StoryView, most: int) -> tuple[list[Scene], list[str | None]]:
    """Shots of like colour and layout as scenes, longest first, and the scene id of each shot."""
    smooth = np.exp(-((palette.lab[:, None] - palette.lab[None]) ** 2).sum(-1) / (2 * 14.0**2))
    rows = [_layout(shot, palette, smooth) for shot in shots]
    groups = link(rows, 0.86)

    def length(group: list[int]) -> float:
        return sum(view.times[i + 1] - view.times[i] for i in group)

    groups.sort(key=lambda group: (len(group) < 2, -length(group), group[0]))
    scenes: list[Scene] = []
    places: list[str | None] = [None] * len(shots)
    kept = [group for group in groups if len(group) > 1][:most] or groups[:1]
    for group in sorted(kept, key=min):
        name = f"scene_{len(scenes) + 1}"
        scenes.append(
            Scene(id=name, environment=_environment([labels for i in group for labels in shots[i].labels], len(group), palette))
        )
        for i in group:
            places[i] = name
    return scenes, places


def _layout(shot: Shot, palette: Palette, smooth: np.ndarray) -> np.ndarray:
    """Colours of a shot's background in three rows, as one vector."""
    rows = []
    for part in range(3):
        total = np.zeros(len(palette.lab))
        for labels, front in zip(shot.labels, shot.foreground, strict=True):
            cut = np.s_[part * labels.shape[0] // 3 : (part + 1) * labels.shape[0] // 3]
            total += palette.histogram(labels[cut], 1.02 - front[cut])
        rows.append(np.sqrt(total / total.sum()) @ smooth)
    every = np.sum(rows, 0)
    return np.concatenate([*rows, 2 * every])


def _environment(frames: Sequence[np.ndarray], shots: int, palette: Palette) -> str:
    names = [name for name, _ in _main_colours(frames, palette)]
    light = np.concatenate([palette.lab[labels][::4, ::4, 0].ravel() for labels in frames])
    top, bottom = (_main_colours(frames, palette, half)[0][0] for half in ("top", "bottom"))
    halves = f"mostly {top} above and {bottom} below" if top != bottom else f"mostly {top} above and below"
    return (
        f"Pictures with much {_list(names)}, {halves}, mean lightness {light.mean():.0f} %, "
        f"in {shots} shot{'s' if shots > 1 else ''}"
    )


def _main_colours(frames: Sequence[np.ndarray], palette: Palette, half: str = "") -> list[tuple[str, float]]:
    """Names of the colours that fill at least a twelfth of the pictures, with their shares, largest first."""
    import cv2

    rgb = cv2.cvtColor(palette.lab[:, None].astype(np.float32), cv2.COLOR_LAB2RGB)[:, 0] * 255
    total = np.zeros(len(rgb))
    for labels in frames:
        middle = labels.shape[0] // 2
        part = labels[:middle] if half == "top" else labels[middle:] if half == "bottom" else labels
        total += palette.histogram(part, np.ones(part.shape))
    shares: dict[str, float] = {}
    for colour, share in zip(rgb, total / total.sum(), strict=True):
        name = colours.name_of(colour)
        shares[name] = shares.get(name, 0) + float(share)
    ordered = sorted(shares.items(), key=lambda entry: (-entry[1], entry[0]))
    return [entry for entry in ordered[:4] if entry[1] > 1 / 12] or ordered[:1]


def _camera(shot: Shot, seconds: float) -> tuple[tuple[float, float], float]:
    """Pan to the right and down in widths a second, and zoom as the factor a second (over 1 closes in)."""
    height, width = shot.images[0].shape[:2]
    centre = np.array([width / 2, height / 2, 1])
    moves = np.array([step @ centre - centre[:2] for step in shot.steps])
    scale = np.prod([np.hypot(step[0, 0], step[1, 0]) for step in shot.steps])
    seconds = max(seconds, 0.2)
    right, down = moves.sum(0) / width / seconds
    return (float(right), float(down)), float(scale ** (-1 / seconds))


def _appearance(figure: Figure) -> str:
    named: dict[str, list[str]] = {}
    for colour in figure.colours:
        named.setdefault(colours.name_of(colour), []).append(colours.hex_of(colour))
    parts = [f"{name} ({', '.join(codes)})" for name, codes in named.items()]
    shape = (
        "wider than tall" if figure.aspect > 1.25 else "taller than wide" if figure.aspect < 0.8 else "about as wide as tall"
    )
    return (
        f"Recurring foreground figure, mostly {_list(parts)}, about {100 * figure.height:.0f} % of the picture's height, "
        f"{shape}, seen in {len(figure.regions)} shots"
    )


def _narrative(shot: _Measured) -> str:
    facts = [f"figure_{k + 1} {_path(regions)}" for k, regions in shot.figures]
    facts = facts or ["no recurring figure is found"]
    camera = _camera_words(shot)
    if camera:
        facts.append(f"the picture {_list(camera)}")
    return f"Shot {shot.position + 1} of {shot.count}, {shot.seconds:.1f} s: {'; '.join(facts)}."


def _descriptive(shot: _Measured) -> str:
    main = _list([f"{name} ({100 * share:.0f} %)" for name, share in shot.main])
    tone = "low" if shot.contrast < 14 else "high" if shot.contrast > 26 else "medium"
    amount = ("hardly any", "little", "moderate", "strong")[int(np.searchsorted([0.4, 3.0, 9.0], shot.motion))]
    motion = f"There is {amount} motion (mean frame difference {shot.motion:.1f} of 255"
    motion += f", most of it at {shot.peak:.1f} s)" if shot.motion >= 0.4 else ")"
    camera = _camera_words(shot)
    still = f"The picture {_list(camera)}." if camera else "The camera is still."
    seen = [_sight(k, regions) for k, regions in shot.figures]
    tail = f" Measured figures: {'; '.join(seen)}." if seen else " No recurring figure is found."
    return (
        f"Pictures mostly of {main}, mean lightness {shot.brightness:.1f} %, {tone} contrast "
        f"(deviation {shot.contrast:.1f}). {motion}. {still}{tail}"
    )


def _camera_words(shot: _Measured) -> list[str]:
    (right, down), words = shot.pan, []
    for value, names in ((right, ("right", "left")), (down, ("down", "up"))):
        if abs(value) > 0.02:
            verb = "pans" if names[0] == "right" else "tilts"
            words.append(f"{verb} {names[0] if value > 0 else names[1]} by {100 * abs(value):.0f} % of its width a second")
    if abs(shot.zoom - 1) > 0.015:
        words.append(f"zooms {'in' if shot.zoom > 1 else 'out'} by {100 * abs(shot.zoom - 1):.0f} % a second")
    return words


def _path(regions: Sequence[Region]) -> str:
    first, last = _middle(regions[0]), _middle(regions[-1])
    if len(regions) == 1:
        return f"is {_place(first)} in one frame"
    right, down = last[0] - first[0], last[1] - first[1]
    growth = (regions[-1].share / regions[0].share) ** 0.5
    moves = []
    if abs(right) > 0.08:
        moves.append(f"moves {'right' if right > 0 else 'left'} by {100 * abs(right):.0f} % of the width")
    if abs(down) > 0.08:
        moves.append(f"moves {'down' if down > 0 else 'up'} by {100 * abs(down):.0f} % of the height")
    if growth > 1.4 or growth < 1 / 1.4:
        moves.append("becomes larger" if growth > 1 else "becomes smaller")
    return f"starts {_place(first)} and {_list(moves)}" if moves else f"stays {_place(first)}"


def _sight(k: int, regions: Sequence[Region]) -> str:
    place = _place(tuple(np.mean([_middle(region) for region in regions], 0)))
    height = np.median([region.box[3] - region.box[1] for region in regions])
    return f"figure_{k + 1} {place}, {100 * height:.0f} % of the picture's height"


def _middle(region: Region) -> tuple[float, float]:
    x0, y0, x1, y1 = region.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _place(point: tuple[float, ...]) -> str:
    across = "left" if point[0] < 0.38 else "right" if point[0] > 0.62 else ""
    level = "upper" if point[1] < 0.33 else "lower" if point[1] > 0.67 else ""
    if across and level:
        return f"at the {level} {across}"
    if across:
        return f"at the {across}"
    return {"upper": "at the top", "lower": "at the bottom", "": "in the middle"}[level]


def _storyline(shots: Sequence[_Measured], scenes: int) -> str:
    total = sum(shot.seconds for shot in shots)
    times: dict[int, int] = {}
    for shot in shots:
        for k, _ in shot.figures:
            times[k] = times.get(k, 0) + 1
    seen = [f"figure_{k + 1} in {times[k]} of them" for k in sorted(times)]
    whom = f", with {_list(seen)}" if seen else ", without a recurring figure"
    light = [shot.brightness for shot in shots]
    return (
        f"{len(shots)} shot{'s' if len(shots) != 1 else ''} in {total:.1f} s{whom}. {scenes} recurring "
        f"place{'s' if scenes != 1 else ''} by colour; lightness runs from {light[0]:.0f} % in the first shot to "
        f"{light[-1]:.0f} % in the last."
    )


def _distinct(texts: list[str]) -> list[str]:
    """Make equal texts differ by saying that they measure alike."""
    first: dict[str, int] = {}
    told = []
    for i, text in enumerate(texts):
        told.append(f"{text} Shot {i + 1} measures the same as shot {first[text] + 1}." if text in first else text)
        first.setdefault(text, i)
    return told


def _list(parts: Sequence[str]) -> str:
    """Parts as an English enumeration."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
