"""What a video diffusion model does for AnimeShooterGen, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from model.images import to_signed_clip, to_uint8_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model.context import Context, ContextRoles


class Backbone(ABC):
    """A video transformer with its VAE and noise schedule, behind one interface.

    It owns no parameters: it reads the components it is given, so it may be made anew at any time. Latents are
    [B, F', C, h, w] on this side of it, whatever the transformer takes. B is the batch, F' the latent frames, L x D the
    tokens and width of the condition, K the latent frames of a context (see `model.context`).

    Args:
        transformer: the diffusers transformer.
        vae: its causal video VAE; may be laid out without weights where nothing is encoded or decoded.
        scheduler: its noise schedule.
        roles: the role embeddings of the second pathway; None where the model has none.
        clip_size: frames, height and width of a clip when nobody says otherwise; None for the transformer's own.
    """

    name: ClassVar[str]

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        roles: ContextRoles | None = None,
        clip_size: Sequence[int] | None = None,
    ) -> None:
        self.transformer, self.vae, self.scheduler, self.roles = transformer, vae, scheduler, roles
        self._clip_size: tuple[int, int, int] | None = None
        if clip_size is not None:
            frames, height, width = (int(side) for side in clip_size)
            self._clip_size = frames, height, width

    # --- what it is

    @property
    @abstractmethod
    def condition_length(self) -> int:
        """Tokens L of the condition."""

    @property
    @abstractmethod
    def condition_size(self) -> int:
        """Width D of the condition."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """Type its published weights were trained in: "fp16" or "bf16"."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The transformer's repeated blocks."""

    @property
    def hidden_size(self) -> int:
        """Width of the transformer's tokens."""
        return int(self.transformer.config.num_attention_heads * self.transformer.config.attention_head_dim)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps lie between 0 and this."""
        return int(self.scheduler.config.num_train_timesteps)

    # --- sizes

    @property
    @abstractmethod
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for, the first one aside."""

    @property
    @abstractmethod
    def spatial_factor(self) -> int:
        """Pixels a latent cell spans in height and width."""

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Latent cells a token spans in height and width."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels C of the latents."""

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip when nobody says otherwise."""

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Checks that a clip fits the causal VAE and the transformer's patches.

        Raises:
            ValueError: ``frames`` is not 4k+1 (4 from the VAE), or a side is not a multiple of cell times patch.
        """
        step, cell = self.temporal_factor, self.spatial_factor * self.patch_size
        if frames < 1 or frames % step != 1:
            low = max(frames - 1, 0) // step * step + 1
            raise ValueError(f"a clip has {step}k+1 frames, not {frames}; use {low} or {low + step}")
        if height % cell or width % cell or not height or not width:
            raise ValueError(f"height and width must be multiples of {cell}, not {height} x {width}")

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (F', C, h, w) of a clip's latents.

        Raises:
            ValueError: a size it cannot take.
        """
        self.check_size(frames, height, width)
        cell = self.spatial_factor
        return (frames - 1) // self.temporal_factor + 1, self.latent_channels, height // cell, width // cell

    # --- pixels and latents

    @torch.no_grad()
    def posterior(self, frames: Tensor) -> Tensor:
        """Mean and log-variance of the VAE's posterior of clips, as a cache holds them.

        Args:
            frames: uint8 [B, F, H, W, 3].

        Returns:
            [B, 2, F', C, h, w] in the VAE's type, not scaled.

        Raises:
            ValueError: a type, shape or size it cannot take.
        """
        found = self._distribution(frames)
        return torch.stack([found.mean, found.logvar], 1).transpose(2, 3)

    @torch.no_grad()
    def encode(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of clips, scaled as the transformer expects them.

        Args:
            frames: uint8 [B, F, H, W, 3] with F = 4k+1.
            generator: if given, they are drawn from the VAE's posterior with it; otherwise they are its mode.

        Returns:
            [B, F', C, h, w] in the VAE's type.

        Raises:
            ValueError: a type, shape or size it cannot take.
        """
        found = self._distribution(frames)
        latents = found.mode() if generator is None else found.sample(generator)
        return self.scale(latents.transpose(1, 2))

    def _distribution(self, frames: Tensor) -> Any:
        video = to_signed_clip(frames)
        count, height, width = video.shape[2:]
        self.check_size(count, height, width)
        with self._vae_arithmetic():
            return self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist

    def _vae_arithmetic(self) -> AbstractContextManager[Any]:
        """In which the VAE computes: that of whoever calls it."""
        return nullcontext()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clips uint8 [B, F, H, W, 3] of latents [B, F', C, h, w]."""
        frames = (latents.shape[1] - 1) * self.temporal_factor + 1
        video = self.unscale(latents).transpose(1, 2).to(self.vae.device, self.vae.dtype)
        # CogVideoX's decoder treats the first latent frame as a single picture only when F' is odd (clips of 8k+1
        # frames, as it was trained on); from an even F' it makes 4F' frames, of which the first three are not wanted.
        with self._vae_arithmetic():
            return to_uint8_clip(self.vae.decode(video).sample[:, :, -frames:])

    @abstractmethod
    def scale(self, latents: Tensor) -> Tensor:
        """Latents as the VAE makes them [..., C, h, w] -> as the transformer expects them."""

    @abstractmethod
    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of `scale`."""

    # --- text

    @abstractmethod
    def text_features(self, encoder: Any, tokenizer: Any, captions: Sequence[str]) -> Tensor:
        """Features [B, L, D] of texts as the transformer was trained to read them."""

    # --- diffusion

    @abstractmethod
    def noise(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents with noise as the transformer meets them in training.

        Args:
            latents: float32 [B, F', C, h, w].
            generator: source of what is not given.
            noise: like the latents; drawn by default.
            timesteps: [B]; drawn from the backbone's own training distribution by default.

        Returns:
            Noisy latents, the noise, and the timesteps.
        """

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should say of ``latents`` under ``noise``, float32 like the latents."""

    @abstractmethod
    def predict(self, noisy: Tensor, condition: Tensor, timesteps: Tensor, context: Context | None = None) -> Tensor:
        """The transformer's prediction.

        Args:
            noisy: [B, F', C, h, w].
            condition: [B, L, D].
            timesteps: [B].
            context: clean latent frames it may look at, of batch B or 1; None for the transformer as it was published.

        Returns:
            float32, like ``noisy``; nothing for the frames of the context.

        Raises:
            ValueError: a context for a model without the second pathway.
        """

    @abstractmethod
    def snr(self, timesteps: Tensor) -> Tensor | None:
        """Ratio of signal to noise at ``timesteps`` [B]; None for flow matching, which has no such weighting."""

    @staticmethod
    def _draw(
        latents: Tensor, draw: Callable[[Any], Tensor], generator: torch.Generator | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Timesteps from ``draw(device)`` and then noise, both on the generator's device first, so that devices agree."""
        where = generator.device if generator is not None else latents.device
        timesteps = draw(where).to(latents.device)
        if noise is None:
            noise = torch.randn(latents.shape, generator=generator, device=where)
        return timesteps, noise.to(latents.device, latents.dtype)

    def _role_vectors(self, context: Context, batch: int) -> tuple[Tensor, Tensor]:
        """Latents [B, K, C, h, w] and role vectors [B, K, hidden size] of a context, repeated over the batch."""
        if self.roles is None:
            raise ValueError("this model has no second pathway for context latents: add_context gives it one")
        latents = context.latents.expand(batch, -1, -1, -1, -1)
        return latents, self.roles(context.roles.expand(batch, -1).to(self.roles.device))


@contextmanager
def added(module: nn.Module, add: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the output of ``module`` passes through ``add``."""
    handle = module.register_forward_hook(lambda _module, _args, output: add(output))
    try:
        yield
    finally:
        handle.remove()
