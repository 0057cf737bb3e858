"""Video diffusion models behind one interface (`Backbone`): CogVideoX and Wan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from model.backbones.base import Backbone
from model.backbones.cogvideox import CogVideoX
from model.backbones.wan import CONDITION_LENGTH, Wan

BACKBONES: Mapping[str, type[Backbone]] = MappingProxyType({kind.name: kind for kind in (CogVideoX, Wan)})

__all__ = ["BACKBONES", "Backbone", "CogVideoX", "Wan", "backbone_name", "backbone_of", "condition_length_of"]


def backbone_name(transformer_config: Mapping[str, Any]) -> str:
    """Which backbone a transformer of this configuration belongs to: "cogvideox" or "wan"."""
    return Wan.name if "text_dim" in transformer_config else CogVideoX.name


def condition_length_of(transformer_config: Mapping[str, Any]) -> int:
    """Tokens of the condition of a transformer of this configuration."""
    if backbone_name(transformer_config) == Wan.name:
        return CONDITION_LENGTH
    return int(transformer_config["max_text_seq_length"])


def backbone_of(components: Mapping[str, Any], clip_size: Sequence[int] | None = None) -> Backbone:
    """The backbone of a model's components: transformer, VAE, scheduler, and the context where it has one.

    Args:
        components: by the names of a checkpoint's folders.
        clip_size: frames, height and width of a clip by default; None for the transformer's own.
    """
    transformer = components["transformer"]
    kind = BACKBONES[backbone_name(transformer.config)]
    return kind(transformer, components["vae"], components["scheduler"], components.get("context"), clip_size)
