"""Small tables with any number of rows per frame: columns beside an offsets column.

A table `pair` with columns `prev`, `next` is the data sets `pair_offsets` int64 (N + 1),
`pair_prev` and `pair_next`; rows offsets[n]..offsets[n + 1] - 1 belong to frame n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.blobs import check_offsets, offsets_of
from pipeline.shards.hdf5 import read_column
from pipeline.shards.plain_hdf5 import PlainFile

Tables = Mapping[str, tuple[str, ...]]
"""Table -> its columns."""


def table_columns(table: str, columns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """The data sets of one table, from each column's arrays frame by frame."""
    lengths = [len(each) for each in next(iter(columns.values()))]
    stacked = {f"{table}_{name}": np.concatenate(arrays) for name, arrays in columns.items()}
    return {f"{table}_offsets": offsets_of(lengths), **stacked}


@dataclass(frozen=True)
class RowTables:
    """The tables of an open file, in memory."""

    frames: int
    columns: Mapping[str, np.ndarray]

    @staticmethod
    def of(file: PlainFile, tables: Tables, frames: int) -> RowTables:
        """Read and check all tables of a file.

        Raises:
            ShardError: columns differ in length, or offsets do not fit them.
        """
        columns: dict[str, np.ndarray] = {}
        for table, names in tables.items():
            offsets = columns[f"{table}_offsets"] = read_column(file, f"{table}_offsets")
            for name in names:
                columns[f"{table}_{name}"] = read_column(file, f"{table}_{name}")
            lengths = {len(columns[f"{table}_{name}"]) for name in names}
            if len(lengths) != 1:
                raise ShardError(f"{file.filename}: {table} columns differ in length; rebuild it")
            check_offsets(f"{file.filename}: {table}", offsets, frames, lengths.pop())
        return RowTables(frames, columns)

    def rows(self, table: str, frame: int) -> dict[str, np.ndarray]:
        """Every column of a table, for one frame."""
        if not 0 <= frame < self.frames:
            raise IndexError(f"row {frame} of {self.frames}")
        offsets = self.columns[f"{table}_offsets"]
        rows = slice(int(offsets[frame]), int(offsets[frame + 1]))
        prefix = f"{table}_"
        return {
            name.removeprefix(prefix): column[rows]
            for name, column in self.columns.items()
            if name.startswith(prefix) and name != f"{table}_offsets"
        }

    def count(self, table: str) -> int:
        """Rows of a table, all frames together."""
        return int(self.columns[f"{table}_offsets"][-1])
