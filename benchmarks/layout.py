"""Shots laid out for a comparison of readers: in enough shards for every worker of every peer, repeated until there are enough.

Small datasets have one shard, which most peers cannot share among workers; a large one has thousands. Copies have keys of
their own and equal media.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from animeshooter_dataset import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    DataError,
    Reference,
    ShotRecord,
    dump,
    features,
    read_records,
)
from benchmarks.compositions import DRAWN, draw_scene
from benchmarks.scale import FPS, SECONDS, one_story
from curation.clips import ClipConfig, ClipSpan, cut_clips
from curation.collect import read_film
from curation.pack import Shards, file_hashes, index_values

Shot = tuple[ShotRecord, dict[str, bytes]]


def lay_out(source: Path | None, target: Path, shots: int, shards: int) -> None:
    """Write a dataset directory of ``shots`` shots from those of ``source`` (None: drawn ones), split train.

    Raises:
        DataError: ``source`` is no dataset, or has no shots.
    """
    (target / "shots").mkdir(parents=True)
    (target / "index").mkdir()
    found = list(islice(read_train(source) if source else draw_shots(), shots))
    if not found:
        raise DataError(f"{source}: no shots in split 'train'; name a dataset that has some")
    everything = list(islice(copies(found), shots))
    limit = sum(len(blob) for _, members in everything for blob in members.values()) // shards
    writer, rows = Shards(target, "shots", "train", limit, {}), []
    for record, members in everything:
        writer.begin_story()
        places = writer.add(record.key, {"mp4": members["mp4"], "json": dump(record), "png": members["png"]})
        rows.append({**index_values(record), "shard": writer.name, **places})
    writer.close()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), target / "index" / "train.parquet")
    write_card(target)


def write_card(target: Path) -> None:
    """Card and manifest of a directory that has nothing but shots: what ``load_dataset`` and ``ShotStream`` look at."""
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    card = DatasetCardData()
    configs = MetadataConfigs({"shots": {"data_files": [{"split": "train", "path": "shots/train-*.tar"}]}})
    configs.to_dataset_card_data(card)
    DatasetInfosDict({"shots": DatasetInfo(features=features("shots"), config_name="shots")}).to_dataset_card_data(card)
    (target / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
    manifest = {"schema_version": SCHEMA_VERSION, "files": file_hashes(target)}
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def read_train(source: Path) -> Iterator[Shot]:
    """The shots of a dataset's training split."""
    for record, members in read_records(source, "shots"):
        if record.split == "train":
            yield record, members


def copies(shots: list[Shot]) -> Iterator[Shot]:
    """The shots, then the same under other keys, and so on."""
    yield from shots
    number = 1
    while True:
        for record, members in shots:
            references = [
                reference.model_copy(update={"shot": f"{reference.shot}-{number}"}) for reference in record.references
            ]
            names = {"key": f"{record.key}-{number}", "story": f"{record.story}-{number}", "references": references}
            yield record.model_copy(update=names), members
        number += 1


def draw_shots(stories: int = 2) -> Iterator[Shot]:
    """Drawn shots of four seconds, 480 x 854, encoded as a build encodes them, with a reference each."""
    rng = np.random.default_rng(0)
    for number in range(stories):
        with tempfile.TemporaryDirectory() as folder:
            _, records = one_story("drawn", number)
            scenes = [draw_scene(rng, DRAWN[place % len(DRAWN)], SECONDS * FPS) for place in range(len(records))]
            film = read_film(write_film(Path(folder) / "film.mp4", [image for scene in scenes for image in scene]))
            spans = [
                ClipSpan(
                    Path(folder) / f"{place}.mp4",
                    place * SECONDS * FPS,
                    (place + 1) * SECONDS * FPS,
                    place * SECONDS,
                    (place + 1) * SECONDS,
                )
                for place in range(len(records))
            ]
            cut_clips(film, spans, ClipConfig())
            for place, (record, span) in enumerate(zip(records, spans)):
                other = records[place - 1]
                box = (0, 0, 160, 160)
                seen = Reference(character="ball", box=box, shot=other.key, frame=other.start_frame, source_box=box)
                sheet = io.BytesIO()
                Image.fromarray(scenes[place - 1][0][:160, :160]).convert("RGBA").save(sheet, "PNG")
                whole = record.model_copy(update={"references": [seen], "characters_without_reference": []})
                yield whole, {"mp4": span.path.read_bytes(), "png": sheet.getvalue()}


def write_film(path: Path, images: list[np.ndarray]) -> Path:
    """Pictures as a film of 480 x 854, nearly lossless."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "8", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 854, 480, "yuv420p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(cv2.resize(image, (854, 480), interpolation=cv2.INTER_CUBIC), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
