import numpy as np
import pytest
import torch
from PIL import Image

from model import AnimeShooterGen


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def gen():
    """A fresh tiny model each time: tests train it and add adapters to it."""
    return AnimeShooterGen.from_preset("tiny", seed=0)


@pytest.fixture
def picture():
    """picture(k): an RGB image full of noise, another one for every k."""

    def make(seed, height=64, width=96):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def clips():
    """clips(n): n clips of 9 frames, uint8 [n, 9, 64, 96, 3], the same ones every time."""

    def make(count, frames=9, height=64, width=96):
        generator = torch.Generator().manual_seed(count)
        return torch.randint(0, 256, (count, frames, height, width, 3), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture
def shake_lora():
    """shake_lora(module): fills a fresh LoRA, which changes nothing as it starts, with numbers that do."""
    from model.lora import lora_parameters

    def shake(module):
        generator = torch.Generator().manual_seed(7)
        for _, parameter in lora_parameters(module):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    return shake
