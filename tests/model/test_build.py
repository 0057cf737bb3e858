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


# Sizes of the files of published weights, in bytes a parameter and gigabytes, as the repositories on the Hub list them:
# Qwen3-VL-8B (checkpoints of its class, four files of 5.00 + 4.92 + 4.92 + 2.70 GB), zai-org/CogVideoX-2b, CogVideoX-5b
# (transformer in 8 bits: camenduru/CogVideoX-5b-8bit), Wan-AI/Wan2.1-T2V-1.3B-Diffusers, Wan2.1 14B (in 16 bits, repackaged).
T5, COGVIDEOX_VAE, WAN_VAE, UMT5 = (2, 9.52), (2, 0.431), (4, 0.508), (2, 11.36)
PUBLISHED = {
    "paper": {"mllm": (2, 17.54), "text_encoder": T5, "transformer": (2, 3.39), "vae": COGVIDEOX_VAE},
    "paper_5b": {"text_encoder": T5, "transformer": (1, 5.57), "vae": COGVIDEOX_VAE},
    "wan_1_3b": {"text_encoder": UMT5, "transformer": (4, 5.68), "vae": WAN_VAE},
    "wan_14b": {"text_encoder": UMT5, "transformer": (2, 28.6), "vae": WAN_VAE},
}
EXACT = {"mllm": 8_767_123_696, "text_encoder": 4_762_310_656, "transformer": 1_693_783_872, "vae": 215_583_907}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_as_large_as_the_published_weights(name):
    gen = AnimeShooterGen.from_preset(name, device="meta")
    counts = {part: total for part, (total, _) in parameter_table(gen).items()}
    for part, (width, gigabytes) in PUBLISHED[name].items():
        assert width * counts[part] / 1e9 == pytest.approx(gigabytes, rel=2e-3), part
    if name == "paper":
        assert {part: counts[part] for part in EXACT} == EXACT
    wan = name.startswith("wan")
    assert gen.adapter.proj_out.out_features == gen.backbone.condition_size == 4096
    assert gen.adapter.output_queries.shape[0] == gen.backbone.condition_length == (512 if wan else 226)
    assert gen.backbone.default_size == ((81, 480, 832) if wan else (49, 480, 720))
    assert gen.backbone.latent_shape(49, 480, 720) == (13, 16, 60, 90)


def test_wan_2_2_is_laid_out_with_its_larger_cells():
    gen = AnimeShooterGen.from_preset("wan_5b", device="meta")
    assert round(parameter_table(gen)["transformer"][0] / 1e9, 1) == 5.0
    assert gen.backbone.latent_shape(121, 704, 1280) == (31, 48, 44, 80)


def test_a_model_without_weights_trains_nothing_else_and_reads_nothing():
    gen = AnimeShooterGen.from_preset("paper", device="meta")
    gen.set_trainable("multi_shot")
    assert {name for name, (_, trainable) in parameter_table(gen).items() if trainable} == {"adapter", "mllm_lora"}
    with pytest.raises(ValueError, match="only counts parameters"):
        gen.condition([None], [["a"]])


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


def test_pretrained_parts_are_not_read_to_another_device():
    with pytest.raises(ValueError, match="read to the CPU, not to 'cuda'"):
        build_components(preset("paper"), device="cuda")
