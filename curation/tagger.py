"""A listener that runs here: ``local:MODEL``, any audio classifier of transformers with AudioSet's labels.

It names kinds of sound and how sure it is, and says nothing of the pictures. Written for the Audio Spectrogram Transformer
(``MIT/ast-finetuned-audioset-10-10-0.4593``; Gong, Chung and Glass, 2021); others of the same task work alike. Safetensors
only, no code from the model's repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from animeshooter_dataset import AnnotatedBy, DataError
from curation.listener import HEARD_RATE, Clip, Heard, SoundType
from curation.script import NoAnswer

WINDOW = 10.0
"""Seconds classified at a time; AudioSet's own length. Of a longer clip the mean over its windows counts."""
SURE, MOST_NAMED = 0.1, 5
"""Probability from which a label is named, and most labels named."""
KINDS: dict[SoundType, tuple[str, ...]] = {
    "silence": ("silence",),
    "speech": ("speech", "conversation", "narration", "monologue", "babbling"),
    "music": ("music", "singing", "musical instrument", "orchestra", "song", "choir"),
    "ambience": (
        "rain",
        "wind",
        "stream",
        "ocean",
        "waves",
        "inside",
        "outside",
        "traffic",
        "noise",
        "crowd",
        "rustling",
        "hum",
    ),
}
"""Words in AudioSet's labels by which they are sorted; every other label is a sound effect."""


@dataclass(frozen=True)
class Tagger:
    """See :class:`curation.listener.Listener`; ``model`` is a folder or a name on the Hub."""

    model: str

    @property
    def annotator(self) -> AnnotatedBy:
        """See :class:`curation.listener.Listener`; of a folder only the name, for records leave this machine."""
        folder = Path(self.model)
        return AnnotatedBy(kind="local", model=folder.name if folder.is_dir() else self.model)

    def listen(self, clip: Clip) -> Heard:
        """See :class:`curation.listener.Listener`; the visual context stays empty.

        Raises:
            NoAnswer: the model cannot be loaded.
            DataError: the clip has no sound to classify.
        """
        labels = self.labels(clip.sound[0])
        likeliest = sorted(labels, key=lambda label: (-labels[label], label))
        named = [label for label in likeliest[:MOST_NAMED] if labels[label] >= SURE] or likeliest[:1]
        told = ", ".join(f"{label} ({labels[label]:.0%})" for label in named)
        return Heard(type=kind_of(likeliest[0]), sound_description=f"A sound classifier names: {told}.", visual_context="")

    def labels(self, sound: np.ndarray) -> dict[str, float]:
        """Probability of every label of the model for sound float32 [n] at :data:`curation.listener.HEARD_RATE`."""
        import torch

        if not sound.size:
            raise DataError("there is no sound to classify")
        extractor, model = _load(self.model)
        count = max(1, round(sound.size / HEARD_RATE / WINDOW))
        total = torch.zeros(model.config.num_labels)
        for part in np.array_split(sound, count):
            inputs = extractor(part, sampling_rate=HEARD_RATE, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**inputs).logits[0].float()
            single = model.config.problem_type == "single_label_classification"
            total += (logits.softmax(-1) if single else logits.sigmoid()) / count
        return {model.config.id2label[place]: value for place, value in enumerate(total.tolist())}


def kind_of(label: str) -> SoundType:
    """The kind of sound that one of AudioSet's labels stands for."""
    words = label.lower().replace(",", " ").split()
    for kind, marks in KINDS.items():
        if any(mark in words or (" " in mark and mark in label.lower()) for mark in marks):
            return kind
    return "sound effect"


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[Any, Any]:
    """Feature extractor and model, once a process.

    Raises:
        NoAnswer: they cannot be loaded.
    """
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    safe: Any = {"trust_remote_code": False}
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, **safe)
        model = AutoModelForAudioClassification.from_pretrained(name, use_safetensors=True, **safe).eval()
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        need = "it must be an audio classifier of transformers, stored as safetensors, that needs no code of its own"
        raise NoAnswer(f"local:{name}: cannot be loaded ({why}); {need}") from None
    if getattr(extractor, "sampling_rate", HEARD_RATE) != HEARD_RATE:
        raise NoAnswer(f"local:{name}: takes sound at {extractor.sampling_rate} Hz; name a classifier for {HEARD_RATE} Hz")
    return extractor, model
