"""Files of tensors from anybody: checkpoints and weights, read without running them or making room for
more than they hold.

`torch.load(weights_only=True)` runs no code, but it inflates packed archives (a megabyte becomes a
gigabyte), knows functions that turn one stored number into any amount of memory, and hashes tuples that
hold themselves a billion times. So a file is looked through before torch sees it:

    archive   stored, not packed; its parts together no larger than the file; small pickled part
    pickles   name nothing but tensors, storages and ordered dictionaries; tuples are hardly shared
    tensors   dense, on no imagined device, and as many bytes as their storage has, at most
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE_BYTES = 1 << 24
"""Of the part that says which tensors there are; a large checkpoint has a tenth of a megabyte."""
MAX_OPERATIONS = 1 << 20
MAX_SHARED_TUPLES = 16
"""Uses of a tuple a second time: betas of an optimiser's groups are shared, shapes are not."""
_ARCHIVE = b"PK\x03\x04"
_LEGACY_PICKLES = 5
"""Magic number, protocol, machine, content, names of storages; then the storages' bytes."""
_KNOWN = re.compile(
    r"collections OrderedDict|torch Size|torch(\.cuda)? \w+Storage|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)


def read_tensors(path: Path, device: Any = "cpu") -> Any:
    """What `torch.save` wrote: tensors and plain values, in dictionaries, lists and tuples.

    Raises:
        OSError: missing, not readable, or no regular file.
        pickle.UnpicklingError: it asks for something else than tensors and plain values.
        ValueError: damaged, packed, or claims more than it holds; one line.
    """
    import torch  # here, so that naming a detector does not load it

    with _regular(path) as file:
        try:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:
                _check_archive(file)
            else:
                file.seek(0)
                for _ in range(_LEGACY_PICKLES):
                    _check_pickle(pickletools.genops(file))
            file.seek(0)
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="Detected pickle protocol"
                )  # read, or we say why not
                found = torch.load(file, map_location=device, weights_only=True)
            if not all(map(is_plain_tensor, _tensors_in(found))):
                raise ValueError("a tensor in it claims more than it holds, or is none to compute with")
            return found
        except (pickle.UnpicklingError, OSError):
            raise
        except Exception as error:  # a damaged file makes readers stumble in many ways
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(lines[0][:120]) from None


def is_plain_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor with a storage of its size: no view that repeats a few numbers."""
    import torch

    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def are_plain_tensors(value: Any) -> bool:
    """Whether a value is a dictionary from names to such tensors."""
    return (
        isinstance(value, dict)
        and all(isinstance(name, str) for name in value)
        and all(map(is_plain_tensor, value.values()))
    )


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in dictionaries, lists and tuples, however often they hold each other."""
    import torch

    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value


def _regular(path: Path) -> IO[bytes]:
    """Open a regular file; a pipe would let us wait for ever, a device would never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(21, "Is a directory", str(path))
    raise OSError(22, "No regular file", str(path))


def _check_archive(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        for part in parts:
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise ValueError(f"{part.filename[-40:]!r} in it is packed, which torch.save never does")
        if (
            len({part.filename for part in parts}) != len(parts)
            or sum(part.file_size for part in parts) > size
        ):
            raise ValueError("its parts overlap")
        pickled = [part for part in parts if part.filename.endswith(".pkl")]
        for part in pickled:
            if part.file_size > MAX_PICKLE_BYTES:
                raise ValueError(
                    f"{part.file_size} bytes say which tensors there are; at most {MAX_PICKLE_BYTES}"
                )
            _check_pickle(pickletools.genops(archive.read(part)))
        if not pickled:
            raise ValueError("an archive, but none of tensors")


def _check_pickle(operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> None:
    """One pickle, to its end, without doing what it says."""
    before, last, tuples, shared = "", -1, set[int](), 0
    for count, (code, argument, _) in enumerate(operations):
        if count > MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS} operations to read it")
        if code.name in ("GLOBAL", "INST") and not _KNOWN.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it asks for {'.'.join(str(argument).split())[:80]}")
        if code.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            last = last + 1 if code.name == "MEMOIZE" else int(argument)
            tuples.discard(last)
            if before.startswith("TUPLE"):
                tuples.add(last)
        elif code.name in ("BINGET", "LONG_BINGET", "GET"):
            shared += int(argument) in tuples
            if shared > MAX_SHARED_TUPLES:
                raise ValueError("it holds tuples within tuples without end")
        before = code.name
