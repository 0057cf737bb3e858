"""The settings of a build: everything that decides what a dataset directory holds, given its films."""

from __future__ import annotations

from dataclasses import dataclass, field

from curation.align import AlignConfig
from curation.asking import AskConfig
from curation.audio import AudioConfig
from curation.clips import ClipConfig
from curation.cuts import CutsConfig
from curation.ledger import AskLimits
from curation.references import ReferenceConfig
from curation.released import ReleasedConfig
from curation.scores import ScoresConfig
from curation.screen import ScreenConfig
from curation.sound import SoundConfig
from curation.stories import StoriesConfig
from curation.ytdlp import DownloadConfig


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides what a dataset directory holds, given its films, and how models are asked and films fetched.

    Attributes:
        annotator: where captions come from: ``sidecar``, ``measure``, ``openai:URL#MODEL``, ``local:MODEL``, or ``auto``, which
            takes a film's own script where there is one and measures elsewhere.
        judge: the model that is asked whether a film is animation, how a shot is drawn, and whether a reference image is good;
            named as an annotator is. None: nobody is asked.
        language: language of the captions that a model writes.
        screen, cuts, stories, clips, scores, sound, references, audio: settings of the stages.
        ask: what of the asking decides the answers.
        limits: what of the asking does not.
        download: how films are fetched.
        samples_per_second: frames of a shot that annotator and references look at.
        max_samples: the same, at most so many a shot.
        references_per_shot: reference images of each character on a shot's sheet.
        storyboard_tile: width of a storyboard tile in pixels.
        shares: share of each split; None for the default (everything ``train`` under 20 videos).
        shard_size: bytes after which the next story begins a new tar.
        contact: where a rights holder reaches whoever publishes the dataset; stands in its card.
        align: how what the official release tells is laid on a film.
        released: how its masks become reference images.
    """

    annotator: str = "auto"
    judge: str | None = None
    language: str = "English"
    screen: ScreenConfig = field(default_factory=ScreenConfig)
    cuts: CutsConfig = field(default_factory=CutsConfig)
    stories: StoriesConfig = field(default_factory=StoriesConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    sound: SoundConfig = field(default_factory=SoundConfig)
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    ask: AskConfig = field(default_factory=AskConfig)
    limits: AskLimits = field(default_factory=AskLimits)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    samples_per_second: float = 2.0
    max_samples: int = 16
    references_per_shot: int = 2
    storyboard_tile: int = 240
    shares: dict[str, float] | None = None
    shard_size: int = 256 * 2**20
    contact: str | None = None
    align: AlignConfig = field(default_factory=AlignConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)


LATE = ("shares", "shard_size", "contact")
"""Settings that only packing looks at: changing them redoes no film."""
OUTSIDE = ("limits", "download")
"""Settings that decide how the work is done and nothing of what it gives; they stand in no manifest."""
