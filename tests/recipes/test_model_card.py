import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from animeshooter_dataset import DataError
from recipes.model_card import render_model_card

HOSTILE = (
    "x | y\n## Free <script>alert(1)</script> [win](https://evil.example) ![p](https://evil.example/p.png) `c` --- \x1b[31m"
)


@pytest.fixture
def lora(chain, tmp_path):
    """A copy of the last checkpoint's records, with empty folders for its parts."""
    return copy(chain["lora"], tmp_path / "lora")


def copy(checkpoint, target):
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def change(checkpoint, **what):
    path = checkpoint / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | what))


def change_films(checkpoint, *changes):
    path = checkpoint / "films.jsonl"
    films = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(film | what) + "\n" for film, what in zip(films, changes, strict=True)))


def front(card):
    return ModelCard(card).data.to_dict()


def tables(card):
    """Every table of the card: {first cell of a row: the row's other cells}."""
    found, current = [], None
    for line in card.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if current is None:
                current = {}
                found.append(current)
            current[cells[0].strip("| ")] = [cell.strip("| ") for cell in cells[1:]]
        else:
            current = None
    return found


def row(card, name):
    return next(table[name] for table in tables(card) if name in table)


def test_the_front_matter_is_what_the_hub_reads(lora):
    told = front(render_model_card(lora, repo_id="org/red", datasets=["org/animeshooter"]))
    assert told["library_name"] == "animeshooter"
    assert told["pipeline_tag"] == "text-to-video"
    assert told["license"] == "cc0-1.0"
    assert told["datasets"] == ["org/animeshooter"]
    assert "base_model" not in told
    assert {"lora", "random-weights", "arxiv:2506.03126"} <= set(told["tags"])


def test_the_card_tells_the_whole_chain_with_the_numbers_of_the_record(lora, chain):
    card, record = render_model_card(lora), json.loads((lora / "training.json").read_text())
    stages = ["align", "single_shot", "multi_shot", "lora"]
    assert [entry["stage"] for entry in record["history"]] == stages[:-1]
    losses = [json.loads((chain[stage] / "training.json").read_text())["losses"] for stage in stages]
    assert row(card, "loss of the first step") == [f"{each[0]:.4f}" for each in losses]
    assert row(card, "loss of the last step") == [f"{each[-1]:.4f}" for each in losses]
    assert row(card, "samples read") == ["8", "8", "4", "4"]
    assert row(card, "films read") == ["2", "2", "2", "1"]
    assert row(card, "loss") == [f"{loss:.4f}" for loss in losses[-1]]
    assert "- steps: 2" in card
    counts = record["parameters"]["transformer_lora"]
    assert row(card, "`transformer_lora`")[1:] == [f"{counts['trainable']:,}", "new", "lora"]
    assert row(card, "`vae`")[2:] == ["random numbers", "never"]
    assert row(card, "CC0-1.0") == ["2"]
    assert row(card, "film0")[-1].startswith("align ")
    assert "lora" not in row(card, "film0")[-1]
    assert "lora" in row(card, "film1")[-1]


def test_a_tiny_model_says_plainly_that_it_makes_noise(lora, chain):
    card = render_model_card(lora)
    assert "**What this model generates is noise.** Its `mllm`, `transformer` and `vae` have random weights" in card
    assert "Not evaluated" in card
    assert "was fitted to the film film1" in card
    assert "Not for generating" not in card
    assert "Not for generating" in render_model_card(chain["align"])


def test_the_example_of_the_card_runs(chain, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", render_model_card(chain["lora"]), re.DOTALL)[1]
    code = code.replace("path/of/this/folder", str(chain["lora"])).replace("num_inference_steps=50", "num_inference_steps=1")
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "character.png")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == "3 (9, 64, 96, 3)"


def test_what_an_old_checkpoint_did_not_record_is_said_and_not_guessed(lora):
    old = json.loads((lora / "training.json").read_text())
    for name in ("record", "base", "optimizer", "parameters", "loss_smoothed", "run", "history"):
        del old[name]
    old["parent"] = {"path": "/home/me/checkpoints/multi_shot", "stage": "multi_shot"}
    old["dataset"] = {name: old["dataset"][name] for name in ("fingerprint", "stream", "step")}
    old["dataset"]["directory"] = "/home/me/secret/animeshooter"
    (lora / "training.json").write_text(json.dumps(old))
    (lora / "films.jsonl").unlink()
    card = render_model_card(lora)
    assert front(card)["license"] == "other"
    assert front(card)["license_name"] == "not-recorded"
    assert "Which films trained this model was not recorded" in card
    assert "The record begins with stage lora" in card
    assert "peak memory" not in card
    assert row(card, "`adapter`")[1] == "not recorded"
    assert row(card, "dataset folder") == ["animeshooter"]
    assert "/home/me" not in card


@pytest.mark.parametrize(
    ("changes", "licence"),
    [
        (({"licence": "CC BY 4.0"}, {"licence": "CC-BY-4.0"}), ("cc-by-4.0", None)),
        (({"licence": "CC BY 4.0"}, {}), ("other", "mixed")),
        (({"licence": None}, {}), ("other", "not-stated")),
        (({"licence": "Standard YouTube Licence"},) * 2, ("other", "standard-youtube-licence")),
        (({"annotation_licences": ["CC BY-NC 4.0"]}, {}), ("other", "mixed")),
    ],
)
def test_one_licence_is_named_only_where_everything_bears_it(lora, changes, licence):
    change_films(lora, *changes)
    card = render_model_card(lora, repo_id="org/red")
    assert (front(card)["license"], front(card).get("license_name")) == licence
    if changes[0].get("licence", "") is None:
        assert "**1 of them states no licence.**" in card


def test_pretrained_bases_are_named_and_bind(lora):
    base = {"name": "Qwen/Qwen3-VL-8B-Instruct", "revision": "0123abc", "licence": "apache-2.0"}
    record = json.loads((lora / "training.json").read_text())
    record["history"][0]["base"] = {"mllm": base, "video": base | {"name": "mine | yours", "licence": None}, "adapter": None}
    (lora / "training.json").write_text(json.dumps(record))
    card = render_model_card(lora)
    assert front(card)["base_model"] == ["Qwen/Qwen3-VL-8B-Instruct"]
    assert front(card)["license"] == "other"
    assert "- Qwen/Qwen3-VL-8B-Instruct, revision 0123abc, licence apache-2.0" in card
    assert "generates is noise" not in card
    assert "mine \\| yours, revision 0123abc, licence not known" in card


def test_names_of_others_are_text_and_nothing_else(lora):
    record = json.loads((lora / "training.json").read_text())
    record["dataset"] |= {"directory": HOSTILE, "annotators": {HOSTILE: 3}, "contact": HOSTILE, "release": HOSTILE}
    record["config"]["data"]["character"] = HOSTILE
    record["run"]["devices"] = {HOSTILE: 1}
    (lora / "training.json").write_text(json.dumps(record))
    strange = dict.fromkeys(("title", "licence", "uploader", "source", "attribution"), HOSTILE)
    change_films(lora, strange, {"annotation_licences": [HOSTILE]})
    card = render_model_card(lora, repo_id="org/red")
    body = card.partition("\n---\n")[2]
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert "<script" not in html
    assert "evil.example/p.png" not in re.sub(r"<code>.*?</code>", "", html)
    assert 'href="https://evil' not in html
    assert "<img" not in html
    assert "<h2>Free" not in html
    assert "\x1b" not in card
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_who_removes_is_told(lora):
    record = json.loads((lora / "training.json").read_text())
    record["dataset"]["contact"] = "rights@studio.example"
    change(lora, dataset=record["dataset"])
    change_films(lora, {"attribution": "Red Film, by A. Maker"}, {"source": "https://films.example/1"})
    card = render_model_card(lora)
    assert "write to `rights@studio.example` (the contact of the dataset)" in card
    assert "- Red Film, by A. Maker" in card
    assert "`https://films.example/1`" in card


def test_what_is_no_checkpoint_is_refused(tmp_path, lora):
    with pytest.raises(DataError, match=r"no training\.json"):
        render_model_card(tmp_path)
    (lora / "training.json").write_text("{")
    with pytest.raises(DataError, match=r"training\.json: not readable"):
        render_model_card(lora)
    (lora / "training.json").write_text("[]")
    with pytest.raises(DataError, match="names no training stage"):
        render_model_card(lora)


def test_every_stage_has_a_card(lora):
    from recipes.model_card import STAGES

    for stage in STAGES:
        change(lora, stage=stage)
        card = render_model_card(lora)
        assert "stage " + stage.replace("_", "\\_") in card
        assert row(card, "steps × batch of preset `paper`")[-1] == {
            "align": "1,800,000 × 32",
            "single_shot": "17,000 × 24",
            "multi_shot": "8,000 × 8",
            "lora": "1,500 × 2",
            "cogvideo_lora": "1,500 × 6",
        }.get(stage, "no such stage")


def test_the_second_pathway_is_among_the_components(lora):
    record = json.loads((lora / "training.json").read_text())
    for part in ("context", "context_lora"):
        (lora / part).mkdir()
        record["parameters"][part] = {"trainable": 0, "frozen": 1234}
    change(lora, parameters=record["parameters"])
    card = render_model_card(lora)
    for part in ("context", "context_lora"):
        assert row(card, f"`{part}`")[1:] == ["1,234", "new", "single_shot, multi_shot"]
