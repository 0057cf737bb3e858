"""What decoding a shot costs: the stored layout against a long film, our decoder against a plain loop, and other layouts.

All rows of the first table deliver the same frames of the same shots at the same size, from bytes already in memory, in one
process on one core. ``bare`` is the floor as users write it: decode the clip, keep what is wanted, scale that. ``ours`` is
``decode_clip`` and its tensors are checked to be the bare ones, bit by bit. ``naive`` seeks the shot in the film that it was
cut from. ``torchcodec`` takes part where it is installed. Rounds are interleaved; figures are medians over the rounds, in
processor seconds (other work on the machine hardly moves them) and in wall time.

The second table stores the same shots again in other ways, from the film, and decodes them with ``decode_clip``: time, size,
and likeness to the film at the size trained on (PSNR of RGB and SSIM of luma, both against frames stored without loss).

The third sends batches from a worker process to the trainer's in the ways one could.

Run: python -m benchmarks.decoding DATASET [--films FOLDER] [--json benchmarks/results/decoding.json]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from animeshooter_dataset import FilmRecord, ShotRecord, parse, read_index, read_lines
from curation.video import X264_REPRODUCIBLE, decode, fit_short_side
from streams.clips import ClipSpec, decode_clip, read_range, sample_times, shared_frames

SPECS = (ClipSpec(17, 480, 720, 8), ClipSpec(49, 480, 720, 8), ClipSpec(9, 64, 96, 8))
LAYOUT_SPEC = SPECS[0]
TICKS = 90_000


@dataclass
class Shot:
    """A shot: its stored clip, its row of the index, its record, and the film it comes from where that is at hand."""

    clip: bytes
    row: dict[str, Any]
    record: ShotRecord
    film: Path | None
    at: float


@dataclass(frozen=True)
class Layout:
    """A way to store a clip; ``gop`` 0 is one key frame at each end only, ``options`` are x264's."""

    short_side: int = 480
    gop: int = 48
    options: tuple[tuple[str, str], ...] = (("crf", "18"), ("preset", "veryfast"))

    def with_options(self, **options: str) -> Layout:
        """The same with other options of x264."""
        return replace(self, options=tuple({**dict(self.options), **options}.items()))


PLAIN = Layout()
LOSSLESS = PLAIN.with_options(crf="0")
LAYOUTS = {
    "key frame every 12": replace(PLAIN, gop=12),
    "key frame every 24": replace(PLAIN, gop=24),
    "key frame every 48": PLAIN,
    "key frames at the ends only": replace(PLAIN, gop=0),
    "48, no B-frames": PLAIN.with_options(bf="0"),
    "48, B-frames refer to no B": PLAIN.with_options(**{"b-pyramid": "none"}),
    "48, no weighted prediction": PLAIN.with_options(weightp="0"),
    "48, CAVLC": PLAIN.with_options(coder="vlc"),
    "48, CAVLC, B-frames refer to no B": PLAIN.with_options(coder="vlc", **{"b-pyramid": "none"}),
    "48, CAVLC, crf 17": PLAIN.with_options(coder="vlc", crf="17"),
    "48, -tune fastdecode, crf 17": PLAIN.with_options(tune="fastdecode", crf="17"),
    "48, -tune fastdecode": PLAIN.with_options(tune="fastdecode"),
    "24, -tune fastdecode": replace(PLAIN, gop=24).with_options(tune="fastdecode"),
    "48, crf 20": PLAIN.with_options(crf="20"),
    "48, crf 23": PLAIN.with_options(crf="23"),
    "48, preset medium": PLAIN.with_options(preset="medium"),
    "48, short side 360": replace(PLAIN, short_side=360),
    "48, short side 240": replace(PLAIN, short_side=240),
}


def main() -> None:
    """Measure the dataset named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--films", type=Path, help="folder of the films it was built from: adds 'naive' and the layouts")
    parser.add_argument("--shots", type=int, default=12, help="shots measured, spread over the index")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shots = read_shots(options.dataset, options.films, options.shots)
    figures: dict[str, Any] = {"machine": machine(), "shots": len(shots), "rounds": options.rounds, "decoders": {}}
    for spec in SPECS:
        name = f"{spec.frames} frames of {spec.height} x {spec.width} at {spec.fps:g} a second"
        figures["decoders"][name] = measured = measure(decoders(shots, spec), shots, options.rounds)
        print(f"\n{name}, {len(shots)} shots of {mean(shot.row['frames'] for shot in shots):.0f} frames on average")
        print(table(measured, "bare"), flush=True)
    if options.films:
        figures["layouts"] = layouts(shots, options.rounds)
        print(f"\nstored otherwise, {LAYOUT_SPEC.frames} frames\n{table(figures['layouts'], 'key frame every 48')}", flush=True)
    figures["transport"] = transport(options.rounds)
    print(f"\na batch of 1 x 49 x 480 x 720 x 3 from a worker\n{table(figures['transport'], 'arrays, pickled')}")
    figures["machine"]["load at the end"] = round(os.getloadavg()[0], 1)
    print(figures["machine"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    load = round(os.getloadavg()[0], 1)
    return {"processor": platform.machine(), "cores": os.cpu_count(), "av": av.__version__, "load at the start": load}


def read_shots(directory: Path, films: Path | None, count: int) -> list[Shot]:
    """Shots spread evenly over the index, each with a start of its own."""
    rows = [row for row in read_index(directory).to_pylist() if row["clean_end"] - row["clean_start"] > 1]
    rows = rows[:: max(1, len(rows) // count)][:count]
    sources: dict[str, Path] = {}
    if films:
        sources = {str(film.video): films / Path(film.film).name for film in read_lines(directory / "films.jsonl", FilmRecord)}
    shots = []
    for number, row in enumerate(rows):
        clip, text = (
            read_range(directory / row["shard"], row[f"{member}_offset"], row[f"{member}_size"]) for member in ("mp4", "json")
        )
        record = parse("shots", text, row["key"])
        assert isinstance(record, ShotRecord)
        shots.append(Shot(clip, row, record, sources.get(row["video"]), number * 0.618 % 1))
    return shots


# ---- decoders ----

Decoder = Callable[[Shot], Any]


def decoders(shots: list[Shot], spec: ClipSpec) -> dict[str, Decoder]:
    """The decoders that can run here, after a check that the two of PyAV deliver the same tensors."""
    for shot in shots:
        plain, mine = bare(shot, spec), ours(shot, spec)
        assert all(np.array_equal(one, other) for one, other in zip(plain, mine)), shot.row["key"]
    found: dict[str, Decoder] = {
        "bare": lambda shot: bare(shot, spec),
        "bare, thread_type AUTO": lambda shot: bare(shot, spec, "AUTO"),
        "ours": lambda shot: ours(shot, spec),
    }
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError):
        print("torchcodec is not installed, or finds no FFmpeg: not measured")
    else:
        found["torchcodec"] = lambda shot: torchcodec_frames(shot, spec, VideoDecoder)
    if all(shot.film for shot in shots):
        found["naive: sought in the film"] = lambda shot: naive(shot, spec)
    return found


def ours(shot: Shot, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the streams do."""
    return decode_clip(shot.clip, shot.row, spec, shot.at, shot.row["key"], shot.record.picture)


def bare(shot: Shot, spec: ClipSpec, threads: str = "SLICE") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A plain loop over the clip: decode all of it, scale what is wanted."""
    with av.open(io.BytesIO(shot.clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        frames = list(container.decode(stream))[shot.row["clean_start"] : shot.row["clean_end"]]
        wanted = sample_times(np.array([float(frame.pts * stream.time_base) for frame in frames]), spec, shot.at)
        images = {which: fit(frames[which], spec, shot.record.picture) for which in {*wanted.tolist(), 0, len(frames) - 1}}
    return np.stack([images[which] for which in wanted.tolist()]), images[0], images[len(frames) - 1]


def naive(shot: Shot, spec: ClipSpec) -> np.ndarray:
    """The frames of the shot out of its film, which is opened and sought for each shot."""
    with av.open(str(shot.film)) as container:
        stream = container.streams.video[0]
        origin = (stream.start_time or 0) * stream.time_base
        begin, end = (float(origin) + time - 0.001 for time in (shot.record.start_time, shot.record.end_time))
        container.seek(max(0, int(begin / stream.time_base)), stream=stream)
        frames = itertools.takewhile(lambda frame: frame.time < end, container.decode(stream))
        held = [frame for frame in frames if frame.time >= begin][shot.row["clean_start"] : shot.row["clean_end"]]
        wanted = sample_times(np.array([frame.time for frame in held]), spec, shot.at)
        images = {which: fit(held[which], spec, None) for which in {*wanted.tolist(), 0, len(held) - 1}}
    return np.stack([images[which] for which in wanted.tolist()])


def fit(frame: av.VideoFrame, spec: ClipSpec, picture: tuple[int, int, int, int] | None) -> np.ndarray:
    """Scale to cover, crop the centre."""
    left, top, right, bottom = picture or (0, 0, frame.width, frame.height)
    scale = max(spec.height / (bottom - top), spec.width / (right - left))
    tall, wide = max(spec.height, round(frame.height * scale)), max(spec.width, round(frame.width * scale))
    how = "AREA" if scale < 1 else "BICUBIC"
    image = frame.to_ndarray(format="rgb24", width=wide, height=tall, interpolation=how)
    if picture:
        left, top, right, bottom = (round(edge * scale) for edge in picture)
    else:
        right, bottom = wide, tall
    y = min(max((top + bottom - spec.height) // 2, 0), tall - spec.height)
    x = min(max((left + right - spec.width) // 2, 0), wide - spec.width)
    return image[y : y + spec.height, x : x + spec.width]


def torchcodec_frames(shot: Shot, spec: ClipSpec, decoder: Any) -> torch.Tensor:
    """The same frames through torchcodec, whose frames torch scales where they need it."""
    reader = decoder(shot.clip, num_ffmpeg_threads=1, dimension_order="NCHW")
    rows = range(shot.row["clean_start"], shot.row["clean_end"])
    wanted = sample_times(np.array([row / shot.row["fps"] for row in rows]), spec, shot.at)
    frames = reader.get_frames_at([rows[which] for which in (*wanted.tolist(), 0, -1)]).data
    scale = max(spec.height / frames.shape[2], spec.width / frames.shape[3])
    if scale != 1:
        size = [max(spec.height, round(frames.shape[2] * scale)), max(spec.width, round(frames.shape[3] * scale))]
        frames = torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True)
    y, x = ((side - want) // 2 for side, want in zip(frames.shape[2:], (spec.height, spec.width)))
    return frames[:, :, y : y + spec.height, x : x + spec.width].permute(0, 2, 3, 1).contiguous()


# ---- layouts ----


def layouts(shots: list[Shot], rounds: int) -> dict[str, dict[str, float]]:
    """Time, size and quality of every layout."""
    stored: dict[str, list[Shot]] = {name: [] for name in [*LAYOUTS, "lossless"]}
    for shot in shots:
        pictures = list(film_frames(shot))
        for name, layout in [*LAYOUTS.items(), ("lossless", LOSSLESS)]:
            stored[name].append(
                replace(shot, clip=encode(pictures, layout), record=shot.record.model_copy(update={"picture": None}))
            )
    exact = [ours(shot, LAYOUT_SPEC)[0] for shot in stored.pop("lossless")]
    works = {name: _in_turn(stored[name]) for name in LAYOUTS}
    measured = measure(works, shots, rounds)
    for name, values in measured.items():
        likeness = [compare(ours(shot, LAYOUT_SPEC)[0], truth) for shot, truth in zip(stored[name], exact)]
        size = sum(len(shot.clip) for shot in stored[name]) / 1e6
        values["PSNR dB"], values["SSIM"] = mean(pair[0] for pair in likeness), mean(pair[1] for pair in likeness)
        values["MB a shot"], values["stored MB/s"] = size / len(shots), size / (values["ms cpu"] * len(shots) / 1e3)
    return measured


def _in_turn(stored: list[Shot]) -> Decoder:
    """Decode the shots of one layout whatever shot is asked for, in their order."""
    by_key = {shot.row["key"]: shot for shot in stored}
    return lambda shot: ours(by_key[shot.row["key"]], LAYOUT_SPEC)


def film_frames(shot: Shot) -> Iterator[av.VideoFrame]:
    """The shot's frames out of its film, as the builder reads them, at most 720 lines."""
    assert shot.film is not None
    for index, _, frame in decode(shot.film):
        if index >= shot.record.end_frame:
            return
        if index >= shot.record.start_frame:
            yield frame


def encode(frames: list[av.VideoFrame], layout: Layout) -> bytes:
    """Store frames as the builder does, but for the layout."""
    file, begin = io.BytesIO(), frames[0]
    width, height = fit_short_side(begin.width, begin.height, layout.short_side)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = layout.gop or len(frames) + 1
        stream.codec_context.color_range, stream.codec_context.colorspace = begin.color_range, begin.colorspace
        stream.options = {**dict(layout.options), **X264_REPRODUCIBLE}
        for frame in frames:
            picture = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC", threads=1)
            picture.pts, picture.time_base = round((frame.time - begin.time) * TICKS), Fraction(1, TICKS)
            picture.pict_type = av.video.frame.PictureType.I if frame is frames[-1] else av.video.frame.PictureType.NONE
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def compare(frames: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """PSNR of RGB in dB and SSIM of luma (Wang et al. 2004: Gaussian of 1.5 pixels) of uint8 [F, H, W, 3] arrays."""
    error = float(np.mean((frames.astype(np.float32) - truth) ** 2))
    likeness = []
    for pair in zip(frames[::4], truth[::4]):
        x, y = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in pair)

        def blur(image: np.ndarray) -> np.ndarray:
            return cv2.GaussianBlur(image, (11, 11), 1.5)

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness.append(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))))
    return 10 * np.log10(255**2 / max(error, 1e-3)), float(np.mean(likeness))


# ---- transport ----


class _Ready(Dataset):
    """Batches of ones, as a worker that decoded them would hand them over."""

    def __init__(self, way: str) -> None:
        self.way, self.pixels = way, np.ones((1, 49, 480, 720, 3), np.uint8)

    def __len__(self) -> int:
        return 13

    def __getitem__(self, which: int) -> Any:
        if self.way == "arrays, pickled":
            return self.pixels.copy()
        if self.way == "tensor and the same as arrays":
            return torch.from_numpy(self.pixels.copy()), self.pixels
        if self.way == "tensor":
            return torch.from_numpy(self.pixels.copy())
        tensor = shared_frames(self.pixels.shape)
        tensor.numpy()[...] = self.pixels
        return tensor


WAYS = ("arrays, pickled", "tensor and the same as arrays", "tensor", "tensor made in shared memory")


def transport(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a batch from a worker that only has to fill it to the process that trains, start-up not counted."""
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    for _, way in itertools.product(range(rounds), WAYS):
        loader = iter(DataLoader(_Ready(way), batch_size=None, num_workers=1, multiprocessing_context="spawn"))
        next(loader)
        began = time.perf_counter()
        count = sum(1 for _ in loader)
        walls[way].append((time.perf_counter() - began) / count * 1e3)
    return {way: {"ms wall": statistics.median(values)} for way, values in walls.items()}


# ---- figures ----


def measure(works: Mapping[str, Decoder], shots: list[Shot], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds of the milliseconds a shot takes, in processor and wall time."""
    cpu: dict[str, list[float]] = {name: [] for name in works}
    wall: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time(), time.perf_counter()
            for shot in shots:
                work(shot)
            if number:  # the first round warms up
                cpu[name].append((time.process_time() - began[0]) / len(shots) * 1e3)
                wall[name].append((time.perf_counter() - began[1]) / len(shots) * 1e3)
    return {name: {"ms cpu": statistics.median(cpu[name]), "ms wall": statistics.median(wall[name])} for name in works}


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def table(measured: dict[str, dict[str, float]], base: str) -> str:
    """The figures as text, with shots a second of one core and the ratio to ``base``."""
    columns = list(next(iter(measured.values())))
    key = columns[0]
    lines = [f"{'':<34}" + "".join(f"{name:>13}" for name in columns) + f"{'a second':>13}{'ratio':>9}"]
    for name, values in measured.items():
        cells = "".join(f"{values[column]:>13.3f}" for column in columns)
        lines.append(f"{name:<34}{cells}{1e3 / values[key]:>13.1f}{measured[base][key] / values[key]:>9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
