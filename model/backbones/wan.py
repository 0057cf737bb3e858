"""Wan text-to-video with one transformer: Wan 2.1 1.3B and 14B, Wan 2.2 TI2V 5B; flow matching.

Source: Wan (arXiv 2503.20314) and diffusers' classes of its name. Wan 2.2 A14B has two transformers, one for each half of
the noise; it is refused when it is loaded.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, added

if TYPE_CHECKING:
    from model.context import Context

CONDITION_LENGTH = 512
"""Tokens of the condition; the models were trained on texts padded with zeros to this many (`WanPipeline`'s default)."""


class Wan(Backbone):
    """Wan 2.1, and the single-transformer model of Wan 2.2."""

    name = "wan"

    @property
    def condition_length(self) -> int:
        """Tokens of the condition: 512."""
        return CONDITION_LENGTH

    @property
    def condition_size(self) -> int:
        """Width of the condition: 4096 of the published models."""
        return int(self.transformer.config.text_dim)

    @property
    def precision(self) -> str:
        """All were trained in bfloat16 (technical report, section 4.3)."""
        return "bf16"

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's repeated blocks."""
        return self.transformer.blocks

    # --- sizes

    @property
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for, the first one aside: 4."""
        return int(self.vae.config.scale_factor_temporal)

    @property
    def spatial_factor(self) -> int:
        """Pixels a latent cell spans in height and width: 8, of TI2V 5B 16."""
        return int(self.vae.config.scale_factor_spatial)

    @property
    def patch_size(self) -> int:
        """Latent cells a token spans in height and width: 2."""
        return int(self.transformer.config.patch_size[1])

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: 16, of TI2V 5B 48."""
        return int(self.transformer.config.in_channels)

    @property
    def default_size(self) -> tuple[int, int, int]:
        """81 x 480 x 832 (`WanPipeline`'s default) unless the checkpoint says otherwise."""
        return self._clip_size or (81, 480, 832)

    def scale(self, latents: Tensor) -> Tensor:
        """To mean 0 and deviation 1 of every channel."""
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def unscale(self, latents: Tensor) -> Tensor:
        """Back to the VAE's own mean and deviation of every channel."""
        mean, deviation = self._statistics(latents)
        return latents * deviation + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, deviation = (
            torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, deviation

    def _vae_arithmetic(self) -> torch.autocast:
        """That of its weights, float32 as its authors run it, whatever training around it is cast to."""
        return torch.autocast(self.vae.device.type, enabled=False)

    # --- text

    def text_features(self, encoder: Any, tokenizer: Any, captions: Sequence[str]) -> Tensor:
        """UMT5 features [B, L, D] of texts cut to L tokens; zero after each text's end."""
        texts = [" ".join(html.unescape(html.unescape(text)).split()) for text in captions]
        tokens = tokenizer(
            texts, padding="max_length", max_length=self.condition_length, truncation=True, return_tensors="pt"
        ).to(encoder.device)
        found = encoder(tokens["input_ids"], tokens["attention_mask"])[0]
        return found * tokens["attention_mask"].unsqueeze(-1).to(found.dtype)

    # --- diffusion

    def noise(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise on the straight line between latents and noise.

        By default the place on it is logit-normal (Wan, section 4.2.2), shifted as the scheduler shifts its steps.
        """
        count, given = len(latents), timesteps

        def draw(where: Any) -> Tensor:
            if given is not None:
                return given
            place = torch.sigmoid(torch.randn(count, generator=generator, device=where))
            return self._shifted(place) * self.num_train_timesteps

        timesteps, noise = self._draw(latents, draw, generator, noise)
        share = (timesteps.float() / self.num_train_timesteps).view(-1, 1, 1, 1, 1)
        return (1 - share) * latents + share * noise, noise, timesteps

    def _shifted(self, place: Tensor) -> Tensor:
        config = self.scheduler.config
        shift = float(config.get("flow_shift", config.get("shift", 1.0)))  # UniPC and Euler name it differently
        return shift * place / (1 + (shift - 1) * place)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity of the straight line, noise - latents."""
        return noise - latents

    def snr(self, timesteps: Tensor) -> None:
        """None: flow matching weighs by where timesteps are drawn."""
        return

    def predict(self, noisy: Tensor, condition: Tensor, timesteps: Tensor, context: Context | None = None) -> Tensor:
        """The velocity the transformer predicts; see `Backbone.predict`.

        Frames of a context stand before the clip and are told to be clean by a timestep of 0 of their own, as TI2V 5B
        was trained to read its first frame. Positions are relative, so the clip's do not change by what stands before it.
        """
        device, dtype = self.transformer.device, self.transformer.dtype
        frames, times = noisy.to(device, dtype), timesteps.to(device)
        if context is None:
            predicted = self._transform(frames, times, condition)
            return predicted.float()
        clean, roles = self._role_vectors(context, len(noisy))
        ahead, cells = clean.shape[1], noisy.shape[-2] * noisy.shape[-1] // self.patch_size**2
        times = times.unsqueeze(1).expand(-1, noisy.shape[1] * cells)
        times = torch.cat([times.new_zeros(len(times), ahead * cells), times], dim=1)

        def add(tokens: Tensor) -> Tensor:  # [B, hidden size, K + F', h, w]
            marked = tokens[:, :, :ahead] + roles.transpose(1, 2)[..., None, None].to(tokens.dtype)
            return torch.cat([marked, tokens[:, :, ahead:]], dim=2)

        with added(self.transformer.patch_embedding, add):
            predicted = self._transform(torch.cat([clean.to(device, dtype), frames], dim=1), times, condition)
        return predicted[:, ahead:].float()

    def _transform(self, frames: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        predicted = self.transformer(
            hidden_states=frames.transpose(1, 2),
            timestep=times,
            encoder_hidden_states=condition.to(frames.device, frames.dtype),
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2)
