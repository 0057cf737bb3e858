"""What each stage says before it trains, what it refuses to start from, and that it changes nothing else."""

import json
import re

import pytest
import torch
from plain_sets import write_clips

import recipes.trainer as trainer
from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.baselines import cogvideo_lora
from recipes.trainer import main

ARGUMENTS = ["--set", "train.steps=3", "--set", "train.warmup=0"]
WITH_CONTEXT = ["--set", "condition.pathway=latents"]
CASES = {
    "pretrain": (pretrain.STAGE, None),
    "align": (align.STAGE, None),
    "single_shot": (single_shot.STAGE, "align"),
    "multi_shot": (multi_shot.STAGE, "single_shot"),
    "lora": (lora.STAGE, "multi_shot"),
    "cogvideo_lora": (cogvideo_lora.STAGE, "multi_shot"),
    "single_shot with its second pathway": (single_shot.STAGE, "align"),
}
TRAINS = {
    "pretrain": r"transformer\.",
    "align": r"adapter\.",
    "single_shot": r"adapter\.|mllm\..*\.lora_",
    "multi_shot": r"adapter\.|mllm\..*\.lora_",
    "lora": r"transformer\..*\.lora_",
    "cogvideo_lora": r"transformer\..*\.lora_",
    "single_shot with its second pathway": r"adapter\.|mllm\..*\.lora_|context\.|transformer\..*\.lora_",
}
"""The paper's table, by the names of parameters."""


def everything(gen):
    """Every parameter and buffer of every part, as they are now."""
    tensors = [*gen.named_parameters(), *gen.named_buffers()]
    return {name: value.detach().clone() for name, value in tensors if not value.is_meta}


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", CASES)
def test_exactly_what_the_paper_lists_changes_and_all_else_is_bit_identical(chain, dataset, tmp_path, monkeypatch, name):
    stage, parent = CASES[name]
    seen = {}

    def spy(where, label):
        original = getattr(trainer, where)

        def watched(this, *more):
            seen.setdefault(label, everything(this.module.gen))
            return original(this, *more)

        monkeypatch.setattr(trainer, where, watched)

    spy("take_up", "before")
    spy("finish", "after")
    source = ["--from", str(chain[parent])] if parent else []
    source += WITH_CONTEXT if "pathway" in name else []
    assert main(stage, ["--data", str(dataset), "--out", str(tmp_path / "out"), *ARGUMENTS, *source]) == 0
    before, after = seen["before"], seen["after"]
    assert before.keys() == after.keys()
    changed = {key for key in before if not same_bits(before[key], after[key])}
    listed = {key for key in before if re.match(TRAINS[name], key)} - {"transformer.patch_embed.pos_embedding"}
    assert changed <= listed
    # A bias of keys shifts all scores of a query alike and has no gradient; what starts at nothing then stays there.
    assert {key for key in listed - changed if before[key].abs().max() > 0} == set()
    assert len(changed) > 0.9 * len(listed)


# ---- what is said ----


def said(capsys):
    return capsys.readouterr().out


def test_a_stage_says_where_it_starts_and_what_becomes_of_each_part(chain, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(chain["multi_shot"]), "--out", str(tmp_path / "out"), *ARGUMENTS]
    assert main(lora.STAGE, arguments) == 0
    told = said(capsys)
    assert f"lora: starts from {chain['multi_shot']} (stage multi_shot, preset tiny, 2 steps)" in told
    assert re.search(r"trains transformer_lora \([\d,]+ parameters\); frozen: .*mllm.*mllm_lora.*adapter.*transformer", told)
    assert "keeps the LoRA of rank 4 on the MLLM as it is" in told
    assert "adds a new LoRA of rank 4 on the video transformer" in told
    assert "trains without" not in told


def test_dropout_is_said_where_a_stage_has_it(chain, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(chain["single_shot"]), "--out", str(tmp_path / "out"), *ARGUMENTS]
    assert main(multi_shot.STAGE, arguments) == 0
    told = said(capsys)
    assert "trains without both reference and caption of 5% of the samples" in told
    assert "goes on with the LoRA of rank 4 on the MLLM" in told


def test_settings_are_those_of_the_paper():
    paper = {stage.STAGE.name: stage.STAGE.presets["paper"] for stage in (align, single_shot, multi_shot, lora, cogvideo_lora)}
    told = {
        name: (one.train.global_batch, one.train.steps, one.dropout.reference, one.dropout.caption, one.dropout.both)
        for name, one in paper.items()
    }
    assert told == {
        "align": (32, 1_800_000, 0, 0, 0),
        "single_shot": (24, 17_000, 0.05, 0.05, 0.05),
        "multi_shot": (8, 8_000, 0, 0, 0.05),
        "lora": (2, 1_500, 0, 0, 0),  # the paper says 1 to 2 K steps
        "cogvideo_lora": (6, 1_500, 0, 0, 0),  # 2 x 3 shots
    }
    assert {name: one.data.shots for name, one in paper.items()} == {
        "align": 1,
        "single_shot": 1,
        "multi_shot": 3,
        "lora": 3,
        "cogvideo_lora": 1,
    }
    assert {(one.data.clip.frames, one.data.clip.height, one.data.clip.width) for one in paper.values()} == {(49, 480, 720)}


def test_every_stage_has_every_video_model():
    from model.config import PRESETS

    for stage in (align, single_shot, multi_shot, lora):
        assert set(stage.STAGE.presets) == set(PRESETS)
        assert all(config.preset == name for name, config in stage.STAGE.presets.items())


# ---- what is refused ----


def refused(stage, capsys, *arguments):
    assert main(stage, list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_stage_4_on_a_checkpoint_of_stage_4_is_sent_to_its_parent(chain, dataset, tmp_path, capsys):
    error = refused(lora.STAGE, capsys, "--data", str(dataset), "--from", str(chain["lora"]), "--out", str(tmp_path / "out"))
    assert "a checkpoint of stage lora; lora starts from multi_shot (this one came of multi_shot, which is one)" in error


def test_a_checkpoint_of_another_video_model_is_refused(chain, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--out", str(tmp_path / "out")]
    error = refused(single_shot.STAGE, capsys, *arguments, "--preset", "paper")
    assert "a model of preset tiny, not paper; leave out --preset" in error


def test_the_baseline_starts_from_every_stage_before_4_and_not_from_it(chain, tmp_path, capsys):
    folder = write_clips(tmp_path / "fox", clips=3)
    arguments = ["--clips", str(folder), "--out", str(tmp_path / "out"), "--from", str(chain["lora"])]
    assert cogvideo_lora.baseline_main(arguments) == 2
    assert "cogvideo_lora starts from pretrain or align or single_shot or multi_shot" in capsys.readouterr().err


def test_a_record_names_the_stage_before_it(chain):
    record = json.loads((chain["lora"] / "training.json").read_text())
    assert [entry["stage"] for entry in [*record["history"], record]] == ["align", "single_shot", "multi_shot", "lora"]
