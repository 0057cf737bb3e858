"""What a run says of itself, sent to trackers: scalars of every step, and the stories it generates.

The trackers are accelerate's (wandb, tensorboard, trackio). Without a key wandb works offline, and ``wandb sync`` sends what
it wrote later. What they write lies in ``<out>.tracking``; a run that is taken up again goes on in the same one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from animeshooter_dataset import DataError
from recipes.config import settings
from recipes.record import SAMPLES, STILLS
from recipes.running import work_folder
from recipes.saving import writing

if TYPE_CHECKING:
    from recipes.running import Run

TRACKERS = ("wandb", "tensorboard", "trackio")
NOT_SCALARS = ("step", "samples", "bucket", SAMPLES)
"""What a line of the log holds besides scalars, or instead."""


def tracking(this: Run) -> Tracking | None:
    """The hook of the main process, where ``track.to`` names trackers.

    Raises:
        DataError: no such tracker, or it is not installed.
    """
    names = [name for name in re.split(r"[\s,+]+", this.config.track.to or "") if name]
    for name in names:
        if name not in TRACKERS:
            raise DataError(f"track.to={this.config.track.to}: no tracker {name}; there are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise DataError(f"track.to={this.config.track.to}: {name} is not installed; pip install {name}")
    return Tracking(this, names) if names and this.main else None


class Tracking:
    """Hands each ``track.every``-th line of the log to trackers, and every video.

    Args:
        this: the run.
        names: of the trackers.
    """

    def __init__(self, this: Run, names: list[str]) -> None:
        self.every = max(1, this.config.track.every)
        self.work = work_folder(this.out)
        self.folder = this.out.with_name(f"{this.out.name}.tracking")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trackers = {name: self._start(name, this) for name in names}
        told = {name: value for name, value in settings(this.config).items() if value is not None}
        for name, tracker in self.trackers.items():
            if name != "tensorboard" or this.step == 0:  # it files settings as a run of its own each time
                tracker.store_init_configuration({"stage": this.stage.name, **told})

    def _start(self, name: str, this: Run) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, run = LOGGER_TYPE_TO_CLASS[name], this.config.track.name or this.out.name
        if name == "tensorboard":
            tracker = kind(run, logging_dir=self.folder / "tensorboard", purge_step=this.step or None)
        elif name == "wandb":
            how = {"id": run_id(this.out), "resume": "allow", "dir": str(self.folder)}
            mode = wandb_mode()
            if mode == "offline":
                this.say(f"wandb: no key, so offline; send it later with: wandb sync {self.folder / 'wandb'}/offline-run-*")
            tracker = kind(this.config.track.project, name=run, mode=mode, **how)
        else:
            tracker = kind(this.config.track.project, name=run, resume="allow")
        tracker.start()
        return tracker

    def on_step(self, this: Run, line: dict[str, Any]) -> None:
        """Send the line, where it is its turn or it says more than usual."""
        videos = line.get(SAMPLES, [])
        if this.step % self.every and "held_out" not in line and not videos:
            return
        values = scalars(line)
        with writing(self.folder, "keep what the trackers write"):
            for name, tracker in self.trackers.items():
                tracker.log(values, step=this.step)
                for video in videos:
                    self._video(name, tracker, self.work / video, this.step)

    def _video(self, name: str, tracker: Any, path: Path, step: int) -> None:
        """A generated story: the film where the tracker shows films, else its stills."""
        title = f"samples/{path.parent.name}"
        if name == "wandb":
            import wandb

            tracker.tracker.log({title: wandb.Video(str(path), format="mp4")}, step=step)
        elif name == "trackio":
            import trackio

            tracker.log({title: trackio.Video(str(path))}, step=step)
        else:
            with Image.open(path.with_name(STILLS)) as stills:
                tracker.tracker.add_image(title, np.asarray(stills), step, dataformats="HWC")

    def on_end(self, this: Run) -> None:
        """Have the trackers write what they hold."""
        for tracker in self.trackers.values():
            tracker.finish()


def wandb_mode() -> str:
    """How wandb is to run: what ``WANDB_MODE`` says, else online where there is a key, else offline."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    known = netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
    return "online" if os.environ.get("WANDB_API_KEY") or known else "offline"


def run_id(out: Path) -> str:
    """The same for every start of the run that writes ``out``."""
    return hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]


def scalars(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line of the log by name: those in lists are counted from 1."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, bool) or (not prefix and name in NOT_SCALARS):
            continue
        if isinstance(value, (int, float)):
            found[prefix + name] = float(value)
        elif isinstance(value, dict):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            found |= scalars({str(place): one for place, one in enumerate(value, 1)}, f"{prefix}{name}/")
    return found
