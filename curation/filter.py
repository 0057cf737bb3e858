"""``animeshooter filter DIR``: what other rules would reject of a dataset, and the same dataset marked by them.

A preview reads the index alone. A marked dataset is written anew beside the old one, shard by shard: media pass through as
bytes, records and index change in what they say about rules, nothing is decoded and no stage of a build runs again.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animeshooter_dataset import (
    MEMBERS,
    DataError,
    DroppedRecord,
    FilmRecord,
    Record,
    RightsRecord,
    parse,
    read_lines,
    read_manifest,
    read_samples,
    shards,
    splits,
)
from curation.index import index_rows
from curation.pack import Packer, check_target, publish, shares_for
from curation.rules import Rule, RuleReport, RuleTally, dump_rules, needs, rejected_by

MADE = ("schema_version", "dropped", "masks_refused", "rejected_by", "files")
"""What the packer writes into a manifest by itself; all else says how the dataset was built."""


def preview(directory: Path, rules: Sequence[Rule]) -> RuleReport:
    """What rules reject of a dataset, from its index alone.

    Raises:
        DataError: it is no dataset directory, or its index is of another schema.
    """
    tally = RuleTally()
    wanted = {"video", "frames", "fps"}.union(*(needs(rule.column) for rule in rules))
    for row in index_rows(directory, sorted(wanted)):
        tally.add(row["video"], row["frames"] / row["fps"], rejected_by(rules, row))
    return tally.report(rules)


def filter_dataset(
    directory: Path, rules: Sequence[Rule], out: Path, *, progress: Callable[[str], None] = lambda name: None
) -> RuleReport:
    """Write a dataset anew, marked by other rules. With the rules it was built with, every byte stays the same.

    Args:
        directory: the dataset, which stays as it is.
        rules: the rules.
        out: the new directory; an earlier dataset there is replaced when the new one is whole.
        progress: called with the name of each shard before it is read.

    Raises:
        DataError: it is no dataset directory, a part of it is damaged, or the output cannot be written.
    """
    manifest = read_manifest(directory)
    if out.resolve() == directory.resolve() or out.resolve().is_relative_to(directory.resolve()):
        raise DataError(f"{out}: is the dataset itself, or lies in it; name another --out")
    check_target(out)
    with _workplace(out) as finished:
        _write(directory, manifest, rules, finished, progress)
        report = preview(finished, rules)
        publish(finished, out)
    return report


def _write(
    directory: Path, manifest: Mapping[str, Any], rules: Sequence[Rule], out: Path, progress: Callable[[str], None]
) -> None:
    settings = {name: value for name, value in manifest.items() if name not in MADE}
    built = settings.get("settings", {})
    with Packer(
        out, _shares(directory, built), built.get("shard_size", 256 * 2**20), lambda row: rejected_by(rules, row)
    ) as packer:
        packer.refused.update(manifest.get("masks_refused", {}))
        packer.add_dropped(read_lines(directory / "dropped.jsonl", DroppedRecord))
        _copy_lines(directory / "films.jsonl", packer.lines["films"])
        for rights in read_lines(directory / "rights.jsonl", RightsRecord):
            packer.add_rights(rights)
        packer.keep_ledgers(directory)
        for config in MEMBERS:
            for split in splits(directory, config):
                for tar in shards(directory, config, split):
                    progress(f"{config}/{tar.name}")
                    for records, media in stories_of(tar, config):
                        written = packer.add_records(config, records, partial(_member, media))
                        if written[0].split != split:
                            raise DataError(
                                f"{tar}: its films lie in other splits than the manifest's settings say; build it again"
                            )
        packer.finish(settings | {"rules": dump_rules(rules)})


def _member(media: Mapping[str, Mapping[str, bytes]], key: str, member: str) -> bytes:
    return media[key][member]


def stories_of(tar: Path, config: str) -> Iterator[tuple[list[Record], dict[str, dict[str, bytes]]]]:
    """The samples of a shard, a story at a time: their records, and the members of each key."""
    samples = (
        (parse(config, members["json"], f"{tar}: {key}"), key, members) for key, members in read_samples(tar, MEMBERS[config])
    )
    for _, group in groupby(samples, lambda sample: getattr(sample[0], "story", sample[1])):
        found = list(group)
        yield [record for record, _, _ in found], {key: members for _, key, members in found}


def _shares(directory: Path, built: Mapping[str, Any]) -> Mapping[str, float]:
    """The shares of splits a dataset was built with, so that every film stays in its split."""
    films = read_lines(directory / "films.jsonl", FilmRecord)
    return shares_for(built.get("shares"), (film.state == "kept" for film in films))


def _copy_lines(path: Path, target: Any) -> None:
    try:
        with path.open("rb") as source:
            for line in source:
                target.write(line)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); build the dataset again") from None


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """An empty folder beside the output, which a build at the same output would refuse to share; removed in the end."""
    work = out.with_name(f"{out.name}.work")
    finished = work / "filtered"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", timeout=0):
            shutil.rmtree(finished, ignore_errors=True)
            finished.mkdir()
            try:
                yield finished
            finally:
                shutil.rmtree(finished, ignore_errors=True)
                if {path.name for path in work.iterdir()} <= {"lock"}:  # a build that was stopped keeps its results there
                    shutil.rmtree(work)
    except Timeout:
        raise DataError(f"{work}: a build is writing this output; wait for it, or name another --out") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise DataError(
                f"{out}: cannot be written ({error.strerror}); make room or rights, or name another --out"
            ) from None
        raise
