"""The script of a story as a language model answers it: its form, and everything that is checked before it is believed.

What no schema can say is asked here: whether the shots are ours, whether names resolve, whether times lie in the story. What is
wrong is told in lines that a model can mend and a user can read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from animeshooter_dataset import AnnotatedBy, Character, Scene
from curation.asking import Form, or_none
from curation.captions import Problem, check_captions, possible_cuts, short
from curation.measure import WINDOW
from curation.script import ShotScript, StoryScript, StoryView

MOST_NAMED = 3
"""Most main characters and most main scenes of a story (as in AnimeShooter)."""
SLACK = 1.0
"""Seconds by which a time may miss the story or its shot: models tell whole seconds."""
WINDOW_SLACK = 0.25
"""Seconds by which a representative window may stand out of its shot; it is moved inside."""
Maybe = BeforeValidator(or_none)


class AnsweredCharacter(Form):
    """A main character."""

    id: str
    appearance: str


class AnsweredScene(Form):
    """A main scene: the place, its style and its colours."""

    id: str
    environment: str


class AnsweredShot(Form):
    """One shot by its number, from 1; times are seconds from the film's first frame."""

    shot: int
    start_time: Annotated[float | None, Maybe] = None
    end_time: Annotated[float | None, Maybe] = None
    cuts_inside: tuple[float, ...] = ()
    scene: Annotated[str | None, Maybe] = None
    characters: list[str]
    narrative_caption: str
    descriptive_caption: str
    prologue_or_epilogue: Annotated[Literal["prologue", "epilogue"] | None, Maybe] = None
    representative_start_time: Annotated[float | None, Maybe] = None


class ScriptForm(Form):
    """The script of a story as a model writes it."""

    storyline: str
    characters: list[AnsweredCharacter]
    scenes: list[AnsweredScene]
    shots: list[AnsweredShot]


def check(answer: ScriptForm, view: StoryView, language: str) -> list[str]:
    """What is wrong with an answer whose form is right, one line each; empty when nothing is."""
    problems = _shot_numbers(answer, len(view.spans))
    if problems:
        return problems  # nothing else means much until it is clear which shot is which
    problems = [*_names(answer), *(str(each) for each in _captions(answer, view, language) if each.fatal)]
    for shot in answer.shots:
        problems += [f"shot {shot.shot}: {what}" for what in _times(shot, view)]
    return problems


def doubts(answer: ScriptForm, view: StoryView, language: str) -> list[str]:
    """What had better be mended in an answer that passed :func:`check`, one line each."""
    return [str(each) for each in _captions(answer, view, language) if not each.fatal]


def _captions(answer: ScriptForm, view: StoryView, language: str) -> list[Problem]:
    """The quality gate on everything the model wrote, also on what will be left out of the script."""
    return check_captions(_script(answer, view, [each.id for each in answer.characters], AnnotatedBy(kind="model")), language)


def recurring(answer: ScriptForm) -> list[str]:
    """Ids of the characters that come back: those in at least two shots, or in the only one."""
    seen = Counter(name for shot in answer.shots for name in set(shot.characters))
    return [each.id for each in answer.characters if seen[each.id] >= min(2, len(answer.shots))]


def script_of(answer: ScriptForm, view: StoryView, annotator: AnnotatedBy) -> StoryScript:
    """An answer that passed :func:`check` as a script: only characters that come back, only scenes that are used.

    Its shots keep the cuts that were detected; the times the model gave stand in ``annotated``, and what of them lies inside
    a detected shot in ``possible_cuts``.
    """
    return _script(answer, view, recurring(answer), annotator)


def _script(answer: ScriptForm, view: StoryView, people: Sequence[str], annotator: AnnotatedBy) -> StoryScript:
    shots = sorted(answer.shots, key=lambda shot: shot.shot)
    places = {shot.scene for shot in shots}
    told = {time for shot in shots for time in (shot.start_time, shot.end_time, *shot.cuts_inside) if time is not None}
    inside = possible_cuts(view, told)
    return StoryScript(
        storyline=answer.storyline,
        characters=tuple(Character(id=c.id, appearance=c.appearance) for c in answer.characters if c.id and c.id in people),
        scenes=tuple(Scene(id=s.id, environment=s.environment) for s in answer.scenes if s.id and s.id in places),
        shots=tuple(_shot(shot, view, people, cuts) for shot, cuts in zip(shots, inside, strict=True)),
        annotator=annotator,
    )


def _shot(shot: AnsweredShot, view: StoryView, people: Sequence[str], cuts: tuple[float, ...]) -> ShotScript:
    start, end = view.times[shot.shot - 1], view.times[shot.shot]
    annotated = representative = None
    if shot.start_time is not None and shot.end_time is not None:
        annotated = (shot.start_time, shot.end_time)
    if shot.representative_start_time is not None and end - start > WINDOW:
        begin = min(max(shot.representative_start_time, start), end - WINDOW)
        representative = (round(begin, 3), round(begin + WINDOW, 3))
    return ShotScript(
        narrative_caption=shot.narrative_caption,
        descriptive_caption=shot.descriptive_caption,
        scene=shot.scene,
        characters=tuple(name for name in people if name in shot.characters),
        prologue_or_epilogue=shot.prologue_or_epilogue,
        annotated=annotated,
        representative=representative,
        possible_cuts=cuts,
    )


def _shot_numbers(answer: ScriptForm, count: int) -> list[str]:
    numbers = Counter(shot.shot for shot in answer.shots)
    missing = [number for number in range(1, count + 1) if number not in numbers]
    extra = [number for number in sorted(numbers) if not 1 <= number <= count]
    twice = [number for number, times in sorted(numbers.items()) if times > 1 and number not in extra]
    told = ((missing, "missing"), (extra, "not in the list"), (twice, "there more than once"))
    return [
        f"the story has {count} shots, numbered from 1; shot {_some(found)} {'is' if len(found) == 1 else 'are'} {what}"
        for found, what in told
        if found
    ]


def _names(answer: ScriptForm) -> Iterator[str]:
    for kind, plural, parts in (("character", "characters", answer.characters), ("scene", "scenes", answer.scenes)):
        ids = Counter(part.id for part in parts)
        yield from (f"{plural}: the id '{short(name)}' is given twice" for name, times in ids.items() if times > 1)
        if "" in ids:
            yield f"{plural}: an id is empty"
        for shot in answer.shots:
            named = shot.characters if kind == "character" else [shot.scene] if shot.scene is not None else []
            yield from (
                f"shot {shot.shot}: {kind} '{short(name)}' is not among the {plural}" for name in named if name not in ids
            )
    people = recurring(answer)
    if not people:
        yield "characters: none of them is in at least two shots; name one to three who come back"
    if len(people) > MOST_NAMED:
        yield f"characters: {len(people)} of them; name the {MOST_NAMED} that matter most"
    places = {scene.id for scene in answer.scenes} & {shot.scene for shot in answer.shots}
    if not places:
        yield "scenes: no shot is at any of them; name one to three"
    if len(places) > MOST_NAMED:
        yield f"scenes: {len(places)} of them; name the {MOST_NAMED} that matter most, other shots have scene null"


def _times(shot: AnsweredShot, view: StoryView) -> Iterator[str]:
    first, last = view.times[0], view.times[-1]
    start, end = view.times[shot.shot - 1], view.times[shot.shot]
    if shot.start_time is not None and shot.end_time is not None:
        told = f"{shot.start_time:g} s to {shot.end_time:g} s"
        if shot.end_time <= shot.start_time:
            yield f"{told} ends before it starts"
        elif shot.start_time < first - SLACK or shot.end_time > last + SLACK:
            yield f"{told} lies outside the story ({first:.2f} s to {last:.2f} s)"
        elif shot.start_time > end + SLACK or shot.end_time < start - SLACK:
            yield f"{told} is not where this shot is ({start:.2f} s to {end:.2f} s)"
    best = shot.representative_start_time
    if best is None or end - start <= WINDOW:
        return
    if not start - WINDOW_SLACK <= best <= end - WINDOW + WINDOW_SLACK:
        yield (
            f"representative_start_time {best:g} s: its {WINDOW:g} seconds do not lie inside the shot; "
            f"choose {start:.2f} s to {end - WINDOW:.2f} s"
        )


def _some(numbers: Iterable[int]) -> str:
    told = [str(number) for number in numbers]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")
