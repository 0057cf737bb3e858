"""Annotators ``openai:URL#MODEL`` and ``local:MODEL``: ask a vision language model for a story's script.

One request a story, as AnimeShooter does it (arXiv 2506.03126, section 3): the story's shots with their times and a few frames
of each (or the story as a film) go out, the whole script comes back, top-down.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from animeshooter_dataset import AnnotatedBy, DataError
from curation.answers import ScriptForm, check, doubts, recurring, script_of
from curation.asking import AskConfig, Asker, Question, prompt
from curation.parts import Film, Part, Picture
from curation.script import NoAnswer, Sample, StoryScript, StoryView

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Screenwriter:
    """The annotator that asks a model; ``language`` is that of the captions."""

    asker: Asker
    language: str = "English"

    def annotate(self, view: StoryView) -> StoryScript:
        """Write the script of one story; see :meth:`curation.script.Annotator.annotate`.

        Raises:
            NoAnswer: a DataError that does not lie with the story: endpoint, key, budget or cache folder want mending.
            DataError: the model gave no usable script of this story.
        """
        try:
            answer = self.asker.ask(self.question(view))
        except DataError as error:
            line = f"{view.film}: story {view.times[0]:.1f} s to {view.times[-1]:.1f} s: {error}"
            raise (type(error) if isinstance(error, NoAnswer) else DataError)(line) from None
        people = recurring(answer)
        passing = [each.id for each in answer.characters if each.id not in people]
        if passing:
            LOG.warning("%s: in one shot only, so no main character: %s", view.film.name, ", ".join(passing))
        model = self.asker.model
        return script_of(answer, view, AnnotatedBy(kind=model.kind, model=model.name))

    def question(self, view: StoryView) -> Question[ScriptForm]:
        """What is asked about a story.

        Raises:
            DataError: a shot has no frame, or the story more shots than a request may hold frames.
        """
        config, count = self.asker.config, len(view.spans)
        told = prompt("story.md", language=self.language)
        parts: list[Part] = [f"{told}\n{_shot_list(view)}"]
        if config.video:
            parts += ["The story as a film without sound:", _film(view, config)]
        else:
            for label, sample in _labelled(view, choose_frames(view, config)):
                parts += [label, Picture(sample.image)]
        return Question(
            what="script",
            parts=[*parts, f"Now write the script of these {count} shots as JSON."],
            form=ScriptForm,
            check=lambda answer: check(answer, view, self.language),
            doubts=lambda answer: doubts(answer, view, self.language),
        )


def choose_frames(view: StoryView, config: AskConfig) -> list[list[Sample]]:
    """The frames sent of each shot: one each, then one more for the shot that has most seconds a frame, up to the limits.

    Raises:
        DataError: a shot has no frame, or the story more shots than a request may hold frames.
    """
    count = len(view.spans)
    _require_frames(view)
    if count > config.max_frames:
        raise DataError(f"{count} shots are more than the {config.max_frames} frames of a request; raise max_frames")
    most = [min(config.frames_per_shot, len(samples)) for samples in view.samples]
    taken = [1] * count
    for _ in range(config.max_frames - count):
        open_shots = [place for place in range(count) if taken[place] < most[place]]
        if not open_shots:
            break
        taken[max(open_shots, key=lambda place: (view.times[place + 1] - view.times[place]) / taken[place])] += 1
    return [[samples[(2 * k + 1) * len(samples) // (2 * n)] for k in range(n)] for samples, n in zip(view.samples, taken)]


def _require_frames(view: StoryView) -> None:
    if not all(view.samples):
        raise DataError(f"shot {list(map(bool, view.samples)).index(False) + 1} has no frame to show")


def _film(view: StoryView, config: AskConfig) -> Film:
    """The story from its samples: at every tick the sample that is nearest in time and of the shot that is on.

    Raises:
        DataError: a shot has no frame.
    """
    _require_frames(view)
    times = [[_time(view, place, sample) for sample in samples] for place, samples in enumerate(view.samples)]
    frames = []
    for tick in np.arange(view.times[0] + 0.5 / config.video_fps, view.times[-1], 1 / config.video_fps):
        place = min(int(np.searchsorted(view.times, tick, side="right")), len(view.spans)) - 1
        nearest = int(np.abs(np.subtract(times[place], tick)).argmin())
        frames.append(view.samples[place][nearest].image)
    return Film(frames or [view.samples[0][0].image], config.video_fps)


def _time(view: StoryView, place: int, sample: Sample) -> float:
    """When a sample is shown, seconds from the film's first frame."""
    span, start, end = view.spans[place], view.times[place], view.times[place + 1]
    return start + (sample.frame - span.start_frame) / (span.end_frame - span.start_frame) * (end - start)


def _shot_list(view: StoryView) -> str:
    """The story's shots, one line each."""
    lines = [f"Title of the film: {json.dumps(view.title, ensure_ascii=False)}"] if view.title else []
    lines += [f"{len(view.spans)} shots:"]
    for place, (start, end) in enumerate(zip(view.times, view.times[1:])):
        lines.append(f"Shot {place + 1}: {start:.2f} s to {end:.2f} s ({end - start:.2f} s long)")
    return "\n".join(lines)


def _labelled(view: StoryView, frames: Sequence[Sequence[Sample]]) -> list[tuple[str, Sample]]:
    return [
        (f"Shot {place + 1} at {_time(view, place, sample):.2f} s:", sample)
        for place, samples in enumerate(frames)
        for sample in samples
    ]
