"""Settings of a stage for other video models, from those for the model of the paper and the tiny one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from recipes.config import ClipConfig, Config

WAN = ("tiny_wan", "wan_1_3b", "wan_14b", "wan_5b")
CLIPS = {
    "wan_1_3b": ClipConfig(frames=81, height=480, width=832, fps=16, min_frames=25),
    "wan_14b": ClipConfig(frames=81, height=480, width=832, fps=16, min_frames=25),
    "wan_5b": ClipConfig(frames=121, height=704, width=1280, fps=24, min_frames=37),
}
"""Clips as the published models make them: Wan 2.1 at 16 frames a second, Wan 2.2 TI2V at 24."""
LIKE = {"tiny_wan": "tiny", "paper_5b": "paper", "wan_1_3b": "paper", "wan_14b": "paper", "wan_5b": "paper"}
"""Whose steps, batch, rate and dropout they share; none of these was trained by us, and the paper has only ``paper``."""


def for_backbones(presets: Mapping[str, Config]) -> dict[str, Config]:
    """``presets`` with one for every other video model."""
    found = dict(presets)
    for name, like in LIKE.items():
        if like in presets:
            base = presets[like]
            found[name] = replace(base, preset=name, data=replace(base.data, clip=CLIPS.get(name, base.data.clip)))
    return found
