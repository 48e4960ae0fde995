"""Weights files of networks: found, downloaded once, hashed, and read without running them.

Checkpoints in Python's pickle format can carry code. None is run here: torch files are
read by `pipeline.tensor_files`, and the `.pkl` files of detectron2's model zoo by an
unpickler that knows arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import pickletools
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import numpy as np

from pipeline.errors import DetectorError
from pipeline.progress import Bar
from pipeline.tensor_files import read_tensors

TIMEOUT_S = 10.0
"""A server that says nothing for this long counts as out of reach."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str) -> Path:
    """The local copy of a URL, downloaded if there is none yet.

    Copies lie where detectron2 itself keeps and looks for them: in $FVCORE_CACHE or
    ~/.torch/iopath_cache, under the URL's own path.

    Raises:
        DetectorError: the file could not be fetched; says where to put it.
    """
    cache = Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()
    target = cache / urlparse(url).path.lstrip("/")
    if target.is_file():
        return target
    partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial)
        os.replace(partial, target)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise DetectorError(
            f"cannot fetch {url} ({reason}); download it elsewhere and put it at {target}, "
            "or name your copy with --weights FILE"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _download(url: str, target: Path) -> None:
    if urlparse(url).scheme != "https":
        raise DetectorError(f"{url} is not an https address; name a local copy with --weights FILE")
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, target.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with Bar(total=total or None, unit="B", unit_scale=True, desc=Path(url).name) as progress:
            while block := response.read(1 << 20):
                file.write(block)
                progress.update(len(block))
        if total and file.tell() != total:
            raise OSError(f"connection closed after {file.tell()} of {total} bytes")


def read_torch_file(path: Path) -> dict:
    """A dictionary saved by torch.save, read without running any of it."""
    try:
        loaded = read_tensors(path)
    except (pickle.UnpicklingError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DetectorError(
            f"{path} is not a file of plain tensors ({first_line}); expected a state_dict saved by torch.save"
        ) from error
    if not isinstance(loaded, dict):
        raise DetectorError(
            f"{path} holds a {type(loaded).__name__}, expected a state_dict saved by torch.save"
        )
    return loaded


def read_pickled_arrays(path: Path) -> dict:
    """A `.pkl` file of detectron2's model zoo: a dictionary of numpy arrays and strings.

    Raises:
        DetectorError: the file is damaged, or asks for anything beyond numpy arrays.
    """
    try:
        with path.open("rb") as file:
            _check_memo(file)
            loaded = _ArrayUnpickler(file, encoding="latin1").load()
    except DetectorError as error:
        raise DetectorError(f"{path} {error}; re-save its arrays as a state_dict with torch.save") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DetectorError(f"{path} is not a detectron2 .pkl file ({error}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise DetectorError(
            f"{path} holds a {type(loaded).__name__}, expected detectron2's dictionary of arrays"
        )
    return loaded


def _check_memo(file: IO[bytes]) -> None:
    """Python's unpickler makes room for as many remembered values as the largest number of one."""
    size = os.fstat(file.fileno()).st_size
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > size:
            raise ValueError(f"value {argument} to be remembered, in {size} bytes")
    file.seek(0)


# The functions that rebuild arrays and scalars, whatever module this numpy keeps them in.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds dictionaries, strings, numbers and numpy arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> object:
        match module, name:
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return _RECONSTRUCT
            case "numpy.core.multiarray" | "numpy._core.multiarray", "scalar":
                return _SCALAR
            case "numpy.core.numeric" | "numpy._core.numeric", "_frombuffer":
                return _FROM_BUFFER
            case "__builtin__" | "builtins", "bytes":
                return bytes
            case "_codecs", "encode":  # bytes, as Python 3 writes them for Python 2
                return _encode
            case "collections", "OrderedDict":
                return dict
        raise DetectorError(f"asks for {module}.{name}, which is no plain array")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding in ("latin1", "latin-1") else "utf-8")
