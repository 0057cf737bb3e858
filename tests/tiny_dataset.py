"""A small, valid dataset directory for tests: coloured squares that move, cut into videos, stories and shots."""

import hashlib
import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from animeshooter_dataset import (
    INDEX_SCHEMA,
    AnnotatedBy,
    Character,
    Reference,
    Scene,
    ShotRecord,
    dump,
)

HEIGHT, WIDTH, FPS = 72, 128, 12
CHARACTERS = {"Red": (220, 40, 40), "Blue": (40, 60, 220)}


def encode(frames, times=None):
    """Frames uint8 [F, H, W, 3] as mp4 bytes; ``times`` in milliseconds makes the rate variable."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = round(number * 1000 / FPS) if times is None else times[number]
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def picture(number, frames, video, shot, names):
    """One frame: its number is in the grey of the top left corner, the characters are squares that move right."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (200 - 20 * video, 180, 120 + 10 * (shot % 8)))
    canvas = ImageDraw.Draw(image)
    for row, name in enumerate(names):
        left, top = 10 + number * (WIDTH - 50) // frames, 12 + 26 * row
        canvas.rectangle((left, top, left + 22, top + 22), fill=CHARACTERS[name])
    level = 255 * number // frames
    canvas.rectangle((40, 0, 87, 11), fill=(level, level, level))
    return np.asarray(image)


def sheet(references):
    """A reference sheet with one 22 x 22 square on transparency for each reference."""
    image = Image.new("RGBA", (32 * max(1, len(references)), 32), (0, 0, 0, 0))
    canvas = ImageDraw.Draw(image)
    for number, reference in enumerate(references):
        canvas.rectangle((32 * number + 5, 5, 32 * number + 26, 26), fill=(*CHARACTERS[reference.character], 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def story_records(video, story, shots, frames, with_references, lonely):
    """The records of one story; with ``lonely`` its last shot lists nobody."""
    key = f"film{video}-s{story}"
    keys = [f"{key}-{position:03}" for position in range(shots)]
    cast = [
        [] if lonely and position == shots - 1 else ["Red"] if position % 3 else ["Red", "Blue"] for position in range(shots)
    ]
    records = []
    for position, names in enumerate(cast):
        references = [
            Reference(
                character=name,
                box=(32 * place, 0, 32 * place + 32, 32),
                shot=keys[other],
                frame=other * frames + 2,
                source_box=(10, 10, 42, 42),
            )
            for place, (name, other) in enumerate(
                (name, other) for name in names for other in range(shots) if name in cast[other] and other != position
            )
        ]
        begin = position * frames
        records.append(
            ShotRecord(
                video=f"film{video}",
                split="train",
                licence="CC0-1.0",
                annotator=AnnotatedBy(kind="sidecar"),
                frames=frames,
                fps=FPS,
                height=HEIGHT,
                width=WIDTH,
                has_audio=False,
                key=keys[position],
                position=position,
                start_frame=begin,
                end_frame=begin + frames,
                start_time=begin / FPS,
                end_time=(begin + frames) / FPS,
                clean_start_frame=begin + (2 if position else 0),
                clean_end_frame=begin + frames,
                transition_in="gradual" if position else "start",
                scene="meadow",
                characters=names,
                narrative_caption=f"{' and '.join(names) or 'Nobody'} walks on.",
                descriptive_caption=f"A flat meadow; {', '.join(names) or 'nobody'} moves to the right in shot {position}.",
                story=key,
                shots_in_story=shots,
                storyline="Red meets Blue.",
                story_characters=[Character(id=name, appearance=f"a {name.lower()} square") for name in CHARACTERS],
                story_scenes=[Scene(id="meadow", environment="a flat meadow")],
                references=references if with_references else [],
                characters_without_reference=[] if with_references else names,
            )
        )
    return records


def write_dataset(
    directory, videos=2, stories=1, shots=4, frames=14, with_references=True, lonely=False, per_shard=8, clips=None, said=None
):
    """Write a dataset directory and return its shot records in stream order.

    ``clips`` maps a key to the mp4 bytes to store in place of a rendered clip, ``said`` a video to what its records say, and
    ``frames`` may map a video to the frames of its shots.
    """
    directory = Path(directory)
    (directory / "shots").mkdir(parents=True)
    (directory / "index").mkdir()
    records, rows = [], []
    for video in range(videos):
        for story in range(stories):
            changed = (said or {}).get(f"film{video}", {})
            length = frames[f"film{video}"] if isinstance(frames, dict) else frames
            told = story_records(video, story, shots, length, with_references, lonely)
            records += [record.model_copy(update=changed) for record in told]
    for number in range(0, len(records), per_shard):
        name = f"train-{number // per_shard:05}.tar"
        rows += _write_shard(directory, name, records[number : number + per_shard], clips or {})
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), directory / "index" / "train.parquet")
    (directory / "manifest.json").write_text(json.dumps({"schema_version": "1.0", "files": {}}))
    return records


def _write_shard(directory, name, records, clips):
    rows = []
    with tarfile.open(directory / "shots" / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            video = int(record.video.removeprefix("film"))
            frames = np.stack(
                [picture(number, record.frames, video, record.position, record.characters) for number in range(record.frames)]
            )
            members = {
                "mp4": clips.get(record.key) or encode(frames),
                "json": dump(record),
                "png": sheet(record.references),
            }
            row = {
                "key": record.key,
                "story": record.story,
                "video": record.video,
                "position": record.position,
                "shard": f"shots/{name}",
                "frames": record.frames,
                "fps": record.fps,
                "height": record.height,
                "width": record.width,
                "clean_start": record.clean_start_frame - record.start_frame,
                "clean_end": record.clean_end_frame - record.start_frame,
                "has_audio": False,
                "characters": record.characters,
                "references": len(record.references),
                "licence": record.licence,
                "sha256": hashlib.sha256(members["mp4"]).hexdigest(),
            }
            for member, blob in members.items():
                info = tarfile.TarInfo(f"{record.key}.{member}")
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
            rows.append(row)
    with tarfile.open(directory / "shots" / name) as tar:
        entries = {info.name: info for info in tar}
    for row in rows:
        for member in ("mp4", "json", "png"):
            info = entries[f"{row['key']}.{member}"]
            row[f"{member}_offset"], row[f"{member}_size"] = info.offset_data, info.size
    return rows
