"""A stored set of version 1 is read for ever; damage, mixing and tricks are refused by name."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import ConfigError, ShardError
from pipeline.shards.hdf5 import remove_leftovers
from pipeline.shards.manifest import check_layer_name, read_manifest
from pipeline.shards.reader import ShardSet, locate
from pipeline.shards.verify import verify_clip, verify_files
from tests.faults.table import Fault
from tests.training.shardsets import write_set

STORED = Path(__file__).parent / "stored" / "v1"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "set"))


def findings(folder: Path) -> list[str]:
    with ShardSet(folder) as shards:
        found = [finding for _, finding in verify_files(shards) if finding]
        found += [finding for clip in shards.manifest.clips for finding in verify_clip(shards, clip)]
    return [f"{finding.where}: {finding.problem}" for finding in found]


def edit_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    data = json.loads((folder / "shardset.json").read_text())
    change(data)
    (folder / "shardset.json").write_text(json.dumps(data))


def test_version_1_is_read() -> None:
    with ShardSet(STORED) as shards:
        assert [(clip.name, clip.frames) for clip in shards.manifest.clips] == [("first", 4), ("second", 3)]
        first = shards.clip("first")
        # 70 degrees over 64 pixels
        assert first.intrinsics[0, 0] == pytest.approx(32 / np.tan(np.deg2rad(35)))
        assert len(first.files) == 2  # longer than a file: the later one owns the step between them
        for frame in range(4):
            assert shards.image(first, frame).shape == (48, 64, 3)
            labels = shards.labels("default", first, frame)
            expected = np.zeros((48, 64), np.uint8)
            expected[14:30, 8 + 3 * frame : 28 + 3 * frame] = 1
            np.testing.assert_array_equal(labels, expected)
            assert shards.instances("default", first, frame).track.tolist() == [1]
            assert len(shards.pairs("default", first, frame)) == (1 if frame else 0)
            assert len(shards.instances("large", first, frame)) == 0
            assert shards.evidence(first, frame).detections.scores.tolist() == [0.75]
        np.testing.assert_allclose(shards.timestamps_s(first), [0, 0.1, 0.2, 0.3])


def test_version_1_verifies() -> None:
    assert findings(STORED) == []


@pytest.mark.fault(Fault.FORK_AND_THREADS)
def test_another_process_opens_its_own_files() -> None:
    with ShardSet(STORED) as shards:
        clip = shards.manifest.clips[0]
        image = shards.image(clip, 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(shards.image, (clip, 1)), image)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(shards.image, (clip, 1)), image)
        assert pickle.loads(pickle.dumps(shards))._open == {}  # noqa: S301 - our own bytes


@pytest.mark.fault(Fault.BIT_ROT)
def test_every_flipped_byte_of_every_file_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(copy.rglob("*.h5")):
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with ShardSet(copy) as shards:
                found = [finding.where for _, finding in verify_files(shards) if finding]
            assert found == [str(path.relative_to(copy))]
        path.write_bytes(whole)


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: (s / "frames/00000.h5").unlink(), "frames/00000.h5: missing"),
        (
            lambda s: shutil.copy(s / "frames/00000.h5", s / "frames/00007.h5"),
            "frames/00007.h5: not in the manifest",
        ),
        (
            lambda s: (s / "masks/default/00001.h5").write_bytes(b"x"),
            "masks/default/00001.h5: 1 bytes, the manifest",
        ),
    ],
)
def test_missing_additional_and_cut_files_are_named(
    copy: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(copy)
    assert any(message in line for line in findings(copy))


@pytest.mark.fault(Fault.HOSTILE_SHARD)
@pytest.mark.parametrize(
    ("layer", "column", "value", "message"),
    [
        (
            "masks/default",
            "instance_score",
            np.nan,
            "an instance has another score or class than its detection",
        ),
        ("masks/default", "instance_class", 7, "an instance has another score or class than its detection"),
        ("masks/default", "instance_detection", 9, "an instance names a detection that is not there"),
        ("masks/default", "instance_box", np.inf, "an instance's box is not finite"),
        ("frames", "segment_first", 1, "frames/00000.h5 says otherwise whose frames are at row 0"),
        ("frames", "segment_K", 3.5, "frames/00000.h5 says otherwise whose frames are at row 0"),
    ],
)
def test_tables_that_contradict_each_other_under_right_checksums_are_found(
    copy: Path, layer: str, column: str, value: float, message: str
) -> None:
    path = copy / layer / "00000.h5"
    with h5py.File(path) as file:
        at, dtype = file[column].id.get_offset(), file[column].dtype
    content = bytearray(path.read_bytes())
    content[at : at + dtype.itemsize] = np.array(value, dtype).tobytes()
    assert content != path.read_bytes()
    path.write_bytes(content)

    def seal(data: dict) -> None:
        files = data["masks"]["default"]["files"] if layer != "frames" else data["frames"]
        files["00000.h5"]["sha256"] = hashlib.sha256(content).hexdigest()

    edit_manifest(copy, seal)
    found = findings(copy)
    assert found
    assert all(message in line for line in found)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_layers_of_different_sets_do_not_mix(copy: Path) -> None:
    edit_manifest(copy, lambda data: data.update(set_id="f" * 64))
    with (
        ShardSet(copy) as shards,
        pytest.raises(ShardError, match=r"00000\.h5: set_id is .* another shard set"),
    ):
        shards.image(shards.manifest.clips[0], 0)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_masks_of_other_evidence_are_refused(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["evidence"]["00000.h5"].update(sha256="0" * 64))
    with ShardSet(copy) as shards, pytest.raises(ShardError, match="made from other evidence"):
        shards.labels("default", shards.manifest.clips[0], 0)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_a_missing_layer_lists_those_that_are_there() -> None:
    with (
        ShardSet(STORED) as shards,
        pytest.raises(ShardError, match="no masks layer 'x'; there are: default, large"),
    ):
        shards.labels("x", shards.manifest.clips[0], 0)


BAD_MANIFESTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "newer": (lambda d: d.update(version=2), "version 2, expected .* version 1; install the release"),
    "other format": (lambda d: d.update(format="zip"), "'zip' version 1, expected"),
    "path trick": (
        lambda d: d["frames"].update({"../../x.h5": d["frames"]["00000.h5"]}),
        "not one of a shard set",
    ),
    "absolute path": (
        lambda d: d["frames"].update({"/x.h5": d["frames"]["00000.h5"]}),
        "not one of a shard set",
    ),
    "layer trick": (lambda d: d["masks"].update({"../x": d["masks"]["default"]}), "layer name '../x'"),
    "absurd size": (lambda d: d.update(size=[10**9, 48]), "absurd"),
    "missing key": (lambda d: d.pop("clips"), "missing"),
    "unknown key": (lambda d: d.update(more=1), "unknown key 'more'"),
    "wrong type": (lambda d: d.update(clips="all"), "expected a list"),
    "rows outside": (lambda d: d["clips"][0].update(files=[[0, 2, 4]]), "points outside its files"),
    "layers differ": (lambda d: d["evidence"].pop("00002.h5"), "evidence does not list the files"),
    "counts differ": (lambda d: d["clips"][0].update(frames=5), "does not add up"),
}


@pytest.mark.fault(Fault.HOSTILE_SHARD)
@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_one_line(copy: Path, case: str) -> None:
    change, message = BAD_MANIFESTS[case]
    edit_manifest(copy, change)  # type: ignore[arg-type]
    with pytest.raises(ShardError, match=message) as caught:
        read_manifest(copy)
    assert "\n" not in str(caught.value)


def test_text_that_is_no_manifest_and_no_set_at_all(copy: Path, tmp_path: Path) -> None:
    for text in ("", "[]", "{", "[" * 100_000, "\x00"):
        (copy / "shardset.json").write_text(text)
        with pytest.raises(ShardError):
            read_manifest(copy)
    with pytest.raises(ShardError, match="no shard set"):
        read_manifest(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(ShardError, match="an unfinished build; run the same"):
        read_manifest(tmp_path)


def test_frames_are_located_across_files_and_not_beyond() -> None:
    clip = read_manifest(STORED).clips[0]
    assert [locate(clip, frame) for frame in range(4)] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            locate(clip, outside)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", ".hidden", "é", "x" * 101, "-x"])
def test_layer_names_are_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="layer name"):
        check_layer_name(name)


@pytest.fixture
def few_handles() -> Iterator[int]:
    """Room for 60 more open files, as much as a quarter of it is, for a set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(Fault.FORK_AND_THREADS)
def test_a_set_of_more_files_than_a_process_may_open_is_read(tmp_path: Path, few_handles: int) -> None:
    folder = write_set(tmp_path / "set", {"a": 2 * few_handles}, file_frames=1)
    with ShardSet(folder) as shards, ThreadPoolExecutor(4) as threads:
        (clip,) = shards.manifest.clips
        frames = list(range(clip.frames)) * 2
        held = shards.frames_file(0)
        reds = list(threads.map(lambda frame: int(shards.image(clip, frame)[0, 0, 0]), frames))
        assert reds == [10 * frame % 256 for frame in frames]
        assert held.image(0)[0, 0, 0] == 0  # let go of by the set, not closed under those who use it
        assert all(len(shards.instances("default", clip, frame)) >= 2 for frame in frames)


@pytest.mark.fault(Fault.FORK_AND_THREADS)
def test_a_file_that_cannot_be_opened_is_not_called_damaged(copy: Path, few_handles: int) -> None:
    shards = ShardSet(copy)
    with (
        ExitStack() as stack,
        pytest.raises(ShardError, match=r"cannot be opened \(Too many open files\); make"),
    ):
        while True:
            try:
                stack.enter_context(open("/dev/null"))
            except OSError:
                break
        shards.image(shards.manifest.clips[0], 0)


def test_only_what_our_killed_writers_leave_is_removed(copy: Path) -> None:
    ours = [
        f"{place}.00000.h5.{'0a' * 8}.partial" for place in ("", "frames/", "masks/default/", ".build/files/")
    ]
    others = [".notes.partial", "elsewhere/.00000.h5.0a0a0a0a0a0a0a0a.partial", "frames/00000.h5"]
    for name in (*ours, *others[:2]):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    (copy / f".folder.{'0a' * 8}.partial").mkdir()
    remove_leftovers(copy)
    assert not [name for name in ours if (copy / name).exists()]
    assert all((copy / name).exists() for name in others)
