import json

import built
import pytest
from endpoint_server import ChatServer, completion, refusal

import animeshooter_dataset as dataset
from animeshooter_dataset import DataError
from curation.annotators import annotator_of, screenwriter_of
from curation.build import build
from curation.collect import read_film
from curation.config import BuildConfig
from curation.lint import lint
from curation.measure import Measure
from curation.sidecar import Sidecar, read_sidecar

KEY = "sk-a-key-that-must-not-be-seen"


KINDS = ("", "Green", "Brown", "Tall", "Steep", "Low", "Bare", "Grassy", "Golden")
SKIES = ("", "blue", "grey", "cloudy", "pale", "dark", "clear", "wide", "stormy")


def answer():
    """What a model might say of the walkers."""
    shots = [
        {
            "shot": number,
            "start_time": (number - 1) * 2.5,
            "end_time": number * 2.5,
            "scene": "field",
            "characters": list(who),
            "narrative_caption": f"Step {number} of the long walk is taken.",
            "descriptive_caption": f"{KINDS[number]} hills lie under a {SKIES[number]} sky while an oval strolls along.",
            "prologue_or_epilogue": None,
            "representative_start_time": None,
        }
        for number, who in enumerate(built.SHOTS, 1)
    ]
    cast = [{"id": name, "appearance": f"a {name.lower()} oval"} for name in built.WHO]
    scenes = [{"id": "field", "environment": "a flat field"}]
    return {
        "storyline": "Two ovals walk over a field until they meet.",
        "characters": cast,
        "scenes": scenes,
        "shots": shots,
    }


@pytest.fixture
def film(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMESHOOTER_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return built.write_walkers(tmp_path)


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_endpoint_writes_the_captions_of_a_dataset_once(film, tmp_path):
    with ChatServer(completion(answer())) as server:
        config = BuildConfig(annotator=f"openai:{server.url}#tiny/model")
        for name in ("first", "second"):
            build([film], tmp_path / name, config)
        assert len(server.requests) == 1
    assert lint(tmp_path / "first").problems == []
    [tar] = dataset.shards(tmp_path / "first", "shots", "train")
    shots = [dataset.parse("shots", members["json"], key) for key, members in dataset.read_samples(tar)]
    assert [shot.narrative_caption for shot in shots] == [shot["narrative_caption"] for shot in answer()["shots"]]
    assert {(shot.annotator.kind, shot.annotator.model) for shot in shots} == {("openai", "tiny/model")}
    assert everything(tmp_path / "first") == everything(tmp_path / "second")
    assert KEY.encode() not in everything(tmp_path / "first") + everything(tmp_path / "cache")


def test_a_server_that_is_down_costs_no_story_for_good(film, tmp_path):
    with ChatServer(refusal(401, "no such key")) as server:
        config = BuildConfig(annotator=f"openai:{server.url}#tiny/model")
        with pytest.raises(DataError, match=r"nothing was built:\n.*walkers\.mp4") as stopped:
            build([film], tmp_path / "out", config)
        assert KEY not in str(stopped.value)
        server.replies = [completion(answer())]
        assert build([film], tmp_path / "out", config).shots == len(built.SHOTS)


def test_auto_takes_the_script_where_there_is_one(film, tmp_path):
    read, script = read_film(film), read_sidecar(film.with_name("walkers.script.json"))
    assert isinstance(annotator_of(read, script, BuildConfig()), Sidecar)
    assert isinstance(annotator_of(read, None, BuildConfig()), Measure)
    assert isinstance(annotator_of(read, script, BuildConfig(annotator="measure")), Measure)
    rights_only = tmp_path / "rights.script.json"
    rights_only.write_text(json.dumps({"format": "animeshooter-script", "version": 1, "rights": {"licence": "CC0-1.0"}}))
    assert isinstance(annotator_of(read, read_sidecar(rights_only), BuildConfig()), Measure)


@pytest.mark.parametrize(
    "spec", ["gemini", "openai:", "openai:http://127.0.0.1:1/v1", "openai:http://u:secret@127.0.0.1/v1#m", "local:"]
)
def test_an_annotator_that_is_none_is_refused(spec):
    with pytest.raises(DataError) as refused:
        screenwriter_of(BuildConfig(annotator=spec))
    assert "secret" not in str(refused.value)
