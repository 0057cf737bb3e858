"""LoRA adapters on the MLLM and on the video transformer: added, saved beside the base weights, loaded again.

The base weights are never merged with an adapter. The MLLM's is stored in PEFT's own format, the video transformer's
in diffusers' (`CogVideoXPipeline.load_lora_weights` reads it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.build import seeded

MLLM_FOLDER, TRANSFORMER_FOLDER = "mllm_lora", "transformer_lora"
_NAME = "default"


def has_lora(module: nn.Module) -> bool:
    """Whether ``module`` carries a LoRA adapter."""
    return _NAME in getattr(module, "peft_config", {})


def lora_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the LoRA adapter on ``module``."""
    return ((name, p) for name, p in module.named_parameters() if ".lora_" in name)


def _add(module: Any, rank: int, targets: Sequence[str] | str, seed: int) -> None:
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"a LoRA rank is at least 1, not {rank}")
    with seeded(seed):
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0), adapter_name=_NAME)
    _to_float32(module)


def _to_float32(module: nn.Module) -> None:
    # An adapter on bfloat16 weights would be bfloat16 itself and lose most of its optimizer's steps to rounding.
    for _, parameter in lora_parameters(module):
        parameter.data = parameter.data.float()


def add_mllm_lora(mllm: Any, rank: int, seed: int = 0) -> None:
    """Puts a LoRA (alpha = rank) on the attention of the MLLM's language model, leaving its vision tower alone."""
    _add(mllm, rank, r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj)", seed)


def add_transformer_lora(transformer: Any, rank: int, seed: int = 0) -> None:
    """Puts a LoRA (alpha = rank) on the attention of the video transformer."""
    _add(transformer, rank, ["to_q", "to_k", "to_v", "to_out.0"], seed)


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
    """Writes the adapters there are to ``folder``/mllm_lora and ``folder``/transformer_lora."""
    if has_lora(mllm):
        mllm.save_pretrained(folder / MLLM_FOLDER)
    if has_lora(transformer):
        save_transformer_lora(transformer, folder / TRANSFORMER_FOLDER)


def save_transformer_lora(transformer: Any, folder: Path) -> None:
    """Writes the video transformer's adapter alone, in the form plain diffusers loads.

    Raises:
        ValueError: the transformer has no adapter.
    """
    from diffusers import CogVideoXPipeline
    from peft import get_peft_model_state_dict

    if not has_lora(transformer):
        raise ValueError("the video transformer has no LoRA to save; set_trainable('lora') adds one")
    config = transformer.peft_config[_NAME].to_dict()
    metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if v is not None}
    CogVideoXPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=_NAME),
        transformer_lora_adapter_metadata=metadata,
    )


def load_loras(mllm: Any, transformer: Any, folder: Path) -> None:
    """Loads the adapters found in ``folder`` onto the models: frozen, and float32 whatever the models are."""
    from diffusers import CogVideoXPipeline
    from safetensors.torch import load_file

    if (folder / MLLM_FOLDER).is_dir():
        mllm.load_adapter(str(folder / MLLM_FOLDER), adapter_name=_NAME, use_safetensors=True)
        _restore(mllm, load_file(folder / MLLM_FOLDER / "adapter_model.safetensors"), "base_model.model.")
    if (folder / TRANSFORMER_FOLDER).is_dir():
        state, metadata = CogVideoXPipeline.lora_state_dict(
            str(folder / TRANSFORMER_FOLDER), use_safetensors=True, return_lora_metadata=True
        )
        CogVideoXPipeline.load_lora_into_transformer(state, transformer, adapter_name=_NAME, metadata=metadata)
        _restore(transformer, state, "transformer.")


def _restore(module: Any, weights: dict[str, Tensor], prefix: str) -> None:
    """Gives the adapter, loaded in the dtype of the model, the exact float32 weights of its file."""
    from peft import set_peft_model_state_dict

    _to_float32(module)
    set_peft_model_state_dict(module, {key.removeprefix(prefix): value for key, value in weights.items()}, adapter_name=_NAME)
    for _, parameter in lora_parameters(module):
        parameter.requires_grad_(False)
