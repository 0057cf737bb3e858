"""The second pathway: clean latents of reference pictures and earlier frames as extra frames of the video transformer.

What the multimodal language model says of a picture passes through a few queries and loses detail. Here the picture
itself, encoded by the VAE as one latent frame, stands before the clip: the transformer's own attention can copy from it.
The outputs there are dropped. A learnable vector, zero at first, tells what each of these frames is.

The transformer was never trained with clean frames before noisy ones. Vectors alone cannot teach a frozen transformer to
read them, so a small LoRA on its attention trains along, an adapter of its own beside that of the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

EMPTY = 0
"""Role of a frame that is there only to make the contexts of a batch equally long; its latents are zero."""
REFERENCES, HISTORY = 8, 16
"""How many characters' pictures and how many earlier frames have a role of their own."""
LORA_RANK = 16
"""Rank of the LoRA that trains along; ours."""


def reference(index: int) -> int:
    """Role of the picture of character ``index``, from 0.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 <= index < REFERENCES:
        raise ValueError(f"the second pathway tells {REFERENCES} reference pictures apart; there is no number {index}")
    return 1 + index


def history(index: int) -> int:
    """Role of an earlier frame; ``index`` counts backwards from the newest, which is 0.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 <= index < HISTORY:
        raise ValueError(f"the second pathway tells {HISTORY} earlier frames apart; there is no number {index}")
    return 1 + REFERENCES + index


@dataclass(frozen=True)
class Context:
    """Clean frames before a clip.

    Attributes:
        latents: [B, K, C, h, w] as `AnimeShooterGen.encode_pictures` gives them, of the clip's own height and width.
        roles: int64 [B, K], what each frame is: `reference`, `history` or `EMPTY`.
    """

    latents: Tensor
    roles: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError when the shapes do not belong together."""
        if self.latents.ndim != 5 or self.roles.shape != self.latents.shape[:2] or not self.latents.shape[1]:
            raise ValueError(
                f"a context has latents [B, K, C, h, w] with K >= 1 and roles [B, K], "
                f"not {list(self.latents.shape)} and {list(self.roles.shape)}"
            )


class ContextRoles(ModelMixin, ConfigMixin):
    """A vector a role, zero at first.

    Args:
        hidden_size: width of the video transformer's tokens.
        num_roles: roles there are.
    """

    @register_to_config
    def __init__(self, hidden_size: int, num_roles: int = 1 + REFERENCES + HISTORY) -> None:
        super().__init__()
        # A module, not a bare parameter: calling it is what makes parameter-sharding wrappers gather its rows.
        self.roles = nn.Embedding(num_roles, hidden_size)
        nn.init.zeros_(self.roles.weight)

    def forward(self, roles: Tensor) -> Tensor:
        """Roles int64 [B, K] -> vectors [B, K, hidden_size]."""
        return self.roles(roles)


def joined(contexts: list[Context]) -> Context:
    """One context of several of batch 1 or more; shorter ones are filled up with `EMPTY` frames, zero latents, in front."""
    longest = max(one.latents.shape[1] for one in contexts)
    latents, roles = [], []
    for one in contexts:
        missing = longest - one.latents.shape[1]
        latents.append(nn.functional.pad(one.latents, (0, 0, 0, 0, 0, 0, missing, 0)))
        roles.append(nn.functional.pad(one.roles, (missing, 0), value=EMPTY))
    return Context(torch.cat(latents), torch.cat(roles))
