"""Renders a sample film to its files: NAME.mp4, NAME.truth.json, NAME.truth.npz, NAME.script.json."""

from __future__ import annotations

import importlib
import io
import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .storyboard import FPS, HEIGHT, WIDTH, Film

FILMS: tuple[str, ...] = ("paper_boat", "fallen_star", "snow_portrait")
X264 = {"preset": "superfast", "tune": "animation", "crf": "18", "threads": "1", "g": "48", "keyint_min": "2"}
Progress = Callable[[int, int], None]


def load_film(name: str) -> Film:
    """The storyboard of a film.

    Raises:
        ValueError: There is no film of that name.
    """
    if name not in FILMS:
        from animeshooter_dataset import DataError

        raise DataError(f"sample film {name!r}: no such film; choose from {', '.join(FILMS)}")
    film = importlib.import_module(f"{__package__}.films.{name}").FILM
    assert isinstance(film, Film)
    return film


def frame(name: str, index: int, *, seed: int = 0) -> np.ndarray:
    """One frame of a film as it is before encoding, uint8 [height, width, 3] red-green-blue.

    Raises:
        ValueError: No such film, or the index lies outside it.
    """
    from .compositor import Stage

    stage = Stage(load_film(name), seed)
    if not 0 <= index < stage.time.n_frames:
        raise ValueError(f"sample film {name!r} has frames 0 to {stage.time.n_frames - 1}; {index} is not one of them")
    return np.ascontiguousarray(stage.picture(index).image[:, :, ::-1])


def render_film(
    name: str, out_dir: str | Path, *, seed: int = 0, seconds: float | None = None, progress: Progress | None = None
) -> Path:
    """Render one film and write its four files, each replaced atomically; the mp4 comes last.

    Args:
        name: One of `FILMS`.
        out_dir: Where the files go; made if missing.
        seed: Varies small things (blinks, clouds, grain of sounds), never the structure. Same seed, same bytes.
        seconds: Only this much from the start (for trials); truth and script still describe the whole film's structure,
            the pixel truth only the rendered frames.
        progress: Called with (frames done, frames in all).

    Returns:
        The path of the mp4.
    """
    import cv2

    from .compositor import Stage
    from .script import script
    from .soundtrack import mix
    from .truth import Recorder, facts

    cv2.setNumThreads(1)
    film, folder = load_film(name), Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(film, seed)
    n = stage.time.n_frames if seconds is None else min(stage.time.n_frames, 2 * round(seconds * FPS / 2))
    stereo, events = mix(film, stage.time, seed)
    recorder = Recorder([r.id for r in film.cast])
    target = folder / f"{name}.mp4"
    partial = folder / f".{name}.{os.getpid()}.mp4"
    try:
        _encode(stage, n, stereo, recorder, partial, progress)
        _write(folder / f"{name}.truth.npz", _npz(recorder.arrays()))
        _write(folder / f"{name}.truth.json", _json(facts(film, stage.time, events)))
        _write(folder / f"{name}.script.json", _json(script(film, stage.time, seed)))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _encode(stage: Any, n: int, stereo: np.ndarray, recorder: Any, path: Path, progress: Progress | None) -> None:
    """Draw the frames, record their masks and encode picture and sound."""
    import av

    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video: Any = container.add_stream("libx264", rate=FPS, options=X264)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        video.time_base = video.codec_context.time_base = Fraction(1, FPS)
        audio: Any = container.add_stream("aac", rate=48_000, layout="stereo")
        audio.bit_rate = 128_000
        sample = 0
        for i in range(n):
            picture = stage.picture(i)
            recorder.add(picture.masks)
            image = av.VideoFrame.from_ndarray(picture.image, format="bgr24")
            image.pts = i
            container.mux(video.encode(image))
            until = min(len(stereo), (i + 1) * 2000)
            sample = _encode_sound(container, audio, stereo, sample, until, last=i == n - 1)
            if progress:
                progress(i + 1, n)
        container.mux(video.encode())
        container.mux(audio.encode())


def _encode_sound(container: Any, stream: Any, stereo: np.ndarray, start: int, until: int, *, last: bool) -> int:
    """Encode whole 1024-sample blocks up to `until` (the rest too, at the end); returns the next sample to encode."""
    import av

    while start < until and (last or until - start >= 1024):
        block = stereo[start : min(start + 1024, until)]
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48_000, start, Fraction(1, 48_000)
        container.mux(stream.encode(sound))
        start += len(block)
    return start


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def render_films(
    out_dir: str | Path,
    *,
    seed: int = 0,
    workers: int = 1,
    names: Sequence[str] = FILMS,
    progress: Progress | None = None,
) -> list[Path]:
    """Render several films, in parallel processes when `workers` is more than one.

    `progress` is called with (frames done, frames in all) of the film at hand when one process renders, and with (films done,
    films in all) otherwise. The files do not depend on `workers`.
    """
    for name in names:
        load_film(name)
    if workers <= 1 or len(names) <= 1:
        return [render_film(name, out_dir, seed=seed, progress=progress) for name in names]
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(names)), mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(render_film, name, out_dir, seed=seed): name for name in names}
        paths = {}
        for done, job in enumerate(as_completed(jobs), 1):
            paths[jobs[job]] = job.result()
            if progress:
                progress(done, len(names))
    return [paths[name] for name in names]
