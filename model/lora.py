"""LoRA adapters on the MLLM and on the video transformer: added, saved beside the base weights, loaded again.

The base weights are never merged with an adapter. The MLLM's is stored in PEFT's own format, the video transformer's
in diffusers' (`CogVideoXPipeline.load_lora_weights` reads it).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.backbones import backbone_name
from model.build import seeded

MLLM_FOLDER, TRANSFORMER_FOLDER, CONTEXT_FOLDER = "mllm_lora", "transformer_lora", "context_lora"
CONTEXT = "context"
"""Name of the adapter that trains with the second pathway (`model.context`), beside the one that the last stage trains."""
_NAME = "default"
_FOLDERS = {_NAME: TRANSFORMER_FOLDER, CONTEXT: CONTEXT_FOLDER}


def has_lora(module: nn.Module, name: str = _NAME) -> bool:
    """Whether ``module`` carries the LoRA adapter ``name``."""
    return name in getattr(module, "peft_config", {})


def lora_rank(module: Any, name: str = _NAME) -> int:
    """Rank of an adapter that is there."""
    return int(module.peft_config[name].r)


def lora_parameters(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the LoRA adapters on ``module``, or of the one called ``name``."""
    chosen = "." if name is None else f".{name}."
    return ((key, p) for key, p in module.named_parameters() if ".lora_" in key and chosen in key.split(".lora_", 1)[1])


def _add(module: Any, rank: int, targets: Sequence[str] | str, seed: int, name: str = _NAME) -> None:
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"a LoRA rank is at least 1, not {rank}")
    with seeded(seed), _several_adapters():
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0), adapter_name=name)
    _activate(module)
    _to_float32(module)


@contextmanager
def _several_adapters() -> Iterator[None]:
    """Without the warning of peft that a second adapter might not be meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def _activate(module: Any) -> None:
    """All adapters of ``module`` at once, always in one order, which decides the last bits of their sum.

    Adding or loading one leaves only that one active.
    """
    names = sorted(module.peft_config)
    if len(names) > 1:
        module.set_adapters(names)


def _to_float32(module: nn.Module) -> None:
    # An adapter on bfloat16 weights would be bfloat16 itself and lose most of its optimizer's steps to rounding.
    for _, parameter in lora_parameters(module):
        parameter.data = parameter.data.float()


def add_mllm_lora(mllm: Any, rank: int, seed: int = 0) -> None:
    """Puts a LoRA (alpha = rank) on the attention of the MLLM's language model, leaving its vision tower alone."""
    _add(mllm, rank, r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj)", seed)


def add_transformer_lora(transformer: Any, rank: int, seed: int = 0, name: str = _NAME) -> None:
    """Puts a LoRA (alpha = rank) on the attention of the video transformer, beside one of another name."""
    _add(transformer, rank, ["to_q", "to_k", "to_v", "to_out.0"], seed, name)


@contextmanager
def without_lora(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` looks as if it had never had an adapter; the very same adapter is back afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    loaded = getattr(module, "_hf_peft_config_loaded", False)

    def place(name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer)

    for name, layer in layers.items():
        place(name, layer.get_base_layer())
    if loaded:
        module._hf_peft_config_loaded = False
    try:
        yield
    finally:
        for name, layer in layers.items():
            place(name, layer)
        if loaded:
            module._hf_peft_config_loaded = True


def save_loras(mllm: Any, transformer: Any, folder: Path) -> None:
    """Writes the adapters there are to ``folder``: mllm_lora, transformer_lora, context_lora."""
    if has_lora(mllm):
        mllm.save_pretrained(folder / MLLM_FOLDER)
    for name, place in _FOLDERS.items():
        if has_lora(transformer, name):
            save_transformer_lora(transformer, folder / place, name)


def save_transformer_lora(transformer: Any, folder: Path, name: str = _NAME) -> None:
    """Writes one adapter of the video transformer alone, in the form plain diffusers loads.

    Raises:
        ValueError: the transformer has no such adapter.
    """
    from peft import get_peft_model_state_dict

    if not has_lora(transformer, name):
        raise ValueError("the video transformer has no LoRA to save; set_trainable('lora') adds one")
    config = transformer.peft_config[name].to_dict()
    metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if v is not None}
    _pipeline_of(transformer).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=name),
        transformer_lora_adapter_metadata=metadata,
    )


def _pipeline_of(transformer: Any) -> Any:
    """The plain diffusers pipeline whose users load such a LoRA."""
    from diffusers import CogVideoXPipeline, WanPipeline

    return WanPipeline if backbone_name(transformer.config) == "wan" else CogVideoXPipeline


def load_loras(mllm: Any, transformer: Any, folder: Path) -> None:
    """Loads the adapters found in ``folder`` onto the models: frozen, and float32 whatever the models are."""
    from safetensors.torch import load_file

    if (folder / MLLM_FOLDER).is_dir():
        # transformers 5.23 keeps the adapter's renaming of weights as the model's own, and would save the model under it.
        renaming = getattr(mllm, "_weight_conversions", None)
        mllm.load_adapter(str(folder / MLLM_FOLDER), adapter_name=_NAME, use_safetensors=True)
        mllm._weight_conversions = renaming
        _restore(mllm, load_file(folder / MLLM_FOLDER / "adapter_model.safetensors"), "base_model.model.", _NAME)
    pipeline = _pipeline_of(transformer)
    for name, place in _FOLDERS.items():
        if (folder / place).is_dir():
            state, metadata = pipeline.lora_state_dict(str(folder / place), use_safetensors=True, return_lora_metadata=True)
            with _several_adapters():
                pipeline.load_lora_into_transformer(state, transformer, adapter_name=name, metadata=metadata)
            _activate(transformer)
            _restore(transformer, state, "transformer.", name)


def _restore(module: Any, weights: dict[str, Tensor], prefix: str, name: str) -> None:
    """Gives the adapter, loaded in the dtype of the model, the exact float32 weights of its file."""
    from peft import set_peft_model_state_dict

    _to_float32(module)
    set_peft_model_state_dict(module, {key.removeprefix(prefix): value for key, value in weights.items()}, adapter_name=name)
    for _, parameter in lora_parameters(module):
        parameter.requires_grad_(False)
