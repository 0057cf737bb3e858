"""Clips that are no dataset directory, for tests: WebVid-like tars, folders with a listing, a few clips of one character."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from tiny_dataset import encode, picture


def clip(number, frames=14, names=("Red",)):
    """An mp4 of a square that moves; ``number`` decides its colours."""
    return encode(np.stack([picture(frame, frames, number % 3, number, list(names)) for frame in range(frames)]))


def write_tar(path, samples):
    """``samples`` maps a key to its members by extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, blob in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))


def write_webvid(folder, tars=3, clips=5):
    """Tars as webdataset writes them: captions in turn as text and as JSON under each of their names."""
    names = ("caption", "text", "name")
    for number in range(tars):
        samples = {}
        for place in range(clips):
            text = f"square {place} of tar {number}"
            said = (
                {"txt": text.encode()} if place % 2 else {"json": json.dumps({names[number % 3]: text, "id": place}).encode()}
            )
            samples[f"{number:02}{place:03}"] = {"mp4": clip(number * clips + place), **said}
        write_tar(folder / f"{number:05}.tar", samples)
    return folder


def write_listed(folder, clips=6):
    """WebVid's own layout: clips by page, and a table with their ids."""
    lines = ["videoid,page_dir,duration,name"]
    for number in range(clips):
        path = folder / "videos" / f"page{number % 2}" / f"{1000 + number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip(number))
        lines.append(f'{1000 + number},page{number % 2},PT1S,"square {number}, moving"')
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_clips(folder, clips=5, frames=14, reference=None):
    """A few clips of one character, each with its caption; ``reference`` is a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        (folder / f"clip{number}.mp4").write_bytes(clip(number, frames))
        (folder / f"clip{number}.txt").write_text(f"Red moves, take {number}\n")
    if reference is not None:
        Image.new("RGB", (32, 32), reference).save(folder / "reference.png")
    return folder
