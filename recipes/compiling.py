"""Compiling the video transformer, block by block: all blocks are alike, so one is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from animeshooter_dataset import DataError

if TYPE_CHECKING:
    from model import AnimeShooterGen


def compile_blocks(gen: AnimeShooterGen, device: torch.device) -> None:
    """Have the blocks of the video transformer compiled at their first use; names of weights stay as they are.

    Raises:
        DataError: nothing can be compiled on this machine.
    """
    _try(device)
    for block in gen.backbone.blocks:
        block.compile()


def _try(device: torch.device) -> None:
    """Compile next to nothing, which needs the same compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the tools of the machine say
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        need = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise DataError(
            f"train.compile: compiling fails here, it needs {need} ({said}); install that, or leave train.compile out"
        ) from None
