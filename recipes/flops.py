"""Arithmetic of a training step: floating-point operations of every part, forward and backward, from the sizes of its matrices.

A matrix of n weights that r rows pass costs 2 n r forward, as much again backward for the gradient of its input, and as much
for that of its weights. A frozen part through which the gradient flows pays the first only; a part that nothing trainable
comes before pays neither. Attention of s queries to t keys of width d costs 4 s t d forward and twice that backward; causal
masks are not deducted (PaLM, appendix B, counts so too: https://arxiv.org/abs/2204.02311). Normalizations, activations, the
optimizer and the loss are left out, as is usual.

Model FLOPs leave out what gradient checkpointing computes again: MFU = model FLOPs / (seconds x peak of all GPUs).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.config import Config
from recipes.gpus import gpu_memory, peak_flops
from recipes.sizes import Reading, Sizes, largest_clip, reads_pictures, samples_of_step, sizes_of

if TYPE_CHECKING:
    from torch import nn

    from model import AnimeShooterGen
    from recipes.stage import Stage

__all__ = ["Flops", "Part", "Reading", "flops_of", "gpu_memory", "peak_flops"]


@dataclass(frozen=True)
class Part:
    """Operations of one part of the model; ``recomputed`` are those of gradient checkpointing, at most.

    PyTorch leaves out the last matrix of a block when it computes the block again, which is not deducted.
    """

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: Part) -> Part:
        return Part(self.forward + other.forward, self.backward + other.backward, self.recomputed + other.recomputed)

    def times(self, factor: float) -> Part:
        """So many of it."""
        return Part(self.forward * factor, self.backward * factor, self.recomputed * factor)


@dataclass(frozen=True)
class Flops:
    """Operations of a global step, by part."""

    parts: dict[str, Part]

    @property
    def forward(self) -> float:
        """Of all parts."""
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> float:
        """Of all parts."""
        return sum(part.backward for part in self.parts.values())

    @property
    def recomputed(self) -> float:
        """Of gradient checkpointing."""
        return sum(part.recomputed for part in self.parts.values())

    @property
    def model(self) -> float:
        """What the step needs: forward and backward. MFU is of these."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What is computed: with what checkpointing computes again."""
        return self.model + self.recomputed

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {name: asdict(part) for name, part in self.parts.items()}
        return {"parts": parts, "model": self.model, "hardware": self.hardware}


def flops_of(
    stage: Stage,
    gen: AnimeShooterGen,
    config: Config,
    *,
    reading: Reading | None = None,
    without: Collection[str] = (),
    clip: tuple[int, int, int] | None = None,
    shots: int | None = None,
    samples: int | None = None,
) -> Flops:
    """Operations of a global step of a stage.

    Args:
        stage: what is trained.
        gen: the model after ``set_trainable``; weights are not needed, and may be sharded.
        config: settings of the stage.
        reading: what the MLLM reads; see :class:`recipes.sizes.Reading`.
        without: parts that do not run because a cache holds what they make: "vae", "text_encoder".
        clip: frames, height and width of the clips, where they are not those of the config.
        shots: of a sample, where not those of the config.
        samples: of the step, where not those of the config.
    """
    count = samples or samples_of_step(config)
    sizes = sizes_of(stage, gen, config, reading, clip, shots)
    if gen.vae is not None and any(p.requires_grad for p in gen.vae.parameters()):
        return Flops({"vae": autoencoder_part(gen.vae, *(clip or largest_clip(config))).times(sizes.shots * count)})
    pictures, parts = reads_pictures(stage), {}
    conditioned = pictures and any(p.requires_grad for part in (gen.mllm, gen.adapter) for p in part.parameters())
    if pictures:
        parts["mllm"] = mllm_part(gen, sizes, conditioned)
        parts["adapter"] = adapter_part(gen, sizes, conditioned).times(sizes.shots)
    if "text" in stage.needs and "text_encoder" not in without and gen.text_encoder is not None:
        parts["text_encoder"] = text_encoder_part(gen, sizes.condition).times(sizes.shots)
    if "latents" in stage.needs:
        found = [transformer_part(gen, video, sizes.condition, conditioned) for video in sizes.video]
        parts["transformer"] = sum(found, Part())
        frames, height, width = clip or largest_clip(config)
        encoded = 0.0 if "vae" in without or gen.vae is None else sizes.shots * encoder_flops(gen.vae, frames, height, width)
        if sizes.encoded:
            encoded += sizes.encoded * encoder_flops(gen.vae, 1, height, width)
        if encoded:
            parts["vae"] = Part(encoded)
    return Flops({name: part.times(count) for name, part in parts.items()})


# ---- matrices ----


class Matrix(NamedTuple):
    """A matrix of a module: its weights and whether they are trained."""

    name: str
    weights: int
    trained: bool


def matrices(module: nn.Module) -> Iterator[Matrix]:
    """Linear layers and patch convolutions of a module. Their declared sizes count: weights may be sharded or absent."""
    from torch import nn

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield Matrix(name, layer.in_features * layer.out_features, layer.weight.requires_grad)
        elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            size = layer.in_channels // layer.groups * layer.out_channels * math.prod(layer.kernel_size)
            yield Matrix(name, size, layer.weight.requires_grad)


def _product(
    module: nn.Module, rows: Callable[[str], int], through: Callable[[str], bool], keep: Callable[[str], bool] = lambda _: True
) -> Part:
    forward = backward = 0.0
    for name, weights, trained in matrices(module):
        if keep(name):
            operations = 2.0 * weights * rows(name)
            forward += operations
            backward += operations * (through(name) + trained)
    return Part(forward, backward)


def _attention(queries: int, keys: int, width: int, differentiated: bool) -> Part:
    forward = 4.0 * queries * keys * width
    return Part(forward, 2 * forward if differentiated else 0.0)


# ---- the video transformer ----


def transformer_part(gen: AnimeShooterGen, video: int, text: int, conditioned: bool) -> Part:
    """The video transformer over one clip.

    Args:
        gen: the model.
        video: tokens of the clip.
        text: tokens of the condition.
        conditioned: whether the gradient flows on to the condition.
    """
    transformer = gen.transformer
    trained = any(p.requires_grad for p in transformer.parameters())
    whole = transformer.proj_out.weight.requires_grad
    work = _wan if gen.backbone.name == "wan" else _cogvideox
    outer, blocks = work(transformer, video, text, conditioned, trained, whole)
    again = blocks.forward if trained or conditioned else 0.0
    return outer + Part(blocks.forward, blocks.backward, again if transformer.is_gradient_checkpointing else 0.0)


def _on_time(name: str) -> bool:
    """Layers that see one row a clip: the timestep's embedding and what it modulates."""
    return "time" in name or ".norm" in name or name.startswith(("norm_out", "ofs"))


def _cogvideox(transformer: Any, video: int, text: int, conditioned: bool, trained: bool, whole: bool) -> tuple[Part, Part]:
    """Outer layers and blocks: text and video in one sequence."""
    both = video + text

    def rows(name: str) -> int:
        if _on_time(name):
            return 1
        if "text_proj" in name:
            return text
        return both if name.startswith("transformer_blocks.") else video

    def through(name: str) -> bool:
        if not (trained or conditioned) or name.startswith("patch_embed.proj"):
            return False
        if _on_time(name):
            return whole
        if "text_proj" in name:
            return conditioned
        first = name.startswith("transformer_blocks.0.attn1.to_") and "to_out" not in name and "lora_B" not in name
        return conditioned or whole or not first

    inside = lambda name: name.startswith("transformer_blocks.")  # noqa: E731
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    attention = _attention(both, both, width, trained or conditioned).times(len(transformer.transformer_blocks))
    outer = _product(transformer, rows, through, lambda name: not inside(name))
    return outer, _product(transformer, rows, through, inside) + attention


def _wan(transformer: Any, video: int, text: int, conditioned: bool, trained: bool, whole: bool) -> tuple[Part, Part]:
    """Outer layers and blocks: video tokens that read the text by cross-attention."""
    differentiated = trained or conditioned

    def rows(name: str) -> int:
        if "time" in name:
            return 1
        return text if "text_embedder" in name or ".attn2.to_k" in name or ".attn2.to_v" in name else video

    def through(name: str) -> bool:
        if not differentiated or name.startswith("patch_embedding"):
            return False
        if "time" in name:
            return whole and "linear_1" not in name
        if "text_embedder" in name:
            return conditioned or (whole and "linear_1" not in name)
        if "lora_B" in name:
            return trained
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            return conditioned or whole
        if name.startswith("blocks.0.attn1."):
            return whole or (trained and "to_out" in name)
        return whole or trained or not name.startswith("blocks.0.attn2.to_q")

    inside = lambda name: name.startswith("blocks.")  # noqa: E731
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    count = len(transformer.blocks)
    blocks = _product(transformer, rows, through, inside) + _attention(video, text, width, differentiated).times(count)
    blocks += _attention(video, video, width, differentiated).times(count)
    if not trained and conditioned:  # nothing before the first cross-attention depends on the condition
        blocks += Part(0.0, -_attention(video, video, width, True).backward)
    return _product(transformer, rows, through, lambda name: not inside(name)), blocks


# ---- what makes the condition ----


def mllm_part(gen: AnimeShooterGen, sizes: Sizes, conditioned: bool) -> Part:
    """The multimodal language model over a sample: its vision tower forward only, its language model also backward."""
    seeing, reading = Part(), Part()
    text, vision = gen.mllm.config.get_text_config(), gen.mllm.config.vision_config
    tokens, patches = sum(size // sizes.merged for size in sizes.pictures), sum(sizes.pictures)
    for name, weights, trained in matrices(gen.mllm):
        if "lm_head" in name:
            continue
        if "visual" in name or "vision" in name:
            seeing += Part(2.0 * weights * (tokens if "merger" in name or "projector" in name else patches))
        else:
            forward = 2.0 * weights * sum(sizes.stories)
            reading += Part(forward, forward * (conditioned + trained), forward)
    depth = int(getattr(vision, "depth", None) or vision.num_hidden_layers)
    for size in sizes.pictures:
        seeing += _attention(size, size, int(vision.hidden_size), False).times(depth)
    heads = int(text.num_attention_heads)
    width = heads * int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    for story in sizes.stories:
        attention = _attention(story, story, width, conditioned).times(int(text.num_hidden_layers))
        reading += attention + Part(recomputed=attention.forward)
    again = reading.recomputed if conditioned and gen.mllm.is_activation_checkpointing else 0.0
    return seeing + Part(reading.forward, reading.backward, again)


def adapter_part(gen: AnimeShooterGen, sizes: Sizes, conditioned: bool) -> Part:
    """The Q-Former over one shot: the condition's tokens read one another and the query states."""
    config = gen.adapter.config
    reads = lambda name: ".crossattention." in name and (".key" in name or ".value" in name)  # noqa: E731
    product = _product(gen.adapter, lambda name: sizes.queries if reads(name) else sizes.condition, lambda name: conditioned)
    crossing = len([name for name, *_ in matrices(gen.adapter) if name.endswith("crossattention.attention.query")])
    own = _attention(sizes.condition, sizes.condition, config.hidden_size, conditioned).times(config.num_layers)
    return product + own + _attention(sizes.condition, sizes.queries, config.hidden_size, conditioned).times(crossing)


def text_encoder_part(gen: AnimeShooterGen, length: int) -> Part:
    """The text encoder over one caption, padded to the length of the condition; it is never trained."""
    config = gen.text_encoder.config
    product = _product(gen.text_encoder, lambda _: length, lambda _: False)
    attention = _attention(length, length, config.num_heads * config.d_kv, False)
    return Part(product.forward + attention.forward * config.num_layers)


# ---- the autoencoder ----


def encoder_flops(vae: Any, frames: int, height: int, width: int) -> float:
    """Operations of encoding one clip. Its pieces are too many for a formula: it runs without weights, and is counted."""
    kind: Any = type(vae)
    return _encoder_flops(kind, vae_settings(vae), frames, height, width)


def autoencoder_part(vae: Any, frames: int, height: int, width: int) -> Part:
    """Training the autoencoder on one clip: encoding and decoding, forward and backward, counted likewise."""
    kind: Any = type(vae)
    return _autoencoder_part(kind, vae_settings(vae), frames, height, width)


def without_weights(kind: Any, settings: str) -> Any:
    """An autoencoder laid out on "meta" from :func:`vae_settings`."""
    import torch

    with torch.device("meta"):
        return kind.from_config(json.loads(settings)).eval()


def vae_settings(vae: Any) -> str:
    """The settings of an autoencoder as JSON."""
    return json.dumps({name: value for name, value in vae.config.items() if not name.startswith("_")}, default=list)


@functools.lru_cache(maxsize=16)
def _encoder_flops(kind: Hashable, settings: str, frames: int, height: int, width: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    vae, clip = without_weights(kind, settings), torch.empty(1, 3, frames, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        vae.encode(clip)
    return float(counted.get_total_flops())


@functools.lru_cache(maxsize=16)
def _autoencoder_part(kind: Hashable, settings: str, frames: int, height: int, width: int) -> Part:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.autoencoder import reconstruction_loss

    vae = without_weights(kind, settings)
    clip = torch.empty(1, frames, height, width, 3, device="meta", dtype=torch.uint8)
    with FlopCounterMode(display=False) as forward:
        loss = reconstruction_loss(vae, clip).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Part(float(forward.get_total_flops()), float(backward.get_total_flops()))
