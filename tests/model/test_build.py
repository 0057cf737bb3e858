import dataclasses

import numpy as np
import pytest
import torch

from model import AnimeShooterGen, parameter_table, preset
from model.build import build_components


def weights(gen):
    return torch.cat([p.flatten() for p in gen.parameters()])


def test_random_weights_follow_the_seed_and_leave_global_randomness_alone():
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, same, other = (AnimeShooterGen.from_preset("tiny", seed=s) for s in (0, 0, 1))
    assert torch.equal(weights(first), weights(same))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_paper_preset_has_the_published_parameter_counts():
    gen = AnimeShooterGen.from_preset("paper", device="meta")
    gen.set_trainable("multi_shot")
    table = parameter_table(gen)
    billions = {name: round(total / 1e9, 2) for name, (total, _) in table.items()}
    assert billions["mllm"] == 8.77  # Qwen3-VL-8B
    assert billions["transformer"] == 1.69  # CogVideoX-2B
    assert billions["text_encoder"] == 4.76  # T5 v1.1 XXL encoder
    assert {name for name, (_, trainable) in table.items() if trainable} == {"adapter", "mllm_lora"}
    assert gen.adapter.proj_out.out_features == 4096
    assert gen.adapter.output_queries.shape[0] == 226
    with pytest.raises(ValueError, match="only counts parameters"):
        gen.condition([None], [["a"]])


def test_pretrained_parts_come_from_folders_in_their_own_layouts(gen, tmp_path, picture):
    video, mllm = tmp_path / "cogvideox", tmp_path / "mllm"
    for name, part in (("text_encoder", gen.text_encoder), ("tokenizer", gen.text_tokenizer), ("vae", gen.vae)):
        part.save_pretrained(video / name)
    gen.transformer.save_pretrained(video / "transformer")
    gen.scheduler.register_to_config(timestep_spacing="linspace")
    gen.scheduler.save_pretrained(video / "scheduler")
    for part in (gen.mllm, gen.tokenizer, gen.image_processor):
        part.save_pretrained(mllm)
    config = preset("tiny")
    config = dataclasses.replace(
        config,
        mllm=dataclasses.replace(config.mllm, pretrained=str(mllm)),
        video=dataclasses.replace(config.video, pretrained=str(video)),
    )
    loaded = AnimeShooterGen.from_preset(config, seed=3)
    assert torch.equal(loaded.text_features(["a fox"]), gen.text_features(["a fox"]))
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert torch.equal(loaded.mllm.lm_head.weight, gen.mllm.lm_head.weight)
    assert not torch.equal(loaded.adapter.queries.weight, gen.adapter.queries.weight)  # the adapter starts from nothing
    assert loaded.condition([picture(0)], [["a fox"]]).shape == (1, 1, 24, 64)


def test_pretrained_embedding_grows_when_it_has_no_room_for_queries(gen, tmp_path, picture):
    gen.mllm.resize_token_embeddings(512)
    from model.tokenizer import small_tokenizer

    for part in (gen.mllm, small_tokenizer(), gen.image_processor):
        part.save_pretrained(tmp_path)
    config = preset("tiny")
    config = dataclasses.replace(config, mllm=dataclasses.replace(config.mllm, pretrained=str(tmp_path)))
    loaded = AnimeShooterGen.from_preset(config)
    assert loaded.mllm.get_input_embeddings().num_embeddings == 576
    assert loaded.condition([picture(0)], [["a fox"]]).shape == (1, 1, 24, 64)


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="'meta', not on 'cuda'"):
        build_components(preset("tiny"), device="cuda")
