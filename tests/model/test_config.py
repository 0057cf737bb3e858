import dataclasses
import subprocess
import sys

import pytest

from model import preset
from model.config import PRESETS


def test_presets_are_frozen_and_named():
    for name in PRESETS:
        config = preset(name)
        assert config.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.name = "other"
        with pytest.raises(TypeError):
            config.mllm.text["hidden_size"] = 1


def test_paper_has_the_sizes_of_the_paper():
    config = preset("paper")
    assert (config.adapter.num_queries, config.adapter.num_layers) == (64, 12)
    assert config.video.transformer["max_text_seq_length"] == 226
    assert config.video.transformer["text_embed_dim"] == 4096


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'huge'; choose one of tiny, .*paper"):
        preset("huge")


def test_widths_that_do_not_fit_are_refused():
    config = preset("tiny")
    encoder = {**config.video.text_encoder, "d_model": 32}
    with pytest.raises(ValueError, match="32 wide, but the transformer's text_embed_dim is 64"):
        dataclasses.replace(config, video=dataclasses.replace(config.video, text_encoder=encoder))
    with pytest.raises(ValueError, match="no video backbone 'sora'; choose cogvideox or wan"):
        dataclasses.replace(config, video=dataclasses.replace(config.video, kind="sora"))
    wan = preset("tiny_wan")
    with pytest.raises(ValueError, match="vae latent_channels must equal transformer in_channels"):
        dataclasses.replace(wan, video=dataclasses.replace(wan.video, vae={**wan.video.vae, "z_dim": 8}))


def test_importing_the_package_loads_nothing_heavy():
    code = "import model, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
