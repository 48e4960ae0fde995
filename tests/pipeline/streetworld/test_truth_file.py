"""The truth file: round trip, rounding as documented, refusals, and whole-or-nothing writing."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.streetworld.truth import (
    DEPTH_BITS,
    FLOW_STEP_PX,
    TRUTH_FILE,
    VERSION,
    Objects,
    Truth,
    count_frames,
    read_made_with,
    read_truth,
    write_label_images,
    write_truth,
)  # fmt: skip


def example(frames=3, objects=2, size=(12, 8)) -> Truth:
    rng = np.random.default_rng(0)
    width, height = size
    depth = rng.uniform(1, 90, (frames, height, width)).astype(np.float32)
    depth[:, 0] = np.inf
    ids = rng.integers(0, objects + 1, (frames, height, width)).astype(np.uint16)
    return Truth(
        depth_m=depth,
        ids=ids,
        flow_px=rng.normal(0, 20, (frames - 1, height, width, 2)).astype(np.float32),
        flow_state=rng.integers(0, 8, (frames - 1, height, width)).astype(np.uint8),
        K=np.array([[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]),
        world_T_camera=np.tile(np.eye(4), (frames, 1, 1)),
        timestamps_s=np.arange(frames) / 10,
        objects=Objects(
            id=np.arange(1, objects + 1).astype(np.uint16),
            label=("car", "person")[:objects],
            kind=("van", "pedestrian")[:objects],
            size_m=rng.uniform(1, 4, (objects, 3)),
            moving=np.array([True, False])[:objects],
            world_T_object=np.tile(np.eye(4), (frames, objects, 1, 1)),
            visible_px=rng.integers(0, 50, (frames, objects)).astype(np.int32),
        ),
        scenario="mixed",
        seed=5,
        config={"frames": frames, "size": [width, height]},
    )


@pytest.mark.parametrize("objects", [0, 2])
def test_what_is_written_is_read(tmp_path, objects):
    truth = example(objects=objects)
    path = tmp_path / TRUTH_FILE
    write_truth(path, truth)
    got = read_truth(path)
    sky = np.isinf(truth.depth_m)
    np.testing.assert_array_equal(np.isinf(got.depth_m), sky)
    error = np.abs(got.depth_m[~sky] / truth.depth_m[~sky] - 1)
    assert 0 < error.max() <= 2.0 ** -(DEPTH_BITS + 1) * 1.01
    assert 0 < np.abs(got.flow_px - truth.flow_px).max() <= FLOW_STEP_PX / 2 * 1.01
    for name in ("ids", "flow_state", "K", "world_T_camera", "timestamps_s"):
        np.testing.assert_array_equal(getattr(got, name), getattr(truth, name))
        assert getattr(got, name).dtype == getattr(truth, name).dtype
    for name in ("id", "size_m", "moving", "world_T_object", "visible_px"):
        np.testing.assert_array_equal(getattr(got.objects, name), getattr(truth.objects, name))
    assert (got.objects.label, got.objects.kind) == (truth.objects.label, truth.objects.kind)
    assert (got.scenario, got.seed, got.config) == (truth.scenario, truth.seed, truth.config)
    assert count_frames(path) == len(truth)
    assert read_made_with(path) == (5, truth.config)


def test_the_same_truth_gives_the_same_bytes(tmp_path):
    write_truth(tmp_path / "a.h5", example())
    write_truth(tmp_path / "b.h5", example())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_another_version_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / TRUTH_FILE
    write_truth(path, example())
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = VERSION + 1
    with pytest.raises(
        SourceError, match=rf"version {VERSION + 1}, not .* version {VERSION}; render it again"
    ):
        read_truth(path)
    assert read_made_with(path) is None


@pytest.mark.parametrize("damage", ["missing", "not hdf5", "cut", "no depth", "shapes disagree"])
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    path = tmp_path / TRUTH_FILE
    write_truth(path, example())
    if damage == "missing":
        path.unlink()
    elif damage == "not hdf5":
        path.write_bytes(b"truth" * 100)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        with h5py.File(path, "r+") as file:
            name = "depth_m" if damage == "no depth" else "ids"
            del file[name]
            if damage == "shapes disagree":
                file[name] = np.zeros((1, 8, 12), np.uint16)
    with pytest.raises(SourceError) as error:
        read_truth(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "trick", ["external link", "soft link", "group link", "external storage", "virtual", "absurd"]
)
def test_tricks_are_refused(tmp_path, trick):
    path, other = tmp_path / TRUTH_FILE, tmp_path / "other.h5"
    write_truth(path, example())
    write_truth(other, example())
    with h5py.File(path, "r+") as file:
        shape = file["depth_m"].shape
        del file["objects" if trick == "group link" else "depth_m"]
        if trick == "external link":
            file["depth_m"] = h5py.ExternalLink(str(other), "depth_m")
        elif trick == "group link":
            file["objects"] = h5py.ExternalLink(str(other), "objects")
        elif trick == "soft link":
            file["depth_m"] = h5py.SoftLink("/ids")
        elif trick == "external storage":
            (tmp_path / "raw").write_bytes(bytes(4 * int(np.prod(shape))))
            file.create_dataset(
                "depth_m", shape, np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            )
        elif trick == "virtual":
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource(str(other), "depth_m", shape)
            file.create_virtual_dataset("depth_m", layout)
        else:
            file.create_dataset("depth_m", (3, 1 << 20, 1 << 20), np.float32, chunks=(1, 64, 64))
    with pytest.raises(SourceError, match="render the clip again"):
        read_truth(path)


def test_disagreeing_arrays_cannot_be_put_together():
    truth = example()
    with pytest.raises(ValueError, match="ids is"):
        Truth(**{**vars(truth), "ids": truth.ids[:1]})


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """In a child process that may write 4 kB a file: an OSError, no file, no partial file."""
    code = f"""
import sys; sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from pipeline.streetworld.truth import write_truth
from tests.pipeline.streetworld.test_truth_file import example
try:
    write_truth(Path({str(tmp_path)!r}) / "truth.h5", example(frames=4, size=(64, 48)))
except OSError:
    sys.exit(7)
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limit, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_label_images_hold_the_ids_at_16_bits(tmp_path):
    truth = example()
    truth.ids[0, 3, 4] = 40_000
    write_truth(tmp_path / TRUTH_FILE, truth)
    write_label_images(tmp_path, tmp_path / "labels")
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == [
        "000000.png", "000001.png", "000002.png", "classes.json",
    ]  # fmt: skip
    for k in range(3):
        image = cv2.imread(str(tmp_path / f"labels/{k:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, truth.ids[k])
    assert '"2": "person"' in (tmp_path / "labels/classes.json").read_text()
