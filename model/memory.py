"""What a shot remembers of the shots before it, and which texts it reads: the policy that training and generation share.

A story of n shots is read as (paper, section 4)::

    <Reference> <Caption 1> <Query x 64> <Frame 1> <Caption 2> <Query x 64> ... <Caption n> <Query x 64>

with ``<Frame i>`` the last frame of shot i. A :class:`ConditionPolicy` says what stands in its place: other frames, fewer
shots, no captions of earlier shots. Whatever it says, shot i is told nothing of the shots after it.

This module imports neither torch nor transformers, so that settings can be checked without them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CAPTIONS = ("descriptive", "narrative", "both")
"""Which captions a model may have been trained to read."""
_SPREAD = re.compile(r"frames:([1-9]\d?)")


@dataclass(frozen=True)
class ConditionPolicy:
    """How the shots before a shot, its captions and its references reach the model.

    Args:
        memory: frames by which an earlier shot is remembered: "last" (the paper), "first_last", or "frames:K", K of them (1 to
            99) spread over the shot from its first to its last; "frames:1" is "last", "frames:2" is "first_last".
        shots_back: how many shots back are remembered; None is all of them, 0 none.
        memory_captions: whether the captions of the remembered shots are read too.
        captions: which captions the model was trained to read: descriptive, narrative, or both, told apart.
        references: most reference pictures of a sample it was trained with, each of another character.

    Raises:
        ValueError: one of them is none of these.
    """

    memory: str = "last"
    shots_back: int | None = None
    memory_captions: bool = True
    captions: str = "descriptive"
    references: int = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.memory not in ("last", "first_last") and not _SPREAD.fullmatch(self.memory):
            raise ValueError(f"memory is last, first_last or frames:K with K from 1 to 99, not {self.memory!r}")
        if self.shots_back is not None and self.shots_back < 0:
            raise ValueError(f"shots_back is at least 0, or none for all shots, not {self.shots_back}")
        if self.captions not in CAPTIONS:
            raise ValueError(f"captions is one of {', '.join(CAPTIONS)}, not {self.captions!r}")
        if self.references < 1:
            raise ValueError(f"references is at least 1, not {self.references}")

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any] | None) -> ConditionPolicy:
        """The policy of a checkpoint; one that has none is of the paper's kind.

        Raises:
            ValueError: it was saved by another version, or is damaged.
        """
        known = {one.name for one in dataclasses.fields(cls)}
        unknown = sorted(set(saved or {}) - known)
        if unknown:
            raise ValueError(f"the checkpoint's condition_policy has {', '.join(unknown)}, which this version does not know")
        return cls(**(saved or {}))

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return dataclasses.asdict(self)

    @property
    def frames(self) -> int:
        """Frames of a remembered shot."""
        found = _SPREAD.fullmatch(self.memory)
        return int(found[1]) if found else {"last": 1, "first_last": 2}[self.memory]

    @property
    def inner(self) -> bool:
        """Whether frames between the first and the last are remembered too, so that a shot must be decoded."""
        return self.frames > 2

    def pick(self, first: Any, frames: Sequence[Any] | None, last: Any) -> list[Any]:
        """The pictures by which a shot is remembered, in their order.

        Args:
            first: its first frame; not read where only the last is remembered.
            frames: its clip, read only where there are frames in between.
            last: its last frame.

        Raises:
            ValueError: frames in between are wanted and there is no clip.
        """
        if self.frames == 1:
            return [last]
        if not self.inner:
            return [first, last]
        if frames is None:
            raise ValueError(f"memory={self.memory} reads frames between the first and the last, and the clip is not there")
        step = (len(frames) - 1) / (self.frames - 1)
        return [first, *(frames[round(k * step)] for k in range(1, self.frames - 1)), last]

    def of_clip(self, frames: Sequence[Any]) -> list[Any]:
        """The pictures by which a clip of frames, such as a generated one, is remembered."""
        return self.pick(frames[0], frames, frames[-1])

    def window(self, shot: int) -> range:
        """The shots before ``shot``, counted from 0, that it remembers."""
        return range(0 if self.shots_back is None else max(0, shot - self.shots_back), shot)

    def one_pass(self, shots: int) -> bool:
        """Whether one sequence serves every shot of a story: each remembers all that stands before it, captions too."""
        return self.memory_captions and (self.shots_back is None or self.shots_back >= shots - 1)
