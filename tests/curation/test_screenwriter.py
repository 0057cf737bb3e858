import base64
import io
import json

import pytest
from endpoint_server import VIEW, ChatServer, asker_on, changed, completion, refusal, script

from animeshooter_dataset import DataError
from curation.screenwriter import Screenwriter


@pytest.fixture
def ask(tmp_path):
    """Asks a server about the story."""

    def asking(server, **settings):
        return Screenwriter(asker_on(server, tmp_path / "answers", print, **settings)).annotate(VIEW)

    asking.cache = tmp_path / "answers"
    return asking


def all_shots(**fields):
    """A right answer but for fields of every shot; a value may be made of the shot's number."""
    answer = script()
    for shot in answer["shots"]:
        shot |= {name: value(shot["shot"]) if callable(value) else value for name, value in fields.items()}
    return answer


GATE = [
    (
        all_shots(descriptive_caption="In a meadow, a hill under a wide sky."),
        "shot 5: descriptive_caption is the same as that of shot 1",
    ),
    (
        all_shots(narrative_caption=lambda n: f"La recherche fait le pas {n} avec les amis et la poule est seule."),
        "shot 1: narrative_caption is not written in English",
    ),
    (changed(descriptive_caption="As an AI, I cannot see what happens in this shot."), "shot 3: descriptive_caption speaks of"),
    (changed(descriptive_caption='A hill under a wide sky.", "scene": "meadow'), "shot 3: descriptive_caption holds parts"),
    (script() | {"storyline": ""}, "storyline is empty"),
]


@pytest.mark.parametrize(("answer", "problem"), GATE)
def test_captions_of_no_use_go_back_and_are_not_taken(ask, answer, problem):
    with ChatServer(completion(answer), completion(script())) as server:
        assert ask(server).storyline == "A hen and a bird find each other."
        assert problem in server.texts[1]
        server.replies = [completion(answer)]
        with pytest.raises(DataError, match="tiny/model gave no usable script"):
            ask(server, temperature=0.1)


def test_a_doubtful_caption_goes_back_once_and_may_stay(ask):
    strange = changed(descriptive_caption="In picture 3, a hill under a wide sky where Ludmilla stands.")
    with ChatServer(completion(strange)) as server:
        assert "Ludmilla" in ask(server).shots[2].descriptive_caption
        assert "shot 3: descriptive_caption names 'Ludmilla', who is not among the characters" in server.texts[1]
        assert len(server.requests) == 2
        ask(server)
        assert len(server.requests) == 2
    [path] = ask.cache.glob("*/*.json")
    assert "Ludmilla" in json.loads(path.read_text())["doubts"][0]


def test_a_usable_script_is_kept_when_the_mended_one_is_worse(ask):
    strange = changed(descriptive_caption="In picture 3, a hill under a wide sky where Ludmilla stands.")
    with ChatServer(completion(strange), completion("I mended it!")) as server:
        assert "Ludmilla" in ask(server).shots[2].descriptive_caption


def test_times_are_kept_and_boundaries_inside_a_shot_are_told(ask):
    answer = changed(start_time=6.7, end_time=9, cuts_inside=[7.9, 40])
    with ChatServer(completion(answer)) as server:
        told = ask(server)
    assert told.shots[2].annotated == (6.7, 9)
    assert [shot.possible_cuts for shot in told.shots] == [(), (), (6.7, 7.9), (), ()]


def test_a_story_can_be_sent_as_a_film(ask):
    import av

    with ChatServer(completion(script())) as server:
        ask(server, video=True, video_fps=2.0, frame_width=101)
        ask(server)
    content = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "text", "video_url", "text"]
    head, _, data = content[2]["video_url"]["url"].partition(",")
    assert head == "data:video/mp4;base64"
    with av.open(io.BytesIO(base64.b64decode(data))) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 2
    assert len(frames) == 28  # fourteen seconds
    assert frames[0].shape[1] == 100
    first, last = (
        abs(frames[at].astype(float).mean((0, 1)) - VIEW.samples[shot][0].image.mean((0, 1))).max()
        for at, shot in ((1, 0), (27, 4))
    )
    assert max(first, last) < 6
    assert len(server.requests) == 2  # as frames it is another question


def test_a_usable_script_is_kept_when_it_cannot_be_mended(ask):
    strange = changed(descriptive_caption="In picture 3, a hill under a wide sky where Ludmilla stands.")
    with ChatServer(completion(strange), refusal(500)) as server:
        assert "Ludmilla" in ask(server, retries=0).shots[2].descriptive_caption
    with ChatServer(completion(strange)) as server:
        assert "Ludmilla" in ask(server, temperature=0.1, budget_tokens=2000).shots[2].descriptive_caption
        assert len(server.requests) == 1
