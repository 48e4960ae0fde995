"""HDF5 files that are published whole, and opened only when they are what they claim.

Writing: h5py crashes the process when the disk fills under it, and an interrupted write
leaves a file that cannot be opened. So a file is built in memory, written as plain bytes
to a temporary neighbour, synced, and renamed.

Opening: HDF5 can point out of the file (external links, virtual data sets, external
storage), run filters, and declare shapes without data behind them. Our files hold plain
contiguous data sets in the root group and nothing else, so anything else is refused
before a byte of it is read. They are read by a parser of our own, `plain_hdf5`: damaged
files crash the library's.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.plain_hdf5 import PlainFile, sealed


@dataclass(frozen=True, kw_only=True)
class Column:
    """One data set: its element type and its shape, None where the length is free."""

    dtype: str
    shape: tuple[int | None, ...]


Schema = Mapping[str, Column]

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # as `publishing` names them


def file_image(
    attributes: Mapping[str, str | int], columns: Mapping[str, np.ndarray], schema: Schema
) -> bytes:
    """The bytes of an HDF5 file; equal content gives equal bytes."""
    if set(columns) != set(schema):
        raise ValueError(f"columns {sorted(columns)} are not {sorted(schema)}")
    # An in-memory file with a fixed library version bound: its bytes hold no time stamps.
    with h5py.File(
        "image", "w", driver="core", backing_store=False, libver=("v110", "v110"), track_order=False
    ) as file:
        for name in sorted(attributes):
            file.attrs[name] = attributes[name]
        for name in sorted(schema):
            array = np.ascontiguousarray(columns[name], dtype=schema[name].dtype)
            _check_shape(name, array.shape, schema[name])
            file.create_dataset(name, data=array, track_times=False)
        file.flush()
        return sealed(file.id.get_file_image())


def publish(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: disk full, no permission; nothing is left behind at `path`.
    """
    with publishing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """Name of a file to write in the block; it is published as `path` at the end, unless the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process number would not do: containers on two machines often have the same.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left half written in a shard set; who calls holds its lease."""
    for place in ("", "frames/", "evidence/", "masks/*/", ".build/**/"):
        for partial in folder.glob(f"{place}.*.partial"):
            if _PARTIAL.fullmatch(partial.name) and not partial.is_dir():
                partial.unlink(missing_ok=True)


def open_checked(path: Path, attributes: Mapping[str, str | int], schema: Schema) -> PlainFile:
    """Open a file for reading after checking that it is what its layer says.

    Args:
        attributes: what the file must state about itself (format, version, set).
        schema:     the data sets that it must hold, and no others.

    Raises:
        ShardError: missing, unreadable, of another format, version or set, or hostile.
    """
    if path.is_symlink() or not path.is_file():
        raise ShardError(f"{path}: expected a regular file; rebuild it with `instance-motion build`")
    try:
        file = PlainFile(path)
    except OSError as error:  # too many open files, no permission: nothing is wrong with the file
        raise ShardError(
            f"{path}: cannot be opened ({error.strerror}); make it readable and try again"
        ) from None
    except ValueError as error:
        raise ShardError(
            f"{path}: not a readable HDF5 file ({' '.join(str(error).split())}); "
            "delete it and run `instance-motion build` again"
        ) from None
    try:
        _check_attributes(path, file, attributes)
        _check_columns(path, file, schema)
    except ShardError:
        file.close()
        raise
    return file


def read_column(file: PlainFile, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start..stop-1 of a data set; damage under HDF5 becomes a ShardError."""
    try:
        return file.read(name, start, stop)
    except (OSError, ValueError) as error:
        raise ShardError(f"{file.filename}: cannot read {name} ({' '.join(str(error).split())})") from None


def _check_attributes(path: Path, file: PlainFile, expected: Mapping[str, str | int]) -> None:
    for name, value in expected.items():
        found = file.attrs.get(name)
        if found != value:
            raise ShardError(f"{path}: {name} is {_short(found)}, expected {value!r}; {_remedy(name)}")


def _remedy(name: str) -> str:
    if name == "version":
        return "install the release of instance-motion that wrote it, or rebuild the set with this one"
    if name == "set_id":
        return "it belongs to another shard set; put back the file that was built with this one"
    return "it is not part of this layer"


def _check_columns(path: Path, file: PlainFile, schema: Schema) -> None:
    names = set(file.links)
    if names != set(schema):
        odd = sorted(names ^ set(schema))[0]
        raise ShardError(
            f"{path}: data set {_short(odd)} is {'unknown' if odd in names else 'missing'}; rebuild it"
        )
    for name, column in schema.items():
        try:
            data = file[name]
            if data.dtype != np.dtype(column.dtype):
                raise ShardError(f"{path}: {name} holds {data.dtype}, expected {column.dtype}")
            _check_shape(f"{path}: {name}", data.shape, column)
            file.check_place(name)
        except ShardError:
            raise
        except (OSError, ValueError) as error:
            raise ShardError(f"{path}: {' '.join(str(error).split())}; do not use this file") from None


def _check_shape(name: str, shape: tuple[int, ...], column: Column) -> None:
    fits = len(shape) == len(column.shape) and all(
        want is None or want == have for want, have in zip(column.shape, shape, strict=True)
    )
    if not fits:
        raise ShardError(f"{name} has shape {shape}, expected {column.shape}")


def _sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
