"""The frozen parts that only make features: VAE and text encoder, told apart by their weights, left out of memory, put back.

A part that a stage does not use, or that a cache of features stands in for, is laid out without weights: the model still
knows its configuration and its size. Before a checkpoint is written it is put back from where it came (:func:`make_whole`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from recipes.config import Config, ModelSource

if TYPE_CHECKING:
    from model import AnimeShooterGen, ModelConfig

PART_OF = {"latents": "vae", "text": "text_encoder"}
"""Which kind of features is made by a part of the model that does nothing else, and may stay out of memory."""
MADE_BY = {**PART_OF, "vision": "mllm"}
"""Which part of the model makes which kind of features."""
SEES = re.compile(r"(^|[._])(visual|vision|projector|connector|merger|embed_vision|image_newline)", re.IGNORECASE)
"""Weights of an MLLM that make its features of pictures, by their names in transformers."""
KNOWN = ("AutoencoderKLCogVideoX", "AutoencoderKLWan", "T5EncoderModel", "UMT5EncoderModel")
"""Classes of VAEs and text encoders that a checkpoint may hold."""
PROBE = "A Cat, 2 cats: naïve, ÉTÉ — “quoted”\n\t(ﬁ) 猫 🐈."
"""A text in which tokenizers that differ in normalization differ."""
_SAYS_NOTHING = ("transformers_version", "torch_dtype", "dtype", "architectures")


# ---- which part it is ----


def part_hash(kind: str, checkpoint: Path | None, gen: AnimeShooterGen | None = None) -> str:
    """What decides the numbers a part makes: weights, configuration, and for text the tokenizer and the length.

    Weights are compared as a set of tensors, by type, shape and bytes: their names differ where some are tied.

    Args:
        kind: latents, text or vision.
        checkpoint: folder of a checkpoint whose files are read.
        gen: a model in memory, where there is no checkpoint.

    Returns:
        16 hexadecimal digits.

    Raises:
        DataError: the checkpoint lacks the part, or it is damaged.
    """
    from model.backbones import condition_length_of

    name = MADE_BY[kind]
    if kind == "vision":
        return _vision_hash(checkpoint, gen)
    if gen is not None:
        config, tensors = _config_of(getattr(gen, name)), iter(getattr(gen, name).state_dict().values())
        tokenizer, length = gen.text_tokenizer, gen.backbone.condition_length
    else:
        assert checkpoint is not None
        config, tensors = _read_config(checkpoint / name), _weights(checkpoint / name)
        tokenizer, length = None, condition_length_of(_read_config(checkpoint / "transformer"))
    told: dict[str, Any] = {"weights": _hash_of(tensors)}
    told["config"] = {key: value for key, value in config.items() if not key.startswith("_") and key not in _SAYS_NOTHING}
    if kind == "text":
        told |= {"tokenizer": _tokenizer_hash(tokenizer, checkpoint), "length": length}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _vision_hash(checkpoint: Path | None, gen: AnimeShooterGen | None) -> str:
    """Of the weights that see, their configuration, and how the image processor prepares pictures."""
    if gen is not None:
        config, processor = _config_of(gen.mllm), gen.image_processor
        named: Iterable[tuple[str, Tensor]] = gen.mllm.state_dict().items()
    else:
        from transformers import AutoImageProcessor

        assert checkpoint is not None
        config, named = _read_config(checkpoint / "mllm"), _named_weights(checkpoint / "mllm")
        try:
            processor = AutoImageProcessor.from_pretrained(checkpoint / "image_processor", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{checkpoint / 'image_processor'}: not readable ({str(error).splitlines()[0]})") from None
    weights = _hash_of(tensor for weight, tensor in named if SEES.search(weight) and ".lora_" not in weight)
    seen = {key: value for key, value in dict(config.get("vision_config", {})).items() if not key.startswith("_")}
    seen = {key: value for key, value in seen.items() if key not in _SAYS_NOTHING}
    prepared = {key: value for key, value in processor.to_dict().items() if value is not None and not key.startswith("_")}
    told = {"weights": weights, "config": seen, "prepared": {key: str(value) for key, value in prepared.items()}}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _hash_of(tensors: Iterable[Tensor]) -> str:
    hashes = set()
    for tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        hashes.add(digest.hexdigest())
    if not hashes:
        raise DataError("a part of the model that features are cached of has no weights; the checkpoint is incomplete")
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def _weights(folder: Path) -> Iterable[Tensor]:
    return (tensor for _, tensor in _named_weights(folder))


def _named_weights(folder: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no weights; the checkpoint was saved without this part, or is incomplete")
    try:
        for file in files:
            with safe_open(file, framework="pt") as weights:
                yield from ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: not readable ({error}); save or download the checkpoint again") from None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: no configuration ({error}); save or download the checkpoint again") from None


def _config_of(module: Any) -> dict[str, Any]:
    """A configuration as it stands in a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="animeshooter-config-") as folder:
        if hasattr(module, "save_config"):
            module.save_config(folder)
        else:
            module.config.save_pretrained(folder)
        return _read_config(Path(folder))


def _tokenizer_hash(tokenizer: Any, checkpoint: Path | None) -> str:
    if tokenizer is None:
        from transformers import AutoTokenizer

        assert checkpoint is not None
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint / "text_tokenizer", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{checkpoint / 'text_tokenizer'}: not readable ({str(error).splitlines()[0]})") from None
    told = [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"], tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


# ---- out of memory and back ----


def load_gen(config: Config, checkpoint: Path | None, without: Collection[str] = ()) -> AnimeShooterGen:
    """The model of a checkpoint or of the preset, some frozen parts laid out without weights.

    From a checkpoint these parts are not read at all; of a preset they are made or downloaded first.

    Args:
        config: of the stage.
        checkpoint: the folder, or None for the preset.
        without: parts to leave out, of "vae" and "text_encoder".

    Raises:
        DataError: weights of other parts are named beside a checkpoint.
        ValueError: the checkpoint is damaged.
    """
    from model import AnimeShooterGen, AnimeShooterPipeline

    if checkpoint is None:
        gen = AnimeShooterGen.from_preset(model_config(config), seed=config.train.seed, dtype=frozen_dtype(config))
        settings = {name: (type(getattr(gen, name)), _config_of(getattr(gen, name))) for name in without}
    else:
        if config.model != ModelSource():
            told = " and ".join(f"model.{name}" for name, value in dataclasses.asdict(config.model).items() if value)
            raise DataError(f"{told}: {checkpoint} has its own weights; set it only where a chain of stages begins")
        absent: dict[str, Any] = dict.fromkeys(without)
        pipeline = AnimeShooterPipeline.from_pretrained(checkpoint, **absent)
        gen = AnimeShooterGen.from_pipeline(pipeline)
        there = [name for name in without if (checkpoint / name).is_dir()]
        settings = {name: (_class_in(checkpoint / name), _read_config(checkpoint / name)) for name in there}
    for name, (kind, setting) in settings.items():
        _set(gen, name, _laid_out(kind, setting))
    return gen


def model_config(config: Config) -> ModelConfig:
    """Sizes and sources of the model's parts: the preset's, with the weights that ``model.mllm`` and ``model.video`` name."""
    from model.config import preset, with_sources

    return with_sources(preset(config.preset), config.model.mllm, config.model.video)


def frozen_dtype(config: Config) -> torch.dtype | None:
    """Type of the weights of pretrained parts: the precision of the arithmetic."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision or "no")


def make_whole(gen: AnimeShooterGen, config: Config, checkpoint: Path | None) -> None:
    """Put back, on the CPU, the parts that :func:`load_gen` left out, so that the model can be saved.

    Args:
        gen: the model; it is changed.
        config: of the stage.
        checkpoint: where the model came from, None for the preset.
    """
    absent = laid_out_parts(gen)
    if not absent:
        return
    if checkpoint is None:
        whole = load_gen(config, None)
        for name in absent:
            _set(gen, name, getattr(whole, name), register=True)
        return
    for name in absent:
        weights = {str(tensor.dtype): tensor.dtype for tensor in _weights(checkpoint / name) if tensor.is_floating_point()}
        dtype = next(iter(weights.values())) if len(weights) == 1 else None
        part = _class_in(checkpoint / name).from_pretrained(checkpoint / name, use_safetensors=True, dtype=dtype)
        part.requires_grad_(False)
        _set(gen, name, part.eval(), register=True)


def laid_out_parts(gen: AnimeShooterGen) -> tuple[str, ...]:
    """The parts that :func:`load_gen` left out."""
    return tuple(name for name in PART_OF.values() if is_laid_out(getattr(gen, name)))


def is_laid_out(module: Any) -> bool:
    """Whether a part is there without its weights."""
    return module is not None and module.device.type == "meta"


def _class_in(folder: Path) -> Any:
    """The class of the VAE or text encoder in a folder of a checkpoint."""
    import diffusers
    import transformers

    config = _read_config(folder)
    named = {"vae": config.get("_class_name"), "text_encoder": next(iter(config.get("architectures") or ()), None)}[folder.name]
    if named not in KNOWN:
        raise DataError(f"{folder}: its config.json names {named}, none of {', '.join(KNOWN)}; save the checkpoint again")
    return getattr(diffusers if folder.name == "vae" else transformers, named)


def _laid_out(kind: Any, settings: dict[str, Any]) -> Any:
    with torch.device("meta"):
        part = kind.from_config(settings) if hasattr(kind, "load_config") else kind(kind.config_class(**settings))
    return part.requires_grad_(False).eval()


def _set(gen: AnimeShooterGen, name: str, part: Any, *, register: bool = False) -> None:
    """Give the model a part. One without weights is kept out of the module tree: it is not moved, wrapped or saved."""
    gen._modules.pop(name, None)
    gen.__dict__.pop(name, None)
    if register:
        setattr(gen, name, part)
    else:
        gen.__dict__[name] = part
