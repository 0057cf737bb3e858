"""CogVideoX text-to-video: 2B (sin-cos positions) and 5B (rotary positions), v-prediction on a zero-SNR schedule.

Source: CogVideoX (arXiv 2408.06072) and diffusers' classes of its name. CogVideoX 1.5, which packs frames in pairs, and
the image-to-video models, which take more channels, are refused when they are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, added

if TYPE_CHECKING:
    from model.context import Context


class CogVideoX(Backbone):
    """CogVideoX-2B and 5B. A transformer with sin-cos positions takes exactly ``max_text_seq_length`` tokens of text."""

    name = "cogvideox"

    @property
    def condition_length(self) -> int:
        """Tokens of the condition: 226 of the published models."""
        return int(self.transformer.config.max_text_seq_length)

    @property
    def condition_size(self) -> int:
        """Width of the condition: 4096 of the published models."""
        return int(self.transformer.config.text_embed_dim)

    @property
    def precision(self) -> str:
        """2B was trained in float16, 5B in bfloat16 (model cards)."""
        return "bf16" if self._rotary else "fp16"

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's repeated blocks."""
        return self.transformer.transformer_blocks

    @property
    def _rotary(self) -> bool:
        return bool(self.transformer.config.use_rotary_positional_embeddings)

    # --- sizes

    @property
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for, the first one aside: 4."""
        return int(self.vae.config.temporal_compression_ratio)

    @property
    def spatial_factor(self) -> int:
        """Pixels a latent cell spans in height and width: 8."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def patch_size(self) -> int:
        """Latent cells a token spans in height and width: 2."""
        return int(self.transformer.config.patch_size)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: 16."""
        return int(self.transformer.config.in_channels)

    @property
    def default_size(self) -> tuple[int, int, int]:
        """Frames, height and width the transformer was trained on: 49 x 480 x 720."""
        if self._clip_size is not None:
            return self._clip_size
        config, cell = self.transformer.config, self.spatial_factor
        return int(config.sample_frames), int(config.sample_height) * cell, int(config.sample_width) * cell

    def scale(self, latents: Tensor) -> Tensor:
        """Times the VAE's scaling factor."""
        return latents * self.vae.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """By the VAE's scaling factor."""
        return latents / self.vae.config.scaling_factor

    # --- text

    def text_features(self, encoder: Any, tokenizer: Any, captions: Sequence[str]) -> Tensor:
        """T5 features [B, L, D], padded or cut to L tokens and unmasked, as CogVideoX reads them."""
        tokens = tokenizer(
            list(captions), padding="max_length", max_length=self.condition_length, truncation=True, return_tensors="pt"
        )
        return encoder(tokens["input_ids"].to(encoder.device))[0]

    # --- diffusion

    def noise(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise at a timestep a sample, uniform over the schedule by default."""
        count, given = len(latents), timesteps

        def draw(where: Any) -> Tensor:
            if given is not None:
                return given
            return torch.randint(0, self.num_train_timesteps, (count,), generator=generator, device=where)

        timesteps, noise = self._draw(latents, draw, generator, noise)
        return self.scheduler.add_noise(latents, noise, timesteps), noise, timesteps

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity v = sqrt(abar) * noise - sqrt(1 - abar) * latents.

        Its error is what diffusers' CogVideoX training computes the other way round, as the error of the denoised
        latents weighted by 1 / (1 - abar): the two are equal, and this one does not divide by a small number at early
        timesteps.
        """
        return self.scheduler.get_velocity(latents, noise, timesteps)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Abar / (1 - abar) at ``timesteps``; 0 at the last one."""
        kept = self.scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
        return kept / (1 - kept)

    def predict(self, noisy: Tensor, condition: Tensor, timesteps: Tensor, context: Context | None = None) -> Tensor:
        """The velocity the transformer predicts; see `Backbone.predict`.

        Frames of a context stand before the clip, at temporal positions -K to -1, so that the clip itself keeps the
        positions the transformer was trained on.
        """
        ahead = 0 if context is None else context.latents.shape[1]
        device, dtype = self.transformer.device, self.transformer.dtype
        mark: Any = nullcontext()
        frames = noisy.to(device, dtype)
        if context is not None:
            clean, roles = self._role_vectors(context, len(noisy))
            frames = torch.cat([clean.to(device, dtype), frames], dim=1)
            mark = added(self.transformer.patch_embed, self._placed(roles, ahead, noisy.shape[1]))
        with mark:
            predicted = self.transformer(
                hidden_states=frames,
                encoder_hidden_states=condition.to(device, dtype),
                timestep=timesteps.to(device),
                image_rotary_emb=self._rotary_embedding(noisy, ahead),
                return_dict=False,
            )[0]
        return predicted[:, ahead:].float()

    def _placed(self, roles: Tensor, ahead: int, frames: int) -> Any:
        """Adds roles to the tokens of the context, and moves sin-cos positions from 0.. to -K.. ."""
        text = self.condition_length
        vectors = torch.cat([roles, roles.new_zeros(len(roles), frames, roles.shape[-1])], dim=1)
        if not self._rotary:
            vectors = vectors + _moved_positions(ahead, frames, self.transformer.config, roles)

        def add(tokens: Tensor) -> Tensor:
            words, cells = tokens[:, :text], tokens[:, text:].unflatten(1, (ahead + frames, -1))
            cells = cells + vectors.unsqueeze(2).to(cells.dtype)
            return torch.cat([words, cells.flatten(1, 2)], dim=1)

        return add

    def _rotary_embedding(self, latents: Tensor, ahead: int) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines [(K + F') h w, head width] of 5B's positions; None where the transformer adds its own."""
        if not self._rotary:
            return None
        from diffusers.models.embeddings import get_1d_rotary_pos_embed, get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config, device = self.transformer.config, self.transformer.device
        height, width = (side // config.patch_size for side in latents.shape[-2:])
        region = get_resize_crop_region_for_grid(
            (height, width), config.sample_width // config.patch_size, config.sample_height // config.patch_size
        )
        frames = latents.shape[1]
        found = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=region,
            grid_size=(height, width),
            temporal_size=frames + ahead,
            device=device,
        )
        if not ahead:
            return found
        # Positions in time are the first quarter of a head (CogVideoX, section 2.2).
        part = config.attention_head_dim // 4
        times = torch.arange(-ahead, frames, device=device, dtype=torch.float32).repeat_interleave(height * width)
        moved = get_1d_rotary_pos_embed(part, times, use_real=True)
        cos, sin = (torch.cat([new, old[:, part:]], dim=1) for new, old in zip(moved, found, strict=True))
        return cos, sin


def _moved_positions(ahead: int, frames: int, config: Any, like: Tensor) -> Tensor:
    """Difference [1, K + F', D] between sin-cos positions counted from -K and those counted from 0."""
    from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid

    width = like.shape[-1]
    # Positions in time are the first quarter of a token, those in space the rest (`get_3d_sincos_pos_embed`).
    place = torch.arange(-ahead, frames, device=like.device, dtype=torch.float32)
    scale = config.temporal_interpolation_scale
    wanted, given = (get_1d_sincos_pos_embed_from_grid(width // 4, at / scale) for at in (place, place + ahead))
    return nn.functional.pad((wanted - given).to(like.dtype), (0, width - width // 4)).unsqueeze(0)
