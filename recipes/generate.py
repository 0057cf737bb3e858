"""Generate a story: reference pictures and a script in, one clip a shot and the joined film out.

The script is JSON in one of two forms::

    {"captions": ["A fox wakes up.", "It looks out.", "It runs into the snow."]}
    {"shots": [{"narrative_caption": "...", "descriptive_caption": "...", "characters": ["Fox"]}, ...]}

The second is what a dataset's ``stories`` hold, so that a story's ``json`` can be given as it is; other fields are ignored.
Which of the two captions is read, and what a shot remembers of those before it, is what the checkpoint was trained on. Where
references have names and a shot says who is in it, the shot reads only theirs.

Run: animeshooter generate checkpoints/lora --reference fox.png --script story.json --out stories/fox
     animeshooter generate checkpoints/lora --reference Fox=a.png --reference Owl=b.png --script story.json --out stories/two
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from animeshooter_dataset import DataError
from curation.video import X264_REPRODUCIBLE
from recipes.trainer import model_errors, quiet_loading
from streams.clips import on_white, read_clip


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


@dataclass(frozen=True)
class ScriptShot:
    """A shot of a script.

    Args:
        narrative: what happens; "" where the script does not say.
        descriptive: what is seen; likewise. A script of plain captions has them here.
        characters: who is in it; None where the script does not say.
    """

    narrative: str
    descriptive: str
    characters: tuple[str, ...] | None = None

    def text(self, which: str) -> str:
        """The caption a text encoder reads: narrative, descriptive, or both in a row; the other where that one is missing."""
        both = f"{self.narrative} {self.descriptive}".strip()
        return both if which == "both" else getattr(self, which) or both

    def prompt(self, which: str) -> str:
        """The caption the MLLM reads: as :meth:`text`, but both are told apart."""
        if which != "both":
            return self.text(which)
        from model.mllm import both_captions

        return both_captions(self.narrative, self.descriptive)


def read_shots(path: Path) -> list[ScriptShot]:
    """The shots of a script.

    Args:
        path: the JSON file; see the module for its forms.

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
    if not shots:
        raise DataError(f"{path}: has no shots; {form}")
    return [_shot_of(shot, f"{path}: shot {number}", form) for number, shot in enumerate(shots, 1)]


def _shot_of(shot: Any, where: str, form: str) -> ScriptShot:
    told = shot if isinstance(shot, dict) else {"descriptive_caption": shot}
    narrative, descriptive = (told.get(f"{name}_caption") or "" for name in ("narrative", "descriptive"))
    if not isinstance(narrative, str) or not isinstance(descriptive, str) or not (narrative + descriptive).strip():
        raise DataError(f"{where} has no caption; {form}")
    names = told.get("characters")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f'{where}: \'characters\' is not a list of names; write them like ["Fox", "Owl"]')
    return ScriptShot(narrative, descriptive, None if names is None else tuple(names))


def read_script(path: Path, caption: str = "descriptive") -> list[str]:
    """The captions of a script, one a shot, as a text encoder reads them.

    Args:
        path: the JSON file; see the module for its forms.
        caption: narrative, descriptive or both, where the script has both.

    Raises:
        DataError: see :func:`read_shots`.
    """
    return [shot.text(caption) for shot in read_shots(path)]


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


def named_references(given: Sequence[str]) -> Path | dict[str, Path] | None:
    """The references of a command line: ``FILE`` or ``NAME=FILE`` each.

    Returns:
        The file where there is one without a name, else files by name; a file without a name among several has its own,
        without the suffix. None where there is none.

    Raises:
        DataError: two of one name.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():  # a path may have an equals sign in it
            if len(given) == 1:
                return Path(text)
            name, file = Path(text).stem, text
        if name in found:
            raise DataError(f"--reference {text}: there is a reference of {name} already; give each character one")
        found[name] = Path(file)
    return found or None


def generate(
    checkpoint: str | Path,
    reference: Path | Mapping[str, Path] | None,
    script: Path,
    out: Path,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 6.0,
    reference_guidance: float | None = None,
    fps: float | None = None,
    on_shot: Callable[[int, Path], None] | None = None,
) -> Path:
    """Generate a story shot by shot, the frames of each entering the context of the next as the checkpoint was trained.

    ``out`` gets ``shot_1.mp4``, ``shot_2.mp4``, ... as soon as each is ready, then ``story.mp4``, all of them, and
    ``story.json``, what made it. The same arguments give the same frames on the same machine.

    Args:
        checkpoint: folder, or Hub repository, of an AnimeShooterGen checkpoint.
        reference: picture of the character, or pictures by their characters' names; None for none.
        script: the captions; see the module.
        out: folder to write; must be empty or not there.
        seed: of the noise.
        steps: denoising steps a shot.
        guidance: strength of classifier-free guidance; at most 1 turns it off. With ``reference_guidance``, of the captions.
        reference_guidance: strength of guidance by the references (`model.guidance`).
        fps: frames a second; what the checkpoint was trained at by default.
        on_shot: called with the number, from 1, and the file of each shot.

    Returns:
        The path of ``story.mp4``.

    Raises:
        DataError: checkpoint, reference or script cannot be read, a reference is of nobody in the script, or ``out`` is taken.
    """
    training, shots = _training(checkpoint), read_shots(script)
    files: dict[str | None, Path] = {}
    if reference is not None:
        files.update(reference.items() if isinstance(reference, Mapping) else [(None, reference)])
    pictures = [(name, read_reference(path)) for name, path in files.items()]
    cast = _cast(shots, [name for name in files if name is not None], script)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    clip, pipeline = clip_of(training), _load(checkpoint)
    captions = [shot.prompt(_captions_of(pipeline, training)) for shot in shots]
    _note_references(cast, len(pictures), pipeline.policy.references)
    settings = {"seed": seed, "steps": steps, "guidance": guidance, "reference_guidance": reference_guidance}
    settings["fps"] = fps = fps or clip.get("fps", 8.0)
    with model_errors():
        made = pipeline.generate_shots(
            pictures,
            captions,
            num_frames=clip.get("frames"),
            height=clip.get("height"),
            width=clip.get("width"),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=_noise(seed),
            reference_guidance_scale=reference_guidance,
            characters=cast,
        )
        frames = write_shots(made, out, fps, on_shot)
    told = {name: training.get(name) for name in ("stage", "preset", "steps")}
    story = {"captions": captions, "characters": cast, "condition": pipeline.policy.as_dict(), "settings": settings}
    _record(out, {"path": str(checkpoint), **told}, files, script, story, frames.shape)
    return out / "story.mp4"


def _note_references(cast: list[list[str] | None], given: int, trained: int) -> None:
    """Say on standard error where a shot reads more references than the checkpoint was trained with."""
    most = max(given if names is None else len(names) for names in cast)
    if most > trained:
        print(f"note: up to {most} references a shot, and the checkpoint was trained with at most {trained}", file=sys.stderr)


def _record(
    out: Path,
    checkpoint: Mapping[str, Any],
    references: Mapping[str | None, Path],
    script: Path,
    story: Mapping[str, Any],
    shape: tuple[int, ...],
) -> None:
    """Write ``story.json``: what made the story."""
    record = {
        "checkpoint": checkpoint,
        "references": [{"name": name, "path": str(path), "sha256": _sha256(path)} for name, path in references.items()],
        "script": {"path": str(script), "sha256": _sha256(script)},
        **story,
        "shots": [f"shot_{number}.mp4" for number in range(1, len(story["captions"]) + 1)],
        **dict(zip(("frames", "height", "width"), map(int, shape))),
    }
    (out / "story.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_shots(shots: Iterable[np.ndarray], out: Path, fps: float, on_shot: Callable[[int, Path], None] | None) -> np.ndarray:
    """Write shots as they come, and all of them joined; returns the last."""
    out.mkdir(parents=True, exist_ok=True)
    with ClipWriter(out / "story.mp4", fps) as story:
        for number, frames in enumerate(shots, 1):
            path = out / f"shot_{number}.mp4"
            with ClipWriter(path, fps) as writer:
                writer.write(frames)
            story.write(frames)
            if on_shot is not None:
                on_shot(number, path)
    return frames


def _cast(shots: list[ScriptShot], names: list[str], script: Path) -> list[list[str] | None]:
    """Of whom each shot reads the reference: those of its characters who have one; None, everybody, where it names nobody.

    Raises:
        DataError: a reference is of nobody in a script that says of every shot who is in it.
    """
    told = list(dict.fromkeys(name for shot in shots for name in shot.characters or ()))
    if names and all(shot.characters is not None for shot in shots):
        strangers = [name for name in names if name not in told]
        if strangers:
            there = f"it has {', '.join(told)}" if told else "it has nobody"
            raise DataError(f"{script}: {strangers[0]}, of whom there is a reference, is in no shot; {there}")
    return [None if shot.characters is None else [name for name in shot.characters if name in names] for shot in shots]


def clip_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """Size and rate of the clips a checkpoint was trained on; the largest where there were several."""
    data = training.get("config", {}).get("data", {})
    if not data.get("clips"):
        return data.get("clip", {})
    clips = [read_clip(text) for text in re.split(r"[\s,]+", data["clips"].strip())]
    return vars(max(clips, key=lambda clip: clip.frames * clip.height * clip.width))


def _captions_of(pipeline: Any, training: Mapping[str, Any]) -> str:
    """Which captions a checkpoint reads; those of before there was a policy say it in their training record alone."""
    if pipeline.config.condition_policy is None:
        return training.get("config", {}).get("data", {}).get("caption", "descriptive")
    return pipeline.policy.captions


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
