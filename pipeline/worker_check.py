"""Processes that share a build must be alike: same code, same libraries, same files.

Runs on a cluster's workers, before their first task. Knows nothing of the cluster.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import BuildError

LIBRARIES = ("av", "h5py", "numpy", "opencv", "scipy", "simplejpeg", "torch", "torchvision", "zstandard")
"""Libraries whose version may change the bytes of a shard set."""
_NAMES = {"opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless")}
APPEAR_S = 5.0
"""How long a file may take to show on a shared file system."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What one process sees.

    versions: (name, version) of our code and of LIBRARIES
    shared:   (path, its look) of files and folders that every process must see
    """

    versions: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...] = ()


def this_site(shared: Sequence[Path] = ()) -> Site:
    """The site as this process sees it."""
    return Site(versions=_versions(), shared=tuple((str(path), _look(path)) for path in shared))


def difference(site: Site) -> str | None:
    """How this process differs from `site`, as the end of a sentence that begins with its name."""
    mine = dict(_versions())
    for name, version in site.versions:
        if mine.get(name) != version:
            return f"has {name} {mine.get(name)}, not {version}; install the same environment everywhere"
    for path, look in site.shared:
        if _look(Path(path)) != look:
            return f"does not see {path} as it is; a cluster needs a shared file system, under the same path"
    return None


def checked_call(site: Site, function: Callable[[Any], Any], argument: Any) -> Any:
    """`function(argument)`, once this process is known to be like `site`.

    Raises:
        BuildError: it is not. A worker that joins late must not mix other bytes into a set,
            nor take missing files for bad clips.
    """
    _require_alike(site)
    return function(argument)


@lru_cache(maxsize=16)
def _require_alike(site: Site) -> None:
    deadline = time.monotonic() + APPEAR_S
    while problem := difference(site):
        if time.monotonic() > deadline:
            raise BuildError(f"the worker with process {os.getpid()} on {socket.gethostname()} {problem}")
        time.sleep(0.5)


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    return (("instance-motion code", _code_digest()), *((name, _version(name)) for name in LIBRARIES))


def _code_digest() -> str:
    """Of the package's source: a version number stays the same while people edit."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _version(library: str) -> str:
    for name in _NAMES.get(library, (library,)):
        try:
            # "2.14.1+cu126" and "2.14.1" are one source: a cluster may mix CPU and GPU builds.
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(none)"


def _look(path: Path) -> str:
    """Enough to tell a file or folder from another one that has its name elsewhere."""
    if path.is_dir():
        return "folder"
    try:
        with open(path, "rb") as file:
            return f"{path.stat().st_size} bytes, {hashlib.sha256(file.read(4096)).hexdigest()[:12]}"
    except OSError:
        return "nothing"
