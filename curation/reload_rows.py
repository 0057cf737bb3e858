"""Rows of a published dataset as anybody gets them: run as a program, with ``datasets`` alone and nothing of ours.

``python reload_rows.py REPO COMMIT`` reads a JSON list of [config, split, shard or null, rows or null] from standard input, and
prints for each row in turn a JSON line [config, split, key, digest].
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any


def digest(row: Mapping[str, Any]) -> str:
    """One hash of a row: its media by their bytes, its ``json`` by what it says; what is null there does not count."""
    parts = {}
    for name, value in row.items():
        if name == "json":
            parts[name] = _plain(value)
        elif not name.startswith("__"):
            parts[name] = hashlib.sha256(value["bytes"] if isinstance(value, Mapping) else value).hexdigest()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Without nulls in objects: features give a record the fields that an earlier schema did not have."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def main(repository: str, commit: str) -> None:
    """Stream the wanted rows; sound as plain bytes, for which ``datasets`` needs no torchcodec."""
    from datasets import Audio, Features, Value, load_dataset, load_dataset_builder

    for config, split, shard, rows in json.load(sys.stdin):
        declared = load_dataset_builder(repository, config, revision=commit).info.features
        plain = {name: Value("binary") if isinstance(kind, Audio) else kind for name, kind in declared.items()}
        stream = load_dataset(repository, config, split=split, streaming=True, revision=commit, features=Features(plain))
        stream = stream.decode(False)
        if shard is not None:
            stream = stream.shard(num_shards=stream.num_shards, index=shard)
        for row in stream if rows is None else stream.take(rows):
            print(json.dumps([config, split, row["__key__"], digest(row)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
