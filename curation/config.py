"""The settings of a build: everything that decides what a dataset directory holds, given its films."""

from __future__ import annotations

from dataclasses import dataclass, field

from curation.clips import ClipConfig
from curation.cuts import CutsConfig
from curation.references import ReferenceConfig
from curation.stories import StoriesConfig


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides what a dataset directory holds, given its films.

    Attributes:
        annotator: where captions come from: ``sidecar``, ``measure``, ``openai:URL#MODEL``, or ``auto``, which takes a
            film's own script where there is one and measures elsewhere.
        language: language of the captions that an endpoint writes.
        budget_tokens: tokens of questions and answers after which an endpoint is asked no more; None for no end.
        samples_per_second: frames of a shot that annotator and references look at.
        max_samples: the same, at most so many a shot.
        references_per_shot: reference images of each character on a shot's sheet.
        min_audio_seconds: shorter audio clips are dropped (AnimeShooter keeps those over 3 s).
        storyboard_tile: width of a storyboard tile in pixels.
        shares: share of each split; None for the default (everything ``train`` under 20 videos).
        shard_size: bytes after which the next story begins a new tar.
    """

    annotator: str = "auto"
    language: str = "English"
    budget_tokens: int | None = None
    cuts: CutsConfig = field(default_factory=CutsConfig)
    stories: StoriesConfig = field(default_factory=StoriesConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    samples_per_second: float = 2.0
    max_samples: int = 16
    references_per_shot: int = 2
    min_audio_seconds: float = 3.0
    storyboard_tile: int = 240
    shares: dict[str, float] | None = None
    shard_size: int = 256 * 2**20
