"""A set that is there already, and the same build again: clips that had failed come in, files that are missing come
back, and what `remask` has added stays, whenever it is stopped."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.assembly import Layout
from pipeline.build import build
from pipeline.earlier import set_aside
from pipeline.errors import BuildError, ShardError
from pipeline.estimate import estimate
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig
from pipeline.records import read_record, restore, withdraw
from pipeline.remask import remask
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import ShardSet
from pipeline.shards.verify import verify_clip, verify_files
from tests.builds import contents
from tests.faults.clips import SIZE, write_source
from tests.faults.killer import HERE, STRICT, config, one_round
from tests.faults.table import Fault

# The first file gets "a" and "b"; "long" has two files of its own, and "z" the last.
CLIPS = {"a": 2, "b": 3, "long": 11, "z": 3}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of images, and masks for them."""
    videos, masks = write_source(tmp_path / "source", CLIPS)
    for name, count in CLIPS.items():
        (videos / f"{name}.mp4").unlink()
        (videos / name).mkdir()
        for frame in range(count):
            v, u = np.mgrid[: SIZE[1], : SIZE[0]]
            picture = np.stack([u * 4, v * 5, np.full_like(u, 9 * frame)], -1).astype(np.uint8)
            assert cv2.imwrite(str(videos / name / f"{frame:06d}.png"), picture)
    return videos, masks


def made(source: tuple[Path, Path], out: Path, layers: tuple[str, ...] = ("strict",)) -> Path:
    """An undisturbed build, with layers that remask has added."""
    build(source[0], out, config(source[1]), HERE, quiet=True)
    for name in layers:
        remask(out, name, STRICT, HERE, quiet=True)
    return out


def again(source: tuple[Path, Path], out: Path):  # type: ignore[no-untyped-def]
    return build(source[0], out, config(source[1]), HERE, quiet=True)


def stop(*_: object, **__: object) -> None:
    """In place of something that is about to be called."""
    raise KeyboardInterrupt


def stop_before_masks(source: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build again, and stop when frames and evidence have changed: nobody may read the set then."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.make_layer", stop)
        with pytest.raises(KeyboardInterrupt):
            again(source, out)
    with pytest.raises(ShardError, match="an unfinished build; run the same `instance-motion build` again"):
        ShardSet(out)


def hurt(image: Path) -> bytes:
    """Damage an image that is neither the first nor the last of its clip: the set stays the same to a build.

    Returns:
        What it was.
    """
    before = image.read_bytes()
    middle = len(before) // 2
    image.write_bytes(before[:middle] + bytes(9) + before[middle + 9 :])
    return before


def whole(out: Path, *, and_nothing_else: bool = True) -> bool:
    """Whether everything that is listed is right; and_nothing_else: and there is nothing that is not."""
    with ShardSet(out) as shards:
        problems = [found for _, found in verify_files(shards) if found]
        problems = [each for each in problems if and_nothing_else or each.problem != "not in the manifest"]
        problems += [found for clip in shards.manifest.clips for found in verify_clip(shards, clip)]
    return not problems


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("clip", ["b", "long", "z"])
def test_layers_of_remask_outlive_the_builds_that_follow(
    source: tuple[Path, Path], tmp_path: Path, clip: str
) -> None:
    wanted = contents(made(source, tmp_path / "wanted"))
    image = source[0] / clip / "000001.png"
    before = hurt(image)
    out = made(source, tmp_path / "set")
    first = contents(out)
    assert [entry.clip for entry in read_manifest(out).quarantine] == [clip]

    again(source, out)  # it fails again
    assert contents(out) == first
    image.write_bytes(before)
    assert not again(source, out).quarantine
    assert contents(out) == wanted
    assert whole(out)
    assert not (out / ".build").exists()


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.fault(Fault.STOPPED)
def test_files_that_change_are_taken_from_their_readers_first(
    source: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = contents(made(source, tmp_path / "wanted"))
    image = source[0] / "b" / "000001.png"
    before = hurt(image)
    out = made(source, tmp_path / "set")
    image.write_bytes(before)

    stop_before_masks(source, out, monkeypatch)
    again(source, out)
    assert contents(out) == wanted


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.parametrize(
    "seed", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_set_that_clips_are_added_to_is_whole_or_unfinished_after_every_kill(
    source: tuple[Path, Path], tmp_path: Path, seed: int
) -> None:
    """Round after round, kill -9 before the n-th change on the disk, n one more each time."""
    wanted = contents(made(source, tmp_path / "wanted"))
    image = source[0] / ("b", "z")[seed % 2] / "000001.png"
    before = hurt(image)
    out = made(source, tmp_path / "set")
    image.write_bytes(before)
    killed, seen = 0, set[str]()
    aim = ("anything", "os.rename")[seed // 2]
    while one_round(lambda: again(source, out), out, 1 + killed // 2, aim, 0.5) is not None:
        killed += 1
        if (out / "shardset.json").exists():
            assert whole(out, and_nothing_else=False)
            seen.add("whole")
        else:
            with pytest.raises(ShardError, match="an unfinished build"):
                ShardSet(out)
            seen.add("unfinished")
    print(f"clips added, {aim}: killed {killed} times")
    assert killed > 5
    assert seen == ({"whole", "unfinished"} if seed % 2 == 0 else {"whole"})
    assert contents(out) == wanted
    assert not list(out.rglob("*.partial"))


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize(
    "name", ["frames/00001.h5", "evidence/00002.h5", "masks/default/00001.h5", "masks/strict/00000.h5"]
)
def test_a_file_that_was_deleted_as_told_is_made_again_and_no_other(
    source: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    out = made(source, tmp_path / "set")
    wanted = contents(out)
    others = {
        path: path.stat().st_mtime_ns for layer in ("frames", "evidence") for path in (out / layer).iterdir()
    }
    path = out / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with (
        pytest.raises(ShardError, match=r"delete it and run `instance-motion build` again"),
        ShardSet(out) as s,
    ):
        for clip in s.manifest.clips:
            for frame in range(clip.frames):
                s.image(clip, frame), s.evidence(clip, frame)
                s.labels("default", clip, frame), s.labels("strict", clip, frame)
    path.unlink()
    frames = {1: 6, 2: 5}.get(int(path.stem), 0) if path.parent.name in ("frames", "evidence") else 0
    if frames:
        found = estimate(*source[:1], out, config(source[1]), HERE, quiet=True)
        assert (found.standing, found.frames_left) == ("unfinished", frames)
    report = again(source, out)
    # A step across a border needs the piece before it once more.
    assert report.worked_frames == {"evidence/00002.h5": 5 + 2}.get(name, frames)
    assert contents(out) == wanted
    assert not (out / ".build").exists()
    for other, when in others.items():
        if (frames and other.name != path.name) or not frames:
            assert other.stat().st_mtime_ns == when, other
    assert again(source, out).worked_frames == 0


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_long_clip_that_fails_near_its_end_keeps_what_was_done(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = contents(made(source, tmp_path / "wanted"))
    image = source[0] / "long" / "000009.png"
    before = hurt(image)
    out = tmp_path / "set"
    first = build(source[0], out, config(source[1]), HERE, quiet=True)
    assert [entry.clip for entry in first.quarantine] == ["long"]
    assert first.worked_frames == sum(CLIPS.values()) - 3  # a piece has two frames, and one is behind it
    assert not (out / "frames" / "00001.h5").exists()
    assert again(source, out).worked_frames == 0  # fails again
    image.write_bytes(before)
    assert again(source, out).worked_frames == 3
    remask(out, "strict", STRICT, HERE, quiet=True)
    assert contents(out) == wanted


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_bad_clip_in_a_thousand_files_is_one_quarantined_clip(tmp_path: Path) -> None:
    videos, masks = write_source(tmp_path / "source", {"good": 3})
    (videos / "good.mp4").unlink()
    image = masks / "good" / "000000.png"
    for name, count in {"good": 3, "bad": 3000}.items():
        (videos / name).mkdir()
        (masks / name).mkdir(exist_ok=True)
        for frame in range(count):
            shutil.copy(image, videos / name / f"{frame:06d}.png")
            if name == "bad":
                shutil.copy(image, masks / name / f"{frame:06d}.png")
    hurt(videos / "bad" / "000001.png")
    settings = config(masks)
    settings = type(settings)(**{**vars(settings), "plan": PlanConfig(frames_per_piece=2, frames_per_file=2)})
    report = build(videos, tmp_path / "set", settings, GraphConfig(workers=0), quiet=True)
    assert [entry.clip for entry in report.quarantine] == ["bad"]
    assert report.clips == 1


@pytest.mark.fault(Fault.KILLED)
def test_a_layer_that_is_replaced_is_not_there_until_it_is_whole(
    source: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(source, tmp_path / "set")
    strict = contents(out, "masks/strict")
    other = MaskConfig(min_area=100)
    assert strict != contents(made_other(source, tmp_path / "other", other), "masks/strict")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.mask_layer.event", stop)  # after the first file
        with pytest.raises(KeyboardInterrupt):
            remask(out, "strict", other, HERE, replace_layer=True, quiet=True)
    assert contents(out, "masks/strict") != strict
    assert set(read_manifest(out).masks) == {"default"}
    assert [found.where for _, found in verify_files(ShardSet(out)) if found] == ["masks/strict"]
    remask(out, "strict", STRICT, HERE, quiet=True)  # by the old settings after all
    assert contents(out, "masks/strict") == strict
    assert whole(out)


def made_other(source: tuple[Path, Path], out: Path, masks: MaskConfig) -> Path:
    made(source, out, layers=())
    remask(out, "strict", masks, HERE, quiet=True)
    return out


@pytest.mark.fault(Fault.BIT_ROT)
def test_a_layer_with_a_missing_file_is_made_again_by_remask(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    out = made(source, tmp_path / "set")
    wanted = contents(out)
    (out / "masks" / "strict" / "00002.h5").unlink()
    remask(out, "strict", STRICT, HERE, quiet=True)
    assert contents(out) == wanted


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_other_mask_settings_are_refused_also_while_clips_are_to_be_tried_again(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    hurt(source[0] / "b" / "000001.png")
    out = made(source, tmp_path / "set")
    first = contents(out)
    other = replace(config(source[1]), masks=MaskConfig(min_area=999))
    refusal = "is there already, with other mask settings; `instance-motion remask"
    with pytest.raises(BuildError, match=refusal):
        build(source[0], out, other, HERE, quiet=True)
    assert contents(out) == first
    set_aside(out)
    with pytest.raises(BuildError, match=refusal):
        build(source[0], out, other, HERE, quiet=True)
    again(source, out)
    assert contents(out) == first


NOWHERE = GraphConfig(scheduler="tcp://127.0.0.1:1", worker_timeout_s=0.5)


def test_nothing_is_taken_from_readers_before_there_are_workers(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    out = made(source, tmp_path / "set")
    before = contents(out)
    with pytest.raises(BuildError, match="no dask scheduler answers"):
        remask(out, "default", STRICT, NOWHERE, replace_layer=True, quiet=True)
    assert contents(out) == before
    (out / "evidence" / "00001.h5").unlink()
    del before["evidence/00001.h5"]
    with pytest.raises(BuildError, match="no dask scheduler answers"):
        build(source[0], out, config(source[1]), NOWHERE, quiet=True)
    with pytest.raises(
        ShardError, match=r"evidence/00001.h5: missing or cut; run the same `instance-motion build`"
    ):
        remask(out, "default", STRICT, HERE, replace_layer=True, quiet=True)
    assert contents(out) == before


@pytest.mark.fault(Fault.KILLED)
def test_a_missing_file_of_a_set_with_failed_clips_is_not_made_under_its_readers(
    source: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurt(source[0] / "b" / "000001.png")
    out = made(source, tmp_path / "set")
    wanted = contents(out)
    (out / "frames" / "00001.h5").unlink()

    stop_before_masks(source, out, monkeypatch)
    again(source, out)
    assert contents(out) == wanted


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_clip_that_was_in_the_set_and_fails_when_it_is_made_again_leaves_nothing_behind(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    out = made(source, tmp_path / "set")
    wanted = contents(out)
    (out / "frames" / "00002.h5").unlink()
    before = hurt(source[0] / "long" / "000009.png")
    assert [entry.clip for entry in again(source, out).quarantine] == ["long"]
    assert whole(out)
    (source[0] / "long" / "000009.png").write_bytes(before)
    again(source, out)
    assert contents(out) == wanted


def test_a_record_is_of_a_file_that_is_in_place_or_kept(source: tuple[Path, Path], tmp_path: Path) -> None:
    hurt(source[0] / "b" / "000001.png")
    out = made(source, tmp_path / "set")
    settings = config(source[1])
    layout = Layout(folder=out, set_id=read_manifest(out).set_id, frames=settings.frames, flow=settings.flow)
    before = contents(out)
    pair = read_record(layout, 1, ["long"])
    assert pair is not None
    assert read_record(layout, 1, ["a"]) is None
    withdraw(layout, 1)
    assert not (out / "frames" / "00001.h5").exists()
    assert read_record(layout, 1, ["long"]) == pair
    os.replace(out / ".build/withdrawn/frames/00001.h5", out / "frames/00001.h5")  # stopped half way back
    assert read_record(layout, 1, ["long"]) == pair
    restore(layout, 1, pair)
    assert contents(out) == before
    withdraw(layout, 1)
    shutil.rmtree(out / ".build" / "withdrawn")
    assert read_record(layout, 1, ["long"]) is None
    (out / ".build" / "files" / "00001.json").write_text(json.dumps([]))
    assert read_record(layout, 1, ["long"]) is None
