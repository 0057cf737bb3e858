"""`AnimeShooterGen`: the components of the model together, as the training stages use them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import CogVideoXPipeline
from torch import Tensor, nn

from model.build import build_components
from model.config import ModelConfig, preset
from model.images import Picture, as_reference_images, check_video_size, to_rgb, to_signed_clip
from model.lora import add_mllm_lora, add_transformer_lora, has_lora, lora_parameters
from model.mllm import StoryContext, StoryReader, story_condition
from model.pipeline import AnimeShooterPipeline, decode_latents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What each stage trains (paper, section 4 and appendix). "pretrain" is for small models made from nothing: the paper
# starts from a trained CogVideoX instead.
STAGES: dict[str, tuple[str, ...]] = {
    "pretrain": ("transformer",),
    "align": ("adapter",),
    "single_shot": ("adapter", "mllm_lora"),
    "multi_shot": ("adapter", "mllm_lora"),
    "lora": ("transformer_lora",),
}


class AnimeShooterGen(nn.Module):
    """A multimodal language model, learnable queries and Q-Former that condition a CogVideoX video transformer.

    It has no ``forward`` of its own: a training stage calls `condition` or `first_frame_condition` and computes its
    loss, inside the ``forward`` of the module it hands to a distributed wrapper.

    Everything is frozen until `set_trainable`. Attributes are the components by their checkpoint folders: ``mllm``,
    ``tokenizer``, ``image_processor``, ``adapter``, ``text_encoder``, ``text_tokenizer``, ``transformer``, ``vae``,
    ``scheduler``. B is the number of stories, n of shots, L x D the condition's tokens and width.

    Args:
        components: as `model.build.build_components` returns them.
        mllm_lora_rank: rank of the LoRA the single- and multi-shot stages train.
        transformer_lora_rank: rank of the LoRA the last stage trains.
    """

    def __init__(self, components: dict[str, Any], *, mllm_lora_rank: int = 32, transformer_lora_rank: int = 64) -> None:
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
        self.lora_ranks = {"mllm": mllm_lora_rank, "transformer": transformer_lora_rank}
        self.requires_grad_(False)
        self.train(False)

    @classmethod
    def from_preset(
        cls, name: str | ModelConfig, seed: int = 0, *, dtype: torch.dtype | None = None, device: str | None = None
    ) -> AnimeShooterGen:
        """The model of a preset, or of a configuration of one's own.

        Args:
            name: "tiny", "paper" (loads Qwen3-VL-8B and CogVideoX-2B from the Hub), or a ModelConfig.
            seed: of the random weights; the global random state is not touched.
            dtype: of pretrained components; the adapter and LoRAs are float32 always.
            device: "meta" for a model without weights, to count parameters.
        """
        config = preset(name) if isinstance(name, str) else name
        parts = build_components(config, seed, dtype, device)
        return cls(parts, mllm_lora_rank=config.mllm.lora_rank, transformer_lora_rank=config.video.lora_rank)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str | None = None
    ) -> AnimeShooterGen:
        """Loads what `save_pretrained` or `AnimeShooterPipeline.save_pretrained` wrote (folder or Hub repository).

        Raises:
            ValueError: it is no checkpoint of AnimeShooterGen, or an incomplete one.
        """
        dtypes = None if dtype is None else {"default": dtype, "adapter": torch.float32}  # what is trained stays exact
        pipeline = AnimeShooterPipeline.from_pretrained(path, revision=revision, dtype=dtypes)
        ranks = {name: pipeline.config[name] for name in ("mllm_lora_rank", "transformer_lora_rank")}
        return cls(pipeline.components, **ranks)

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
            mllm_lora_rank=self.lora_ranks["mllm"],
            transformer_lora_rank=self.lora_ranks["transformer"],
        )

    # --- what is trained

    def set_trainable(self, stage: str, lora_rank: int | None = None) -> None:
        """Makes exactly the parameters of ``stage`` trainable, adding the LoRA it needs if there is none yet.

        Args:
            stage: "align", "single_shot", "multi_shot", "lora" or "pretrain".
            lora_rank: rank of a LoRA added now; the model's own by default.

        Raises:
            ValueError: no such stage, or the LoRA there already has another rank.
        """
        parts = _stage_parts(stage)
        self.requires_grad_(False)
        for part in parts:
            if part.endswith("_lora"):
                self._ensure_lora(part.removesuffix("_lora"), lora_rank)
        self.requires_grad_(False)  # peft makes what it adds trainable
        for _, parameter in self._named_trainable(stage):
            parameter.requires_grad_(True)

    def trainable_parameters(self, stage: str) -> list[nn.Parameter]:
        """The parameters ``stage`` trains, in a fixed order, for an optimizer; call `set_trainable` first.

        Raises:
            ValueError: no such stage, or its LoRA has not been added.
        """
        return [parameter for _, parameter in self._named_trainable(stage)]

    def _named_trainable(self, stage: str) -> Iterator[tuple[str, nn.Parameter]]:
        for part in _stage_parts(stage):
            name = part.removesuffix("_lora")
            module = getattr(self, name)
            if part.endswith("_lora") and not has_lora(module):
                raise ValueError(f"stage {stage} trains a LoRA on the {name}, which has none: call set_trainable first")
            chosen = lora_parameters(module) if part.endswith("_lora") else module.named_parameters()
            yield from ((f"{name}.{key}", parameter) for key, parameter in chosen if part != name or ".lora_" not in key)

    def _ensure_lora(self, name: str, rank: int | None) -> None:
        module = getattr(self, name)
        if not has_lora(module):
            self.lora_ranks[name] = rank or self.lora_ranks[name]
            add = add_mllm_lora if name == "mllm" else add_transformer_lora
            add(module, self.lora_ranks[name])
        elif rank is not None and rank != module.peft_config["default"].r:
            raise ValueError(f"the {name} has a LoRA of rank {module.peft_config['default'].r} already, not {rank}")

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
        last_frames: Sequence[Sequence[Picture]] | Tensor | None = None,
    ) -> Tensor:
        """Conditions of every shot in one pass; shot i's depends on nothing after its caption (teacher forcing).

        Args:
            references: one entry a story: a picture (PIL, or uint8 [H, W, 3 or 4]), a list of pictures, or None for a
                blank one.
            captions: [B][n] texts; "" for a dropped one.
            last_frames: uint8 [B, n-1, H, W, 3], or [B][n-1] pictures: last frame of every shot but the last. None if
                n is 1.

        Returns:
            [B, n, L, D] in the adapter's dtype, with gradients to whatever is trainable.

        Raises:
            ValueError: the numbers of references, captions and last frames do not belong together.
        """
        if self.tokenizer is None:
            raise ValueError("a model laid out on 'meta' has no weights and no tokenizer; it only counts parameters")
        frames: Any = [[] for _ in captions] if last_frames is None else last_frames
        if not len(references) == len(captions) == len(frames) or not len(captions):
            raise ValueError(
                f"{len(references)} references, captions of {len(captions)} stories and last frames of {len(frames)}: "
                f"give one of each for every story of the batch"
            )
        stories = [
            StoryContext(as_reference_images(reference), list(texts), [to_rgb(frame) for frame in row])
            for reference, texts, row in zip(references, captions, frames, strict=True)
        ]
        reader = StoryReader(self.mllm, self.tokenizer, self.image_processor, self.adapter.config.num_queries)
        trained = any(p.requires_grad for part in (self.mllm, self.adapter) for p in part.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return story_condition(reader, self.adapter, stories)

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
        """T5 features [B, L, D] of texts, padded or cut to L tokens and unmasked, as CogVideoX reads them.

        Raises:
            ValueError: the checkpoint was saved without its text encoder.
        """
        if self.text_encoder is None or self.text_tokenizer is None:
            raise ValueError("this checkpoint has no text encoder; alignment and pretraining need one that has")
        length = self.transformer.config.max_text_seq_length
        tokens = self.text_tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens["input_ids"].to(self.text_encoder.device))[0]

    # --- video

    @torch.no_grad()
    def encode_video(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of clips.

        Args:
            frames: uint8 [B, F, H, W, 3] with F = 4k+1 and sides a multiple of 16.
            generator: if given, latents are drawn from the VAE's distribution with it; otherwise they are its mode.

        Returns:
            [B, (F-1)/4+1, C, H/8, W/8] in the VAE's dtype, scaled as the transformer expects.

        Raises:
            ValueError: a type, shape or size the VAE or the transformer cannot take.
        """
        video = to_signed_clip(frames)
        check_video_size(self.vae, self.transformer.config.patch_size, *video.shape[2:])
        posterior = self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents * self.vae.config.scaling_factor).permute(0, 2, 1, 3, 4)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Clips uint8 [B, F, H, W, 3] of latents [B, F', C, h, w]."""
        return decode_latents(self.vae, latents)

    def diffusion_loss(
        self, latents: Tensor, condition: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The video model's own denoising loss at a random timestep a sample.

        The transformer predicts v = sqrt(abar) * noise - sqrt(1 - abar) * latents. The error of v is what diffusers'
        CogVideoX training computes the other way round, as the error of the denoised latents weighted by
        1 / (1 - abar): the two are equal, and this one does not divide by a small number at early timesteps.

        Args:
            latents: [B, F', C, h, w] from `encode_video`.
            condition: [B, L, D].
            generator: source of timesteps and noise.

        Returns:
            The loss of each sample [B], float32, and the timesteps [B].
        """
        device = self.transformer.device
        latents = latents.to(device, torch.float32)
        where = generator.device if generator is not None else device
        steps = int(self.scheduler.config.num_train_timesteps)
        timesteps = torch.randint(0, steps, (len(latents),), generator=generator, device=where).to(device)
        noise = torch.randn(latents.shape, generator=generator, device=where).to(device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        predicted = self.transformer(
            hidden_states=noisy.to(self.transformer.dtype),
            encoder_hidden_states=condition.to(device, self.transformer.dtype),
            timestep=timesteps,
            image_rotary_emb=self._rotary_embedding(latents),
            return_dict=False,
        )[0]
        return (predicted.float() - target).square().flatten(1).mean(1), timesteps

    def _rotary_embedding(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Positions for transformers of the rotary kind (CogVideoX-5B); the 2B one adds sin-cos positions itself."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        video = CogVideoXPipeline(
            tokenizer=None, text_encoder=None, vae=self.vae, transformer=self.transformer, scheduler=self.scheduler
        )
        factor = video.vae_scale_factor_spatial
        height, width = latents.shape[-2] * factor, latents.shape[-1] * factor
        return video._prepare_rotary_positional_embeddings(height, width, latents.shape[1], latents.device)


def _stage_parts(stage: str) -> tuple[str, ...]:
    if stage not in STAGES:
        raise ValueError(f"no training stage {stage!r}; choose one of {', '.join(STAGES)}")
    return STAGES[stage]


def parameter_table(gen: AnimeShooterGen) -> dict[str, tuple[int, int]]:
    """Parameters of each component as (total, trainable); a LoRA has a line of its own."""
    table = {}
    for name in ("mllm", "adapter", "text_encoder", "transformer", "vae"):
        module = getattr(gen, name)
        if module is None:
            continue
        lora = [parameter for _, parameter in lora_parameters(module)]
        ours = {id(parameter) for parameter in lora}
        table[name] = _count([parameter for parameter in module.parameters() if id(parameter) not in ours])
        if lora:
            table[f"{name}_lora"] = _count(lora)
    return table


def _count(parameters: Sequence[nn.Parameter]) -> tuple[int, int]:
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
