"""Which pictures the second pathway shows the video transformer for a shot; see `model.context` for what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from model.context import EMPTY, HISTORY, Context, history, joined, reference
from model.guidance import Branch
from model.images import Picture, Reference, letterboxed
from model.memory import ConditionPolicy

if TYPE_CHECKING:
    from model.backbones import Backbone


def encode_pictures(backbone: Backbone, pictures: Sequence[Picture], height: int, width: int) -> Tensor:
    """Latents [N, C, h, w], scaled, of pictures, each fitted whole into a frame of this size, the rest of it white.

    Raises:
        ValueError: a size the video model cannot take.
    """
    return backbone.encode(torch.stack([letterboxed(one, height, width) for one in pictures]).unsqueeze(1))[:, 0]


class Pathway:
    """The contexts of one story, every picture encoded once.

    A shot sees the pictures of its references and the frames it remembers, in the order of the story. A reference that is
    missing or dropped leaves its place empty, as training with dropout does.

    Args:
        policy: what a shot remembers.
        backbone: the video model; its VAE encodes.
        height: of the clips, pixels.
        width: likewise.
    """

    def __init__(self, policy: ConditionPolicy, backbone: Backbone, height: int, width: int) -> None:
        self.policy, self.backbone, self.height, self.width = policy, backbone, height, width
        self._known: dict[int, tuple[Image.Image, Tensor]] = {}  # the picture too, so that its id stays its own

    def context(self, references: Sequence[Image.Image | None], memory: Sequence[Sequence[Image.Image]]) -> Context:
        """What the shot after those of ``memory`` sees, a batch of one.

        Args:
            references: pictures of its characters; None for one that is missing or dropped.
            memory: frames of the shots before it, as the policy picks them; the newest 16 are seen.

        Raises:
            ValueError: more references than the pathway tells apart.
        """
        window = self.policy.window(len(memory))
        frames = [frame for shot in window for frame in memory[shot]][-HISTORY:]
        shown = list(references) or [None]
        pictures = [*shown, *frames]
        roles = [EMPTY if picture is None else reference(i) for i, picture in enumerate(shown)]
        roles += [history(age) for age in reversed(range(len(frames)))]
        self._learn([picture for picture in pictures if picture is not None])
        _, *shape = self.backbone.latent_shape(1, self.height, self.width)
        empty = torch.zeros(shape, device=self.backbone.vae.device, dtype=self.backbone.vae.dtype)
        latents = torch.stack([empty if picture is None else self._known[id(picture)][1] for picture in pictures])
        return Context(latents[None], torch.tensor([roles], device=latents.device))

    def guided(
        self, references: Sequence[Reference], memory: Sequence[Sequence[Image.Image]], branches: Sequence[Branch]
    ) -> Context:
        """What the next shot sees in each branch of its guidance, a batch of as many."""
        shown = [[one.picture if branch.reference else None for one in references] for branch in branches]
        return joined([self.context(pictures, memory) for pictures in shown])

    def _learn(self, pictures: list[Image.Image]) -> None:
        new = list({id(picture): picture for picture in pictures if id(picture) not in self._known}.values())
        if new:
            latents = encode_pictures(self.backbone, new, self.height, self.width)
            self._known |= {id(picture): (picture, latent) for picture, latent in zip(new, latents, strict=True)}
