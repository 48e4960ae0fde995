"""Clip folders: video, camera and truth agree; the command resumes; bytes do not depend on workers."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

import workflows.streetworld as command
from pipeline.errors import BuildError, ConfigError
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.streetworld import scan
from pipeline.streetworld.clip import ClipConfig, is_rendered, render_clip
from pipeline.streetworld.render import render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.truth import read_truth

TINY = {"frames": 2, "size": (104, 32)}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_video_shows_what_was_rendered(tmp_path):
    render_clip(tmp_path / "clip", 4, ClipConfig(frames=4, size=(208, 64)))
    (clip,) = scan(tmp_path)
    assert isinstance(clip, Clip)
    assert clip.name == "clip"
    scene = draw_scene(4, 4, (208, 64))
    for shown, frame in zip(clip.reader.frames(0, 4), render_frames(scene), strict=True):
        assert np.abs(shown.astype(int) - frame.image).mean() < 4
    np.testing.assert_allclose(clip.camera.K, scene.K)
    np.testing.assert_allclose(clip.timestamps_s, [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(clip.timestamps_s, read_truth(tmp_path / "clip/truth.h5").timestamps_s)


def test_a_frame_of_truth_is_small(tmp_path):
    render_clip(tmp_path / "clip", 1, ClipConfig(frames=3))
    assert (tmp_path / "clip/truth.h5").stat().st_size / 3 < 200_000


def test_camera_states_units(tmp_path):
    render_clip(tmp_path / "clip", 9, ClipConfig(**TINY))
    camera = json.loads((tmp_path / "clip/camera.json").read_text())
    assert {"fx", "fy", "cx", "cy", "width", "height", "fps", "units"} <= set(camera)
    assert (camera["width"], camera["height"], camera["fps"]) == (104, 32, 10.0)
    assert "pixels" in camera["units"]


def test_bytes_do_not_depend_on_workers(tmp_path):
    command.render(tmp_path / "one", "val", clips=2, workers=1, **TINY)
    command.render(tmp_path / "two", "val", clips=2, workers=2, **TINY)
    assert len(contents(tmp_path / "one")) == 6
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_names_are_seeds_and_splits_do_not_meet(tmp_path):
    folders = command.render(tmp_path, "all", clips=1, first=3, workers=1, **TINY)
    seeds = [read_truth(f / "truth.h5").seed for f in folders]
    assert [f.relative_to(tmp_path).as_posix() for f in folders] == [
        "train/train_0003",
        "val/val_0003",
        "test/test_0003",
    ]
    assert seeds == [3, 100_003, 200_003]
    with pytest.raises(ConfigError, match="a split has clips"):
        command.render(tmp_path, "train", clips=2, first=99_999)


def test_a_second_run_renders_only_what_is_missing(tmp_path, monkeypatch):
    folders = command.render(tmp_path, "train", clips=3, workers=1, **TINY)
    before = contents(tmp_path)
    (folders[1] / "truth.h5").unlink()  # as if it had never been finished
    rendered = []
    monkeypatch.setattr(
        command, "render_clip", lambda f, *rest: (rendered.append(f.name), render_clip(f, *rest))
    )
    command.render(tmp_path, "train", clips=3, workers=1, **TINY)
    assert rendered == ["train_0001"]
    assert contents(tmp_path) == before


def test_other_settings_are_rendered_anew(tmp_path):
    config = ClipConfig(**TINY)
    render_clip(tmp_path / "clip", 9, config)
    assert is_rendered(tmp_path / "clip", 9, config)
    assert not is_rendered(tmp_path / "clip", 19, config)
    assert not is_rendered(tmp_path / "clip", 9, ClipConfig(frames=3, size=(104, 32)))
    render_clip(tmp_path / "clip", 19, config)
    assert is_rendered(tmp_path / "clip", 19, config)


def test_an_interrupted_clip_leaves_no_folder(tmp_path):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        render_clip(tmp_path / "clip", 9, ClipConfig(**TINY), on_frame=stop)
    assert not list(tmp_path.iterdir())


def test_a_killed_renderer_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "render_clip", _die)
    with pytest.raises(BuildError, match="run the same command again"):
        command.render(tmp_path, "train", clips=2, workers=2, **TINY)


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("settings", [{"frames": 1}, {"size": (103, 32)}, {"size": (104, 8)}, {"fps": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        ClipConfig(**settings)


@pytest.mark.parametrize("damage", ["camera", "version", "size", "count", "video"])
def test_a_damaged_clip_is_a_bad_clip_and_the_others_go_on(tmp_path, damage):
    command.render(tmp_path, "train", clips=2, workers=1, **TINY)
    bad = tmp_path / "train/train_0000"
    camera = json.loads((bad / "camera.json").read_text())
    if damage == "camera":
        del camera["fx"]
    elif damage == "version":
        camera["version"] = 99
    elif damage == "size":
        camera["width"] = 106
    elif damage == "count":
        render_clip(tmp_path / "longer", 0, ClipConfig(frames=3, size=(104, 32)))
        (tmp_path / "longer/truth.h5").rename(bad / "truth.h5")
        (tmp_path / "longer/video.mp4").unlink()
    else:
        data = (bad / "video.mp4").read_bytes()
        (bad / "video.mp4").write_bytes(data[: len(data) // 2])
    (bad / "camera.json").write_text(json.dumps(camera))
    results = {clip.name: clip for clip in scan(tmp_path)}
    assert isinstance(results["train/train_0000"], BadClip)
    assert "train_0000" in results["train/train_0000"].reason
    assert isinstance(results["train/train_0001"], Clip)
