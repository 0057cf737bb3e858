"""Clips with one text each that are no dataset directory: what their streams share, and which stream is for what.

A text-video set (:mod:`recipes.text_video`) serves the first stages, a folder of a few clips (:mod:`recipes.clips_folder`) the
last one. Their streams are the streams of a dataset with an index that was made by looking at the clips: order, state,
resuming and sharing among processes are the same. They have no stories, no licences and no hashes of clips.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from animeshooter_dataset import INDEX_SCHEMA, DataError
from animeshooter_streams import DrawnStream, Sample, ShotStream
from streams.batches import Room, ShotReader, start_of
from streams.clips import ClipSpec, decode_clip
from streams.indexed import hash_columns
from streams.order import draw
from streams.store import StoreOptions
from streams.walk import Request

if TYPE_CHECKING:
    from recipes.stage import Stage

TEXTS = ("caption", "text", "name", "title")
"""What a clip's text may be called, the first that is there counts."""
CARRIED = ("key", "shard", "mp4_offset", "mp4_size", "frames", "fps", "height", "width", "clean_start", "clean_end", "caption")
"""Columns that a worker needs to decode a clip."""
COLUMNS = pa.schema([*(INDEX_SCHEMA.field(name) for name in CARRIED[:-1]), ("caption", pa.string()), ("problem", pa.string())])
"""What is found out about clips; ``problem`` says why one cannot be used."""
NULL = "story video position prologue_or_epilogue rejected_by references picture_height picture_width licence".split()
"""Columns that a stream asks of an index and plain clips do not have, or all the same."""
LISTINGS = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
"""Files with a line for each clip."""
NAMED = 5
"""Clips left out that a message names."""


def stream_for(stage: Stage, data: str | Path) -> type[PlainClips] | None:
    """The stream that reads ``data`` for a stage where it is no dataset directory; None where it is one, or an address.

    Raises:
        DataError: it holds plain clips, and the stage needs a dataset.
    """
    if "://" in str(data) or (Path(data) / "manifest.json").is_file():
        return None
    from recipes.clips_folder import ClipsStream, is_clips_folder
    from recipes.text_video import TextVideoStream, is_text_video

    if stage.stream is DrawnStream and is_clips_folder(Path(data)):
        return ClipsStream
    if not is_text_video(data):
        return None
    if stage.stream is ShotStream and "text" in stage.needs:
        return TextVideoStream
    raise DataError(
        f"{data}: clips and texts, without stories and references; {stage.name} needs a dataset directory "
        "(make one with `animeshooter build`); align takes such a set"
    )


if TYPE_CHECKING:
    _Base = ShotStream
else:
    _Base = object


# ---- the stream ----


class PlainClips(_Base):
    """What streams of plain clips change of a stream over a dataset, to be named before it; a subclass makes the index.

    Attributes:
        kind: what the record of a run calls it.
        problems: what could not be taken, a line each.
        captions_by: who wrote the texts, as far as that is known.
        reference_each: references that every sample can have.
    """

    kind = "clips"
    captions_by = "not stated"
    reference_each = 0
    carried = CARRIED
    problems: Sequence[str] = ()

    def __init__(self, directory: str | Path, clip: ClipSpec | Sequence[ClipSpec], **settings: Any) -> None:
        """As the stream of a dataset; what needs a dataset is refused.

        Raises:
            DataError: nothing there can be trained on, or a setting needs a dataset.
        """
        options: StoreOptions | None = settings.get("options")
        if settings.get("features") is not None:
            raise DataError(f"{directory}: features are cached of a dataset directory only; leave out data.features")
        if options is not None and options.verify:
            raise DataError(f"{directory}: clips without a dataset have no hashes to compare with; leave out data.verify")
        folder, self.table, self.problems = self.make_index(Path(directory))
        self.source = Path(directory)
        super().__init__(folder, clip, **settings)

    def make_index(self, source: Path) -> tuple[Path, pa.Table, Sequence[str]]:
        """The folder that ``shard`` is named from, the clips (:data:`COLUMNS`), and what could not be taken.

        Raises:
            DataError: there is nothing that can be.
        """
        raise NotImplementedError

    def _read_index(self) -> np.ndarray:
        table, self.table = self.table, self.table.slice(0, 0)
        asked = [*CARRIED, *NULL]
        index = _as_index(table, self.source.resolve().name, {*asked, *(condition.column for condition in self.where)})
        place = index.column_names.index("references")
        index = index.set_column(place, "references", pa.array(np.full(len(index), self.reference_each, np.int32)))
        chosen, self.index = self._chosen(index, asked)
        return chosen

    def _warn(self) -> None:
        self._bare = np.zeros_like(self._bare)  # that none has a reference image is what such a set is
        super()._warn()

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`IndexedStream.fingerprint`: which clips, what they say, and where they lie."""
        keys, clips = hash_columns(self.index, ["key", "caption"]), hash_columns(self.index, list(CARRIED[1:-1]))
        both = hashlib.sha256(f"{keys} {clips}".encode()).hexdigest()[:16]
        return {"shots": self.index.num_rows, "keys": keys, "clips": clips, "shards": both}

    def describe(self) -> str:
        """For the log: what there is, what was left out and why, how long an epoch is."""
        told = super().describe().partition(": ")[2].replace(" shots,", " clips,", 1)
        told = told.replace(", 0 of prologue or epilogue, 0 rejected by a rule and", ",", 1)
        told = told.replace(", 0 samples without reference left out", "", 1)
        told = told.replace(f", {self.without_reference} without reference;", ";", 1)
        return "\n".join([f"{type(self).__name__} {self.source}: {told}", *self.left_out_lines()])

    def left_out_lines(self) -> list[str]:
        """What could not be taken, the first few by name."""
        if not self.problems:
            return []
        more = len(self.problems) - NAMED
        return [
            f"  cannot be used, and left out: {len(self.problems)}",
            *(f"    {problem}" for problem in self.problems[:NAMED]),
            *([f"    and {more} more"] if more > 0 else []),
        ]

    def reader(self) -> PlainReader:
        """See :meth:`Walk.reader`."""
        return PlainReader(self.store, self.name, self.seed, self.bad is not None, patience=self._patience)

    def record_data(self, stage: str, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the record of a run says of its data, and the line for the list of films: the whole set is one.

        Args:
            stage: which reads it.
            steps: of the run, from the stream's beginning.
        """
        read, state = self.rows_read(steps), self.state_dict()
        name = self.source.resolve().name
        about = {"video": f"{self.kind}:{name}", "title": name, "licence": None, "attribution": None, "uploader": None}
        film = {**about, "source": None, "sha256": None, "annotation_licences": [], "clips": self.index.num_rows}
        told = {
            "directory": name,
            "kind": self.kind,
            "schema_version": None,
            "release": None,
            "contact": None,
            **state,
            "samples": len(self),
            "samples_read": self.samples_read(steps),
            "shots_read": len(read),
            "epochs": round(self.samples_read(steps) / len(self), 4),
            "films": 1,
            "licences": {"not stated": 1},
            "annotation_licences": {},
            "annotators": {self.captions_by: self.index.num_rows},
            "left_out": len(self.problems),
        }
        return told, [{**film, "stages": {stage: len(read)}}]


class PlainReader(ShotReader):
    """Decodes plain clips: their text stands in the row, and nothing but the clip is read."""

    def first_read(self) -> tuple[str, ...]:
        """See :meth:`ShotReader.first_read`."""
        return ("mp4",)

    def shard(self, row: dict[str, Any]) -> str:
        """The file of a row; the store refuses one that leads out of the folder."""
        return str(row["shard"])

    def where(self, row: dict[str, Any]) -> str:
        """File and key, for messages."""
        file = f"{self.name}/{self.shard(row)}"
        return f"{file}: {row['key']}" if row["mp4_offset"] else file

    def decode(self, row: dict[str, Any], clip: ClipSpec, at: float, out: Any = None) -> Any:
        """The frames, the first and the last frame of a clip; see :func:`streams.clips.decode_clip`."""
        return decode_clip(self.read(row, ("mp4",))["mp4"], row, clip, at, self.where(row), out=out)

    def sample(self, request: Request, room: Room | None = None, number: int = 0) -> Sample:
        """Decode one sample; see :meth:`MemberReader.sample`."""
        clip, rows = cast(ClipSpec, request.clip), request.rows
        starts = [start_of(self.seed, request.place.epoch, row["key"], clip) for row in rows]
        frames, first, last = (room or Room([request])).of(number)
        for shot, (row, (at, _)) in enumerate(zip(rows, starts)):
            self.decode(row, clip, at, out=(frames[shot], first[shot], last[shot]))
        captions = [row["caption"] for row in rows]
        pictures, names, shots = self.pictures(request)
        fixed = tuple(which for _, which in starts if which is not None)
        return Sample(
            keys=tuple(row["key"] for row in rows),
            frames=frames,
            first=first,
            last=last,
            narrative=captions,
            descriptive=captions,
            references=pictures,
            characters=names,
            reference_shots=shots,
            starts=fixed or None,
        )

    def pictures(self, request: Request) -> tuple[tuple[np.ndarray, ...], tuple[str, ...], tuple[str, ...]]:
        """References, whose they are and where they are from: here there are none."""
        return (), (), ()

    def drawn(self, request: Request, *what: object) -> float:
        """A number in [0, 1) that depends on seed, epoch and sample alone."""
        return draw(self.seed, request.place.epoch, *(row["key"] for row in request.rows), *what)


# ---- looking at clips and texts ----


def probe(file: BinaryIO | str, size: int) -> dict[str, Any]:
    """What the index says of a clip, from its header alone.

    Args:
        file: the mp4, or its path.
        size: of the file, in bytes.

    Returns:
        frames, fps, height, width, clean_start and clean_end.

    Raises:
        ValueError: no clip, or one that is cut off; says so in a few words.
    """
    import av

    try:
        with av.open(file, options={"skip_frame": "all", "threads": "1"}, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError("has no video")
            stream = container.streams.video[0]
            entries = list(stream.index_entries)
            end = max((entry.pos + entry.size for entry in entries), default=0)
            if end > size:
                raise ValueError(f"is cut off: {end} bytes of pictures in a file of {size}")
            hidden = sum(entry.is_discard for entry in entries)  # before the start that its edit list sets
            rate = stream.average_rate or stream.guessed_rate
            if len(entries) <= hidden or not rate:
                raise ValueError("has no frames, or is no mp4 with an index of them")
            found = {"frames": len(entries), "fps": float(rate), "height": stream.height, "width": stream.width}
            return {**found, "clean_start": hidden, "clean_end": len(entries)}
    except (av.FFmpegError, OSError, UnicodeError) as error:
        raise ValueError(f"does not open as a video ({getattr(error, 'strerror', None) or error})") from None


def text_of(found: dict[str, Any]) -> str:
    """The text in a line or JSON about a clip; empty where there is none."""
    for name in TEXTS:
        value = found.get(name)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .jsonl or .csv file with the number of the line each ends on.

    Raises:
        DataError: not readable, or a line is no object.
    """
    try:
        if path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                for row in rows:
                    yield rows.line_num, {str(name).strip(): value for name, value in row.items()}
            return
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError(f"line {number} is no object")
                    yield number, value
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not readable ({error}); write a line for each clip, as the documentation says") from None


def listed_clips(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The clips of a folder by their path in it, and what is said of each.

    Either a listing says it (one of :data:`LISTINGS`, or the only .csv or .jsonl there), a line a clip with its ``file_name``,
    ``file`` or ``videoid`` (and ``page_dir``), or a .txt or .json beside each mp4. Of a clip without either nothing is said.

    Raises:
        DataError: a listing is not readable, or leads out of the folder.
    """
    listing, seen = listing_of(folder), set[str]()
    for number, line in read_lines(listing) if listing is not None else ():
        name = next((str(line[one]) for one in ("file_name", "file", "videoid") if line.get(one)), "")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise DataError(f"{listing}: line {number} names no clip of the folder; give file_name, a path in it, or videoid")
        file = _file_of(folder, name, str(line.get("page_dir") or ""))
        seen.add(file)
        yield file, line
    for path in sorted(folder.rglob("*.mp4")):
        file = path.relative_to(folder).as_posix()
        if file not in seen:
            yield file, _beside(path)


def listing_of(folder: Path) -> Path | None:
    """The file that says what the clips of a folder show, if there is one."""
    found = next((folder / name for name in LISTINGS if (folder / name).is_file()), None)
    others = [one for one in folder.iterdir() if one.suffix in (".csv", ".jsonl")] if found is None else []
    return others[0] if len(others) == 1 else found


def _file_of(folder: Path, name: str, page: str) -> str:
    """Where a clip of a listing lies; WebVid's have a number for a name and may lie by page."""
    plain = name if name.endswith(".mp4") else f"{name}.mp4"
    paged = [f"{page}/{plain}", f"videos/{page}/{plain}"] if page and ".." not in page and not page.startswith("/") else []
    places = [plain, f"videos/{plain}", *paged]
    return next((place for place in places if (folder / place).is_file()), plain)


def _beside(path: Path) -> dict[str, Any]:
    """What the .json or .txt beside a clip says."""
    said: dict[str, Any] = {}
    try:
        if path.with_suffix(".txt").is_file():
            said["caption"] = path.with_suffix(".txt").read_text(encoding="utf-8")
        if path.with_suffix(".json").is_file():
            said |= json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path.with_suffix('')}: its caption is not readable ({error}); write it as UTF-8 text") from None
    return said


def clip_row(key: str, file: str, offset: int, size: int, caption: str, open_file: Any) -> dict[str, Any]:
    """A row of :data:`COLUMNS`; ``open_file`` is the mp4, or its path."""
    row = {"key": key, "shard": file, "mp4_offset": offset, "mp4_size": size, "caption": caption}
    try:
        if not caption:
            raise ValueError(f"has no text ({', '.join(TEXTS)})")
        return {**row, **probe(open_file, size), "problem": None}
    except ValueError as error:
        return {**row, "problem": str(error)}


def _as_index(clips: pa.Table, name: str, asked: Collection[str]) -> pa.Table:
    """The columns of an index that are asked for: every clip is of the one story and video ``name``."""
    count = clips.num_rows
    columns = {field.name: pa.nulls(count, field.type) for field in INDEX_SCHEMA if field.name in asked}
    columns |= {column: clips[column] for column in CARRIED}
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([name]))
    columns |= {"story": one, "video": one, "position": pa.array(np.arange(count, dtype=np.int32))}
    return pa.table(columns)
