"""A model that runs here: ``local:MODEL``, any image-text-to-text model of transformers in a folder or on the Hub.

Safetensors only, no code from the model's repository, always the likeliest answer. Each process that asks holds the model;
where that is too much, run it once behind an endpoint and name that.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from animeshooter_dataset import DataError
from curation.asking import AskConfig, Reply, Turn
from curation.ledger import Usage
from curation.parts import Picture, scaled
from curation.script import NoAnswer

MARKED = 2**20
"""Bytes at both ends of a weight file that tell it from others; training changes all of them."""


@dataclass(frozen=True)
class LocalModel:
    """A model that runs in this process, see :class:`curation.asking.Model`.

    Attributes:
        source: folder, or name on the Hub.
        config: what decides its answers.
        device: as torch names it; ``auto`` takes a GPU where there is one.
    """

    source: str
    config: AskConfig
    device: str = "auto"
    kind: str = "local"

    @property
    def name(self) -> str:
        """See :class:`curation.asking.Model`: of a folder its own name, since where it lies is nobody's business."""
        return Path(self.source).resolve().name if Path(self.source).is_dir() else self.source

    def identity(self) -> dict[str, Any]:
        """See :class:`curation.asking.Model`: what the model is made of, wherever it lies.

        Raises:
            NoAnswer: there is no such model.
        """
        return {"local": _mark(self.source), "dtype": self.config.dtype}

    def reply(self, turns: Sequence[Turn], schema: dict[str, Any], before: Callable[[], None]) -> Reply:
        """See :class:`curation.asking.Model`; it is not held to the schema."""
        import torch

        loaded = _load(self.source, self.config.dtype, self.device)
        before()
        try:
            inputs = loaded.inputs(turns, self.config.frame_width)
            asked = int(inputs["input_ids"].shape[1])
            room = loaded.length - asked
            if room <= 0:
                raise DataError(f"the question has {asked} tokens, {self.name} holds {loaded.length}; send fewer frames")
            with torch.inference_mode():
                output = loaded.model.generate(**inputs, generation_config=loaded.greedy(min(self.config.max_tokens, room)))
        except torch.OutOfMemoryError:
            raise NoAnswer(f"{self.name}: not enough memory on {loaded.model.device}; send fewer frames") from None
        told = output[0, asked:].tolist()
        ended = bool(told) and told[-1] in loaded.ends
        text = loaded.tokenizer.decode(told, skip_special_tokens=True)
        return Reply(text, cut=not ended, usage=Usage(prompt_tokens=asked, completion_tokens=len(told)))


@dataclass(frozen=True)
class _Loaded:
    """A model with what makes its inputs; ``processor`` is None where only tokenizer and image processor can be had."""

    model: Any
    tokenizer: Any
    image_processor: Any
    processor: Any
    name: str

    @property
    def length(self) -> int:
        """Tokens it can hold, question and answer together."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return set(ids if isinstance(ids, list) else [ids])

    def greedy(self, most: int) -> Any:
        """Settings under which the likeliest answer is given, whatever the model's own say of chance."""
        from transformers import GenerationConfig

        ends = sorted(each for each in self.ends if each is not None)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (ends or [0])[0]
        return GenerationConfig(max_new_tokens=most, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad)

    def inputs(self, turns: Sequence[Turn], width: int) -> dict[str, Any]:
        """What the model reads.

        Raises:
            DataError: the model cannot take such a part.
        """
        images: list[Image.Image] = []
        messages = []
        for turn in turns:
            content: list[dict[str, Any]] = []
            for part in turn.parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                elif isinstance(part, Picture):
                    images.append(scaled(part.image, width))
                    content.append({"type": "image", "image": images[-1]})
                else:
                    raise DataError(f"a local model takes text and pictures, no {type(part).__name__.lower()}; ask an endpoint")
            messages.append({"role": turn.role, "content": content})
        template: Any = {"add_generation_prompt": True, "tokenize": self.processor is not None}
        try:
            if self.processor is not None:
                made = self.processor.apply_chat_template(messages, return_dict=True, return_tensors="pt", **template)
            else:
                made = self._without_processor(self.tokenizer.apply_chat_template(messages, **template), images)
        except ValueError as error:
            raise NoAnswer(
                f"{self.name}: cannot be asked ({_line(error)}); it must be a model that was taught to chat"
            ) from None
        kind = self.model.dtype
        moved = {name: value.to(self.model.device) for name, value in made.items()}
        return {name: value.to(kind) if value.is_floating_point() else value for name, value in moved.items()}

    def _without_processor(self, text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Inputs from the image processor and the tokenizer: each image's mark is repeated as often as it has features."""
        import torch

        config = self.model.config
        image_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        if image_id is None:
            raise ValueError("its configuration names no image token")
        mark = self.tokenizer.convert_ids_to_tokens(image_id)
        if text.count(mark) != len(images):
            raise ValueError(f"{len(images)} pictures became {text.count(mark)} marks, as a text of the question holds one")
        pixels = dict(self.image_processor(images=list(images), return_tensors="pt")) if images else {}
        pieces = text.split(mark)
        whole = "".join(piece + mark * count for piece, count in zip(pieces, [*self._features(pixels, len(images)), 0]))
        ids = self.tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        accepted = inspect.signature(self.model.forward).parameters
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in accepted:
                made[name] = (ids == image_id).long()
        return made

    def _features(self, pixels: dict[str, Any], count: int) -> list[int]:
        """Features of each image."""
        if "image_grid_thw" in pixels:
            merged = int(getattr(self.image_processor, "merge_size", 2)) ** 2
            return [int(grid.prod()) // merged for grid in pixels["image_grid_thw"]]
        config = self.model.config
        fixed = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
        if fixed is None:
            raise ValueError("its processor needs torchvision, which is not installed")
        return [int(fixed)] * count


@lru_cache(maxsize=2)
def _load(name: str, dtype: str, device: str) -> _Loaded:
    """Load a model once a process; two at most, an annotator's and a judge's.

    Raises:
        NoAnswer: it cannot be loaded.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.utils import logging

    safe: Any = {"trust_remote_code": False}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        where = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True, **safe).to(where).eval()
        try:
            processor = AutoProcessor.from_pretrained(name, **safe)
        except Exception:  # what is missing without torchvision shows in ways of every class
            processor = None
        if getattr(processor, "image_processor", None) is not None:
            return _Loaded(model, processor.tokenizer, processor.image_processor, processor, name)
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        return _Loaded(model, tokenizer, AutoImageProcessor.from_pretrained(name, **safe), None, name)
    except Exception as error:  # files of other people's making fail in ways of every class
        need = "it must be an image-text-to-text model of transformers, stored as safetensors, that needs no code of its own"
        raise NoAnswer(f"local:{name}: cannot be loaded ({_line(error)}); {need}") from None
    finally:
        if bars:
            logging.enable_progress_bar()


@lru_cache(maxsize=2)
def _mark(name: str) -> str:
    """What tells a model from others: the commit on the Hub, or a hash of the files in a folder."""
    folder = Path(name)
    if folder.is_dir():
        whole = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".jinja", ".model", ".safetensors", ".txt"):
                whole.update(f"{path.name} {path.stat().st_size} ".encode())
                with path.open("rb") as file:
                    whole.update(file.read(MARKED))
                    file.seek(max(0, path.stat().st_size - MARKED))
                    whole.update(file.read())
        return whole.hexdigest()
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise NoAnswer(f"local:{name}: there is no such folder; name one that holds a model, or a model of the Hub")
    from huggingface_hub import hf_hub_download

    try:
        return f"{name}@{Path(hf_hub_download(name, 'config.json')).parent.name}"
    except (OSError, ValueError) as error:
        raise NoAnswer(f"local:{name}: neither a folder nor to be had from the Hub ({_line(error)})") from None


def _line(error: BaseException) -> str:
    """An error in one line that is not too long."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= 200 else told[:199] + "…"
