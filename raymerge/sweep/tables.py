"""The two tables of a sweep as Parquet files, each whole or absent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from raymerge.errors import SourceError
from raymerge.storage.posix import write_atomically

Row = dict[str, Any]
PARTS_NAME = ".raymerge-sweep"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one kind: one file in the sweep's folder, and while a sweep runs a file an append."""

    name: str
    kinds: Mapping[str, str]
    """Arrow's name of each column's type; `texts` is a list of strings."""

    def path(self, out: Path) -> Path:
        """The file that all rows are put together in."""
        return out / f"raymerge-{self.name}.parquet"

    def parts(self, out: Path) -> list[Path]:
        """The files of single appends, in their order."""
        return sorted((out / PARTS_NAME).glob(f"{self.name}-*.parquet"))

    def append(self, out: Path, rows: Iterable[Row], sequence: int) -> None:
        """Keep rows in a file of their own."""
        self._write(out / PARTS_NAME / f"{self.name}-{sequence:08}.parquet", rows)

    def put_together(self, out: Path, rows: Iterable[Row]) -> None:
        """Write the one file, and remove what was appended."""
        parts = self.parts(out)
        self._write(self.path(out), rows)
        for part in parts:
            part.unlink()

    def read(self, out: Path) -> Iterator[Row]:
        """Every row that is on the disk, some twice where a sweep was killed as it ended.

        Raises:
            SourceError: A file cannot be read.
        """
        # Appends first: one that is gone by then is in the one file, which is read after it.
        appended = [row for part in self.parts(out) for row in _rows(part)]
        yield from _rows(self.path(out))
        yield from appended

    def _write(self, path: Path, rows: Iterable[Row]) -> None:
        """A file, whole or not at all, and on the disk when this returns."""
        import pyarrow as pa
        from pyarrow import parquet

        kinds = {
            key: pa.list_(pa.string()) if kind == "texts" else pa.type_for_alias(kind)
            for key, kind in self.kinds.items()
        }
        listed = list(rows)
        columns = [pa.array([row.get(key) for row in listed], kind) for key, kind in kinds.items()]
        table = pa.Table.from_arrays(columns, schema=pa.schema(kinds))
        content = BytesIO()
        parquet.write_table(table, content, compression="zstd")
        write_atomically(path, content.getbuffer())


TRIALS = Table(
    "trials",
    {
        "name": "string", "digest": "string", "values": "string", "seed": "uint64",
        "recipe": "string", "shard_bytes": "int64", "out": "string", "state": "string",
        "error": "string", "seconds": "float64", "bytes_read": "int64", "bytes_written": "int64",
        "score": "float64", "missed": "texts", "sources": "string", "rank": "int64",
        "sequence": "int64",
    },
)  # fmt: skip
EVALUATIONS = Table(
    "evaluations",
    {
        "trial": "string", "digest": "string", "split": "string", "subset": "int64",
        "scores": "string", "error": "string", "seconds": "float64", "worker": "string",
        "evaluator": "string", "files": "string", "sequence": "int64",
    },
)  # fmt: skip


def remove_drafts(out: Path) -> None:
    """Remove what a sweep that was killed had begun to write, once nobody else can be writing."""
    for path in (*out.glob(".raymerge-*.parquet.*"), *(out / PARTS_NAME).glob(".*.*.*")):
        path.unlink()


def _rows(path: Path) -> list[Row]:
    from pyarrow import ArrowInvalid, parquet

    try:
        found: list[Row] = parquet.ParquetFile(path).read().to_pylist()
    except FileNotFoundError:
        return []
    except (ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}", file=str(path)) from error
    return found
