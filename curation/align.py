"""A video of the official release laid over the film that is at hand: every told shot cut at the boundary that was meant.

The release counts stories in frames of its own rate, and shots in whole seconds from the story's start. Frames become frames
of the film by time, or by number where both count alike (:class:`curation.snapping.Clock`). Stories begin and end at a detected
boundary within a few frames, shots at one within about a second: of all assignments in order that use no boundary twice, the
one in which most told boundaries meet a detected one, and of those the one with the least distances
(:func:`curation.snapping.assign`). Where nothing was detected near, the told time stands, to the frame.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from animeshooter_dataset import AnnotatedBy, Evidence
from curation.cuts import FilmCuts, Span
from curation.release import ReleaseSegment, ReleaseShot, ReleaseSound, ReleaseVideo
from curation.same_film import resemblance
from curation.script import ShotScript, SoundScript, StoryScript
from curation.snapping import UNMET, Clock, Edges, Option, assign, edges_of, typical_offset
from curation.told import LEAST_ROOM, ROUNDING, Stage, ToldShot, contiguous, in_order, stamp

VISUAL_MODEL, AUDIO_MODEL = "Gemini 2.0 Flash", "Gemini 2.5 Pro"
"""Who wrote the release's words, of the shots and of the audio clips (arXiv 2506.03126, section 3)."""
TIE = 0.05
"""Weight of the distance to the later shot's start among boundaries that lie inside an overlap or a gap alike."""


@dataclass(frozen=True)
class AlignConfig:
    """Settings of :func:`align`.

    Attributes:
        shot_seconds: most seconds between a told shot boundary, moved by the film's usual offset, and the detected one.
        story_frames: most frames between a story's told start or end and a detected boundary.
        past_seconds: a story may be told to end so many seconds after the film does.
        past_share: the same as a share of the film's length; the larger of the two counts.
    """

    shot_seconds: float = 1.0
    story_frames: int = 4
    past_seconds: float = 1.0
    past_share: float = 0.02


@dataclass(frozen=True)
class AlignedStory:
    """One story of the release on the film.

    Attributes:
        segment: what the release says.
        numbers: its shots in :attr:`Alignment.spans`.
        script: its words, with the told times in seconds of the film; one entry a shot.
        cuts_inside: hard cuts detected inside the clean frames of each shot.
        places: which shot of the segment each shot is, from 0.
        met: for each shot's start, and the last one's end, whether it lies at a detected boundary or the film's end.
        clock: the release's frames as frames of the film.
    """

    segment: ReleaseSegment
    numbers: range
    script: StoryScript
    cuts_inside: tuple[int, ...]
    places: tuple[int, ...]
    met: tuple[bool, ...]
    clock: Clock = field(repr=False)


@dataclass(frozen=True)
class Alignment:
    """A video of the release on a film.

    Attributes:
        spans: stretches of the film, one after another from its first frame to its last; those between stories belong to none.
        stories: what could be placed, in the film's order.
        evidence: how well told times and detected boundaries agree, and whether this is the film that was annotated.
        dropped: a line on everything told that was left out, and on every longer stretch that is told of by no shot.
        offset: by how much detected boundaries lie after told times as a rule, seconds; None where there are too few to tell.
    """

    spans: tuple[Span, ...]
    stories: tuple[AlignedStory, ...]
    evidence: tuple[Evidence, ...]
    dropped: tuple[str, ...]
    offset: float | None


def align(video: ReleaseVideo, cuts: FilmCuts, config: AlignConfig | None = None) -> Alignment:
    """Lay a video of the release over a film.

    Args:
        video: what the release says.
        cuts: the film's detected boundaries.
        config: settings.

    Returns:
        Stories and spans. The same arguments give the same result.
    """
    config = config or AlignConfig()
    clock = Clock.of(cuts, video.fps, max((segment.end_frame for segment in video.segments), default=0))
    edges = Edges(edges_of(cuts), clock)
    told = [clock.seconds(segment.start_frame) + time for segment in video.segments for time in contiguous(segment.shots)]
    offset = typical_offset(told, edges)
    film = _Film(cuts, clock, edges, offset or 0.0, config)
    lines: list[str] = []
    stories = []
    spans: list[Span] = []
    met: list[float | None] = []
    for segment, low, high in _stretches(video, film, lines):
        story = _Story(film, segment, low, high)
        lines += story.lines
        if not story.told:
            lines.append(f"story {segment.number} is left out: none of its {len(segment.shots)} shots can be placed")
            continue
        if low > (spans[-1].end_frame if spans else 0):
            spans.append(film.span(spans[-1].end_frame if spans else 0, low))
        numbers = range(len(spans), len(spans) + len(story.told))
        spans += story.spans
        met += story.distances
        stories.append(story.aligned(numbers))
        lines += story.undescribed
    if not spans or spans[-1].end_frame < cuts.n_frames:
        spans.append(film.span(spans[-1].end_frame if spans else 0, cuts.n_frames))
    evidence = resemblance(
        video, clock, edges, told, offset, met, reach=config.shot_seconds, tolerance=film.tolerance, past=film.past
    )
    return Alignment(tuple(spans), tuple(stories), evidence, tuple(lines), offset)


@dataclass(frozen=True)
class _Film:
    """A film as stories are laid over it."""

    cuts: FilmCuts
    clock: Clock
    edges: Edges
    offset: float
    config: AlignConfig

    def border(self, number: int) -> int:
        """The frame at which a story that is told to begin or end with the release's frame ``number`` does so."""
        time, count = self.clock.seconds(number), self.cuts.n_frames
        here = min(self.clock.frame_at(time), count)
        near = [(apart, abs(edge.frame - here), edge.frame) for edge, apart in self.edges.near(time, time, self.tolerance)]
        near += [
            (apart, 0, frame) for frame, apart in ((0, time), (count, abs(time - self.clock.end))) if apart <= self.tolerance
        ]
        return min(near)[2] if near else here

    @property
    def past(self) -> float:
        """Seconds by which a story may be told to end after the film does."""
        return max(self.config.past_seconds, self.config.past_share * self.clock.end)

    @property
    def tolerance(self) -> float:
        """Seconds of :attr:`AlignConfig.story_frames`, in the slower of the two rates."""
        return self.config.story_frames * max(self.clock.step, 1 / self.clock.fps)

    def met(self, frame: int) -> bool:
        """Whether a frame is a detected boundary, or the film's start or end."""
        return frame in (0, self.cuts.n_frames) or self.edges.at(frame) is not None

    def span(self, start: int, end: int, described: tuple[int, int] | None = None) -> Span:
        """A stretch of the film, clean as far as it is described and holds no part of a transition."""
        first, last = described or (start, end)
        begins, ends = self.edges.at(first), self.edges.at(last)
        clean_start = max(first, begins.clean_start) if begins else first
        clean_end = min(last, ends.clean_end) if ends else last
        if clean_start >= clean_end:
            clean_start, clean_end = first, last
        edge = self.edges.at(start)
        return Span(start, end, clean_start, clean_end, edge.kind if edge else "cut" if start else "start")


def _stretches(video: ReleaseVideo, film: _Film, lines: list[str]) -> list[tuple[ReleaseSegment, int, int]]:
    """The frames of each story: in order, none shared, inside the film."""
    seconds, time = film.clock.seconds, film.clock.time_of
    found: list[tuple[ReleaseSegment, int, int]] = []
    taken = 0
    for segment in sorted(video.segments, key=lambda each: (each.start_frame, each.number)):
        start, end = (seconds(frame) for frame in (segment.start_frame, segment.end_frame))
        where = f"story {segment.number}, {start:.1f} s to {end:.1f} s of the film,"
        if segment.end_frame <= segment.start_frame:
            lines.append(f"{where} is left out: it ends before it starts")
            continue
        if end > film.clock.end + film.past:
            lines.append(f"{where} is left out: the film ends at {film.clock.end:.1f} s")
            continue
        low, high = film.border(segment.start_frame), film.border(segment.end_frame)
        if high <= low:
            low, high = film.clock.frame_at(start), min(film.clock.frame_at(end), film.cuts.n_frames)
        if low < taken or (found and time(low) - time(taken) <= film.tolerance and not film.met(low)):
            low = taken
        if high <= low:
            lines.append(f"{where} is left out: its frames belong to the story before")
            continue
        found.append((segment, low, high))
        taken = high
    return found


class _Story:
    """One story being placed.

    Attributes:
        told: its shots, those that were left out not among them.
        spans: their frames.
        distances: for each told boundary between its shots, seconds from the told time to the detected boundary that it met,
            None where it met none.
        lines: what was left out of the story before its shots were placed.
        undescribed: lines on longer stretches that no shot tells of.
    """

    def __init__(self, film: _Film, segment: ReleaseSegment, low: int, high: int) -> None:
        self.film, self.segment, self.low, self.high = film, segment, low, high
        time = film.clock.time_of
        begin = film.clock.seconds(segment.start_frame)
        self.stage = Stage(begin, time(low), time(high), film.offset, self._frame_at)
        self.told, self.lines = in_order(segment, self.stage)
        self.spans: list[Span] = []
        self.distances: list[float | None] = []
        self.undescribed: list[str] = []
        if self.told:
            self._place()

    def _frame_at(self, time: float) -> int:
        return min(max(self.film.clock.frame_at(time), self.low), self.high)

    def _place(self) -> None:
        """Chooses where each shot starts and ends, and what of the film between them goes to which."""
        told, count = self.told, len(self.told)
        wishes = [self._first(told[0])]
        joined = []
        for before, after in itertools.pairwise(told):
            gap = after.start - before.end
            joined.append(gap <= ROUNDING or self._frame_at(before.end) >= self._frame_at(after.start))
            if joined[-1]:
                low = min(before.end, after.overlap[0])
                wishes.append(self._options(low, max(after.start, after.overlap[1]), after.start))
            else:
                wishes += [self._options(time, time, time) for time in (before.end, after.start)]
        wishes.append(self._last(told[-1]))
        chosen = assign(wishes)
        starts, ends = [chosen.pop(0).frame], []
        borders = [self.low]
        for place, one in enumerate(joined):
            option = chosen.pop(0)
            following = option if one else chosen.pop(0)
            ends.append(self._end_of(place, starts[-1], option) if one else option.frame)
            borders.append(option.frame if one else self._border(option, following))
            starts.append(following.frame)
            self._note(told[place + 1].start, following)
            if not one:
                self._note(told[place].end, option)
        ends.append(chosen.pop().frame)
        borders.append(self.high)
        for place in range(count):
            self.spans.append(self.film.span(borders[place], borders[place + 1], (starts[place], ends[place])))
        edges = zip([self.low, *ends], [*starts, self.high])
        self.undescribed = [line for line in (self._untold(*edge) for edge in edges) if line]

    def _first(self, shot: ToldShot) -> list[Option]:
        """Where the first shot may start: at the story's start unless it is told to start later."""
        late = shot.start - self.stage.low
        if late < LEAST_ROOM or self._frame_at(shot.start) <= self.low:
            return [Option(self.low, 0.0, True)]
        options = self._options(shot.start, shot.start, shot.start)
        if late <= ROUNDING:
            options = [Option(self.low, self._cost(late + self.film.offset), True), *(each for each in options if each.met)]
        return options

    def _last(self, shot: ToldShot) -> list[Option]:
        """Where the last shot may end: at the story's end unless it is told to end earlier."""
        early = self.stage.high - shot.end
        if early < LEAST_ROOM or self._frame_at(shot.end) >= self.high:
            return [Option(self.high, 0.0, True)]
        options = self._options(shot.end, shot.end, shot.end)
        if early <= ROUNDING:
            options = [*(each for each in options if each.met), Option(self.high, self._cost(early - self.film.offset), True)]
        return options

    @staticmethod
    def _cost(apart: float) -> float:
        return apart * apart

    def _options(self, low: float, high: float, told: float) -> list[Option]:
        """Where a boundary may lie that is told for ``told``, or for anywhere from ``low`` to ``high``."""
        film, own = self.film, self._frame_at(told)
        options = {own: Option(own, UNMET, False)}
        shifted = low + film.offset, high + film.offset
        for edge, apart in film.edges.near(*shifted, film.config.shot_seconds):
            if self.low < edge.frame < self.high:
                aside = abs(film.clock.time_of(edge.frame) - told - film.offset)
                options[edge.frame] = Option(edge.frame, self._cost(apart) + TIE * aside, True)
        return [options[frame] for frame in sorted(options)]

    def _end_of(self, place: int, start: int, border: Option) -> int:
        """Where a shot's description ends before the next shot's start: earlier if it is told so and nothing was detected."""
        end = self._frame_at(self.told[place].end)
        return end if not border.met and start < end < border.frame else border.frame

    def _border(self, end: Option, start: Option) -> int:
        """Which frame of a stretch that no shot tells of divides the clips beside it.

        Args:
            end: where the shot before it ends.
            start: where the shot after it starts.
        """
        if start.met or end.met:
            return start.frame if start.met else end.frame
        between = self.film.edges.between(end.frame, start.frame)
        return between[len(between) // 2] if between else start.frame

    def _note(self, told: float, option: Option) -> None:
        self.distances.append(abs(self.film.clock.time_of(option.frame) - told) if option.met else None)

    def _untold(self, first: int, last: int) -> str | None:
        """A line on frames between two shots, if they last longer than rounding explains."""
        time = self.film.clock.time_of
        start, end = time(first) - self.stage.begin, time(last) - self.stage.begin
        if end - start <= ROUNDING:
            return None
        where = f"story {self.segment.number}, {stamp(start)} to {stamp(end)}"
        return f"{where}, is told of by no shot: those frames stay in the clips beside them and outside their clean range"

    def aligned(self, numbers: range) -> AlignedStory:
        """The story with its words."""
        cuts = self.film.cuts.cuts
        met = [self.film.met(span.start_frame) for span in self.spans] + [self.film.met(self.high)]
        inside = [sum(span.clean_start < cut < span.clean_end for cut in cuts) for span in self.spans]
        sounds = [self._sound(place, sound) for place, sound in enumerate(self.segment.sounds)]
        script = StoryScript(
            storyline=self.segment.storyline,
            characters=self.segment.characters,
            scenes=self.segment.scenes,
            shots=tuple(self._words(told, span) for told, span in zip(self.told, self.spans)),
            annotator=AnnotatedBy(kind="release", model=VISUAL_MODEL),
            sounds=tuple(sound for sound in sounds if sound is not None),
        )
        places = tuple(told.place for told in self.told)
        return AlignedStory(self.segment, numbers, script, tuple(inside), places, tuple(met), self.film.clock)

    def _words(self, told: ToldShot, span: Span) -> ShotScript:
        shot = self.segment.shots[told.place]
        film, time = self.film, self.film.clock.time_of
        inside = {*film.edges.between(span.start_frame, span.end_frame)}
        inside |= {cut for cut in film.cuts.cuts if span.start_frame < cut < span.end_frame}
        annotated = self._seconds(shot)
        best = self._seconds(shot.representative) if shot.representative else None
        if best is not None:
            best = max(best[0], time(span.clean_start)), min(best[1], time(span.clean_end))
        words: dict[str, Any] = {
            name: getattr(shot, name)
            for name in ("narrative_caption", "descriptive_caption", "scene", "characters", "prologue_or_epilogue")
        }
        return ShotScript(
            **words,
            annotated=annotated,
            representative=(round(best[0], 6), round(best[1], 6)) if best and best[1] - best[0] >= LEAST_ROOM else None,
            possible_cuts=tuple(round(time(frame), 6) for frame in sorted(inside)),
        )

    def _seconds(self, told: ReleaseShot | ReleaseSound | tuple[float, float]) -> tuple[float, float] | None:
        """A told stretch in seconds of the film; None where it is no time."""
        start, end = told if isinstance(told, tuple) else (told.start, told.end)
        if not (math.isfinite(start) and math.isfinite(end)):
            return None
        return round(self.stage.begin + start, 6), round(self.stage.begin + end, 6)

    def _sound(self, place: int, sound: ReleaseSound) -> SoundScript | None:
        told = self._seconds(sound)
        start, end = (max(told[0], self.stage.low), min(told[1], self.stage.high)) if told else (0.0, 0.0)
        if end - start < LEAST_ROOM:
            where = f"story {self.segment.number}, sound {place + 1} of {len(self.segment.sounds)}"
            why = "its times are no stretch of the story"
            self.undescribed.append(f"{where}, told from {stamp(sound.start)} to {stamp(sound.end)}, is left out: {why}")
            return None
        words = {name: value for name, value in vars(sound).items() if name not in ("start", "end")}
        return SoundScript(start=start, end=end, **words)
