import pytest
import torch

from animeshooter_dataset import DataError
from model import AnimeShooterGen
from recipes import compiling
from recipes.compiling import compile_blocks

CPU = torch.device("cpu")


def test_every_block_is_compiled_and_keeps_its_weights_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(compiling.torch, "compile", lambda function, **_: compiled.append(function) or function)
    gen = AnimeShooterGen.from_preset("tiny")
    names = list(gen.state_dict())
    compile_blocks(gen, CPU)
    assert [getattr(one, "__self__", None) for one in compiled[1:]] == list(gen.transformer.transformer_blocks)
    assert list(gen.state_dict()) == names


def test_a_machine_that_cannot_compile_is_told_what_it_needs(monkeypatch):
    def fails(function, **_):
        raise RuntimeError("\nNo working C++ compiler found\nmore")

    monkeypatch.setattr(compiling.torch, "compile", fails)
    with pytest.raises(DataError, match=r"needs a C\+\+ compiler such as g\+\+ \(No working C\+\+ compiler found\)"):
        compile_blocks(AnimeShooterGen.from_preset("tiny"), CPU)
