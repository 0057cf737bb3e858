"""Writing a story that some other system made, in the layout of ``animeshooter generate``, so that all are evaluated alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from animeshooter_dataset import DataError
from recipes.generate import write_shots


def refuse_taken(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        DataError: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")


def write_story(
    shots: Iterable[np.ndarray],
    out: Path,
    *,
    script: Path,
    captions: Sequence[str],
    reference: Path | None,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write ``shot_1.mp4``, ..., ``story.mp4`` and ``story.json``, each shot as soon as it is made.

    Args:
        shots: uint8 [F, H, W, 3] each.
        out: folder.
        script: the file the captions are from.
        captions: what each shot was made from.
        reference: the picture that the system was given.
        settings: of the sampling, ``fps`` among them.
        about: what else ``story.json`` says, ``system`` first.

    Returns:
        The path of ``story.mp4``.
    """
    last = write_shots(shots, out, settings["fps"], lambda number, path: print(f"shot {number}: {path}", flush=True))
    frames, height, width, _ = last.shape
    record = {
        **about,
        "references": [] if reference is None else [{"name": "", **_told(reference)}],
        "script": _told(script),
        "captions": list(captions),
        "settings": dict(settings),
        "shots": [f"shot_{number}.mp4" for number in range(1, len(captions) + 1)],
        "frames": frames,
        "height": height,
        "width": width,
    }
    (out / "story.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / "story.mp4"


def _told(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def uint8_frames(video: Any) -> np.ndarray:
    """The frames of a diffusers pipeline with ``output_type="np"``, float [F, H, W, 3] in 0 to 1, as uint8."""
    return (np.asarray(video) * 255).round().clip(0, 255).astype(np.uint8)
