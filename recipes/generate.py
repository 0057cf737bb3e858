"""Generate a story: a reference picture and a script in, one clip a shot and the joined film out.

The script is JSON in one of two forms::

    {"captions": ["A fox wakes up.", "It looks out.", "It runs into the snow."]}
    {"shots": [{"narrative_caption": "...", "descriptive_caption": "..."}, ...]}

The second is what a dataset's ``stories`` hold, so that a story's ``json`` can be given as it is; other fields are ignored.
Which of the two captions is read is what the checkpoint was trained on (``training.json``), descriptive if it does not say.

Run: animeshooter generate checkpoints/lora --reference fox.png --script story.json --out stories/fox
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from animeshooter_dataset import DataError
from curation.video import X264_REPRODUCIBLE
from recipes.trainer import model_errors, quiet_loading
from streams.clips import on_white


class ClipWriter:
    """Writes frames to an H.264 mp4 that appears under its name when it is whole; use it as a context manager.

    Args:
        path: the mp4.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.rate = path, Fraction(fps).limit_denominator(1001)
        self.partial = path.with_name(f".{path.name}.partial")
        self._container: Any = None

    def __enter__(self) -> ClipWriter:
        return self

    def write(self, frames: np.ndarray) -> None:
        """Add frames, uint8 [F, H, W, 3]; height and width even and the same in every call."""
        import av

        if self._container is None:
            self._container = av.open(str(self.partial), "w", format="mp4", options={"movflags": "+faststart"})
            options = {"crf": "16", **X264_REPRODUCIBLE}
            self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
            self._stream.height, self._stream.width = frames.shape[1:3]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._container is None:
            return
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None:
            self.partial.rename(self.path)
        else:
            self.partial.unlink(missing_ok=True)


def read_script(path: Path, caption: str = "descriptive") -> list[str]:
    """The captions of a script, one a shot.

    Args:
        path: the JSON file; see the module for its forms.
        caption: narrative, descriptive or both, where the script has both.

    Raises:
        DataError: not there, not JSON, or without captions; names the file, the shot and the mend.
    """
    form = 'write {"captions": ["...", "..."]}'
    try:
        script = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable script ({error}); {form}") from None
    shots = script.get("captions", script.get("shots")) if isinstance(script, dict) else None
    if not isinstance(shots, list):
        raise DataError(f"{path}: has neither a list 'captions' nor a list 'shots'; {form}")
    wanted = ["narrative", "descriptive"] if caption == "both" else [caption]
    captions = []
    for number, shot in enumerate(shots, 1):
        if isinstance(shot, dict):
            given = {name: shot.get(f"{name}_caption") or "" for name in ("narrative", "descriptive")}
            shot = " ".join(filter(None, (given[name] for name in wanted))) or next(filter(None, given.values()), "")
        if not isinstance(shot, str) or not shot.strip():
            raise DataError(f"{path}: shot {number} has no caption; {form}")
        captions.append(shot)
    if not captions:
        raise DataError(f"{path}: has no shots; {form}")
    return captions


def read_reference(path: Path) -> Image.Image:
    """A reference picture as RGB, what is transparent made white.

    Raises:
        DataError: not there or not a picture.
    """
    try:
        with Image.open(path) as image:
            return on_white(image)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not a readable picture ({error}); give a PNG or JPEG") from None


def generate(
    checkpoint: str | Path,
    reference: Path | None,
    script: Path,
    out: Path,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 6.0,
    fps: float | None = None,
    on_shot: Callable[[int, Path], None] | None = None,
) -> Path:
    """Generate a story shot by shot, the last frame of each entering the context of the next.

    ``out`` gets ``shot_1.mp4``, ``shot_2.mp4``, ... as soon as each is ready, then ``story.mp4``, all of them, and
    ``story.json``, what made it. The same arguments give the same frames on the same machine.

    Args:
        checkpoint: folder, or Hub repository, of an AnimeShooterGen checkpoint.
        reference: picture of the character; None for none.
        script: the captions; see the module.
        out: folder to write; must be empty or not there.
        seed: of the noise.
        steps: denoising steps a shot.
        guidance: strength of classifier-free guidance; at most 1 turns it off.
        fps: frames a second; what the checkpoint was trained at by default.
        on_shot: called with the number, from 1, and the file of each shot.

    Returns:
        The path of ``story.mp4``.

    Raises:
        DataError: checkpoint, reference or script cannot be read, or ``out`` is taken.
    """
    training = _training(checkpoint)
    data = training.get("config", {}).get("data", {})
    captions = read_script(script, data.get("caption", "descriptive"))
    picture = None if reference is None else read_reference(reference)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    clip = data.get("clip", {})
    fps = fps or clip.get("fps", 8.0)
    size = {"num_frames": clip.get("frames"), "height": clip.get("height"), "width": clip.get("width")}
    pipeline = _load(checkpoint)
    with model_errors():
        shots = pipeline.generate_shots(
            picture, captions, **size, num_inference_steps=steps, guidance_scale=guidance, generator=_noise(seed)
        )
        out.mkdir(parents=True, exist_ok=True)
        with ClipWriter(out / "story.mp4", fps) as story:
            for number, frames in enumerate(shots, 1):
                path = out / f"shot_{number}.mp4"
                with ClipWriter(path, fps) as writer:
                    writer.write(frames)
                story.write(frames)
                if on_shot is not None:
                    on_shot(number, path)
    record = {
        "checkpoint": {"path": str(checkpoint), **{name: training.get(name) for name in ("stage", "preset", "steps")}},
        "reference": None if reference is None else {"path": str(reference), "sha256": _sha256(reference)},
        "script": {"path": str(script), "sha256": _sha256(script)},
        "captions": captions,
        "settings": {"seed": seed, "steps": steps, "guidance": guidance, "fps": fps},
        "shots": [f"shot_{number}.mp4" for number in range(1, len(captions) + 1)],
        "frames": int(frames.shape[0]),
        "height": int(frames.shape[1]),
        "width": int(frames.shape[2]),
    }
    (out / "story.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / "story.mp4"


def _training(checkpoint: str | Path) -> dict[str, Any]:
    """The training record of a checkpoint, of this machine or of the Hub; empty where there is none."""
    from model.checkpoint import resolve

    with model_errors():
        path = resolve(checkpoint) / "training.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); the checkpoint is damaged, train or download it again") from None


def _load(checkpoint: str | Path) -> Any:
    import torch

    from model import AnimeShooterPipeline

    quiet_loading()
    with model_errors():
        pipeline = AnimeShooterPipeline.from_pretrained(checkpoint, text_encoder=None, text_tokenizer=None)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False, desc="denoising")
    return pipeline.to("cuda") if torch.cuda.is_available() else pipeline


def _noise(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
