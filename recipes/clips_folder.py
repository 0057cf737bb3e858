"""A folder with a few clips of one character or film, for the last stage::

    fox/
      run.mp4  run.txt           a clip, and its caption in a text file of its name
      sleep.mp4  sleep.txt
      captions.jsonl             or all captions in one file, a line a clip: {"file_name": "run.mp4", "caption": "...",
                                 "characters": ["Fox"]} (characters may be left out); or captions.csv with these columns
      reference.png              a picture of the character, if there is one
      references/Fox.png         or one for each of several

Clips are drawn into sequences as shots of a film are. The reference of a sequence is the picture that was given; of several
those of the characters most of its clips show, as ``characters`` says or their names in the captions do. Without a picture it
is the middle frame of a clip outside the sequence, or of one inside where there is no other.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from animeshooter_dataset import DataError
from animeshooter_streams import DrawnStream
from recipes.plain_clips import COLUMNS, PlainClips, PlainReader, clip_row, listed_clips, text_of
from streams.clips import ClipSpec, on_white
from streams.walk import Request

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
DECODED = 64
"""Clips up to which every frame of each is decoded before training starts."""
CAPTION = 'write it into {0}.txt beside it, or as {{"file_name": "{0}.mp4", "caption": "..."}} into captions.jsonl'


class ClipsStream(PlainClips, DrawnStream):
    """``n`` different clips of a folder a sample; arguments as of :class:`animeshooter_streams.DrawnStream`."""

    kind = "clips"
    reference_each = 1

    def __init__(self, directory: str | Path, clip: ClipSpec | Sequence[ClipSpec], **settings: Any) -> None:
        """Look at the clips; each fault is one line.

        Raises:
            DataError: a clip has no caption, is damaged or too short, or there are fewer clips than a sequence has.
        """
        self.wanted = int(settings.get("references", 1))
        self.drawings = _drawings(Path(directory))
        self.needs = min(one.min_frames for one in ([clip] if isinstance(clip, ClipSpec) else clip))
        super().__init__(directory, clip, **settings)

    def make_index(self, source: Path) -> tuple[Path, pa.Table, Sequence[str]]:
        """See :meth:`PlainClips.make_index`; nothing is left out: of so few clips each counts."""
        rows, self.characters = [], {}
        for file, said in listed_clips(source):
            path, key = source / file, Path(file).with_suffix("").as_posix()
            if not path.is_file():
                raise DataError(f"{path}: is listed and not there; take its line out, or put the clip there")
            row = clip_row(key, file, 0, path.stat().st_size, text_of(said), str(path))
            _refuse(row, path, self.needs)
            rows.append(row)
            self.characters[key] = _characters(said, row["caption"], list(self.drawings))
        if not rows:
            raise DataError(f"{source}: no clips (*.mp4) there")
        if len({row["key"] for row in rows}) < len(rows):
            raise DataError(f"{source}: a clip is listed twice; leave one line for each")
        if len(rows) <= DECODED:
            for row in rows:
                _decode_all(source / row["shard"], row["frames"])
        self.hashes = {row["key"]: _sha256(source / row["shard"]) for row in rows}
        return source, pa.Table.from_pylist(rows, schema=COLUMNS), ()

    def _refuse_nothing(self, bucket: np.ndarray) -> None:
        least = self.n if isinstance(self.n, int) else max(1, int(np.max(self.n)))
        if 0 < self.index.num_rows < least:
            raise DataError(
                f"{self.source}: {self.index.num_rows} clip{'s' if self.index.num_rows > 1 else ''}, and a sequence has "
                f"{least} different ones; add clips, or set data.shots={self.index.num_rows}"
            )
        super()._refuse_nothing(bucket)

    def describe(self) -> str:
        """As of other streams, and where the references come from."""
        return f"{super().describe()}\n  reference: {self.references_from()}"

    def references_from(self) -> str:
        """Where the reference of a sequence comes from, in words."""
        if self.drawings:
            return ", ".join(self.drawings)
        least = self.n if isinstance(self.n, int) else 1
        which = "another clip" if self.index.num_rows > least else "one of its own clips, for there is no other"
        return f"the middle frame of {which} (no reference.png and no references/NAME.png in the folder)"

    def fingerprint(self) -> dict[str, Any]:
        """As of other plain clips; ``shards`` is a hash of what is in clips and pictures."""
        pictures = [picture.tobytes() for picture in self.drawings.values()]
        content = "".join([*self.hashes.values(), *(hashlib.sha256(one).hexdigest() for one in pictures), *self.drawings])
        return {**super().fingerprint(), "shards": hashlib.sha256(content.encode()).hexdigest()[:16]}

    def reader(self) -> ClipsReader:
        """See :meth:`Walk.reader`; it knows the other clips."""
        rows = [] if self.drawings else self.index.select(list(self.carried)).to_pylist()
        reader = ClipsReader(self.store, self.name, self.seed, self.bad is not None, patience=self._patience)
        reader.others, reader.drawings, reader.characters, reader.wanted = rows, self.drawings, self.characters, self.wanted
        return reader

    def record_data(self, stage: str, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """See :meth:`PlainClips.record_data`; each clip is told."""
        told, films = super().record_data(stage, steps)
        told["clips"] = [{"name": key, "sha256": digest} for key, digest in self.hashes.items()]
        told["references"] = self.references_from()
        return told, films


class ClipsReader(PlainReader):
    """Decodes clips of a folder and gives each sequence its references."""

    others: Sequence[dict[str, Any]] = ()
    drawings: dict[str, np.ndarray]
    characters: dict[str, list[str]]
    wanted: int = 1

    def pictures(self, request: Request) -> tuple[tuple[np.ndarray, ...], tuple[str, ...], tuple[str, ...]]:
        """The pictures given of the characters that most clips show; else a frame of another clip."""
        keys = [row["key"] for row in request.rows]
        if self.drawings:
            shown = Counter(name for key in keys for name in self.characters[key])
            names = sorted(shown or self.drawings, key=lambda name: (-shown[name], list(self.drawings).index(name)))
            names = names[: self.wanted]
            return tuple(self.drawings[name] for name in names), tuple(names), ("",) * len(names)
        outside = [row for row in self.others if row["key"] not in keys] or list(request.rows)
        row = outside[int(self.drawn(request, "reference") * len(outside))]
        whole = ClipSpec(frames=1, height=row["height"], width=row["width"], fps=row["fps"], min_frames=1)
        frames, _, _ = self.decode(row, whole, 0.5)
        return (frames[0],), ("",), (row["key"],)


def is_clips_folder(folder: Path) -> bool:
    """Whether a folder holds clips by themselves."""
    return folder.is_dir() and next(folder.rglob("*.mp4"), None) is not None and not any(folder.glob("*.tar"))


def _drawings(folder: Path) -> dict[str, np.ndarray]:
    """The pictures given: RGB on white, uint8 [height, width, 3], by the character's name.

    Raises:
        DataError: one is not readable.
    """
    several, found = folder / "references", {}
    paths = sorted(several.iterdir()) if several.is_dir() else sorted(folder.glob("reference.*"))
    for path in paths:
        if path.suffix.lower() in PICTURES:
            try:
                with Image.open(path) as image:
                    found[path.stem] = np.asarray(on_white(image))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{path}: not a readable picture ({error}); give a PNG or JPEG") from None
    return found


def _characters(said: dict[str, Any], caption: str, names: Sequence[str]) -> list[str]:
    """Which of the characters with a picture a clip shows."""
    listed = said.get("characters")
    if isinstance(listed, str):
        listed = [name.strip() for name in listed.split("|")]
    if isinstance(listed, list) and listed:
        return [name for name in names if name in listed]
    return [name for name in names if re.search(rf"\b{re.escape(name)}\b", caption, re.IGNORECASE)]


def _refuse(row: dict[str, Any], path: Path, least: int) -> None:
    """Say what is wrong with a clip.

    Raises:
        DataError: something is.
    """
    if not row["caption"]:
        raise DataError(f"{path}: no caption; {CAPTION.format(path.stem)}")
    if row["problem"]:
        raise DataError(f"{path}: {row['problem']}; write it anew as mp4 (H.264), or take it out")
    frames = row["clean_end"] - row["clean_start"]
    if frames < least:
        raise DataError(
            f"{path}: {frames} frames, and a clip needs {least} (data.clip.min_frames); give a longer one, or take it out"
        )


def _decode_all(path: Path, frames: int) -> None:
    """Decode a clip from beginning to end.

    Raises:
        DataError: it does not decode, or to fewer frames than its header says.
    """
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            count = sum(1 for _ in container.decode(stream))
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise DataError(f"{path}: does not decode ({error}); write it anew as mp4 (H.264), or take it out") from None
    if not count:
        raise DataError(f"{path}: none of its {frames} frames decodes; write it anew as mp4 (H.264), or take it out")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
