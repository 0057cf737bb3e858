import dataclasses

import pytest
from endpoint_server import VIEW

from animeshooter_dataset import AnnotatedBy, Character, Scene
from curation.captions import check_captions, possible_cuts
from curation.measure import Measure
from curation.script import ShotScript, StoryScript

CAPTIONS = (
    ("The hen sets out to look for her friend.", "On a green meadow a red hen walks past a wooden fence towards the hills."),
    ("The bird waits alone at dusk.", "Grey hills lie in the evening light, and a blue bird sits on a bare branch."),
    ("They see each other at last.", "A red hen and a blue bird meet in the middle of a green meadow full of daisies."),
)


def script(place=None, *, kind="openai", captions=CAPTIONS, storyline="A hen looks for a bird and finds it.", **change):
    """A good script, but for ``change`` of the shot at ``place``."""
    shots = [
        ShotScript(narrative, descriptive, "meadow", names)
        for (narrative, descriptive), names in zip(captions, (("hen",), ("bird",), ("hen", "bird")))
    ]
    if place is not None:
        shots[place] = dataclasses.replace(shots[place], **change)
    return StoryScript(
        storyline=storyline,
        characters=(Character(id="hen", appearance="a red hen"), Character(id="bird", appearance="a blue bird")),
        scenes=(Scene(id="meadow", environment="a green meadow, drawn flat, under a wide sky"),),
        shots=tuple(shots),
        annotator=AnnotatedBy(kind=kind),
    )


def found(story, language="English"):
    return [(problem.position, problem.field, problem.kind, problem.fatal) for problem in check_captions(story, language)]


def test_a_good_script_passes():
    assert found(script()) == []
    assert found(script(), None) == []


FATAL = [
    ("", "empty"),
    (" … ", "empty"),
    (CAPTIONS[0][1], "repeated"),
    (CAPTIONS[0][1].upper(), "repeated"),
    ("As an AI language model I see a bird on a branch at dusk.", "leftover"),
    ("I'm sorry, but there is nothing to be seen on this branch.", "leftover"),
    ("Sure, here is the caption: a blue bird sits on a bare branch.", "leftover"),
    ("**A blue bird** sits on a bare branch in the evening light.", "leftover"),
    ("```A blue bird sits on a bare branch in the evening light.", "leftover"),
    ('A blue bird sits on a branch", "scene": "dusk in the hills', "leftover"),
    ("descriptive_caption of a blue bird that sits on a bare branch.", "leftover"),
    ("A blue bird sits on a bare branch in the evening light.</think>", "leftover"),
    ("夕暮れの丘で青い鳥が枝に止まっている", "language"),
    ("Un oiseau bleu est sur une branche nue dans la lumière du soir.", "language"),
    ("Ein blauer Vogel sitzt auf einem kahlen Ast, und die Sonne ist im Abendlicht nicht mehr zu sehen.", "language"),
    ("very " * 1000, "long"),
]


@pytest.mark.parametrize(("text", "kind"), FATAL)
def test_captions_that_must_not_be_used(text, kind):
    assert (1, "descriptive_caption", kind, True) in found(script(1, descriptive_caption=text))


DOUBTFUL = [
    ("In this image a blue bird sits on a bare branch at dusk.", "pictured"),
    ("The frame shows a blue bird that sits on a bare branch.", "pictured"),
    ("A bird on a branch.", "short"),
    ("A blue bird sits " + "and looks around " * 60, "long"),
    ("Grey hills lie in the evening light, and a blue bird looks for Luna on a bare branch.", "name"),
    ("Grey hills lie in the evening light, and character_3 sits on a bare branch.", "name"),
    ("Grey hills lie in the evening light while the hen sits on a bare branch.", "absent"),
    (CAPTIONS[0][1].replace("towards", "near"), "alike"),
]


@pytest.mark.parametrize(("text", "kind"), DOUBTFUL)
def test_captions_that_are_doubtful(text, kind):
    assert (1, "descriptive_caption", kind, False) in found(script(1, descriptive_caption=text))


@pytest.mark.parametrize(
    "text",
    [
        "It is Christmas Eve on the TV, and a blue bird from Africa sits on a bare branch.",
        "Snow falls on grey hills. Rain follows, and a blue bird waits for Sunday under a bare branch.",
        "The picture on the wall pans to a blue bird, framed by bare branches.",
    ],
)
def test_captions_that_only_look_like_it(text):
    assert found(script(1, descriptive_caption=text)) == []


def test_a_name_that_recurs_is_seen_at_the_start_of_sentences_too():
    named = [(narrative, text.replace("a red hen", "Luna")) for narrative, text in CAPTIONS]
    named[2] = (named[2][0], "Luna walks over a meadow full of daisies and greets a blue bird.")
    problems = [problem for problem in check_captions(script(captions=named), "English") if problem.kind == "name"]
    assert [problem.position for problem in problems] == [0, 2]
    assert str(problems[0]) == "shot 1: descriptive_caption names 'Luna', who is not among the characters"


def test_names_of_the_cast_are_no_strangers():
    captions = [(n.replace("The hen", "Old Henrietta"), d.replace("a red hen", "Old Henrietta")) for n, d in CAPTIONS]
    story = script(captions=captions)
    told = dataclasses.replace(story, characters=(Character(id="Old Henrietta", appearance="a red hen"), story.characters[1]))
    shots = tuple(dataclasses.replace(shot, characters=("Old Henrietta", "bird")) for shot in told.shots)
    assert found(dataclasses.replace(told, shots=shots)) == []


def test_german_nouns_are_no_names():
    german = (
        ("Die Henne macht sich auf den Weg.", "Auf einer Wiese läuft eine rote Henne an einem Zaun vorbei in die Berge."),
        (
            "Der Vogel wartet auf einem Ast.",
            "Graue Berge liegen im Licht des Abends, und ein Vogel sitzt auf einem Ast.",
        ),
        ("Sie sehen sich zum ersten Mal.", "Eine rote Henne und ein blauer Vogel stehen auf der Wiese vor einem Baum."),
    )
    story = script(captions=german, storyline="Eine Henne sucht einen Vogel und findet ihn auf der Wiese.")
    assert found(story, "German") == []
    assert found(story, None) == []
    assert {kind for *_, kind, fatal in found(story, "English") if fatal} == {"language"}


@pytest.mark.parametrize(
    ("language", "text", "right"),
    [
        ("Japanese", "夕暮れの丘で青い鳥が枝に止まっている。遠くに赤い鶏が見える。", True),
        ("Japanese", "黄昏时分,一只蓝色的小鸟停在光秃秃的树枝上,远处是灰色的山丘和一片草地。", False),
        ("Chinese", "黄昏时分,一只蓝色的小鸟停在光秃秃的树枝上,远处是灰色的山丘和一片草地。", True),
        ("Chinese", "夕暮れの丘で青い鳥が枝に止まっている。遠くに赤い鶏が見える。", False),
        ("Korean", "해질녘 언덕에서 파란 새가 앙상한 나뭇가지에 앉아 있다.", True),
        ("Russian", "На голой ветке в вечернем свете сидит синяя птица.", True),
        ("French", "Un oiseau bleu est posé sur une branche nue dans la lumière du soir.", True),
        ("French", "A blue bird sits on the bare branch of a tree and looks at the hills.", False),
        ("Klingon", "A blue bird sits on the bare branch of a tree and looks at the hills.", True),
    ],
)
def test_languages_are_told_apart(language, text, right):
    story = script(1, descriptive_caption=text)
    wrong = [
        position for position, field, kind, _ in found(story, language) if (field, kind) == ("descriptive_caption", "language")
    ]
    assert (1 not in wrong) == right


def test_measured_captions_pass_although_they_repeat():
    measured = Measure().annotate(VIEW)
    assert found(measured) == []
    same = dataclasses.replace(measured, shots=(measured.shots[0],) * 5)
    assert found(same) == []
    empty = dataclasses.replace(measured, shots=(ShotScript("", ""), *measured.shots[1:]))
    assert [kind for *_, kind, _ in found(empty)] == ["empty", "empty"]


def test_a_script_of_a_maker_is_checked_like_any_other():
    told = script(1, kind="sidecar", descriptive_caption=CAPTIONS[0][1])
    assert (1, "descriptive_caption", "repeated", True) in found(told, None)
    assert (1, "descriptive_caption", "absent", False) in found(told, None)


def test_boundaries_inside_a_shot_are_possible_cuts():
    assert VIEW.times[:4] == [0, 3, 6, 9]
    told = [0.0, 2.8, 3.4, 4.5, 4.7, 6.0, 7.2, 9.51, 99.0]
    assert possible_cuts(VIEW, told) == [(), (4.5,), (7.2,), (9.51,), ()]


def test_a_gradual_transition_has_no_possible_cut():
    span = VIEW.spans[1]
    frames = span.end_frame - span.start_frame
    faded = dataclasses.replace(span, clean_start=span.start_frame + frames // 2)
    view = dataclasses.replace(VIEW, spans=[VIEW.spans[0], faded, *VIEW.spans[2:]])
    assert possible_cuts(view, [3.8, 5.0]) == [(), (5.0,), (), (), ()]
