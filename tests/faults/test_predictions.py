"""Predictions that are killed, cut, replaced, or come from somebody else: whole or none, and never code."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.depth_files import read_stack
from evaluation.ground_truth.kitti_depth import read_depth_png
from evaluation.predict import predict
from evaluation.predictions import INDEX, PredictionError, read_clips, read_index, write_clip
from evaluation.trajectory_files import read_trajectory
from pipeline.errors import InstanceMotionError
from tests.faults.forks import At, Forks, forks
from tests.faults.table import Fault
from tests.training.runs import settings
from training.loop import train

__all__ = ["forks"]


@pytest.fixture(scope="module")
def trained(street_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    config = settings(street_shards, steps=2, objective_instances_from=0, data_held_out=())
    train(config, out, quiet=True, say=lambda line: None)
    return out


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is no leftover of a kill."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_a_killed_predict_run_again_gives_the_same_bytes(
    trained: Path, street_shards: Path, forks: Forks, tmp_path: Path
) -> None:
    words = ("predict", trained, street_shards)
    out, whole, rng, survived = tmp_path / "out", tmp_path / "whole", random.Random(1), []
    assert forks.run(*words, whole, "--quiet").code == 0
    for point in (
        At(file="test_0001.h5", cut=rng.random()),
        At(file=INDEX, cut=rng.random()),
        At(file="test_0002.tum.txt", cut=rng.random()),
    ):
        running = forks.run(*words, out, "--quiet", kill=point)
        assert running.code == -signal.SIGKILL, running.said
        survived.append(running.killed_at)
        if point.file.endswith(".txt"):
            assert contents(out)[INDEX] == contents(whole)[INDEX]  # predictions were whole, their text not
        else:
            with pytest.raises(PredictionError, match="no finished predictions"):
                read_index(out)
    assert forks.run(*words, out, "--quiet").code == 0
    print(f"{len(survived)} rounds survived: {survived}")
    assert contents(out) == contents(whole)
    assert not list(out.rglob(".*.partial"))


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_predictions_that_were_half_replaced_do_not_count(
    trained: Path, street_shards: Path, tmp_path: Path
) -> None:
    """The same checkpoint with other settings: every file alone is right, together they are nothing."""
    out = tmp_path / "out"
    predict(trained, street_shards, out, quiet=True)
    old = contents(out)
    index = read_index(out)
    for number, clip in enumerate(read_clips(out)):
        if not number:
            turned = replace(clip, inverse_depth=clip.inverse_depth * np.float16(2))
    write_clip(tmp_path / "other", turned, index)
    assert contents(tmp_path / "other")[f"{turned.name}.h5"] != old[f"{turned.name}.h5"]

    # What interrupts: the shard set loses a file after the first clip has been written.
    class Stop(Exception):
        pass

    from evaluation import predict as module

    original, written = module.write_clip, []

    def and_stop(*arguments: Any) -> Path:
        if written:
            raise Stop
        written.append(1)
        return original(*arguments)

    module.write_clip = and_stop  # type: ignore[assignment]
    try:
        with pytest.raises(Stop):
            predict(trained, street_shards, out, quiet=True, depth_type="float16", align=False)
    finally:
        module.write_clip = original
    assert contents(out).keys() == old.keys() - {INDEX}
    with pytest.raises(PredictionError, match="no finished predictions"):
        read_index(out)
    predict(trained, street_shards, out, quiet=True)
    assert contents(out) == old


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_an_export_that_is_killed_leaves_the_old_file(trained: Path, forks: Forks, tmp_path: Path) -> None:
    words = ("export", trained, tmp_path / "onnx", "--size", "96", "64")
    (tmp_path / "onnx").mkdir()
    for name in ("depth.onnx", "ego_pose.onnx"):
        (tmp_path / "onnx" / name).write_bytes(b"old")
    running = forks.run(*words, kill=At(file="depth.onnx", cut=0.5))
    assert running.code == -signal.SIGKILL
    assert (tmp_path / "onnx" / "depth.onnx").read_bytes() == b"old"


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_figures_and_pages_that_are_killed_leave_the_old_file(
    trained: Path, street_shards: Path, streets: Path, forks: Forks, tmp_path: Path
) -> None:
    predict(trained, street_shards, tmp_path / "out", quiet=True)
    commands: dict[str, tuple[object, ...]] = {
        "figures.json": ("evaluate", "motion", tmp_path / "out", streets, "--quiet", "--out"),
        "page.html": ("report", trained, "--out"),
    }
    for name, words in commands.items():
        path = tmp_path / name
        path.write_text("old")
        running = forks.run(*words, path, kill=At(file=name, cut=0.5))
        assert running.code == -signal.SIGKILL, running.said
        assert path.read_text() == "old"
        assert forks.run(*words, path).code == 0
        assert path.read_text() != "old"


@pytest.mark.fault(Fault.DISK_FULL)
def test_a_full_disk_is_one_line_and_nothing_half_written_counts(
    trained: Path, street_shards: Path, streets: Path, forks: Forks, tmp_path: Path
) -> None:
    """Files of some thousand bytes fit, none of predictions or pages."""
    whole, full = tmp_path / "whole", {"RLIMIT_FSIZE": 1500}
    predict(trained, street_shards, whole, quiet=True)
    commands: dict[str, tuple[object, ...]] = {
        "out": ("predict", trained, street_shards, tmp_path / "out", "--quiet"),
        "figures.json": ("evaluate", "motion", whole, streets, "--quiet", "--out", tmp_path / "figures.json"),
        "page.html": ("report", trained, "--out", tmp_path / "page.html"),
    }
    for name, words in commands.items():
        running = forks.run(*words, limits=full)
        assert running.code == 1, (name, running.said)
        assert "File too large" in running.error or "disk is full" in running.error
        assert not [path for path in tmp_path.joinpath(name).rglob("*") if path.is_file()]
    assert not (tmp_path / "page.html").exists()
    assert not (tmp_path / "figures.json").exists()
    assert not list(tmp_path.rglob("*.partial*"))
    assert forks.run(*commands["out"]).code == 0
    assert {name: digest for name, digest in contents(tmp_path / "out").items() if "text" not in name} == (
        contents(whole)
    )


# ---------------------------------------------------------------------------- from somebody else


class Code:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.canary),)


def npz(name: str, data: bytes, claimed: int | None = None) -> bytes:
    """An .npz file with one member, which may claim to be larger than it is."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
        if claimed is not None:
            file.getinfo(name).file_size = claimed
    return memory.getvalue()


def npy(shape: tuple[int, ...], data: bytes, kind: str = "<f4") -> bytes:
    """An .npy file that claims a shape."""
    memory = io.BytesIO()
    np.lib.format.write_array_header_1_0(memory, {"descr": kind, "fortran_order": False, "shape": shape})
    return memory.getvalue() + data


def objects(canary: Path) -> bytes:
    memory = io.BytesIO()
    array = np.empty(2, object)
    array[0] = Code(canary)
    np.save(memory, array, allow_pickle=True)
    return memory.getvalue()


def png(width: int, height: int) -> bytes:
    """A grey PNG of 16 bits, as many black pixels as it says, packed a thousand to one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 0, 0, 0, 0])
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(1 + 2 * width)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ARRAYS: dict[str, Callable[[Path], bytes]] = {
    "objects, npy": objects,
    "objects, npz": lambda canary: npz("a.npy", objects(canary)),
    "a terabyte, npy": lambda canary: npy((3, 1 << 19, 1 << 18), b"\0" * 64),
    "a terabyte, npz": lambda canary: npz("a.npy", npy((3, 1 << 19, 1 << 18), b"\0" * 64)),
    "a terabyte that the archive confirms": lambda canary: npz(
        "a.npy", npy((3, 1 << 19, 1 << 18), b""), 1 << 40
    ),
    "a size that overflows": lambda canary: npy((3, 1 << 62, 1 << 62), b""),
    "a negative size": lambda canary: npy((3, -1, 8), b"\0" * 64),
    "texts": lambda canary: npy((3, 2, 2), b"\0" * 48, "<U1"),
    "whole numbers": lambda canary: npy((3, 2, 2), b"\0" * 48, "<i4"),
    "infinite": lambda canary: npy((3, 1, 1), np.full(3, np.inf, "<f4").tobytes()),
    "no header": lambda canary: b"\x93NUMPY\x01\x00\xff\xff",
    "a header of code": lambda canary: (
        b"\x93NUMPY\x01\x00" + (64).to_bytes(2, "little") + b"__import__('os')".ljust(64)
    ),
    "nothing": lambda canary: b"",
    "text": lambda canary: b"1 2 3\n" * 100,
}


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_from_somebody_else_are_one_line(case: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "depth.npz"
    path.write_bytes(ARRAYS[case](canary))
    for read in (lambda: list(read_stack(path, 3, "depth")), lambda: read_trajectory(path)):
        with pytest.raises(PredictionError) as error:
            read()
        assert len(str(error.value).splitlines()) == 1
        assert str(path) in str(error.value)
    assert not canary.exists()


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
def test_the_objects_would_run_where_they_are_trusted(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(objects(tmp_path / "canary"))
    np.load(path, allow_pickle=True)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize(
    "text",
    [
        b"1 2 3\n",
        b"nan " * 12,
        b"1e400 " * 12,
        b"1 0 0 0 0 1 0 0 0 0 1 nan\n",
        b"1 0 0 0 0 1 0 0 0 0 1 0\n" * 3 + b"\xff\xfe\n",
        b"0 " * (1 << 20),
        b"1" * (1 << 20) + b"\n",
        b"\0" * 100,
        b"# only a comment\n" * 1000,
        b"0 0 0 0 0 0 0 0\n",
        b"__import__('os') 0 0 0 0 0 0 0\n",
        b"",
    ],
)
def test_trajectories_of_garbage_are_one_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "00.txt"
    path.write_bytes(text)
    with pytest.raises(PredictionError) as error:
        read_trajectory(path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def read_pictures(words: list[str]) -> int:
    """In a fork: 3 where each is refused in one line."""
    for word in words:
        try:
            read_depth_png(Path(word), "fetch it again")
            return 1
        except InstanceMotionError as error:
            if len(str(error).splitlines()) != 1:
                return 2
    return 3


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
def test_pngs_that_unpack_without_end_are_not_unpacked(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(16000, 9000))
    claims = bytearray(png(100, 10))
    claims[16:24] = (1 << 30).to_bytes(4, "big") * 2
    (tmp_path / "claims.png").write_bytes(claims)
    assert (tmp_path / "wide.png").stat().st_size < 1 << 20
    (tmp_path / "good.png").write_bytes(png(100, 10))
    assert read_depth_png(tmp_path / "good.png", "").shape == (10, 100)
    words = (tmp_path / "wide.png", tmp_path / "claims.png")
    running = forks.run(
        *words, function="tests.faults.test_predictions:read_pictures", limits={"RLIMIT_AS": 200 << 20}
    )
    assert running.code == 3, running.said


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize(
    "change",
    [
        {"clips": ["../outside"]},
        {"clips": ["/etc/passwd"]},
        {"size": [10**9, 10**9]},
        {"depth_type": "object"},
        {"checkpoint": 3},
        {"more": 1},
        {"version": 2},
    ],
)
def test_an_index_from_somebody_else_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    data: dict[str, Any] = {"format": "instance-motion predictions", "version": 1, "checkpoint": "x"}
    data |= {"size": [8, 4], "depth_type": "float16", "clips": ["a"], **change}
    (tmp_path / INDEX).write_text(json.dumps(data))
    with pytest.raises(PredictionError) as error:
        list(read_clips(tmp_path))
    assert len(str(error.value).splitlines()) == 1
