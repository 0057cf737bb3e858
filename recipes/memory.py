"""Memory of a training run on each GPU: weights, gradients, optimizer and averages by layout, activations by a formula.

What a layout keeps of T trained and F frozen weights on each of N processes (ZeRO: https://arxiv.org/abs/1910.02054):

========  ============================  ==========================  ====================
layout    weights                       gradients                   AdamW and master copy
========  ============================  ==========================  ====================
ddp       F + 4 T                       4 T, twice if N > 1         8 T
zero2     F + 2 T (4 T in float32)      as weights, + 4 T / N       12 T / N
zero3     the same / N + what is live   4 T / N                     12 T / N
fsdp2     (F + 4 T) / N + what is live  4 T / N                     8 T / N
========  ============================  ==========================  ====================

Activations are the tensors that autograd keeps from forward to backward; :func:`block_bytes` counts them a token and block.
Frozen linear layers keep nothing, for only the gradient of their input is wanted. Flash attention keeps no scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from recipes.config import Config
from recipes.flops import vae_settings, without_weights
from recipes.sizes import Reading, Sizes, clips_at_once, largest_clip, reads_pictures, samples_of_step, sizes_of

if TYPE_CHECKING:
    from torch import nn

    from model import AnimeShooterGen
    from recipes.stage import Stage

LAYOUTS = ("ddp", "zero2", "zero3", "fsdp2")
LIVE_ZERO3 = 10**9
"""Weights that DeepSpeed keeps gathered at most: stage3_max_live_parameters."""
MAPS = 6
"""Feature maps of the first level that are alive at once while the autoencoder encodes: seen in its residual blocks."""
Flow = Literal["through", "lora", "full"]


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU; ``working`` is alive only while the autoencoder encodes, or while sharded weights are gathered."""

    weights: float
    gradients: float
    optimizer: float
    averages: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        """At the peak; the driver's own half gigabyte or so and fragmentation are not in it."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.working

    def as_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return asdict(self) | {"total": self.total}


def memory_of(
    stage: Stage,
    gen: AnimeShooterGen,
    config: Config,
    *,
    layout: str = "ddp",
    processes: int = 1,
    checkpointing: bool | None = None,
    without: Collection[str] = (),
    reading: Reading | None = None,
) -> Memory:
    """Memory on each GPU.

    Args:
        stage: what is trained.
        gen: the model after ``set_trainable``, possibly without weights.
        config: settings of the stage.
        layout: ddp, zero2, zero3 or fsdp2.
        processes: GPUs that train together.
        checkpointing: whether activations are computed again; None as the config says.
        without: parts that are not in memory: "vae", "text_encoder".
        reading: what the MLLM reads.
    """
    again = config.train.checkpointing if checkpointing is None else checkpointing
    half = config.train.precision in ("bf16", "fp16")
    trained, frozen = weights_of(gen, half, without)
    shares = -(-samples_of_step(config) // (processes * config.train.accumulate))
    sizes = sizes_of(stage, gen, config, reading)
    if gen.vae is not None and any(p.requires_grad for p in gen.vae.parameters()):
        kept, working = shares * sizes.shots * autoencoder_activations(gen.vae, *largest_clip(config)) / (2 if half else 1), 0.0
    else:
        kept = shares * activations_of(stage, gen, sizes, half, again)
        encodes = "latents" in stage.needs and "vae" not in without and gen.vae is not None
        clips = min(shares * sizes.shots, clips_at_once(*largest_clip(config)))
        working = clips * _encoding(gen.vae, config, half) if encodes else 0.0
    averages = 4.0 * trained if config.train.ema else 0.0
    low = 2.0 if half else 4.0
    if layout == "ddp":
        gradients = 4.0 * trained * (2 if processes > 1 else 1)
        return Memory(frozen + 4.0 * trained, gradients, 8.0 * trained, averages, kept, working)
    if layout == "zero2":
        gradients = low * trained + 4.0 * trained / processes
        return Memory(frozen + low * trained, gradients, 12.0 * trained / processes, averages / processes, kept, working)
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    master = low if layout == "zero3" else 4.0
    weights = (frozen + master * trained) / processes
    live = gathered(gen, half, without, layout) if processes > 1 else 0.0
    optimizer = (12.0 if layout == "zero3" else 8.0) * trained / processes
    return Memory(weights, 4.0 * trained / processes, optimizer, averages / processes, kept, max(working, live))


# ---- weights ----


def weights_of(gen: AnimeShooterGen, half: bool, without: Collection[str] = ()) -> tuple[int, float]:
    """How many weights are trained, and bytes of the frozen ones.

    Trained weights are float32. Frozen ones of a model laid out without weights are taken to be loaded in the precision of
    the arithmetic; those of a model in memory are what they are.
    """
    trained, frozen = 0, 0.0
    for _, parameter in _parameters(gen, without):
        if parameter.requires_grad:
            trained += parameter.numel()
        else:
            frozen += parameter.numel() * (2 if half and parameter.is_meta else parameter.element_size())
    return trained, frozen


def _parameters(gen: AnimeShooterGen, without: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
    names = [name for name, _ in gen.named_children() if name not in without]
    for part in names:
        for name, parameter in getattr(gen, part).named_parameters():
            yield f"{part}.{name}", parameter


def gathered(gen: AnimeShooterGen, half: bool, without: Collection[str], layout: str) -> float:
    """Bytes of sharded weights that are whole at one time: two blocks and, in FSDP2, all that is in no block."""
    from torch import nn

    width = 2.0 if half else 4.0
    if layout == "zero3":
        count = sum(parameter.numel() for _, parameter in _parameters(gen, without))
        return width * min(count, LIVE_ZERO3)
    parts = [part for name, part in gen.named_children() if name not in without]
    blocks = [_repeated(part) for part in parts if not isinstance(part, nn.ModuleList)]
    counts = [sum(p.numel() for p in block.parameters()) for found in blocks for block in found]
    everything = sum(p.numel() for part in parts for p in part.parameters())
    return width * (everything - sum(counts) + 2 * max(counts, default=0))


def _repeated(part: nn.Module) -> list[nn.Module]:
    """The blocks of a part that are wrapped one by one: its longest list of modules."""
    from torch import nn

    lists = [list(module) for module in part.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda found: len(found), default=[])


# ---- activations ----


def activations_of(stage: Stage, gen: AnimeShooterGen, sizes: Sizes, half: bool, checkpointing: bool) -> float:
    """Bytes that autograd keeps of one sample until its backward pass."""
    total, pictures = 0.0, reads_pictures(stage)
    conditioned = pictures and any(p.requires_grad for part in (gen.mllm, gen.adapter) for p in part.parameters())
    if conditioned:
        total += _mllm(gen, sum(sizes.stories), half, checkpointing) + sizes.shots * _adapter(gen, sizes, half)
    flow = flow_of(gen, conditioned)
    if "latents" in stage.needs and flow is not None:
        for video in sizes.video:
            total += transformer_activations(gen, video, sizes.condition, half, flow, checkpointing)
    return total


def flow_of(gen: AnimeShooterGen, conditioned: bool) -> Flow | None:
    """How the gradient meets the video transformer: through frozen weights, to a LoRA, or to all of it; None not at all."""
    trained = [name for name, parameter in gen.transformer.named_parameters() if parameter.requires_grad]
    if not trained:
        return "through" if conditioned else None
    return "lora" if all(".lora_" in name for name in trained) else "full"


def transformer_activations(gen: AnimeShooterGen, video: int, text: int, half: bool, flow: Flow, checkpointing: bool) -> float:
    """Bytes kept of one clip by the blocks of the video transformer."""
    settings = gen.transformer.config
    width = settings.num_attention_heads * settings.attention_head_dim
    blocks = list(gen.backbone.blocks)
    wan = gen.backbone.name == "wan"
    inner = int(settings.ffn_dim) if wan else 4 * width
    element, norm = (2, 4) if half else (4, 4)
    per = block_bytes(width, inner, element, norm, flow, wan)
    kept = per * video + (width * (norm + 2 * element) if wan else per) * text
    if not checkpointing:
        # Nothing before the first cross-attention depends on the condition.
        before = (3 * norm + 4 * element) * width * video if wan and flow == "through" else 0
        return kept * len(blocks) - before
    entry = element * width * (video if wan else video + text)
    return entry * len(blocks) + kept


def block_bytes(width: int, inner: int, element: int, norm: int, flow: Flow, wan: bool = False) -> int:
    """Bytes that a block of the video transformer keeps of a token.

    Args:
        width: of the token.
        inner: of the feed-forward layer.
        element: bytes of a number in matrix products.
        norm: bytes of a number in normalizations, which autocast computes in float32.
        flow: where the gradient goes.
        wan: with cross-attention (inputs of three normalizations, of three on queries and keys, six tensors of attention);
            otherwise CogVideoX's (inputs of two normalizations and two on queries and keys; query, key, value and output).
    """
    kept = (6 * norm + 6 * element) * width if wan else (4 * norm + 4 * element) * width
    kept += element * inner  # the activation function's input
    if flow == "through":
        return kept
    layers = 2 if wan else 1
    kept += 2 * layers * element * width  # inputs of the projections of attention
    if flow == "full":
        kept += element * (width + inner) + 2 * norm * width + 2 * element * width  # feed-forward, scales and gates
    return kept


def _mllm(gen: AnimeShooterGen, tokens: int, half: bool, checkpointing: bool) -> float:
    """Decoder layers of the Llama kind: four RMS norms in float32, attention, gated feed-forward."""
    text = gen.mllm.config.get_text_config()
    heads, width = int(text.num_attention_heads), int(text.hidden_size)
    head = int(getattr(text, "head_dim", None) or width // heads)
    queries, keys = heads * head, int(getattr(text, "num_key_value_heads", None) or heads) * head
    element = 2 if half else 4
    layer = (
        4 * 2 * (2 * width + queries + keys) + element * (2 * queries + 2 * keys) + 3 * element * int(text.intermediate_size)
    )
    layers = int(text.num_hidden_layers)
    if not checkpointing:
        return float(tokens * layer * layers)
    return float(tokens * (element * width * layers + layer))


def _adapter(gen: AnimeShooterGen, sizes: Sizes, half: bool) -> float:
    """A trained transformer without flash attention: s h (34 + 5 a s / h) bytes a layer (https://arxiv.org/abs/2205.05198).

    Layers that read the query states hold half as much again.
    """
    config, tokens = gen.adapter.config, sizes.condition
    layer = tokens * (34 * config.hidden_size + 5 * config.num_heads * tokens) * (1 if half else 2)
    return layer * config.num_layers * (1 + 0.5 / max(1, config.cross_attention_frequency))


def autoencoder_activations(vae: Any, frames: int, height: int, width: int) -> float:
    """Bytes kept while the autoencoder trains on one clip, in float32: it runs without weights, and what it keeps is summed."""
    import torch

    from model.autoencoder import reconstruction_loss

    plain = without_weights(type(vae), vae_settings(vae))
    weights = {parameter.untyped_storage()._cdata for parameter in plain.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other takes its place
        return tensor

    clip = torch.empty(1, frames, height, width, 3, device="meta", dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        reconstruction_loss(plain, clip)
    return float(sum(size for place, (size, _) in kept.items() if place not in weights))


def _encoding(vae: Any, config: Config, half: bool) -> float:
    """Bytes alive while one clip is encoded: feature maps of the first level over the nine frames of a piece."""
    frames, height, width = largest_clip(config)
    channels = getattr(vae.config, "block_out_channels", None) or [getattr(vae.config, "base_dim", 96)]
    half = half and hasattr(vae.config, "block_out_channels")  # Wan's computes in float32
    return MAPS * int(channels[0]) * min(frames, 9) * height * width * (2.0 if half else 4.0)
