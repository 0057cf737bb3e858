import base64
import io
import wave

import numpy as np
import pytest
from endpoint_server import ChatServer, completion, refusal

from animeshooter_dataset import AnnotatedBy, DataError
from curation.asking import AskLimits
from curation.listener import HEARD_RATE, Clip, Heard, listener_of
from curation.script import NoAnswer

RAIN = {"type": "ambience", "sound_description": "Steady rain falls.", "visual_context": "a wet street"}
CLIP = Clip(
    start=12.0,
    end=16.0,
    sound=0.25 * np.sin(np.arange(4 * HEARD_RATE) / 9)[None].astype(np.float32),
    frames=[np.full((36, 64, 3), shade, np.uint8) for shade in (20, 120, 220)],
    storyline="A fox waits for the rain to end.",
    captions=["Mina waits. A fox at a window.", "", "Rain falls. A street."],
)


@pytest.fixture
def listener(tmp_path):
    """Makes listeners that ask a server and keep answers in a folder of their own."""

    def make(server, name="cache", **how):
        limits = AskLimits(retries=1)
        return listener_of(f"openai:{server.url}#ear", limits=limits, cache=tmp_path / name, sleep=lambda _: None, **how)

    return make


def parts(server, kind):
    [message] = server.requests[0]["messages"]
    return [part for part in message["content"] if part["type"] == kind]


def test_nobody_listens_unless_named():
    assert listener_of(None) is None
    assert listener_of("") is None
    assert listener_of("none") is None


@pytest.mark.parametrize("spec", ["local:", "measure", "openai:nowhere", "openai:http://u:secret@127.0.0.1/v1#ear"])
def test_who_cannot_be_asked_is_refused_at_once(spec):
    with pytest.raises(DataError) as problem:
        listener_of(spec)
    assert "openai:" in str(problem.value) or "password" in str(problem.value)
    assert "secret" not in str(problem.value)


def test_a_clip_goes_out_with_its_sound_frames_and_story(listener):
    with ChatServer(completion(RAIN)) as server:
        found = listener(server)
        assert found.listen(CLIP) == Heard(**RAIN)
        assert found.annotator == AnnotatedBy(kind="openai", model="ear")
        [sound] = parts(server, "input_audio")
        assert len(parts(server, "image_url")) == 3
        [text] = server.texts
    assert sound["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 4 * 16000)
        samples = np.frombuffer(file.readframes(64000), "<i2") / 32767
    assert np.abs(samples - CLIP.sound[0]).max() < 1e-4
    assert "4.0 s long" in text
    assert CLIP.storyline in text
    assert "Shot 1: Mina waits. A fox at a window." in text
    assert "Shot 3: Rain falls. A street." in text
    assert "Frame at 2.0 s:" in text
    assert "in English" in text


def test_the_language_is_asked_for(listener):
    with ChatServer(completion(RAIN)) as server:
        listener(server, language="German").listen(CLIP)
        assert "in German" in server.texts[0]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (RAIN | {"type": "jazz"}, "type"),
        (RAIN | {"sound_description": "  "}, "sound_description is empty"),
        (RAIN | {"visual_context": "wet " * 90}, "more than 80"),
        ({"type": "music"}, "sound_description"),
        ("It rains.", "no JSON object"),
    ],
)
def test_an_unusable_answer_is_sent_back_once_with_what_is_wrong(listener, wrong, told):
    with ChatServer(completion(wrong), completion(RAIN)) as server:
        assert listener(server).listen(CLIP) == Heard(**RAIN)
        assert told in server.texts[1]
    with ChatServer(completion(wrong)) as server:
        with pytest.raises(DataError, match="no usable description of a sound") as problem:
            listener(server, "other").listen(CLIP)
        assert not isinstance(problem.value, NoAnswer)
        assert len(server.requests) == 2


def test_a_clip_is_asked_about_once_and_another_sound_is_another_question(listener):
    with ChatServer(completion(RAIN)) as server:
        listener(server).listen(CLIP)
        listener(server).listen(CLIP)
        assert len(server.requests) == 1
        listener(server).listen(Clip(**{**vars(CLIP), "sound": CLIP.sound * 0.5}))
        assert len(server.requests) == 2


@pytest.mark.parametrize("reply", [refusal(401, "bad key"), refusal(500, "broken"), refusal(429, "slow down")])
def test_an_endpoint_that_fails_is_no_answer(listener, reply):
    with ChatServer(reply) as server, pytest.raises(NoAnswer):
        listener(server).listen(CLIP)
