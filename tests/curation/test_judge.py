import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from endpoint_server import ChatServer, completion, refusal

from animeshooter_dataset import Character, DataError
from curation.judge import FilmVerdict, ReferenceVerdict, ShotVerdict, judge_of
from curation.script import NoAnswer

FRAMES = [np.full((36, 64, 3), shade, np.uint8) for shade in range(0, 160, 10)]
HEN = Character(id="hen", appearance="a red hen that costs $5")
GOOD = {"reason": "A whole red hen.", "complete": True, "matches": True, "consistent": True, "neutral": True, "sharp": True}


@pytest.fixture
def judge(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda server: judge_of(f"openai:{server.url}#judge/model")


def said(server, number=0):
    """The parts of a request: texts, and the word picture for each picture."""
    content = server.requests[number]["messages"][0]["content"]
    return [part.get("text", "picture") for part in content]


def test_a_film_is_judged_by_its_frames(judge):
    with ChatServer(completion({"reason": "Drawn hens.", "animation": True, "subtitles": False})) as server:
        assert judge(server).film(FRAMES) == FilmVerdict(reason="Drawn hens.", animation=True, subtitles=False)
        parts = said(server)
    assert parts.count("picture") == 16
    assert parts[parts.index("picture") - 1] == "Frame 1 of 16:"
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["reason", "animation", "subtitles"]
    assert judge(server).name == "openai:judge/model"


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ({"style": "2D", "talking": True}, ShotVerdict(style="2D", talking=True)),
        ({"style": "3D", "talking": None}, ShotVerdict(style="3D", talking=None)),
        ({"style": "2d", "talking": "no"}, ShotVerdict(style="2D", talking=False)),
        ({"style": "null", "talking": "unknown"}, ShotVerdict(style=None, talking=None)),
    ],
)
def test_a_shot_is_judged(judge, told, verdict):
    with ChatServer(completion(told)) as server:
        assert judge(server).shot(FRAMES[:3]) == verdict
        assert said(server).count("picture") == 3


@pytest.mark.parametrize("bad", [None, "complete", "matches", "consistent", "neutral", "sharp"])
def test_a_reference_must_meet_all_five_criteria(judge, bad):
    told = GOOD | ({bad: False} if bad else {})
    with ChatServer(completion(told)) as server:
        verdict = judge(server).reference(FRAMES[15], FRAMES[3], HEN)
        parts = said(server)
    assert isinstance(verdict, ReferenceVerdict)
    assert verdict.ok == (bad is None)
    assert verdict.failed == ((bad,) if bad else ())
    assert "The character: hen\nThe description: a red hen that costs $5" in parts[0]
    assert parts[1:5] == ["The cut-out:", "picture", "The frame it was cut from:", "picture"]


def test_a_verdict_is_asked_for_once(judge):
    with ChatServer(completion(GOOD)) as server:
        first = judge(server).reference(FRAMES[0], FRAMES[1], HEN)
        assert judge(server).reference(FRAMES[0], FRAMES[1], HEN) == first
        assert len(server.requests) == 1
        judge(server).reference(FRAMES[1], FRAMES[0], HEN)
        judge(server).reference(FRAMES[0], FRAMES[1], Character(id="hen", appearance="blue"))
        assert len(server.requests) == 3


def test_a_verdict_that_is_none_goes_back_once(judge):
    wrong = completion({"reason": "", "animation": "perhaps"})
    with ChatServer(wrong, completion({"reason": "", "animation": True, "subtitles": False})) as server:
        assert judge(server).film(FRAMES[:2]).animation is True
        assert "This verdict on a film cannot be used yet" in server.texts[1]
        assert "animation: Input should be a valid boolean" in server.texts[1]
        server.replies = [completion("I cannot judge that.")]
        with pytest.raises(DataError, match="judge/model gave no usable verdict on a film, the answer holds no JSON") as caught:
            judge(server).film(FRAMES[2:4])
    assert not isinstance(caught.value, NoAnswer)


def test_a_judge_that_cannot_be_asked_is_no_verdict(judge):
    with ChatServer(refusal(401, "no such key")) as server, pytest.raises(NoAnswer, match="status 401: no such key"):
        judge(server).film(FRAMES[:1])


def test_many_at_once_share_the_places(judge, tmp_path):
    answer = completion({"style": None, "talking": None}, hang=0.05)
    with ChatServer(answer) as server:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda k: judge(server).shot(FRAMES[k : k + 1]), range(12)))
        assert 1 < server.most_at_once <= 4
        assert len(server.requests) == 12
    account = json.loads((tmp_path / "animeshooter" / "answers" / "usage.json").read_text())
    assert account["models"]["judge/model"]["requests"] == 12


@pytest.mark.parametrize("spec", [None, "", "none", "None"])
def test_no_judge(spec):
    assert judge_of(spec) is None


@pytest.mark.parametrize("spec", ["gpt", "openai:http://host/v1", "local:"])
def test_judges_that_cannot_be(spec):
    with pytest.raises(DataError, match="must look like"):
        judge_of(spec)
