"""The script of a story as a language model answers it: its JSON schema, and everything that is checked before it is believed.

A model's answer is text. :func:`read_answer` finds the JSON in it, validates it, and then asks what no schema can: whether its
shots are ours, whether names resolve, whether times lie in the story. What is wrong is told in lines that a model can mend and
a user can read.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from animeshooter_dataset import AnnotatedBy, Character, Scene
from curation.measure import WINDOW
from curation.script import ShotScript, StoryScript, StoryView

MOST_NAMED = 3
"""Most main characters and most main scenes of a story (as in AnimeShooter)."""
SLACK = 1.0
"""Seconds by which a time may miss the story or its shot: models tell whole seconds."""
WINDOW_SLACK = 0.25
"""Seconds by which a representative window may stand out of its shot; it is moved inside."""
LONGEST_TEXT = 4000
"""Characters of one text; captions run to some forty words, so that more is a model that repeats itself."""
LETTERS = {
    "English": ("LATIN",),
    "French": ("LATIN",),
    "German": ("LATIN",),
    "Spanish": ("LATIN",),
    "Chinese": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "Korean": ("HANGUL",),
    "Russian": ("CYRILLIC",),
}
"""The letters a language is written in, by the first word of their Unicode names. That is all of the language that is
checked: French passes for English, and a language that is not listed is not checked."""


class AnswerError(ValueError):
    """An answer that cannot be used; ``problems`` has one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
        self.problems = tuple(problems)


def _or_none(value: Any) -> Any:
    """The ways in which models say null."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "null", "none", "n/a") else value


Maybe = BeforeValidator(_or_none)


class _Part(BaseModel):
    """Base of an answer's parts; what was not asked for is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True, allow_inf_nan=False)


class AnsweredCharacter(_Part):
    """A main character."""

    id: str
    appearance: str


class AnsweredScene(_Part):
    """A main scene: the place, its style and its colours."""

    id: str
    environment: str


class AnsweredShot(_Part):
    """One shot by its number, from 1; times are seconds from the film's first frame."""

    shot: int
    start_time: Annotated[float | None, Maybe] = None
    end_time: Annotated[float | None, Maybe] = None
    scene: Annotated[str | None, Maybe] = None
    characters: list[str]
    narrative_caption: str
    descriptive_caption: str
    prologue_or_epilogue: Annotated[Literal["prologue", "epilogue"] | None, Maybe] = None
    representative_start_time: Annotated[float | None, Maybe] = None


class Answer(_Part):
    """The script of a story as a model writes it."""

    storyline: str
    characters: list[AnsweredCharacter]
    scenes: list[AnsweredScene]
    shots: list[AnsweredShot]


def answer_schema() -> dict[str, Any]:
    """The JSON schema of an answer in the plain form that servers agree on: no references, every property required."""
    schema = Answer.model_json_schema()
    parts = schema.pop("$defs", {})

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(parts[node["$ref"].rpartition("/")[2]])
        result = {name: plain(value) for name, value in node.items() if name not in ("title", "default")}
        if "properties" in node:
            result["properties"] = {name: plain(value) for name, value in node["properties"].items()}
            result |= {"required": list(node["properties"]), "additionalProperties": False}
        return result

    return plain(schema)


def read_answer(text: str, view: StoryView, language: str) -> Answer:
    """Find the script in a model's answer and check it against the story.

    Args:
        text: the answer; the JSON object may stand in a code fence or between other words.
        view: the story asked about.
        language: the language the captions were to be in, see :data:`LETTERS`.

    Raises:
        AnswerError: it cannot be used.
    """
    try:
        answer = Answer.model_validate(_extract(text))
    except ValidationError as error:
        raise AnswerError(list(_schema_problems(error))) from None
    problems = check(answer, view, language)
    if problems:
        raise AnswerError(problems)
    return answer


def check(answer: Answer, view: StoryView, language: str) -> list[str]:
    """What is wrong with an answer whose form is right, one line each; empty when nothing is."""
    problems = _shot_numbers(answer, len(view.spans))
    if problems:
        return problems  # nothing else means much until it is clear which shot is which
    problems = [*_names(answer), *_texts(answer, language)]
    for shot in answer.shots:
        problems += [f"shot {shot.shot}: {what}" for what in _times(shot, view)]
    return problems


def recurring(answer: Answer) -> list[str]:
    """Ids of the characters that come back: those in at least two shots, or in the only one."""
    seen = Counter(name for shot in answer.shots for name in set(shot.characters))
    return [each.id for each in answer.characters if seen[each.id] >= min(2, len(answer.shots))]


def script_of(answer: Answer, view: StoryView, annotator: AnnotatedBy) -> StoryScript:
    """An answer that passed :func:`check` as a script: only characters that come back, only scenes that are used."""
    people = recurring(answer)
    shots = sorted(answer.shots, key=lambda shot: shot.shot)
    places = {shot.scene for shot in shots}
    return StoryScript(
        storyline=answer.storyline,
        characters=tuple(Character(id=c.id, appearance=c.appearance) for c in answer.characters if c.id in people),
        scenes=tuple(Scene(id=s.id, environment=s.environment) for s in answer.scenes if s.id in places),
        shots=tuple(_shot(shot, view, people) for shot in shots),
        annotator=annotator,
    )


def _shot(shot: AnsweredShot, view: StoryView, people: Sequence[str]) -> ShotScript:
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
    )


def _extract(text: str) -> Any:
    """The JSON object in a text: the whole of it, a fenced block, or what lies between the first and the last brace."""
    text = text.rpartition("</think>")[2].strip()
    candidates = [text, *re.findall(r"```[A-Za-z]*\n(.*?)```", text, re.DOTALL), text[text.find("{") : text.rfind("}") + 1]]
    for candidate in candidates:
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    if not text:
        raise AnswerError(["the answer is empty"])
    what = "breaks off in the middle of its JSON" if "{" in text else "holds no JSON object"
    raise AnswerError([f"the answer {what}"])


def _schema_problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False)[:12]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        yield f"{path or 'the answer'}: {' '.join(problem['msg'].split())}"


def _shot_numbers(answer: Answer, count: int) -> list[str]:
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


def _names(answer: Answer) -> Iterator[str]:
    for kind, plural, parts in (("character", "characters", answer.characters), ("scene", "scenes", answer.scenes)):
        ids = Counter(part.id for part in parts)
        yield from (f"{plural}: the id '{_short(name)}' is given twice" for name, times in ids.items() if times > 1)
        if "" in ids:
            yield f"{plural}: an id is empty"
        for shot in answer.shots:
            named = shot.characters if kind == "character" else [shot.scene] if shot.scene is not None else []
            yield from (
                f"shot {shot.shot}: {kind} '{_short(name)}' is not among the {plural}" for name in named if name not in ids
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


def _texts(answer: Answer, language: str) -> Iterator[str]:
    texts = {"storyline": answer.storyline}
    texts |= {f"character '{_short(each.id)}': appearance": each.appearance for each in answer.characters}
    texts |= {f"scene '{_short(each.id)}': environment": each.environment for each in answer.scenes}
    for kind in ("narrative_caption", "descriptive_caption"):
        said: dict[str, int] = {}
        for shot in answer.shots:
            text = getattr(shot, kind)
            texts[f"shot {shot.shot}: {kind}"] = text
            first = said.setdefault(" ".join(text.casefold().split()).rstrip("."), shot.shot)
            if first != shot.shot and text:
                yield f"shot {shot.shot}: {kind} is the same as that of shot {first}; tell what differs"
    for name, text in texts.items():
        if not any(letter.isalnum() for letter in text):
            yield f"{name} is empty"
        elif len(text) > LONGEST_TEXT:
            yield f"{name} has {len(text)} characters; write at most {LONGEST_TEXT}"
        elif _other_letters(text, language):
            yield f"{name} is not written in {language}"


def _other_letters(text: str, language: str) -> bool:
    """Whether most letters of a text are of another writing than the language's."""
    letters = [unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()]
    wanted = LETTERS.get(language)
    return wanted is not None and sum(each in wanted for each in letters) * 2 < len(letters)


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


def _short(name: str) -> str:
    """A name of a model's making, fit for a line of ours."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= 40 else name[:39] + "…"


def _some(numbers: Iterable[int]) -> str:
    told = [str(number) for number in numbers]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")
