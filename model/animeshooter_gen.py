"""`AnimeShooterGen`: the components of the model together, as the training stages use them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.backbones import Backbone, backbone_of
from model.build import build_components, seeded
from model.config import ModelConfig, preset
from model.context import LORA_RANK, Context, ContextRoles
from model.images import Picture, as_frames, as_references
from model.lora import CONTEXT, add_mllm_lora, add_transformer_lora, has_lora, lora_parameters, lora_rank
from model.memory import ConditionPolicy
from model.mllm import StoryReader, story_condition, story_contexts
from model.pathway import encode_pictures
from model.pipeline import AnimeShooterPipeline, clip_size_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What each stage trains (paper, section 4 and appendix). "pretrain" is for small models made from nothing: the paper
# starts from a trained CogVideoX instead.
STAGES: dict[str, tuple[str, ...]] = {
    "pretrain_vae": ("vae",),
    "pretrain": ("transformer",),
    "align": ("adapter",),
    "single_shot": ("adapter", "mllm_lora"),
    "multi_shot": ("adapter", "mllm_lora"),
    "lora": ("transformer_lora",),
    "cogvideo_lora": ("transformer_lora",),  # the paper's baseline: the same part, under text alone
}
# What the stages that teach the model to read references train besides, where it has the second pathway: its role vectors,
# and a LoRA on the video transformer, which was never trained to read clean frames. The last stage leaves both as they are.
WITH_CONTEXT: dict[str, tuple[str, ...]] = {
    "single_shot": ("context", "context_lora"),
    "multi_shot": ("context", "context_lora"),
}
# Module and adapter that a part's LoRA stands on.
_LORAS = {
    "mllm_lora": ("mllm", "default"),
    "transformer_lora": ("transformer", "default"),
    "context_lora": ("transformer", CONTEXT),
}


class AnimeShooterGen(nn.Module):
    """A multimodal language model, learnable queries and Q-Former that condition a video transformer.

    It has no ``forward`` of its own: a training stage calls `condition` or `first_frame_condition` and computes its
    loss, inside the ``forward`` of the module it hands to a distributed wrapper.

    Everything is frozen until `set_trainable`. Attributes are the components by their checkpoint folders: ``mllm``,
    ``tokenizer``, ``image_processor``, ``adapter``, ``text_encoder``, ``text_tokenizer``, ``transformer``, ``vae``,
    ``scheduler``, and ``context``, None unless the model has the second pathway. B is the number of stories, n of shots,
    L x D the condition's tokens and width.

    Args:
        components: as `model.build.build_components` returns them.
        mllm_lora_rank: rank of the LoRA the single- and multi-shot stages train.
        transformer_lora_rank: rank of the LoRA the last stage trains.
        clip_size: frames, height and width of a clip by default; None for the transformer's own.
    """

    def __init__(
        self,
        components: dict[str, Any],
        *,
        mllm_lora_rank: int = 32,
        transformer_lora_rank: int = 64,
        clip_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.mllm = components["mllm"]
        self.adapter = components["adapter"]
        self.text_encoder = components["text_encoder"]
        self.transformer = components["transformer"]
        self.vae = components["vae"]
        self.tokenizer: PreTrainedTokenizerBase = components["tokenizer"]
        self.text_tokenizer: PreTrainedTokenizerBase = components["text_tokenizer"]
        self.image_processor = components["image_processor"]
        self.scheduler = components["scheduler"]
        self.context: ContextRoles | None = components.get("context")
        self.clip_size: tuple[int, ...] | None = None if clip_size is None else tuple(clip_size)
        self.lora_ranks = {"mllm": mllm_lora_rank, "transformer": transformer_lora_rank}
        self.policy = ConditionPolicy()
        self.requires_grad_(False)
        self.train(False)

    @classmethod
    def from_preset(
        cls, name: str | ModelConfig, seed: int = 0, *, dtype: torch.dtype | None = None, device: str | None = None
    ) -> AnimeShooterGen:
        """The model of a preset, or of a configuration of one's own.

        Args:
            name: "tiny", "paper" (loads Qwen3-VL-8B and CogVideoX-2B from the Hub) or another of `model.config.preset`, or
                a ModelConfig.
            seed: of the random weights; the global random state is not touched.
            dtype: of pretrained components; the adapter and LoRAs are float32 always.
            device: "meta" for a model without weights, to count parameters.
        """
        config = preset(name) if isinstance(name, str) else name
        parts = build_components(config, seed, dtype, device)
        ranks = {"mllm_lora_rank": config.mllm.lora_rank, "transformer_lora_rank": config.video.lora_rank}
        return cls(parts, **ranks, clip_size=config.video.clip_size)

    @classmethod
    def from_pipeline(cls, pipeline: AnimeShooterPipeline) -> AnimeShooterGen:
        """The model of a loaded pipeline, over the very same components."""
        ranks = {name: pipeline.config[name] for name in ("mllm_lora_rank", "transformer_lora_rank")}
        gen = cls(pipeline.components, **ranks, clip_size=clip_size_of(pipeline.config.clip_size))
        gen.policy = pipeline.policy
        return gen

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str | None = None
    ) -> AnimeShooterGen:
        """Loads what `save_pretrained` or `AnimeShooterPipeline.save_pretrained` wrote (folder or Hub repository).

        Args:
            path: the folder or repository.
            dtype: of frozen parts, see `model.checkpoint.types_of`; as they are stored by default.
            revision: branch, tag or commit on the Hub.

        Raises:
            ValueError: it is no checkpoint of AnimeShooterGen, or an incomplete one.
        """
        return cls.from_pipeline(AnimeShooterPipeline.from_pretrained(path, revision=revision, dtype=dtype))

    def save_pretrained(self, path: str | os.PathLike[str], *, share_with: str | os.PathLike[str] | None = None) -> None:
        """Writes a checkpoint; ``share_with`` hard-links unchanged components from another (`model.checkpoint.save`)."""
        self.pipeline().save_pretrained(path, share_with=share_with)

    def pipeline(self) -> AnimeShooterPipeline:
        """A pipeline over these very components, to generate with the model as it stands."""
        return AnimeShooterPipeline(
            mllm=self.mllm,
            tokenizer=self.tokenizer,
            image_processor=self.image_processor,
            adapter=self.adapter,
            transformer=self.transformer,
            vae=self.vae,
            scheduler=self.scheduler,
            text_encoder=self.text_encoder,
            text_tokenizer=self.text_tokenizer,
            context=self.context,
            clip_size=None if self.clip_size is None else dict(zip(("frames", "height", "width"), self.clip_size, strict=True)),
            mllm_lora_rank=self.lora_ranks["mllm"],
            transformer_lora_rank=self.lora_ranks["transformer"],
            condition_policy=self.policy.as_dict(),
        )

    @property
    def backbone(self) -> Backbone:
        """The video model as the components now stand."""
        return backbone_of(
            {name: getattr(self, name) for name in ("transformer", "vae", "scheduler", "context")}, self.clip_size
        )

    # --- what is trained

    def add_context(self, rank: int = LORA_RANK, seed: int = 0) -> None:
        """Gives the model the second pathway (`model.context`): role vectors, zero, and a LoRA on the video transformer.

        Until they are trained the transformer reads the frames of a context as it reads those of a clip. Without a context
        it computes what it did before, to the bit, until that LoRA is trained.

        Raises:
            ValueError: it has one already.
        """
        if self.context is not None:
            raise ValueError("the model has the second pathway already")
        with seeded(seed):
            self.context = ContextRoles(self.backbone.hidden_size)
        self.context.requires_grad_(False).to(self.transformer.device)
        trained = [p for p in self.transformer.parameters() if p.requires_grad]
        add_transformer_lora(self.transformer, rank, seed, CONTEXT)
        self.transformer.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    def set_trainable(self, stage: str, lora_rank: int | None = None) -> None:
        """Makes exactly the parameters of ``stage`` trainable, adding the LoRA it needs if there is none yet.

        Args:
            stage: one of `STAGES`.
            lora_rank: rank of a LoRA added now; the model's own by default.

        Raises:
            ValueError: no such stage, or the LoRA there already has another rank.
        """
        for part in self.trained_parts(stage):
            if part in ("mllm_lora", "transformer_lora"):
                self._ensure_lora(part, lora_rank)
        self.requires_grad_(False)  # peft makes what it adds trainable
        for _, parameter in self._named_trainable(stage):
            parameter.requires_grad_(True)

    def trainable_parameters(self, stage: str) -> list[nn.Parameter]:
        """The parameters ``stage`` trains, in a fixed order, for an optimizer; call `set_trainable` first.

        Raises:
            ValueError: no such stage, or its LoRA has not been added.
        """
        return [parameter for _, parameter in self._named_trainable(stage)]

    def trained_parts(self, stage: str) -> tuple[str, ...]:
        """What ``stage`` trains of this model: `STAGES`, and the second pathway where it has one.

        Raises:
            ValueError: no such stage.
        """
        if stage not in STAGES:
            raise ValueError(f"no training stage {stage!r}; choose one of {', '.join(STAGES)}")
        return STAGES[stage] + (WITH_CONTEXT.get(stage, ()) if self.context is not None else ())

    def _named_trainable(self, stage: str) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.trained_parts(stage):
            name, adapter = _LORAS.get(part, (part, None))
            module = getattr(self, name)
            chosen: Iterable[tuple[str, nn.Parameter]]
            if adapter is None:
                chosen = [(key, p) for key, p in module.named_parameters() if ".lora_" not in key]
            elif has_lora(module, adapter):
                chosen = lora_parameters(module, adapter)
            else:
                raise ValueError(f"stage {stage} trains a LoRA on the {name}, which has none: call set_trainable first")
            yield from ((f"{name}.{key}", parameter) for key, parameter in chosen)

    def _ensure_lora(self, part: str, rank: int | None) -> None:
        name = part.removesuffix("_lora")
        module = getattr(self, name)
        if not has_lora(module):
            self.lora_ranks[name] = rank or self.lora_ranks[name]
            add = add_mllm_lora if name == "mllm" else add_transformer_lora
            add(module, self.lora_ranks[name])
        elif rank is not None and rank != lora_rank(module):
            raise ValueError(f"the {name} has a LoRA of rank {lora_rank(module)} already, not {rank}")

    def train(self, mode: bool = True) -> AnimeShooterGen:
        """As `nn.Module.train`, but text encoder and VAE, never trained here, stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.text_encoder, self.vae):
            if frozen is not None:
                frozen.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass: less memory, about a third more time."""
        self.transformer.enable_gradient_checkpointing()
        self.mllm.activation_checkpointing_enable()

    # --- conditions

    def condition(
        self,
        references: Sequence[Any],
        captions: Sequence[Sequence[str]],
        memory: Sequence[Sequence[Any]] | Tensor | None = None,
    ) -> Tensor:
        """Conditions of every shot in one pass; shot i's depends on nothing after its caption (teacher forcing).

        What of the earlier shots a shot is told is decided by ``self.policy``.

        Args:
            references: one entry a story: None for a blank one, a picture (PIL, or uint8 [H, W, 3 or 4]), a (name, picture)
                pair, a list of either, or a mapping of names to pictures.
            captions: [B][n] texts; "" for a dropped one.
            memory: frames of every shot but the last: uint8 [B, n-1, H, W, 3], one a shot, or [B, n-1, K, H, W, 3]; or
                [B][n-1] pictures or lists of them. None if n is 1.

        Returns:
            [B, n, L, D] in the adapter's dtype, with gradients to whatever is trainable.

        Raises:
            ValueError: the numbers of references, captions and frames do not belong together.
        """
        if self.tokenizer is None:
            raise ValueError("a model laid out on 'meta' has no weights and no tokenizer; it only counts parameters")
        frames: Any = [[] for _ in captions] if memory is None else memory
        if not len(references) == len(captions) == len(frames) or not len(captions):
            raise ValueError(
                f"{len(references)} references, captions of {len(captions)} stories and last frames of {len(frames)}: "
                f"give one of each for every story of the batch"
            )
        stories = [
            story_contexts(self.policy, as_references(reference), list(texts), [as_frames(shot) for shot in row])
            for reference, texts, row in zip(references, captions, frames, strict=True)
        ]
        if len({len(one) for one in captions}) > 1:
            raise ValueError("the stories of one batch must have equally many shots")
        reader = StoryReader(self.mllm, self.tokenizer, self.image_processor, self.adapter.config.num_queries)
        trained = any(p.requires_grad for part in (self.mllm, self.adapter) for p in part.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            if all(len(sequences) == 1 for sequences in stories):
                return story_condition(reader, self.adapter, [sequence for (sequence,) in stories])
            sequences = [sequence for story in stories for sequence in story]
            return story_condition(reader, self.adapter, sequences, last=True).flatten(0, 1).unflatten(0, (len(stories), -1))

    def first_frame_condition(self, first_frames: Sequence[Picture] | Tensor, captions: Sequence[str]) -> Tensor:
        """Conditions of single clips as the alignment stage forms them: ``<first frame><caption><queries>``.

        Args:
            first_frames: uint8 [B, H, W, 3], or B pictures.
            captions: B texts.

        Returns:
            [B, L, D], to be compared with `text_features` of the same captions.
        """
        return self.condition(list(first_frames), [[text] for text in captions])[:, 0]

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Features [B, L, D] of texts as the video model was trained to read them.

        The encoder computes in the types of its own weights, autocast or not: transformers keeps the layers of T5 that
        overflow in float16 in float32, which autocast would undo.

        Raises:
            ValueError: the checkpoint was saved without its text encoder.
        """
        if self.text_encoder is None or self.text_tokenizer is None:
            raise ValueError("this checkpoint has no text encoder; alignment and pretraining need one that has")
        with torch.autocast(self.text_encoder.device.type, enabled=False):
            return self.backbone.text_features(self.text_encoder, self.text_tokenizer, captions)

    # --- video

    def encode_video(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B, F', C, h, w] of clips uint8 [B, F, H, W, 3]; see `Backbone.encode`."""
        return self.backbone.encode(frames, generator)

    def encode_pictures(self, pictures: Sequence[Picture], height: int, width: int) -> Tensor:
        """Latents of single pictures, for a context of a clip of this size.

        Args:
            pictures: N of them, of any size; each is fitted whole into the frame, and what it leaves free is white.
            height: of the clip, in pixels.
            width: likewise.

        Returns:
            [N, C, h, w] in the VAE's type, scaled.

        Raises:
            ValueError: no pictures, or a size the video model cannot take.
        """
        if not len(pictures):
            raise ValueError("no pictures to encode")
        return encode_pictures(self.backbone, pictures, height, width)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Clips uint8 [B, F, H, W, 3] of latents [B, F', C, h, w]."""
        return self.backbone.decode(latents)

    def diffusion_loss(
        self,
        latents: Tensor,
        condition: Tensor,
        generator: torch.Generator | None = None,
        *,
        context: Context | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The video model's own denoising loss at a timestep a sample.

        Args:
            latents: [B, F', C, h, w] from `encode_video`.
            condition: [B, L, D].
            generator: source of what is not given of timesteps and noise.
            context: clean frames before the clips, of batch B or 1, where the model has the second pathway.
            noise: like the latents; drawn by default.
            timesteps: [B]; drawn from the backbone's training distribution by default.

        Returns:
            The loss of each sample [B], float32, and the timesteps [B].
        """
        backbone, latents = self.backbone, latents.to(self.transformer.device, torch.float32)
        noisy, noise, timesteps = backbone.noise(latents, generator, noise, timesteps)
        error = backbone.predict(noisy, condition, timesteps, context) - backbone.target(latents, noise, timesteps)
        return error.square().flatten(1).mean(1), timesteps


def parameter_table(gen: AnimeShooterGen) -> dict[str, tuple[int, int]]:
    """Parameters of each component as (total, trainable); a LoRA has a line of its own."""
    table = {}
    for name in ("mllm", "adapter", "text_encoder", "transformer", "vae", "context"):
        module = getattr(gen, name)
        if module is None:
            continue
        table[name] = _count([parameter for key, parameter in module.named_parameters() if ".lora_" not in key])
        for part, (place, adapter) in _LORAS.items():
            if place == name and has_lora(module, adapter):
                table[part] = _count([parameter for _, parameter in lora_parameters(module, adapter)])
    return table


def _count(parameters: Sequence[nn.Parameter]) -> tuple[int, int]:
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
