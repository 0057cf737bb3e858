"""The quality gate for captions, whoever wrote them: empty, repeated, wrong names, wrong language, wrong length, left-overs.

What is found is fatal where such a caption would teach a model wrong things (a model that is asked must mend it, or its script
is not used), and doubtful where a rule of thumb can be wrong: that is told to a model once and then noted.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from curation.script import StoryScript, StoryView

Kind = Literal["empty", "repeated", "alike", "name", "absent", "language", "short", "long", "leftover", "pictured"]

LONGEST_TEXT = 4000
"""Characters of one text; captions run to some forty words, so that more is a model that repeats itself."""
WORDS = {"storyline": (5, 200), "narrative_caption": (3, 60), "descriptive_caption": (6, 150)}
"""Fewest and most words of a text; AnimeShooter's means are 34, 11 and 31 (arXiv 2506.03126, table 2)."""
ALIKE = 0.9
"""Share of common words, in order, from which two captions of at least :data:`ALIKE_WORDS` words say nearly the same."""
ALIKE_WORDS = 8
BOUNDARY_SLACK = 0.5
"""Seconds by which an annotator's boundary may miss a cut: half of the whole seconds that models tell."""

LETTERS = {
    "Chinese": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "Korean": ("HANGUL",),
    "Russian": ("CYRILLIC",),
}
"""The letters a language is written in, by the first word of their Unicode names."""
FUNCTION_WORDS = {
    "English": "the and of with is are to from at his her their its while who into by which that this there has not",
    "French": "le les des du une et est dans avec qui que sur au aux pour par ses leur elle il ils sont pas cette",
    "German": "der die das und ist mit ein eine einen einem einer dem den auf im vor sich nicht zu sie ihr ihre sein während",
    "Spanish": "el los las una y es con que del su sus por para se al está están mientras como pero hacia",
    "Italian": "il lo gli della del di una e è con che per sono nella nel mentre si al alla verso suo sua",
    "Portuguese": "o os as uma e é com que do da dos das em no na para por seu sua enquanto ao um não se",
}
_FREQUENT = {name: frozenset(listed.split()) for name, listed in FUNCTION_WORDS.items()}
"""Frequent words by which languages of Latin letters are told apart. A language that is in neither list is not checked."""

LEFTOVERS = (
    (r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|assistant)\b|\blanguage model\b", "speaks of itself"),
    (r"\bi(?:'m| am) (?:sorry|unable)\b|\bi (?:can(?:no|')t|could not|am not able to)\b|\bas requested\b", "speaks of itself"),
    (r"^\s*(?:sure|certainly|of course|here (?:is|are))\b.{0,60}[:!]", "speaks of itself"),
    (
        r"```|\*\*|^\s*#{1,6}\s|^\s*[-*]\s|</?(?:think|s|b|i|p|br|image|video|img)\b[^>]*>|<\|.*?\|>|\[/?INST\]|\\n",
        "holds markup",
    ),
    (
        r"[{}]|\"\s*:\s*[\"\[{]|\b(?:narrative|descriptive)_caption\b|\bjson\b|\$[a-z]+\b",
        "holds parts of JSON or of the question",
    ),
)
"""What a caption keeps of a conversation, by regular expression."""
PICTURED = (
    r"\b(?:in|on) (?:this|these|the (?:first|second|third|last|given|provided)) (?:image|frame|picture|screenshot|photo)s?\b"
    r"|\b(?:the|this) (?:image|frame|screenshot|photo) (?:shows?|depicts?|displays?|features?)\b"
    r"|\bframes? (?:\d+|one|two|three)\b"
)
"""Ways to speak of the pictures that were shown and not of what happens."""
UNNAMED = set(
    "i i'm i'd i'll i've monday tuesday wednesday thursday friday saturday sunday january february march april may june july "
    "august september october november december christmas halloween easter english french german spanish italian chinese "
    "japanese korean russian american british european asian african western victorian gothic earth mars moon sun god".split()
)
"""Words that English writes with a capital letter and that name nobody."""
STARTERS = set(
    "a an the this that these those he she it they we you who what when where while as at in on from with after before behind "
    "inside outside under over above below near beside between across along around through then now here there once suddenly "
    "finally "
    "meanwhile later soon another both all some many several two three four one each every everyone everybody someone somebody "
    "something nothing nobody no not only still his her its their my our your".split()
)
"""Words that begin sentences and name nobody."""

ANYBODY = frozenset("man woman boy girl person child people lady guy figure character creature animal narrator".split())
"""Names of characters that captions also use of others."""
QUOTED = r"[\"“„«][^\"”“»]*[\"”“»]|(?<!\w)['‘][^'’]*(?:\w['’]\w[^'’]*)*['’](?!\w)"
"""Speech and writing inside a caption."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a text of a script.

    Attributes:
        position: the shot's place in the story, from 0; None for a text of the whole story.
        field: the text, as ``narrative_caption`` or ``character 'hen': appearance``.
        kind: what is wrong, see :data:`Kind`.
        detail: the same in words that follow the field's name.
        fatal: whether such a text must not be used; otherwise it is doubtful.
    """

    position: int | None
    field: str
    kind: Kind
    detail: str
    fatal: bool

    def __str__(self) -> str:
        where = "" if self.position is None else f"shot {self.position + 1}: "
        return f"{where}{self.field} {self.detail}"


def check_captions(script: StoryScript, language: str | None) -> list[Problem]:
    """What is wrong with the texts of a script.

    A measured script (annotator kind ``measure``) is checked only for what is fatal in any text: its captions repeat by
    nature, since shots that look alike measure alike, and it names no names.

    Args:
        script: the script.
        language: what it is to be written in, in English as "German"; None when anything goes.

    Returns:
        Problems in the order of the script, those of the whole story first.
    """
    texts = _texts(script)
    problems = [problem for place, name, text in texts for problem in _alone(place, name, text, language)]
    bad = {(problem.position, problem.field) for problem in problems if problem.kind == "empty"}
    if language is not None and not any(problem.kind == "language" for problem in problems):
        problems += _language_as_a_whole([text for _, _, text in texts], language)
    for name in ("narrative_caption", "descriptive_caption"):
        said = [getattr(shot, name) for shot in script.shots]
        problems += [each for each in _repeated(said, name) if (each.position, name) not in bad]
    if script.annotator.kind == "measure":
        return [problem for problem in problems if problem.fatal and problem.kind != "repeated"]
    return sorted([*problems, *_names(script, language)], key=lambda each: -1 if each.position is None else each.position)


def _texts(script: StoryScript) -> list[tuple[int | None, str, str]]:
    """Every text with its shot and name."""
    texts: list[tuple[int | None, str, str]] = [(None, "storyline", script.storyline)]
    texts += [(None, f"character '{short(each.id)}': appearance", each.appearance) for each in script.characters]
    texts += [(None, f"scene '{short(each.id)}': environment", each.environment) for each in script.scenes]
    for place, shot in enumerate(script.shots):
        texts += [(place, name, getattr(shot, name)) for name in ("narrative_caption", "descriptive_caption")]
    return texts


def _alone(place: int | None, name: str, text: str, language: str | None) -> Iterator[Problem]:
    """What a text shows without the others."""
    if not any(letter.isalnum() for letter in text):
        yield Problem(place, name, "empty", "is empty", True)
        return
    if len(text) > LONGEST_TEXT:
        yield Problem(place, name, "long", f"has {len(text)} characters; write at most {LONGEST_TEXT}", True)
        return
    if language is not None and _other_language(text, language):
        yield Problem(place, name, "language", f"is not written in {language}", True)
    for pattern, what in LEFTOVERS:
        found = re.search(pattern, text, re.IGNORECASE | re.MULTILINE)
        if found:
            yield Problem(place, name, "leftover", f"{what} ('{short(found[0].strip())}')", True)
            break
    found = re.search(PICTURED, text, re.IGNORECASE)
    if found:
        yield Problem(place, name, "pictured", f"speaks of the pictures ('{short(found[0])}') and not of what happens", False)
    least, most = WORDS.get(name, (1, LONGEST_TEXT))
    count = _word_count(text)
    if count < least:
        yield Problem(place, name, "short", f"has {count} words; write at least {least}", False)
    elif count > most:
        yield Problem(place, name, "long", f"has {count} words; write at most {most}", False)


def _word_count(text: str) -> int:
    """Words; where a script puts no spaces between them, one for every two letters."""
    spaceless = sum(_alphabet(letter) in ("CJK", "HIRAGANA", "KATAKANA") for letter in text)
    return len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)) if spaceless * 2 < len(text) else max(1, spaceless // 2)


def _alphabet(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0].partition("-")[0]


def _other_language(text: str, language: str) -> bool:
    """Whether most letters, or most of the words that tell, are of another language."""
    if language not in LETTERS and language not in FUNCTION_WORDS:
        return False
    letters = Counter(_alphabet(letter) for letter in text if letter.isalpha())
    wanted = LETTERS.get(language, ("LATIN",))
    if sum(letters[each] for each in wanted) * 2 < letters.total():
        return True
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    if language == "Japanese":
        return letters.total() > 20 and not kana
    if language == "Chinese":
        return kana * 10 > letters.total()
    return language in FUNCTION_WORDS and _told_apart(text, language, least=4)


def _told_apart(text: str, language: str, least: int) -> bool:
    """Whether a text has at least so many frequent words of one other language, and three times as many as of its own."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {name: sum(word in frequent for word in words) for name, frequent in _FREQUENT.items()}
    own = counts.pop(language)
    return max(counts.values()) >= max(least, 3 * own + 1)


def _language_as_a_whole(texts: Sequence[str], language: str) -> Iterator[Problem]:
    """Short captions tell little each; all of them together tell more."""
    if language in FUNCTION_WORDS and _told_apart(" ".join(texts), language, least=8):
        yield Problem(None, "the script", "language", f"is not written in {language}", True)


def _repeated(texts: Sequence[str], name: str) -> Iterator[Problem]:
    """Captions that are the same as an earlier one, or nearly so."""
    plain = [" ".join(text.casefold().split()).rstrip(".!… ") for text in texts]
    words = [re.findall(r"\w+", text) for text in plain]
    bags = [Counter(each) for each in words]
    for place, text in enumerate(plain):
        if not text:
            continue
        if text in plain[:place]:
            first = plain.index(text)
            yield Problem(place, name, "repeated", f"is the same as that of shot {first + 1}; tell what differs", True)
            continue
        for earlier in range(place):
            length = len(words[place]) + len(words[earlier])
            if min(len(words[place]), len(words[earlier])) < ALIKE_WORDS:
                continue
            if 2 * (bags[place] & bags[earlier]).total() < ALIKE * length:
                continue
            if SequenceMatcher(None, words[place], words[earlier], autojunk=False).ratio() >= ALIKE:
                yield Problem(place, name, "alike", f"is nearly that of shot {earlier + 1}; tell what differs", False)
                break


def _names(script: StoryScript, language: str | None) -> Iterator[Problem]:
    """Names in captions that are nobody's, and main characters in the caption of a shot that is said to be without them."""
    cast = {each.id.casefold(): each.id for each in script.characters}
    described = [*(each.appearance for each in script.characters), *(each.environment for each in script.scenes)]
    known = set(_plain_words(" ".join([*cast, *(each.id for each in script.scenes), *described])))
    texts = [text for _, _, text in _texts(script)]
    suspects = _suspects(texts) if _is_english(texts, language) else {}
    for place, shot in enumerate(script.shots):
        for field in ("narrative_caption", "descriptive_caption"):
            text = getattr(shot, field)
            odd = [name for name in _capitals(text, suspects) if not known & set(_plain_words(name))]
            numbered = [word for word in re.findall(r"\b[A-Za-z]+_\d+\b", text) if word.casefold() not in cast]
            for word in dict.fromkeys([*odd, *numbered]):
                yield Problem(place, field, "name", f"names '{short(word)}', who is not among the characters", False)
        listed = {each.casefold() for each in shot.characters}
        for plain, name in cast.items():
            if plain not in listed and plain not in ANYBODY and _mentions(shot.descriptive_caption, name):
                detail = f"shows '{short(name)}', who is not among the characters of this shot"
                yield Problem(place, "descriptive_caption", "absent", detail, False)


def _mentions(text: str, name: str) -> bool:
    """Whether a text has a name as it is written; one of several words also in other letters."""
    several = len(name.split()) > 1
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE if several else 0) is not None


def _is_english(texts: Sequence[str], language: str | None) -> bool:
    """Whether capital letters tell names: by the language asked for, or else by the words."""
    if language is not None:
        return language == "English"
    words = re.findall(r"[^\W\d_]+", " ".join(texts).casefold())
    counts = {name: sum(word in frequent for word in words) for name, frequent in _FREQUENT.items()}
    return counts["English"] >= 8 and counts["English"] == max(counts.values())


def _plain_words(text: str) -> list[str]:
    return [word.removesuffix("'s").removesuffix("’s") for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.casefold())]


def _suspects(texts: Iterable[str]) -> Mapping[str, int]:
    """Capitalised words that never stand in small letters, with how often they stand where names do."""
    small, count = set(), Counter[str]()
    for text in texts:
        words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text)
        small |= {word.casefold() for word in words if word[:1].islower()}
        count.update(_bare(word) for word in words if word[:1].isupper())
    return {word: times for word, times in count.items() if word.casefold() not in small | UNNAMED | STARTERS}


def _bare(word: str) -> str:
    return re.sub(r"['’]s$", "", word)


def _capitals(text: str, suspects: Mapping[str, int]) -> Iterator[str]:
    """Words of a caption that look like somebody's name: capitals inside a sentence; at its start only what recurs so.

    Words in a row are one name. What follows a preposition of place is one, and what has a word of :data:`UNNAMED` is none.
    """
    for sentence in re.split(r"(?<=[.!?:;])\s+", re.sub(QUOTED, ". ", text)):
        words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", sentence)
        number = 0
        while number < len(words):
            first = number
            while number < len(words) and words[number][0].isupper():
                number += 1
            run = [_bare(word) for word in words[first:number]]
            if first == 0 and run and run[0] not in suspects:
                run, first = run[1:], 1  # only the capital with which a sentence begins
            alone = first == 0 and len(run) == 1
            told = not alone or (suspects.get(run[0], 0) > 1 and len(words) > 1 and re.fullmatch(r".*[^s]s", words[1]))
            placed = first > 0 and words[first - 1].casefold() in ("in", "at", "from", "near")
            if run and told and not placed and all(_may_name(word, suspects) for word in run):
                yield " ".join(run)
            number += 1


def _may_name(word: str, suspects: Mapping[str, int]) -> bool:
    return len(word) > 1 and word in suspects and not (word.isupper() and len(word) < 5)


def short(name: str) -> str:
    """A name of a model's making, fit for a line of ours."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= 40 else name[:39] + "…"


def possible_cuts(view: StoryView, told: Iterable[float]) -> list[tuple[float, ...]]:
    """Where an annotator has a boundary and no cut was detected.

    Args:
        view: the story.
        told: the annotator's boundaries, seconds from the film's first frame, in any order.

    Returns:
        For each shot the boundaries inside it, more than :data:`BOUNDARY_SLACK` from its ends and outside of its gradual
        transitions; those within that time of one another count once.
    """
    found: list[tuple[float, ...]] = []
    boundaries = sorted(told)
    for span, start, end in zip(view.spans, view.times, view.times[1:]):
        frame = (end - start) / (span.end_frame - span.start_frame)
        first = max(start + BOUNDARY_SLACK, start + (span.clean_start - span.start_frame) * frame)
        last = min(end - BOUNDARY_SLACK, end - (span.end_frame - span.clean_end) * frame)
        inside: list[float] = []
        for time in boundaries:
            if first < time < last and (not inside or time - inside[-1] > BOUNDARY_SLACK):
                inside.append(round(time, 3))
        found.append(tuple(inside))
    return found
