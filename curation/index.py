"""The shard index of a dataset, a batch of rows at a time, for those who read all of it and hold none of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import DataError, read_manifest, splits

BATCH = 8192
"""Rows of the index in memory at a time."""


def index_rows(directory: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Some columns of every shot's row of the index, split by split; memory holds :data:`BATCH` rows.

    Raises:
        DataError: it is no dataset directory, it has no shots, or its index is of another schema.
    """
    for batch in index_batches(directory, columns):
        yield from batch.to_pylist()


def index_batches(directory: Path, columns: Sequence[str], only: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The index in batches of at most :data:`BATCH` rows; see :func:`index_rows`.

    ``only`` names splits of a dataset that may not have its manifest yet; None for all.
    """
    if only is None:
        read_manifest(directory)
    found = splits(directory) if only is None else only
    if not found:
        raise DataError(f"{directory}: it has no shots; build the dataset again")
    for split in found:
        path = directory / "index" / f"{split}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                lacking = sorted(set(columns) - set(file.schema_arrow.names))
                if lacking:
                    raise DataError(f"{path}: has no column '{lacking[0]}', it is of an older version; build the dataset again")
                yield from file.iter_batches(BATCH, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: not readable as a shard index ({reason}); build or download it again") from None
