"""Reading a story with a multimodal language model: the token sequence, and its states at the query tokens.

A story of n shots is one sequence (paper, section 4)::

    <Reference> <Caption 1> <Query x 64> <Frame 1> <Caption 2> <Query x 64> ... <Caption n> <Query x 64>

where Frame i is the last frame of shot i, or the frames that a :class:`model.memory.ConditionPolicy` chooses. Several
references are each preceded by the name of their character. Attention is causal, so the states at shot i's queries depend on
the references, the captions up to i and the frames before i, and on nothing later. Where a policy hides something of the
earlier shots from a later one, the later one is read in a sequence of its own (:func:`story_contexts`).

Learnable queries enter any transformers image-text model the same way: each has a reserved token, so the model gets
ordinary ``input_ids`` and does its own merging of image features and its own positions; a hook on the input embedding
replaces the embeddings of those tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from model.images import Reference
from model.memory import ConditionPolicy
from model.tokenizer import query_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from model.adapter import QueryAdapter


@dataclass(frozen=True)
class StoryContext:
    """What the model reads in one sequence.

    Attributes:
        references: reference pictures, at least one.
        captions: one text a shot, n of them; "" where dropped, None (never the last) where the shot is remembered by its
            frames alone, so that it has no queries either.
        memory: frames of shots 1 to n-1, a list of RGB pictures each.
    """

    references: Sequence[Reference]
    captions: Sequence[str | None]
    memory: Sequence[Sequence[Image.Image]]

    def __post_init__(self) -> None:
        """Raises ValueError when the captions and the remembered shots do not belong together."""
        check_story(self.captions, self.memory)

    @property
    def pictures(self) -> list[Image.Image]:
        """All pictures in the order of the sequence."""
        return [*(one.picture for one in self.references), *(frame for shot in self.memory for frame in shot)]


def check_story(captions: Sequence[str | None], memory: Sequence[Any]) -> None:
    """Raises ValueError when there are no captions, or not the frames of every shot but the last."""
    if not captions or captions[-1] is None:
        raise ValueError("a story needs at least one caption")
    if len(memory) != len(captions) - 1:
        raise ValueError(
            f"a story of {len(captions)} captions needs {len(captions) - 1} last frames (or lists of frames; one for every "
            f"shot but the last), not {len(memory)}"
        )


def shot_context(
    policy: ConditionPolicy,
    references: Sequence[Reference],
    captions: Sequence[str],
    memory: Sequence[Sequence[Image.Image]],
) -> StoryContext:
    """The sequence whose last queries are those of the last shot.

    Args:
        policy: what it remembers.
        references: at least one.
        captions: of every shot so far, its own last.
        memory: frames of the shots before it, as ``policy`` picks them.

    Raises:
        ValueError: captions and frames do not belong together.
    """
    check_story(captions, memory)
    window = policy.window(len(captions) - 1)
    earlier = [captions[shot] if policy.memory_captions else None for shot in window]
    return StoryContext(references, [*earlier, captions[-1]], [memory[shot] for shot in window])


def story_contexts(
    policy: ConditionPolicy,
    references: Sequence[Reference],
    captions: Sequence[str],
    memory: Sequence[Sequence[Image.Image]],
) -> list[StoryContext]:
    """The sequences of a story: one for all n shots where that says no more than ``policy`` allows, else one a shot.

    Raises:
        ValueError: captions and frames do not belong together.
    """
    check_story(captions, memory)
    if policy.one_pass(len(captions)):
        return [StoryContext(references, captions, memory)]
    return [shot_context(policy, references, captions[: shot + 1], memory[:shot]) for shot in range(len(captions))]


def both_captions(narrative: str, descriptive: str) -> str:
    """Both captions of a shot as one text in which they are told apart; one alone, or twice the same, as it is."""
    if not narrative or not descriptive or narrative == descriptive:
        return narrative or descriptive
    return f"Narrative: {narrative}\nDescriptive: {descriptive}"


@contextmanager
def learnable_queries(embedding: nn.Module, queries: Tensor, first_id: int) -> Iterator[None]:
    """While open, ``embedding`` gives row k of ``queries`` for the token id ``first_id + k``."""

    def substitute(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        index = args[0] - first_id
        chosen = (index >= 0) & (index < len(queries))
        rows = queries.to(output.dtype)[index.clamp(0, len(queries) - 1)]
        return torch.where(chosen.unsqueeze(-1), rows, output)

    handle = embedding.register_forward_hook(substitute)
    try:
        yield
    finally:
        handle.remove()


def _first_attribute(config: Any, *names: str) -> int | None:
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None) is not None), None)


class StoryReader:
    """An image-text model, its tokenizer and its image processor, reading stories.

    Models that mark images by an ``image_grid_thw`` (the Qwen-VL line) and models with a fixed number of tokens an
    image (``image_seq_length`` or ``mm_tokens_per_image`` in their configuration) are understood.

    Args:
        mllm: a model of the ``AutoModelForImageTextToText`` family.
        tokenizer: its tokenizer, with the query tokens reserved in it.
        image_processor: its image processor.
        num_queries: query tokens a shot.

    Raises:
        ValueError: the query tokens are missing, or the model marks its images in a way not understood.
    """

    def __init__(
        self, mllm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any, num_queries: int
    ) -> None:
        self.mllm, self.tokenizer, self.image_processor = mllm, tokenizer, image_processor
        self.num_queries = num_queries
        ids = tokenizer.convert_tokens_to_ids([query_token(i) for i in range(num_queries)])
        first = ids[0]
        if first in (None, tokenizer.unk_token_id) or ids != list(range(first, first + num_queries)):
            raise ValueError(f"the tokenizer has no {num_queries} consecutive query tokens: call add_query_tokens on it")
        if ids[-1] >= mllm.get_input_embeddings().num_embeddings:
            raise ValueError("the MLLM's embedding has no rows for the query tokens: resize_token_embeddings first")
        self.query_ids: list[int] = ids
        config = mllm.config
        image_id = _first_attribute(config, "image_token_id", "image_token_index")
        if image_id is None:
            raise ValueError(f"{type(mllm).__name__} names no image token in its config; it cannot read stories")
        self.image_id = image_id
        starts, ends = ("vision_start_token_id", "boi_token_id", "boi_token_index"), ("vision_end_token_id", "eoi_token_id")
        # InternVL names the tokens around an image in its tokenizer, not in its configuration.
        self.image_start = _first_attribute(config, *starts) or _first_attribute(tokenizer, "start_image_token_id")
        self.image_end = _first_attribute(config, *ends, "eoi_token_index") or _first_attribute(tokenizer, "end_image_token_id")
        self.tokens_per_image = _first_attribute(config, "image_seq_length", "mm_tokens_per_image")
        # One image is one picture: no tiles of it, no crops.
        self._whole = {name: False for name in ("crop_to_patches", "do_pan_and_scan") if hasattr(image_processor, name)}
        self._accepted = set(inspect.signature(mllm.base_model.forward).parameters)

    def query_states(self, stories: Sequence[StoryContext], queries: Tensor, *, last: bool = False) -> Tensor:
        """Reads sequences.

        Args:
            stories: B of them, n shots with queries each.
            queries: learnable query embeddings [num_queries, D].
            last: only the last shot of each; then their numbers of shots may differ.

        Returns:
            Last hidden states at the query tokens, [B, n, num_queries, D] (n = 1 with ``last``).

        Raises:
            ValueError: different numbers of shots in one batch, or a story longer than the model can read.
        """
        shots = {sum(caption is not None for caption in story.captions) for story in stories}
        if len(shots) > 1 and not last:
            raise ValueError("the stories of one batch must have equally many shots")
        inputs = self.encode(stories)
        with learnable_queries(self.mllm.get_input_embeddings(), queries, self.query_ids[0]), self._own_precision():
            states = self.mllm.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        ids = inputs["input_ids"]
        at_queries = (ids >= self.query_ids[0]) & (ids <= self.query_ids[-1])
        rows = [row[where].unflatten(0, (-1, self.num_queries)) for row, where in zip(states, at_queries)]
        return torch.stack([row[-1:] if last else row for row in rows])

    def _own_precision(self) -> AbstractContextManager[Any]:
        """A model whose weights are bf16 overflows under the fp16 that some video models are trained in."""
        kind = self.mllm.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
        return torch.autocast(kind, torch.bfloat16) if half and self.mllm.dtype is torch.bfloat16 else nullcontext()

    def encode(self, stories: Sequence[StoryContext]) -> dict[str, Tensor]:
        """The model's inputs for a batch: right-padded ids, mask, pixels, and token types where it takes them."""
        images = [image for story in stories for image in story.pictures]
        pixels = dict(self.image_processor(images=images, return_tensors="pt", **self._whole))
        counts = iter(self._token_counts(pixels, len(images)))
        rows = [self._sequence(story, counts) for story in stories]
        longest = max(map(len, rows))
        limit = getattr(self.mllm.config.get_text_config(), "max_position_embeddings", longest)
        if longest > limit:
            raise ValueError(
                f"a story of {longest} tokens is longer than the MLLM can read ({limit}); shorten captions, or remember less"
            )
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        inputs = {"input_ids": ids}
        inputs["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        inputs |= {name: value for name, value in pixels.items() if name in self._accepted}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._accepted:
                inputs[name] = (ids == self.image_id).long()
        device, dtype = self.mllm.device, self.mllm.dtype
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def _token_counts(self, pixels: dict[str, Tensor], images: int) -> list[int]:
        if "image_grid_thw" in pixels:
            merge = int(self.image_processor.merge_size) ** 2
            return (pixels["image_grid_thw"].prod(-1) // merge).tolist()
        if self.tokens_per_image is None or len(pixels["pixel_values"]) != images:
            raise ValueError(
                f"{type(self.mllm).__name__} does not say how many tokens an image takes; use a model with "
                f"image_grid_thw (Qwen-VL) or with a fixed number of tokens an image"
            )
        return [self.tokens_per_image] * images

    def _sequence(self, story: StoryContext, counts: Iterator[int]) -> list[int]:
        ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        for reference in story.references:
            if reference.name and len(story.references) > 1:
                ids += self._text_tokens(f"{reference.name}: ")
            ids += self._image_tokens(next(counts))
        for i, caption in enumerate(story.captions):
            if caption is not None:
                ids += self._text_tokens(caption) + self.query_ids
            if i < len(story.memory):
                ids += [token for _ in story.memory[i] for token in self._image_tokens(next(counts))]
        return ids

    def _image_tokens(self, count: int) -> list[int]:
        start = [] if self.image_start is None else [self.image_start]
        end = [] if self.image_end is None else [self.image_end]
        return [*start, *[self.image_id] * count, *end]

    def _text_tokens(self, text: str) -> list[int]:
        # A caption or a name is data: "<|image_pad|>" or "<query_00>" in it are letters, not tokens.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def story_condition(
    reader: StoryReader, adapter: QueryAdapter, stories: Sequence[StoryContext], *, last: bool = False
) -> Tensor:
    """Text conditions of all shots of B sequences with n shots each: [B, n, condition length, condition width].

    With ``last`` only of the last shot of each sequence, n = 1.
    """
    states = reader.query_states(stories, adapter.query_embeddings(), last=last)
    return adapter(states.flatten(0, 1)).unflatten(0, states.shape[:2])
