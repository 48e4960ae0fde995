"""A built set whose files rot, vanish, are mixed or of another version, as every command sees it: one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.faults.inputs import HERE, Done, here, one_line, write_labels
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, numbered_frames

FILES = ("frames/00001.h5", "evidence/00001.h5", "masks/default/00001.h5")
# What each command reads of which layer.
READERS = {
    "inspect": FILES,
    "remask": ("evidence/00001.h5", "masks/default/00001.h5"),
    "train": ("frames/00001.h5", "masks/default/00001.h5"),
    "predict": ("frames/00001.h5", "masks/default/00001.h5"),
}
BLOBS = {"frames": "image_data", "evidence": "mask_data", "masks": "labels_data"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `set`, of two clips in two files, a second one `other` of other settings, and a `run`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "source").mkdir()
    for name in ("a", "b"):
        encode(folder / "source" / f"{name}.mp4", numbered_frames(8, 64, 64))
    for name in ("a", "b"):
        for number in range(8):
            labels = np.zeros((64, 64), np.uint8)
            labels[20:40, 10 + number : 34 + number] = 1
            write_labels(folder / "masks" / name / f"{number:06d}.png", labels)
    settings = ("--size", 64, 64, "--frames-per-file", 8, "--frames-per-piece", 8, "--fov-deg", 60)
    for out, quality in (("set", 95), ("other", 90)):
        detector = f"masks:{folder / 'masks'}"
        done = here(
            "build",
            folder / "source",
            folder / out,
            *settings,
            "--detector",
            detector,
            "--quality",
            quality,
            *HERE,
        )
        assert done.code == 0, done.errors
    done = train(folder, folder / "set", folder / "run")
    assert done.code == 0, done.errors
    return folder


def train(folder: Path, shards: Path, out: Path) -> Done:
    """A step on every window of a set."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "{steps: 1, picture_every: 0, device: cpu, data: {frames: 2, batch_size: 14, workers: 0, skip_static: false},\n"
        " networks: {depth: {width: 0.25}, ego: {width: 0.25}, objects: {width: 0.25}}}\n"
    )
    return here("train", shards, "--out", out, "--recipe", recipe, "--quiet")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "set", tmp_path / "set"))


def command(name: str, made: Path, shards: Path, folder: Path) -> Done:
    """A command on a set, so that it reads all that it ever reads."""
    if name == "inspect":
        return here("inspect", shards, "--video", folder / "video.mp4")
    if name == "remask":
        return here("remask", shards, "--name", "new", "--min-area", "10", *HERE)
    if name == "train":
        return train(made, shards, folder / "run")
    return here("predict", made / "run", shards, folder / "predictions", "--device", "cpu", "--quiet")


def flip(path: Path, column: str | None, bit: int = 4) -> None:
    """Flip a bit in the middle of a column, or of the file's first bytes."""
    at = 2
    if column is not None:
        with h5py.File(path) as file:
            dataset = file[column]
            at = dataset.id.get_offset() + dataset.nbytes // 2
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def blob_of(file: str) -> str:
    return BLOBS[file.split("/")[0]]


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("name", READERS)
def test_every_command_reads_the_undamaged_set(made: Path, copy: Path, tmp_path: Path, name: str) -> None:
    assert command(name, made, copy, tmp_path).code == 0
    assert here("verify", copy, "--quiet", "--json").json == []


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("file", FILES)
def test_verify_names_file_and_sample(copy: Path, file: str) -> None:
    whole = (copy / file).read_bytes()
    flip(copy / file, blob_of(file))
    done = here("verify", copy, "--quiet", "--json")
    assert done.code == 1
    assert done.json[0]["where"] == file
    assert "SHA-256 differs" in done.json[0]["problem"]
    (sample,) = [finding for finding in done.json if finding["where"].startswith("b")]
    assert str(copy / file) in sample["problem"]
    assert "row" in sample["problem"]
    (copy / file).write_bytes(whole)
    for column in (None, *columns(copy / file)):
        flip(copy / file, column)
        done = here("verify", copy, "--quiet", "--files-only")
        assert done.code == 1
        assert done.out.splitlines()[0].startswith(f"{file}: SHA-256 differs"), column
        (copy / file).write_bytes(whole)
    assert here("verify", copy, "--quiet").code == 0


def columns(path: Path) -> list[str]:
    with h5py.File(path) as file:
        return [name for name in file if file[name].size]


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize(
    ("name", "file", "where"),
    [
        (name, file, where)
        for name, files in READERS.items()
        for file in files
        for where in ("blob", "head")
        if (name, file, where)
        != ("inspect", "evidence/00001.h5", "blob")  # it counts detections, and reads none
    ],
)
def test_a_command_that_reads_rot_says_where_in_one_line(
    made: Path, copy: Path, tmp_path: Path, name: str, file: str, where: str
) -> None:
    flip(copy / file, blob_of(file) if where == "blob" else None)
    line = one_line(command(name, made, copy, tmp_path))
    assert str(copy / file) in line
    assert where == "head" or "row" in line


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param(name, file, marks=pytest.mark.slow if name in ("train", "predict") else ())
        for name, files in READERS.items()
        for file in files
    ],
)
def test_rot_in_a_table_is_one_line_or_goes_through_but_never_a_traceback(
    made: Path, copy: Path, tmp_path: Path, name: str, file: str
) -> None:
    """Tables carry no checksums of their own: only `verify` sees every bit of them."""
    whole = (copy / file).read_bytes()
    manifest = (copy / "shardset.json").read_bytes()
    for number, column in enumerate(columns(copy / file)):
        for bit in (0, 6):
            flip(copy / file, column, bit)
            done = command(name, made, copy, tmp_path / f"{number}-{bit}")
            assert done.code == 0 or one_line(done), (column, bit)
            (copy / file).write_bytes(whole)
            shutil.rmtree(copy / "masks" / "new", ignore_errors=True)
            (copy / "shardset.json").write_bytes(manifest)


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in READERS.items() for file in files]
)
@pytest.mark.parametrize("how", ["gone", "cut", "empty"])
def test_a_file_that_is_gone_or_cut_is_one_line(
    made: Path, copy: Path, tmp_path: Path, name: str, file: str, how: str
) -> None:
    whole = (copy / file).read_bytes()
    (copy / file).unlink()
    if how != "gone":
        (copy / file).write_bytes(whole[:-100] if how == "cut" else b"")
    done = here("verify", copy, "--quiet")
    assert done.code == 1
    assert done.out.startswith(f"{file}: ")
    line = one_line(command(name, made, copy, tmp_path))
    assert str(copy / file) in line
    assert "build" in line or "remask" in line


def mix(layer: str) -> Callable[[Path, Path], object]:
    """Put another set's layer into a set."""

    def change(shards: Path, made: Path) -> None:
        shutil.rmtree(shards / layer)
        shutil.copytree(made / "other" / layer, shards / layer)
        manifest, other = (
            json.loads((each / "shardset.json").read_text()) for each in (shards, made / "other")
        )
        if layer == "masks":
            manifest["masks"]["default"]["files"] = other["masks"]["default"]["files"]
        else:
            manifest[layer] = other[layer]
        (shards / "shardset.json").write_text(json.dumps(manifest))

    return change


def version_2(shards: Path, made: Path) -> None:
    manifest = json.loads((shards / "shardset.json").read_text())
    assert manifest["version"] == 1
    (shards / "shardset.json").write_text(json.dumps(manifest | {"version": 2}))


def no_masks(shards: Path, made: Path) -> None:
    manifest = json.loads((shards / "shardset.json").read_text())
    manifest["masks"]["mine"] = manifest["masks"].pop("default")
    (shards / "shardset.json").write_text(json.dumps(manifest))
    (shards / "masks" / "default").rename(shards / "masks" / "mine")


MIXES = {
    "frames": (mix("frames"), ("set_id is ", "expected ", "another shard set"), ("inspect", "train", "predict")),
    "evidence": (mix("evidence"), ("set_id is ", "expected ", "another shard set"), ("inspect", "remask")),
    "masks": (mix("masks"), ("set_id is ", "expected ", "another shard set"), ("inspect", "remask", "train", "predict")),
    "version": (version_2, ("version", "2", "1", "release"), tuple(READERS)),
    "no default": (no_masks, ("no masks layer 'default'", "there are: mine", "remask"), ("inspect", "train", "predict")),
}  # fmt: skip


@pytest.mark.fault(Fault.WRONG_VERSION)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, _, names) in MIXES.items() for name in names]
)
def test_what_does_not_belong_together_is_found_expected_and_how_to_go_on(
    made: Path, copy: Path, tmp_path: Path, kind: str, name: str
) -> None:
    change, words, _ = MIXES[kind]
    change(copy, made)
    line = one_line(command(name, made, copy, tmp_path))
    for word in words:
        assert word in line, line
    if kind != "no default":
        assert here("verify", copy, "--quiet").code == 1
