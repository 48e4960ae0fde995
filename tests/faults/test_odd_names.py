"""Odd names of files and folders, through every command that takes a path."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.shards.reader import ShardSet, locate
from pipeline.sources.naming import safe_clip_name
from tests.faults.inputs import (
    FRAMES,
    HEIGHT,
    HERE,
    WIDTH,
    build_here,
    car_masks,
    decoded,
    here,
    one_line,
    stored,
)
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, number_of

NAMES = [
    b"\xff\xfe no text",
    b"new\nline",
    b'it\'s "quoted"',
    "日本語".encode(),
    "🚗".encode(),
    b"-dash",
    b"--quiet",
    b"x" * 251,
    "日".encode() * 83,
    b"\xff" * 251,
    b"tab\tand point.",
    b"space behind ",
    b"%41",
    b"[glob]*?",
    b"\x1b[31mred",
    b"{0} $HOME `ls`",
    b"A",
]
TWINS = ["ride.mp4", "ride.mkv", "ride.avi", "ride-2.mp4"]  # but for the first all are named otherwise
ODD = os.fsdecode(b"\xff \n\"\xe6\x97\xa5' ")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose own name is odd."""
    return Path(shutil.copytree(tmp_path, tmp_path / ODD, ignore=shutil.ignore_patterns("*")))


def videos(folder: Path) -> list[str]:
    """A video under each name; the names of their clips."""
    folder.mkdir()
    content = encode(folder / "made.mp4", FRAMES[:4]).read_bytes()
    (folder / "made.mp4").unlink()
    for name in NAMES:
        (folder / os.fsdecode(name + b".mp4")).write_bytes(content)
    for name in TWINS:
        (folder / name).write_bytes(content)
    clips = [safe_clip_name(os.fsdecode(name)) for name in NAMES]
    return [*clips, "ride", "ride-2", "ride-3", "ride-4"]


@pytest.mark.fault(Fault.ODD_NAMES)
def test_odd_names_come_through_every_command(odd: Path) -> None:
    source, out = odd / f"source{ODD}", odd / f"set{ODD}"
    clips = videos(source)
    detector = car_masks(odd / f"masks{ODD}", clips, 4)
    camera, recipe = odd / f"camera{ODD}.json", odd / f"recipe{ODD}.yaml"
    camera.write_text('{"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5}')
    recipe.write_text(f"frames: {{size: [{WIDTH}, {HEIGHT}], codec: png}}\n")
    line = (
        "build",
        source,
        out,
        "--recipe",
        recipe,
        "--intrinsics",
        camera,
        "--detector",
        detector,
        *HERE,
        "--json",
    )

    done = here(*line)
    assert done.code == 0, done.errors
    assert (done.json["clips"], done.json["frames"]) == (len(clips), 4 * len(clips))
    with ShardSet(out) as shards:
        assert sorted(clip.name for clip in shards.manifest.clips) == sorted(clips)
        assert {float(clip.intrinsics[0, 0]) for clip in shards.manifest.clips} == {60.0}
        for clip in shards.manifest.clips:
            assert all(len(level) <= 200 for level in clip.name.split("/"))
            assert [len(shards.instances("default", clip, frame)) for frame in range(4)] == [1] * 4
    for name in clips:
        assert [number_of(frame) for frame in stored(out, name)] == [0, 1, 2, 3]

    assert here(*line).json["worked_frames"] == 0
    video, sheet = odd / f"video{ODD}.mp4", odd / f"sheet{ODD}.png"
    done = here("inspect", out, "--video", video, "--sheet", sheet, "--json")
    assert (done.code, done.json["clips"]) == (0, len(clips))
    assert len(decoded(video)) == 4 * len(clips)
    assert Image.open(sheet).width == 3 * WIDTH
    assert here("verify", out, "--quiet", "--json").json == []
    done = here("remask", out, "--name", "large", "--min-area", "500", *HERE, "--json")
    assert done.json["instances"] == [4 * len(clips), 0]
    done = here("evaluate", "leaks", out, out, "--json")
    assert done.code in (0, 1), done.errors
    for clip in clips[:3]:
        assert here("inspect", out, f"--clip={clip}", "--sheet", odd / "one.png").code == 0


@pytest.mark.fault(Fault.ODD_NAMES)
def test_images_and_their_folders_may_be_called_anything(odd: Path) -> None:
    source = odd / "source"
    for folder in NAMES:
        (source / os.fsdecode(folder)).mkdir(parents=True)
        for number in (2, 10):
            Image.fromarray(FRAMES[number % 8]).save(source / os.fsdecode(folder) / f"{number}.png")
    mixed = source / "mixed"
    mixed.mkdir()
    for name in NAMES:
        Image.fromarray(FRAMES[1]).save(odd / "made.png")
        (odd / "made.png").rename(mixed / os.fsdecode(name + b".png"))
    masks = odd / "masks"
    detector = car_masks(masks, ["mixed"], 1)
    (masks / "mixed" / "000000.png").rename(masks / "mixed" / "日本語.png")
    shutil.copy(masks / "mixed" / "日本語.png", masks / os.fsdecode(b"\xff.png"))

    done = build_here(source, odd / "set", detector)
    assert done.code == 0, done.errors
    assert done.json["clips"] == len(NAMES) + 1
    for folder in NAMES:
        frames = stored(odd / "set", safe_clip_name(os.fsdecode(folder)))
        assert [number_of(frame) for frame in frames] == [2, 10 % 8]
    with ShardSet(odd / "set") as shards:
        clip = shards.clip("mixed")
        found = [len(shards.instances("default", clip, frame)) for frame in range(clip.frames)]
        rows = [locate(clip, frame) for frame in range(clip.frames)]
        names = [shards.frames_file(index).name(row) for index, row in rows]
    assert len(names) == len(set(names)) == len(NAMES)
    assert {"日本語", "new\nline", "\\xff\\xfe no text"} <= set(names)
    assert found == [int(name == "日本語") for name in names]


@pytest.mark.fault(Fault.ODD_NAMES)
def test_paths_may_climb_and_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a" / "source"
    source.mkdir(parents=True)
    encode(source / "-v.mp4", FRAMES)
    (tmp_path / "b").mkdir()
    detector = car_masks(tmp_path / "masks", ["-v"])
    assert build_here(source, tmp_path / "straight", detector).code == 0
    monkeypatch.chdir(tmp_path / "b")
    for given, out in (("../a/source", "../climbed"), ("../a/source/../source/-v.mp4", "./-here")):
        done = build_here(given, out, "masks:../masks")
        assert done.code == 0, done.errors
        assert done.json["frames"] == 8
    assert [number_of(frame) for frame in stored(Path("-here"), "-v")] == list(range(8))
    assert here("verify", "./-here", "--quiet").code == 0
    monkeypatch.chdir(source)
    done = build_here(".", "../../dot", detector)
    assert done.code == 0, done.errors


@pytest.mark.fault(Fault.ODD_NAMES)
def test_complaints_about_odd_names_are_one_line(odd: Path) -> None:
    missing, source = odd / f"missing{ODD}", odd / f"source{ODD}"
    source.mkdir()
    encode(source / "good.mp4", FRAMES)
    detector = car_masks(odd / "masks", ["good"])
    line = ("build", source, odd / "set")
    one_line(here("build", missing, odd / "set", *HERE))
    one_line(here(*line, "--intrinsics", missing, *HERE))
    one_line(here(*line, "--intrinsics", source, *HERE))
    one_line(here(*line, "--fov-deg", "60", "--detector", f"masks:{missing}", *HERE))
    one_line(here(*line, "--fov-deg", "60", "--detector", f"masks:{source}", *HERE))
    assert here(*line, "--recipe", missing, *HERE).code == 2
    for command in ("inspect", "verify"):
        one_line(here(command, missing))
    one_line(here("remask", missing, "--name", "x", *HERE))
    one_line(here("evaluate", "tracks", missing, source))
    (source / f"bad{ODD}.mp4").write_bytes(b"no video")
    done = build_here(source, odd / "set", detector)
    (entry,) = done.json["quarantine"]
    assert done.code == 1
    assert entry["reason"].isprintable()
    assert "\\xff" in entry["reason"]
