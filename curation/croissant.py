"""Croissant metadata of a dataset directory: what it is and how its files hold records, for tools that read no card.

The format is MLCommons' Croissant 1.1 (JSON-LD), written and checked by its library, ``mlcroissant``, which nothing else needs.
It is made when a dataset is published and lies beside its card as ``croissant.json``; a dataset directory has no such file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import MEMBERS, DataError, read_manifest
from curation.card_facts import Facts
from curation.card_text import hub_licence

FORMAT = "http://mlcommons.org/croissant/1.1"
PAPER = "https://arxiv.org/abs/2506.03126"
CITATION = (
    "@article{qiu2025animeshooter, title={AnimeShooter: A Multi-Shot Animation Dataset for Reference-Guided Video Generation}, "
    "author={Qiu, Lu and Li, Yizhuo and Ge, Yuying and Ge, Yixiao and Shan, Ying and Liu, Xihui}, "
    "journal={arXiv preprint arXiv:2506.03126}, year={2025}}"
)
LICENCES = 50
"""Licences that are listed; all are in ``rights.jsonl`` and in every record."""
MOST_SHARDS = 500
"""Shards of which members are described: the library's time to check them grows with the square of their number."""
MIMES = {"mp4": "video/mp4", "json": "application/json", "png": "image/png", "jpg": "image/jpeg", "flac": "audio/flac"}
KINDS = {"mp4": "VIDEO_OBJECT", "json": "TEXT", "png": "IMAGE_OBJECT", "jpg": "IMAGE_OBJECT", "flac": "AUDIO_OBJECT"}
ABOUT = {
    "mp4": "the clip with its sound",
    "json": "the annotation, as UTF-8 text of one JSON object",
    "png": "reference images of characters on one sheet with transparency",
    "jpg": "the storyboard, a tile a shot",
    "flac": "the sound without loss",
}


def croissant(directory: Path, url: str | None = None, *, revision: str = "main", published: date | None = None) -> bytes:
    """Croissant metadata of a dataset directory as JSON-LD, checked by ``mlcroissant``; the same for the same arguments.

    It names every index and shard with size and sha256. There is a record set for the index of each split
    (``index-train``), and one for each member of each config (``shots-mp4``, ``shots-json``), whose records have the sample's
    ``key``: the library joins no more than two sources, so that members of a sample are matched by their keys. A dataset of
    more than :data:`MOST_SHARDS` shards has the first kind only; the index tells at which bytes members lie.

    Args:
        directory: the dataset.
        url: page of the repository, such as ``https://huggingface.co/datasets/org/name``, whose files lie under
            ``/resolve/REVISION``. None: files are named relative to the folder in which the metadata lies beside them.
        revision: what of the repository is meant. A tag is better than ``main``: the library keeps what it has unpacked by its
            address alone, and would not see that a shard has changed.
        published: day of publication, where it shall be told; without it, publishing the same again changes nothing.

    Raises:
        DataError: ``mlcroissant`` is not installed, a part of the dataset is damaged, or the library refuses the metadata.
    """
    mlc = _library()
    manifest, facts = read_manifest(directory), Facts.of(directory)
    page = url.rstrip("/") if url else None
    base = f"{page}/resolve/{revision}/" if page else ""
    writer = _Writer(directory, mlc, mlc.Context(conforms_to=FORMAT), manifest.get("files", {}), base)
    remarks = logging.getLogger(
        "absl"
    )  # the library's; all that it can remark here is that a day of publication is recommended
    remarks.addFilter(_no_remarks)
    try:
        metadata = mlc.Metadata(
            ctx=writer.context,
            name="animeshooter",
            description=_description(facts),
            url=page or PAPER,
            license=_licences(facts, page),
            cite_as=CITATION,
            version=f"{manifest['schema_version']}.0",
            keywords=["animation", "multi-shot", "storytelling", "text to video", "image to video"],
            date_published=datetime.combine(published, time.min) if published else None,
            distribution=[*writer.files("index/", "application/x-parquet"), *writer.members()],
            record_sets=[*writer.indexes(), *writer.samples()],
        )
        told = metadata.to_json()
        mlc.Dataset(jsonld=told)
    except mlc.ValidationError as error:
        raise DataError(f"{directory}: mlcroissant refuses its metadata ({' '.join(str(error).split())[:300]})") from None
    finally:
        remarks.removeFilter(_no_remarks)
    return (json.dumps(told, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def _no_remarks(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def _library() -> Any:
    """The module ``mlcroissant``, which is optional."""
    try:
        import mlcroissant
    except ImportError:
        raise DataError("Croissant metadata needs a library that is not installed: pip install mlcroissant") from None
    return mlcroissant


def _description(facts: Facts) -> str:
    films, stories = len(facts.tally.videos), facts.tally.counts["stories"]
    return (
        f"{stories} stories in {facts.shots['all']} shots, cut to the frame from {films} animated films "
        f"({facts.minutes:.1f} minutes): "
        "clips with sound, captions, storylines, and reference images of characters, in the structure of AnimeShooter. "
        "Each film keeps its own licence, and words and masks have theirs: see the card, README.md, also for removal of a film."
    )


def _licences(facts: Facts, page: str | None) -> list[str]:
    """Every stated licence of films and annotations once, Creative Commons by address, and where the rest stands."""
    stated = [*facts.licences(), *(name for name in facts.annotation_licences() if name)]
    names = list(dict.fromkeys(_address(name) for name in stated[:LICENCES]))
    return [*names, *([f"{page}#rights-and-removal"] if page else [])] or ["not stated"]


def _address(licence: str | None) -> str:
    name = hub_licence(licence)
    found = re.fullmatch(r"cc-(by[a-z-]*)-(\d\.\d)", name or "")
    if found:
        return f"https://creativecommons.org/licenses/{found[1]}/{found[2]}/"
    return "https://creativecommons.org/publicdomain/zero/1.0/" if name == "cc0-1.0" else licence or "not stated"


def _columns(path: Path) -> pa.Schema:
    """The columns that an index has, which an earlier schema has fewer of."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as a shard index ({error}); build or download it again") from None


@dataclass(frozen=True)
class _Writer:
    """Writes the nodes of one dataset's metadata: ``mlc`` is the library, ``files`` of the manifest, ``base`` their address."""

    directory: Path
    mlc: Any
    context: Any
    manifest: Mapping[str, Mapping[str, Any]]
    base: str

    def files(self, folder: str, mime: str) -> list[Any]:
        """A file object for every file of a folder."""
        return [
            self.mlc.FileObject(
                ctx=self.context,
                id=name,
                name=name,
                content_url=f"{self.base}{name}",
                content_size=f"{self.manifest[name]['bytes']} B",
                encoding_formats=[mime],
                sha256=self.manifest[name]["sha256"],
            )
            for name in self._names(folder)
        ]

    def members(self) -> list[Any]:
        """The shards, and a file set for each member of each config in them."""
        found = []
        for config in MEMBERS:
            found += self.files(f"{config}/", "application/x-tar")
            found += [
                self.mlc.FileSet(
                    ctx=self.context,
                    id=f"{config}-{member}-files",
                    name=f"{config}-{member}-files",
                    contained_in=self._names(f"{config}/"),
                    includes=[f"*.{member}"],
                    encoding_formats=[MIMES[member]],
                )
                for member in self._described(config)
            ]
        return found

    def indexes(self) -> list[Any]:
        """A record set for each index: a record a shot, or an audio clip, of a split."""
        found = []
        for name in self._names("index/"):
            config, _, split = Path(name).stem.rpartition("-")
            known = f"index-{Path(name).stem}"
            fields = [self._column(known, name, column) for column in _columns(self.directory / name)]
            what = "an audio clip" if config == "audio" else "a shot"
            about = f"One record {what} of {split}: what it is, its scores, and at which bytes of the shards its members lie."
            found.append(self._records(known, about, fields))
        return found

    def samples(self) -> list[Any]:
        """A record set for each member of each config: a record a sample."""
        found = []
        for config in MEMBERS:
            for member in self._described(config):
                name, files = f"{config}-{member}", f"{config}-{member}-files"
                key = self._field(
                    f"{name}/key",
                    "TEXT",
                    self._source(file_set=files, file_property="filename", regex=rf"^(.+)\.{member}$"),
                    "the sample's key, the same for all its members",
                )
                content = self._source(file_set=files, file_property="content")
                field = self._field(f"{name}/{member}", KINDS[member], content, ABOUT[member])
                found.append(self._records(name, f"One record a sample of the config {config}: {ABOUT[member]}.", [key, field]))
        return found

    def _described(self, config: str) -> tuple[str, ...]:
        """The members of a config that have record sets."""
        few = sum(name.endswith(".tar") for name in self.manifest) <= MOST_SHARDS
        return MEMBERS[config] if few and self._names(f"{config}/") else ()

    def _names(self, folder: str) -> list[str]:
        return sorted(name for name in self.manifest if name.startswith(folder))

    def _records(self, name: str, about: str, fields: list[Any]) -> Any:
        return self.mlc.RecordSet(ctx=self.context, id=name, name=name, description=about, fields=fields)

    def _column(self, records: str, file: str, column: pa.Field) -> Any:
        many = pa.types.is_list(column.type)
        kind = column.type.value_type if many else column.type
        names = ((pa.types.is_integer, "INTEGER"), (pa.types.is_floating, "FLOAT"), (pa.types.is_boolean, "BOOL"))
        data_type = next((name for fits, name in names if fits(kind)), "TEXT")
        shape: dict[str, Any] = {"is_array": True, "array_shape": "-1"} if many else {}
        return self._field(f"{records}/{column.name}", data_type, self._source(file_object=file, column=column.name), **shape)

    def _field(self, name: str, kind: str, source: Any, about: str | None = None, **shape: Any) -> Any:
        short = name.partition("/")[2]
        types = [getattr(self.mlc.DataType, kind)]
        return self.mlc.Field(
            ctx=self.context, id=name, name=short, description=about, data_types=types, source=source, **shape
        )

    def _source(
        self,
        file_set: str | None = None,
        file_object: str | None = None,
        regex: str | None = None,
        **extract: str,
    ) -> Any:
        transforms = [self.mlc.Transform(ctx=self.context, regex=regex)] if regex else []
        extracted = self.mlc.Extract(ctx=self.context, **extract)
        return self.mlc.Source(
            ctx=self.context, file_set=file_set, file_object=file_object, extract=extracted, transforms=transforms
        )
