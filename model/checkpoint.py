"""The checkpoint folder: diffusers layout, one folder a component, safetensors only, LoRA adapters beside them."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.lora import save_loras, without_lora

PIPELINE_CLASS = "AnimeShooterPipeline"
COMPONENTS = (
    "mllm",
    "tokenizer",
    "image_processor",
    "adapter",
    "text_encoder",
    "text_tokenizer",
    "transformer",
    "vae",
    "scheduler",
)
EXTRA = ("context",)
"""Components that only some models have; a checkpoint without them does not name them."""
_OPTIONAL = ("text_encoder", "text_tokenizer", *EXTRA)  # not needed to generate, or not there
# What a checkpoint may name as the library of a component; anything else is not imported.
_LIBRARIES = {"transformers", "diffusers", "model.adapter", "model.context", "model.nvila"}
# Classes that these may have: what diffusers calls by a name could be a whole pipeline with parts of its own.
_CLASSES = {
    "adapter": "QueryAdapter",
    "context": "ContextRoles",
    "transformer": "CogVideoXTransformer3DModel|WanTransformer3DModel",
    "vae": "AutoencoderKL(CogVideoX|Wan)",
    "scheduler": r"\w+Scheduler",
}
_CONFIGS = ("model_index.json", "config.json", "adapter_config.json", "scheduler_config.json")
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def resolve(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local folder of a checkpoint; one that is not a folder here is taken as a Hub repository and downloaded.

    Raises:
        ValueError: no such folder or repository, or it is not a checkpoint of AnimeShooterGen.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _download(str(path), revision)
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{path}: no model_index.json; give a folder written by AnimeShooterGen.save_pretrained")
    try:
        entries: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index}: not JSON ({error}); the checkpoint is damaged, save or download it again") from None
    kind = entries.get("_class_name") if isinstance(entries, dict) else None
    if kind != PIPELINE_CLASS:
        raise ValueError(f"{path}: a checkpoint of {kind}, not of {PIPELINE_CLASS}; give an AnimeShooterGen checkpoint")
    _check_entries(folder, {name: value for name, value in entries.items() if isinstance(value, list)})
    return folder


def _check_entries(folder: Path, entries: dict[str, list[Any]]) -> None:
    index = folder / "model_index.json"
    for name, entry in entries.items():
        if name not in (*COMPONENTS, *EXTRA) or len(entry) != 2 or entry[0] not in (*_LIBRARIES, None):
            raise ValueError(f"{index}: component {name} wants code from {entry[:1]}, which is not loaded")
        if entry[0] is not None and name in _CLASSES and not re.fullmatch(_CLASSES[name], str(entry[1])):
            raise ValueError(f"{index}: component {name} is a {entry[1]}, which is none of this model; download it again")
        if entry[0] is not None and entry[0].startswith("model."):
            importlib.import_module(entry[0])  # diffusers takes a class only from a module that is there already
    for name in (*COMPONENTS, *EXTRA):
        present = entries.get(name, [None])[0] is not None
        if not present and name not in _OPTIONAL:
            raise ValueError(f"{index}: component {name} is missing; the checkpoint is incomplete")
        if present and not (folder / name).is_dir():
            raise ValueError(f"{folder / name}: folder is missing; the checkpoint is incomplete, save or download it again")


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{repository}: no such folder, and not to be had from the Hub ({reason})") from None


def automatic_components(folder: Path) -> dict[str, Any]:
    """The components whose class depends on what is installed (fast or slow, PIL or torchvision)."""
    from transformers import AutoImageProcessor, AutoTokenizer

    names = {"tokenizer": AutoTokenizer, "text_tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    return {
        name: cls.from_pretrained(folder / name, trust_remote_code=False)
        for name, cls in names.items()
        if (folder / name).is_dir()
    }


def language_models(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of transformers, loaded here because it fills what a file lacks with random numbers and only warns.

    Args:
        folder: of the checkpoint, its index checked.
        given: what `from_pretrained` was called with. Parts given are not loaded; nor is any where something is asked that
            only diffusers does (quantization, device maps, variants).

    Raises:
        ValueError: names the component and the first weight that is missing.
    """
    from transformers import PreTrainedModel

    if set(given) - {*COMPONENTS, *EXTRA, "dtype", "use_safetensors"}:
        return {}
    entries = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    dtype, loaded = given.get("dtype"), {}
    for name in ("mllm", "text_encoder"):
        library, kind = entries.get(name) or (None, None)
        if name in given or library is None:
            continue
        cls = getattr(importlib.import_module(library), str(kind), None)
        if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
            raise ValueError(f"{folder / 'model_index.json'}: {library} has no model {kind} for {name}")
        sub = dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, Mapping) else dtype
        asked: dict[str, Any] = {"dtype": sub, "use_safetensors": True, "output_loading_info": True}
        loaded[name], told = cast(Any, cls).from_pretrained(folder / name, **asked)
        _refuse_missing(folder / name, sorted(told["missing_keys"]))
    return loaded


def types_of(folder: Path, asked: Any = None) -> dict[str, torch.dtype]:
    """The type that the weights of each model of a checkpoint are loaded in, as `DiffusionPipeline.from_pretrained` takes it.

    Args:
        folder: of the checkpoint, its index checked.
        asked: a type for all that is frozen: what is trained stays float32, Wan's VAE too, as its authors run it, and the MLLM,
            which overflows in float16, is then bfloat16. None takes every part as it is stored, so that a chain of stages
            neither grows its frozen parts nor changes their bits.
    """
    entries = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    types = dict.fromkeys(("default", "adapter", "context"), torch.float32)
    if asked is None:
        parts = ("mllm", "text_encoder", "transformer", "vae")
        return types | {name: _stored_type(folder / name) for name in parts if (folder / name).is_dir()}
    types |= {"default": asked, "mllm": torch.bfloat16 if asked is torch.float16 else asked}
    if entries["vae"][1] == "AutoencoderKLWan":
        types["vae"] = torch.float32
    return types


def _stored_type(folder: Path) -> torch.dtype:
    """The type of most of the numbers; single weights kept more exactly than the rest are so again when they are loaded."""
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                part = weights.get_slice(name)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
    return kinds.get(counts.most_common(1)[0][0], torch.float32) if counts else torch.float32


def _refuse_missing(folder: Path, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; "
            "the checkpoint is incomplete or of another version, save or download it again"
        )


def check_filled(pipeline: Any, folder: Path) -> None:
    """Refuse a checkpoint that lacks weights: diffusers leaves those on the meta device and only warns.

    Raises:
        ValueError: names the component and the first weight that is missing.
    """
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            _refuse_missing(folder / name, [weight for weight, value in component.named_parameters() if value.is_meta])


def save(pipeline: Any, path: str | os.PathLike[str], share_with: str | os.PathLike[str] | None = None) -> None:
    """Writes a whole checkpoint; the folder appears complete or not at all.

    Args:
        pipeline: an AnimeShooterPipeline.
        path: folder to write; what was there is replaced once the new one is complete.
        share_with: another local checkpoint. A component with the very weights it has there is hard-linked instead of
            written again (a stage of training changes 1 % of the weights).

    Raises:
        ValueError: ``path`` is something else than a checkpoint, so it is not replaced.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and ((target / "model_index.json").is_file() or not any(target.iterdir()))):
        raise ValueError(f"{target}: exists and is no checkpoint; choose another folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name in (*COMPONENTS, *EXTRA):
            if getattr(pipeline, name, None) is not None:
                _save_component(getattr(pipeline, name), partial / name, Path(share_with) / name if share_with else None)
        save_loras(pipeline.mllm, pipeline.transformer, partial)
        pipeline.save_config(partial)
        _leave_out_absent(partial / "model_index.json")
        _forget_origin(partial)
        _swap(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _leave_out_absent(index: Path) -> None:
    """Takes out of the index what this model does not have, so that it reads as that of a model that never could."""
    entries = json.loads(index.read_text(encoding="utf-8"))
    kept = {k: v for k, v in entries.items() if v is not None and not (k in EXTRA and v[0] is None)}
    index.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _forget_origin(folder: Path) -> None:
    """Removes the path a part was loaded from, which says something of the machine and nothing of the model."""
    for config in (file for name in _CONFIGS for file in folder.rglob(name)):
        settings = json.loads(config.read_text(encoding="utf-8"))
        kept = {name: value for name, value in settings.items() if not name.endswith("name_or_path")}
        if kept != settings:
            config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _swap(new: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)


def _save_component(component: Any, folder: Path, share: Path | None) -> None:
    is_model = isinstance(component, nn.Module)
    with without_lora(component) if is_model else nullcontext():
        if is_model and share is not None and same_weights(component, share):
            _share(component, share, folder)
        else:
            component.save_pretrained(folder)


def _share(component: Any, source: Path, folder: Path) -> None:
    """Links the weight files of ``source`` into ``folder`` and writes the component's own settings beside them."""
    folder.mkdir()
    for file in source.glob("*.safetensors*"):
        try:
            os.link(file, folder / file.name)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(file, folder / file.name)
    if hasattr(component, "save_config"):
        component.save_config(folder)
    else:
        component.config.save_pretrained(folder)
    if getattr(component, "generation_config", None) is not None:
        component.generation_config.save_pretrained(folder)


def same_weights(module: nn.Module, folder: Path) -> bool:
    """Whether the safetensors in ``folder`` hold exactly the weights of ``module``, names, types and bits."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    state, seen = module.state_dict(), set()
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                mine, stored = state.get(name), weights.get_tensor(name)
                if mine is None or mine.dtype != stored.dtype or not torch.equal(mine.cpu(), stored):
                    return False
                seen.add(mine.data_ptr())
    return bool(files) and all(tensor.data_ptr() in seen for tensor in state.values())  # tied weights are stored once
