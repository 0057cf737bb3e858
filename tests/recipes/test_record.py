import json

import pytest
from tiny_dataset import write_dataset

from animeshooter_dataset import AnnotatedBy, DataError, RightsRecord, dump
from recipes import align
from recipes.record import base_weights, curve, read_films, read_record, smoothed
from recipes.trainer import main

STAGES = ("align", "single_shot", "multi_shot", "lora")


def shots_in_log(checkpoint):
    lines = [json.loads(line) for line in (checkpoint / "log.jsonl").read_text().splitlines()]
    return [sample.partition(":")[2].split("+") for line in lines for sample in line["samples"]]


def test_the_record_counts_what_the_log_says_was_read(chain):
    for stage in STAGES:
        told, samples = read_record(chain[stage])["dataset"], shots_in_log(chain[stage])
        read = {shot for sample in samples for shot in sample}
        assert told["samples_read"] == len(samples)
        assert told["shots_read"] == len(read)
        assert told["epochs"] == pytest.approx(len(samples) / told["samples"], abs=1e-4)
        films = {film["video"]: film["stages"].get(stage, 0) for film in read_films(chain[stage])}
        assert films == {video: sum(shot.startswith(video) for shot in read) for video in films}
        assert told["films"] == sum(count > 0 for count in films.values())


def test_a_checkpoint_holds_the_records_of_all_stages_before_it(chain):
    record = read_record(chain["lora"])
    assert [entry["stage"] for entry in record["history"]] == list(STAGES[:-1])
    for entry in record["history"]:
        own = read_record(chain[entry["stage"]])
        assert entry["curve"] == curve(own["losses"])
        assert {name: own[name] for name in entry if name != "curve"} == {
            name: value for name, value in entry.items() if name != "curve"
        }
        assert "history" not in entry
    assert record["base"] == {"mllm": None, "video": None, "adapter": None}


def test_the_record_says_on_what_it_ran_and_names_no_place(chain, tmp_path_factory):
    run = read_record(chain["single_shot"])["run"]
    assert (run["device"], run["processes"], run["precision"]) == ("cpu", 1, "no")
    assert sum(run["devices"].values()) == 1
    assert run["seconds"] > 0
    assert run["peak_memory"] > 50e6
    parts = read_record(chain["single_shot"])["parameters"]
    assert {name for name, count in parts.items() if count["trainable"]} == {"adapter", "mllm_lora"}
    place = str(tmp_path_factory.getbasetemp()).encode()
    for path in (path for folder in chain.values() for path in folder.rglob("*") if path.is_file()):
        assert place not in path.read_bytes(), path


def test_the_ledger_and_the_shots_tell_of_rights(tmp_path):
    data = tmp_path / "animeshooter"
    words = {"film0": {"annotation_licence": "CC BY-NC 4.0", "annotator": AnnotatedBy(kind="openai", model="eyes-1")}}
    write_dataset(data, videos=2, said=words)
    known = {"title": "Red", "attribution": "Red, by A. Maker", "uploader": "A. Maker", "sha256": "0" * 64}
    lines = [RightsRecord(video="film0", licence="CC BY 4.0", state="kept", source="https://films.example/1", **known)]
    (data / "rights.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in lines))
    (data / "manifest.json").write_text(json.dumps({"schema_version": "1.2", "files": {}, "contact": "rights@studio.example"}))
    assert main(align.STAGE, ["--data", str(data), "--out", str(tmp_path / "out"), "--set", "train.steps=2"]) == 0
    told = read_record(tmp_path / "out")["dataset"]
    assert told["directory"] == "animeshooter"
    assert told["contact"] == "rights@studio.example"
    assert told["annotators"] == {"openai: eyes-1": 1, "sidecar": 1}
    assert told["annotation_licences"] == {"CC BY-NC 4.0": 1}
    first, second = read_films(tmp_path / "out")
    assert known.items() <= first.items()
    assert (first["annotation_licences"], second["annotation_licences"]) == (["CC BY-NC 4.0"], [])
    assert (second["title"], second["licence"]) == (None, "CC0-1.0")
    (data / "rights.jsonl").write_text("{}\n")
    assert main(align.STAGE, ["--data", str(data), "--out", str(tmp_path / "two"), "--set", "train.steps=1"]) == 2
    assert not (tmp_path / "two").exists()


def test_the_loss_is_smoothed_without_a_pull_to_zero():
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.9 / 1.9)
    points = curve([float(step) for step in range(1000)])
    assert len(points) == 10
    assert (points[0][:2], points[-1][:2]) == ([1, 0.0], [1000, 999.0])
    assert curve([2.0]) == [[1, 2.0, 2.0]]


def test_bases_are_named_with_what_is_known_of_them(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "models--zai-org--CogVideoX-2b"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    (hub / "snapshots" / commit).mkdir(parents=True)
    (hub / "snapshots" / commit / "model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = base_weights("paper")
    assert found["video"] == {"name": "zai-org/CogVideoX-2b", "revision": commit, "licence": "apache-2.0"}
    assert found["mllm"] == {"name": "Qwen/Qwen3-VL-8B-Instruct", "revision": None, "licence": "apache-2.0"}
    assert found["adapter"] is None
    assert base_weights("paper", revisions=False)["video"]["revision"] is None
    assert set(base_weights("tiny").values()) == {None}


@pytest.mark.parametrize("line", ["{", "[]", '{"video": "a"}', '{"stages": {}}', '{"video": "a", "stages": []}'])
def test_a_damaged_list_of_films_is_named(chain, tmp_path, line):
    (tmp_path / "films.jsonl").write_text((chain["lora"] / "films.jsonl").read_text() + line + "\n")
    with pytest.raises(DataError, match=r"films\.jsonl: line 3 is damaged"):
        read_films(tmp_path)
    assert read_films(chain["lora"].parent) is None
