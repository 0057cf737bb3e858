"""``animeshooter takedown DIR ID…``: a film goes, with everything that was made of it.

Its clips, sheets, storyboards, sound and records leave the shards, by copying what stays of the shards that hold them; its rows
leave the index, its words the other files, its results and answers the caches (``curation.forget``). What stays are lines that
say that it is withdrawn, so that later builds know it again. All other samples keep their bytes, all other files stay the very
same ones. The change takes place in one step at the end, see ``curation.edition``: a run that was stopped has taken nothing out
of the dataset, or everything, and the same command again does what is left to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from animeshooter_dataset import (
    MEMBERS,
    AvailabilityRecord,
    DataError,
    DroppedRecord,
    FilmRecord,
    Record,
    RemovalRecord,
    RightsRecord,
    dump,
    first_problem,
    index_name,
    read_lines,
    read_manifest,
    shards,
    splits,
)
from curation.edition import held, next_edition, replace_file
from curation.forget import Traces, forget
from curation.index import index_batches
from curation.lines import one_line
from curation.optout import Kind, OptOut, withdrawn_records
from curation.pack import INDEX_ROWS, INDEXED, Hashed, file_hash, shares_for, write_manifest
from curation.splice import Ranges, copy_without, records_of
from curation.ytdlp import today as date_of_today


@dataclass(frozen=True)
class TakedownReport:
    """What a takedown did.

    Attributes:
        directory: the dataset.
        removed: the lines that ``removals.jsonl`` gained.
        already: videos that were withdrawn before.
        rewritten: files of the dataset that were made anew without the films, by relative path.
        deleted: files of the dataset that held nothing else.
        bytes_written: bytes of the dataset that were written.
        outside: what was deleted or changed outside the dataset: staged results, answers, downloads, a report page.
        left: what could not be deleted outside it, and why; delete it by hand, or run again.
        empty: nothing is left of the dataset but its ledgers.
    """

    directory: Path
    removed: tuple[RemovalRecord, ...] = ()
    already: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    bytes_written: int = 0
    outside: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()
    empty: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "directory": str(self.directory),
            "removed": [line.model_dump(mode="json") for line in self.removed],
            "already_withdrawn": list(self.already),
            **{name: [str(each) for each in getattr(self, name)] for name in ("rewritten", "deleted", "outside", "left")},
            "bytes_written": self.bytes_written,
            "empty": self.empty,
        }

    def text(self) -> str:
        """What a user wants to know, a line each."""
        lines = [
            f"removed: {line.video} (stories {line.stories}, shots {line.shots}, audio clips {line.audio}; by {line.matched})"
            for line in self.removed
        ]
        lines += [f"already withdrawn: {video}" for video in self.already]
        lines += [f"cleared outside the dataset: {one_line(path)}" for path in self.outside]
        lines += [f"NOT deleted: {what}" for what in self.left]
        if self.removed:
            files = f"{len(self.rewritten)} files rewritten, {len(self.deleted)} deleted, {self.bytes_written:,} bytes written"
            lines.append(f"{one_line(self.directory)}: {files}")
        elif not self.already:
            lines.append(f"{one_line(self.directory)}: holds no film of the list")
        if self.empty:
            lines.append(f"{one_line(self.directory)}: nothing is left of it but its ledgers")
        return "\n".join(lines)


def takedown(
    directory: Path,
    wanted: Sequence[str] | OptOut,
    *,
    match: Kind = "id",
    reason: str | None = None,
    work: Path | None = None,
    downloads: Path | None = None,
    answers: Path | None = None,
    today: Callable[[], str] = date_of_today,
    progress: Callable[[str], None] = lambda name: None,
) -> TakedownReport:
    """Remove films and everything made of them from a dataset, and from what its builds keep beside it.

    All or nothing: where something named is unknown, nothing is removed. An :class:`OptOut` speaks of films in general, and
    those of them that are in the dataset go.

    Args:
        directory: the dataset.
        wanted: which films.
        match: what ``wanted`` holds: ids (of a video, or YouTube's), sha256 of films, addresses, or uploaders.
        reason: one line for ``removals.jsonl`` and ``films.jsonl``, which are public.
        work: folder for staged results of builds, where it is not ``DIR.work``.
        downloads: folder for fetched films, where it is not ``DIR.films``.
        answers: folder of models' answers, where it is not the usual one (:func:`curation.asking.default_cache`).
        today: gives the ISO date of the removal.
        progress: called with the name of each shard before it is read.

    Raises:
        DataError: something named is unknown, it is no dataset directory, somebody is writing it, a part of it is damaged, or
            the disk is full; the dataset is as it was.
    """
    reason = one_line(reason.strip()) or None if reason else None
    out = wanted if isinstance(wanted, OptOut) else OptOut.of(wanted, match)
    if not len(out) and not isinstance(wanted, OptOut):
        raise DataError(f"{directory}: no film is named")
    with held(directory, work) as home:
        found, already = _matched(home, out, strict=not isinstance(wanted, OptOut))
        traces = Traces.of([*(each.rights for each in found.values()), *already], home)
        clear = partial(forget, traces, directory, work=work, downloads=downloads, answers=answers)
        told = TakedownReport(directory, already=tuple(line.video for line in already), empty=not splits(home))
        if not found:
            gone = clear()
        else:
            with next_edition(home) as new:
                told = _Removal(home, new, found, reason, today(), traces, progress).run(told)
                gone = clear()  # before the step that cannot be taken back: a rerun still knows all there is to forget
    return replace(told, outside=tuple(gone.paths), left=tuple(gone.left))


@dataclass(frozen=True)
class _Found:
    """A line of the ledger that is to be withdrawn, and by what it was found."""

    rights: RightsRecord
    kind: Kind


def _matched(home: Path, out: OptOut, *, strict: bool) -> tuple[dict[str, _Found], list[RightsRecord]]:
    """The ledger's lines that an opt-out speaks of, by video; and those of them that are withdrawn already.

    Raises:
        DataError: ``strict``, and an entry speaks of no line.
    """
    found: dict[str, _Found] = {}
    already: list[RightsRecord] = []
    met = set()
    for line in read_lines(home / "rights.jsonl", RightsRecord):
        entries = out.find(id=line.video, sha256=line.sha256, address=line.source, uploader=line.uploader)
        met.update(entries)
        if entries and line.state == "withdrawn":
            already.append(line)
        elif entries:
            found[line.video] = _Found(line, entries[0].kind)
    unknown = [one_line(entry.text) for entry in out.entries if entry not in met] if strict else []
    if unknown:
        what = {"id": "id", "hash": "sha256", "url": "address", "uploader": "uploader"}[out.entries[0].kind]
        raise DataError(
            f"{home / 'rights.jsonl'}: no video has the {what} {', '.join(unknown)}; nothing was removed: "
            "its lines say what there is, and --match hash, url or uploader finds films by other things"
        )
    return found, already


@dataclass
class _Removal:
    """Making the next edition of a dataset without some films."""

    home: Path
    new: Path
    found: Mapping[str, _Found]
    reason: str | None
    today: str
    traces: Traces
    progress: Callable[[str], None]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    cuts: dict[str, Ranges] = field(default_factory=dict)
    doomed: set[str] = field(default_factory=set)

    def run(self, told: TakedownReport) -> TakedownReport:
        """Write the edition; returns the report with what was done to the dataset."""
        manifest = read_manifest(self.home)
        self.files = dict(manifest.get("files", {}))
        self.counts = {video: Counter() for video in self.found}
        values = {**manifest, "settings": self._settings(manifest.get("settings", {}))}
        holding = self._holding()
        for config in MEMBERS:
            for split in splits(self.home, config):
                for tar in shards(self.home, config, split):
                    name = f"{config}/{tar.name}"
                    if config != "shots" or name in holding:
                        self.progress(name)
                        self._rewrite_shard(name, config)
        for config in INDEXED:
            for split in splits(self.home, config):
                if (self.home / index_name(config, split)).is_file() or config == "shots":  # schema 1.1 indexes shots alone
                    self._rewrite_index(index_name(config, split), config)
        removed = self._rewrite_ledgers()
        values |= {"dropped": self._dropped(), "rejected_by": self._rejected()}
        empty = not any(splits(self.new, config) for config in MEMBERS)
        write_manifest(self.new, values, self.files)
        for folder in (self.new / name for name in (*MEMBERS, "index")):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        rewritten = sorted([*self.rewritten, "README.md", "manifest.json"])
        return replace(
            told,
            removed=tuple(removed),
            rewritten=tuple(rewritten),
            deleted=tuple(sorted(self.deleted)),
            bytes_written=sum((self.new / name).stat().st_size for name in rewritten),
            empty=empty,
        )

    def _settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The build's settings, with the shares of splits where fewer films would mean others: no film changes its split."""
        if settings.get("shares"):
            return settings
        films = [film for film in read_lines(self.home / "films.jsonl", FilmRecord) if film.state == "kept"]
        before, after = (
            shares_for(None, kept) for kept in ([True] * len(films), [film.video not in self.found for film in films])
        )
        return settings if before == after else {**settings, "shares": dict(before)}

    def _holding(self) -> set[str]:
        """The shards of shots that hold the films, by the index, which also tells the keys of their shots."""
        found: set[str] = set()
        present = splits(self.home)
        for batch in index_batches(self.home, ["key", "video", "shard"], present) if present else ():
            gone = batch.filter(pc.is_in(batch["video"], value_set=pa.array(self.found)))
            found.update(gone["shard"].to_pylist())
            self.doomed.update(gone["key"].to_pylist())
        return found

    def _rewrite_shard(self, name: str, config: str) -> None:
        """Copy what stays of a shard, if it holds any of the films."""
        tar, ranges, kept, end = self.home / name, Ranges(), 0, 0
        stated = self.files.get(name, {}).get("bytes")
        if tar.stat().st_size != stated:
            raise DataError(f"{tar}: has {tar.stat().st_size} bytes, the manifest says {stated}; build or download it again")
        for start, end, told in records_of(tar):
            if told.get("video") not in self.found:
                self._check_references(tar, told)
                kept += 1
                continue
            ranges.add(start, end)
            self.counts[told["video"]][config] += 1
            self.traces.hear(told)
        if not ranges.starts:
            return
        self.cuts[name] = ranges
        if kept:
            self._replaced(name, copy_without(tar, ranges, end, Hashed(replace_file(self.new / name))))
        else:
            self._gone(name)

    def _check_references(self, tar: Path, told: Mapping[str, Any]) -> None:
        shown = [each["shot"] for each in told.get("references", ()) if each["shot"] in self.doomed]
        if shown:
            raise DataError(
                f"{tar}: {told['key']}, of {told['video']}, shows a picture of {shown[0]}, which is to go; "
                f"no build does that: name {told['video']} as well"
            )

    def _rewrite_index(self, name: str, config: str) -> None:
        """Take the films' rows out of the index of a split, and tell where the other samples lie now."""
        source, rows, videos = self.home / name, 0, pa.array(self.found)
        try:
            with pq.ParquetFile(source) as file:
                told = (pc.any(pc.is_in(b["video"], value_set=videos)).as_py() for b in file.iter_batches(columns=["video"]))
                if not any(told):
                    return
                target = replace_file(self.new / name)
                with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
                    for batch in file.iter_batches(INDEX_ROWS):
                        left = batch.filter(pc.invert(pc.is_in(batch["video"], value_set=videos)))
                        if left.num_rows:
                            writer.write_batch(self._moved(left, config))
                        rows += left.num_rows
        except pa.ArrowException as error:
            raise DataError(f"{source}: not readable as a shard index ({str(error).splitlines()[0]})") from None
        if rows:
            self._replaced(name, file_hash(target))
        else:
            self._gone(name)

    def _moved(self, batch: pa.RecordBatch, config: str) -> pa.RecordBatch:
        """Rows with the offsets that their samples have in the shards as they are now."""
        names = batch["shard"].to_pylist()
        for member in MEMBERS[config]:
            column = f"{member}_offset"
            offsets = [
                self.cuts[name].moved(offset) if name in self.cuts else offset
                for name, offset in zip(names, batch[column].to_pylist())
            ]
            place = batch.schema.get_field_index(column)
            batch = batch.set_column(place, batch.schema.field(place), pa.array(offsets, batch.schema.field(place).type))
        return batch

    def _rewrite_ledgers(self) -> list[RemovalRecord]:
        """Leave of the films no line but that they are withdrawn; returns the lines that ``removals.jsonl`` gains."""
        sources = {each.rights.source for each in self.found.values() if each.rights.source}
        names = {*self.traces.files, *self.found, *sources}
        self._rewrite_lines("rights", RightsRecord, self._withdrawn_rights)
        self._rewrite_lines("films", FilmRecord, partial(self._withdrawn_film, names))
        self._rewrite_lines("dropped", DroppedRecord, lambda line: None if line.film in names else line)
        self._rewrite_lines("availability", AvailabilityRecord, lambda line: None if line.video in self.found else line)
        removed = [
            RemovalRecord(
                video=video,
                removed=self.today,
                reason=self.reason,
                matched=each.kind,
                **{config: self.counts[video][config] for config in MEMBERS},
            )
            for video, each in sorted(self.found.items())
        ]
        path = self.home / "removals.jsonl"
        file = Hashed(replace_file(self.new / path.name))
        for text in (path.read_bytes() if path.is_file() else b"", *(dump(line) + b"\n" for line in removed)):
            file.write(text)
        self._replaced(path.name, file.close())
        return removed

    def _withdrawn_rights(self, line: RightsRecord) -> RightsRecord:
        return self._records(line)[1] if line.video in self.found else line

    def _withdrawn_film(self, names: set[str], line: FilmRecord) -> FilmRecord | None:
        if line.video is None:
            return None if line.film in names else line
        return self._records(self.found[line.video].rights)[0] if line.video in self.found else line

    def _records(self, line: RightsRecord) -> tuple[FilmRecord, RightsRecord]:
        return withdrawn_records(line.video, self.reason, sha256=line.sha256, source=line.source, uploader=line.uploader)

    def _rewrite_lines(self, name: str, kind: type[Record], change: Callable[[Any], Record | None]) -> None:
        """Change or drop lines of a file; the others keep their bytes, and so does a file in which nothing changes."""
        source, name = self.home / f"{name}.jsonl", f"{name}.jsonl"
        if not source.is_file():
            return
        changed, file = False, Hashed(self.new / f".{name}.part")
        with source.open("rb") as lines:
            for text in lines:
                try:
                    line = kind.model_validate_json(text)
                except ValidationError as error:
                    raise DataError(f"{source}: {first_problem(error)}; build the dataset again") from None
                told = change(line)
                changed |= told is not line
                file.write(b"" if told is None else text if told is line else dump(told) + b"\n")
        stated = file.close()
        if changed:
            (self.new / f".{name}.part").replace(self.new / name)
            self._replaced(name, stated)
        else:
            (self.new / f".{name}.part").unlink()

    def _dropped(self) -> dict[str, int]:
        """How much was dropped at each stage, by the lines that are left."""
        return dict(sorted(Counter(line.stage for line in read_lines(self.new / "dropped.jsonl", DroppedRecord)).items()))

    def _rejected(self) -> dict[str, int]:
        """How many shots each rule rejects, by the rows that are left."""
        found: Counter[str] = Counter()
        present = splits(self.new)
        for batch in index_batches(self.new, ["rejected_by"], present) if present else ():
            found.update(batch["rejected_by"].flatten().to_pylist())
        return dict(sorted(found.items()))

    def _replaced(self, name: str, stated: dict[str, Any]) -> None:
        self.files[name] = stated
        self.rewritten.append(name)

    def _gone(self, name: str) -> None:
        (self.new / name).unlink()
        self.files.pop(name, None)
        self.deleted.append(name)
