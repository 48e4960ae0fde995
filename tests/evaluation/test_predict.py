"""From a checkpoint and a shard set to predictions: what each row refers to, and what does not matter."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from evaluation import predict as module
from evaluation.predict import predict, predict_clips, size_of
from evaluation.predictions import ClipPrediction, read_clips
from pipeline.errors import ConfigError, ShardError, TrainingError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.masks import Pairs
from pipeline.shards.reader import ShardSet
from tests.training.runs import settings
from tests.training.shardsets import write_set
from training import checkpoint
from training.alignment import AlignmentConfig
from training.checkpoint import Checkpoint, Progress
from training.geometry import se3
from training.geometry.sampling import resize
from training.networks.build import Networks, make_networks


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    """Networks that answer something, without the training: objects move, and each differently."""
    config = settings(Path("anywhere"), objective_instances_from=0, data_size=None)
    torch.manual_seed(11)
    networks = make_networks(config.networks, "crop", config.objective.motion.crop_px)
    with torch.no_grad():
        for last in (networks.objects.regress[-1], networks.ego.last):  # type: ignore[index, union-attr]
            last.weight.normal_(0, 0.3)
            last.bias.normal_(0, 0.3)
    return Checkpoint(
        config=config,
        data=None,
        processes=None,
        networks=networks.state_dict(),
        averaged=None,
        optimiser={},
        progress=Progress(step=9),
        random=checkpoint.random_states(),
    )


@pytest.fixture(scope="module")
def run(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder / "last.pt", trained)
    return folder


@pytest.fixture(scope="module")
def networks(trained: Checkpoint) -> Networks:
    return checkpoint.restore_networks(trained, "cpu")


@pytest.fixture(scope="module")
def predicted(run: Path, street_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    predict(run, street_shards, out, device="cpu", depth_type="float32", quiet=True)
    return out


def require_equal(a: ClipPrediction, b: ClipPrediction, tolerance: float = 0.0) -> None:
    for field in fields(ClipPrediction):
        if field.name not in ("name", "objects"):
            np.testing.assert_allclose(
                getattr(a, field.name),
                getattr(b, field.name),
                rtol=tolerance,
                atol=tolerance,
                err_msg=field.name,
            )
    for field in fields(a.objects):
        np.testing.assert_allclose(
            getattr(a.objects, field.name),
            getattr(b.objects, field.name),
            rtol=tolerance,
            atol=tolerance,
            err_msg=field.name,
        )


# ---------------------------------------------------------------------------- what rows refer to


def test_every_matched_instance_has_a_row_and_each_row_is_one(predicted: Path, street_shards: Path) -> None:
    with ShardSet(street_shards) as shards:
        for clip, stored in zip(read_clips(predicted), shards.manifest.clips, strict=True):
            assert clip.name == stored.name
            rows = set()
            for later in range(1, stored.frames):
                pairs = shards.pairs("default", stored, later)
                before = shards.instances("default", stored, later - 1)
                after = shards.instances("default", stored, later)
                for label, following in zip(pairs.prev.tolist(), pairs.next.tolist(), strict=True):
                    assert before.track[label - 1] == after.track[following - 1]
                    rows.add(
                        (later - 1, label, following, before.track[label - 1], before.class_index[label - 1])
                    )
            found = clip.objects
            columns = (found.frame, found.label, found.next_label, found.track, found.class_index)
            assert set(zip(*(column.tolist() for column in columns), strict=True)) == rows
            assert len(found) == len(rows) > 0


def test_what_was_stored_is_handed_on(predicted: Path, street_shards: Path) -> None:
    with ShardSet(street_shards) as shards:
        for clip, stored in zip(read_clips(predicted), shards.manifest.clips, strict=True):
            assert len(clip) == stored.frames
            assert clip.size == (208, 64)
            np.testing.assert_array_equal(clip.K, stored.intrinsics)
            np.testing.assert_array_equal(clip.timestamps_s, shards.timestamps_s(stored))
            for frame in range(stored.frames):
                np.testing.assert_array_equal(clip.labels[frame], shards.labels("default", stored, frame))


def test_depth_and_camera_motion_are_the_networks_answers_in_time_order(
    predicted: Path, street_shards: Path, networks: Networks
) -> None:
    """Frame by frame and pair by pair, by hand."""
    clip = next(iter(read_clips(predicted)))
    with ShardSet(street_shards) as shards:
        stored = shards.manifest.clips[0]
        images = [
            torch.from_numpy(shards.image(stored, frame)).permute(2, 0, 1)[None].float() / 255
            for frame in (11, 12)
        ]
        labels = [torch.from_numpy(shards.labels("default", stored, frame).astype(int)) for frame in (11, 12)]
    with torch.no_grad():
        inverse_depth = networks.depth(images[0])[0]
        static = (labels[0] == 0) & (labels[1] == 0)
        answer = networks.ego(images[0] * static, images[1] * static)
    np.testing.assert_allclose(clip.inverse_depth[11], inverse_depth[0, 0], rtol=1e-5)
    np.testing.assert_allclose(
        clip.later_T_earlier[11], se3.from_euler(answer[:, :3], answer[:, 3:])[0], atol=1e-6
    )


def test_the_centre_of_a_row_projects_into_its_object(predicted: Path) -> None:
    """So label, motion and centre belong to one object, seen by the camera of the earlier frame."""
    inside = []
    for clip in read_clips(predicted):
        uvw = clip.objects.centre @ clip.K.T
        u, v = np.round(uvw[:, :2] / uvw[:, 2:]).astype(int).T
        inside += list(clip.labels[clip.objects.frame, v, u] == clip.objects.label)
    assert np.mean(inside) > 0.9  # a crescent's middle lies beside it
    assert len(inside) > 50


@pytest.mark.parametrize(
    ("trained_at", "seen_at"),
    [(None, (208, 64)), ((104, 32), (104, 32)), ((104, 64), (208, 64)), ((416, 100), (416, 128))],
)
def test_networks_see_frames_as_large_as_they_were_trained_on(
    trained_at: tuple[int, int] | None, seen_at: tuple[int, int]
) -> None:
    """Whole frames: where training frames were cut out of them, at the scale they were cut at."""
    assert size_of(trained_at, (208, 64)) == seen_at


def test_a_run_at_half_the_stored_size_predicts_there_and_answers_at_the_stored_size(
    trained: Checkpoint, predicted: Path, street_shards: Path, networks: Networks, tmp_path: Path
) -> None:
    with ShardSet(street_shards) as shards:
        width, height = shards.manifest.size
        image = shards.image(shards.manifest.clips[0], 3)
    half = (width // 2, height // 2)
    config = replace(trained.config, data=replace(trained.config.data, size=half))
    checkpoint.save(tmp_path / "run" / "last.pt", replace(trained, config=config))
    predict(
        tmp_path / "run",
        street_shards,
        tmp_path / "out",
        device="cpu",
        include=("*0",),
        depth_type="float32",
        quiet=True,
    )
    (clip,) = read_clips(tmp_path / "out")
    whole = next(iter(read_clips(predicted)))
    assert clip.size == whole.size == (width, height)
    np.testing.assert_array_equal(clip.K, whole.K)
    np.testing.assert_array_equal(clip.labels, whole.labels)
    small = torch.from_numpy(cv2.resize(image, half, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None]
    with torch.no_grad():
        answer = resize(networks.depth(small.float() / 255)[0], (height, width))
    np.testing.assert_allclose(clip.inverse_depth[3], answer[0, 0], rtol=1e-4)
    # The same objects, each where it was.
    row = {
        (f, label): c
        for f, label, c in zip(whole.objects.frame, whole.objects.label, whole.objects.centre, strict=True)
    }
    uv = clip.objects.centre @ clip.K.T
    for frame, label, (u, v, w) in zip(clip.objects.frame, clip.objects.label, uv, strict=True):
        x, y, z = whole.K @ row[frame, label]
        assert abs(u / w - x / z) < 1.5
        assert abs(v / w - y / z) < 1.5
    assert len(clip.objects) > 0.8 * len(whole.objects.frame[whole.objects.frame < len(clip)]) / 2


# ---------------------------------------------------------------------------- what does not matter


def test_a_run_and_its_checkpoint_predict_the_same(
    run: Path, predicted: Path, street_shards: Path, tmp_path: Path
) -> None:
    index = predict(
        run / "last.pt",
        street_shards,
        tmp_path,
        device="cpu",
        include=("*1",),
        depth_type="float32",
        quiet=True,
    )
    assert index.clips == ("test_0001",)
    assert index.checkpoint == hashlib.sha256((run / "last.pt").read_bytes()).hexdigest()
    (again,) = read_clips(tmp_path)
    require_equal(again, list(read_clips(predicted))[1])


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_how_many_frames_go_at_once_changes_nothing(
    chunk: int,
    networks: Networks,
    trained: Checkpoint,
    predicted: Path,
    street_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module.CHUNK == 8  # 14 frames are two chunks
    monkeypatch.setattr(module, "CHUNK", chunk)
    (again,) = predict_clips(networks, trained.config.objective.motion, street_shards, include=("*0",))
    require_equal(again, next(iter(read_clips(predicted))), tolerance=2e-5)


def test_the_best_checkpoint_is_taken_and_its_averaged_weights(
    trained: Checkpoint, street_shards: Path, tmp_path: Path
) -> None:
    still = {
        name: torch.zeros_like(value) if name.startswith("ego.last") else value
        for name, value in trained.networks.items()
    }
    checkpoint.save(tmp_path / "run" / "last.pt", trained)
    checkpoint.save(tmp_path / "run" / "best.pt", replace(trained, averaged=still))
    predict(tmp_path / "run", street_shards, tmp_path / "out", device="cpu", include=("*1",), quiet=True)
    (clip,) = read_clips(tmp_path / "out")
    np.testing.assert_array_equal(clip.later_T_earlier, np.tile(np.eye(4), (5, 1, 1)))


# ---------------------------------------------------------------------------- odd clips


def test_a_clip_of_one_frame_has_depth_and_nothing_that_moves(
    run: Path, networks: Networks, tmp_path: Path
) -> None:
    shards = write_set(tmp_path / "set", {"one": 1, "three": 3, "single": 1})
    index = predict(run, shards, tmp_path / "out", device="cpu", depth_type="float32", quiet=True)
    assert index.clips == ("one", "three", "single")
    one, three, _ = read_clips(tmp_path / "out")
    assert (len(one), one.later_T_earlier.shape, len(one.objects)) == (1, (0, 4, 4), 0)
    assert len(three.objects) == 4
    with ShardSet(shards) as opened:
        image = opened.image(opened.manifest.clips[0], 0)
    with torch.no_grad():
        expected = networks.depth(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0][0]
    np.testing.assert_allclose(one.inverse_depth, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.unique(one.labels), [0, 1, 2, 3])

    alone = predict(run, shards, tmp_path / "alone", device="cpu", include=("one",), quiet=True)
    assert alone.clips == ("one",)


def test_a_clip_without_instances_has_no_row(run: Path, street_shards: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(street_shards, tmp_path / "set")
    remask(shards, "none", MaskConfig(min_area=10_000), GraphConfig(workers=0), quiet=True)
    predict(run, shards, tmp_path / "out", layer="none", device="cpu", include=("*1",), quiet=True)
    (clip,) = read_clips(tmp_path / "out")
    assert len(clip) == 6
    assert not clip.labels.any()
    assert len(clip.objects) == 0


def test_instances_without_a_match_have_no_row(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardSet, "pairs", lambda *_: Pairs.empty())
    predict(run, write_set(tmp_path / "set", {"two": 2}), tmp_path / "out", device="cpu", quiet=True)
    (clip,) = read_clips(tmp_path / "out")
    assert clip.labels.any()
    assert len(clip.objects) == 0


def test_frames_in_which_nothing_moved_are_predicted_too(run: Path, tmp_path: Path) -> None:
    shards = write_set(tmp_path / "set", {"waiting": 5}, static={"waiting": (1, 2, 3)})
    predict(run, shards, tmp_path / "out", device="cpu", quiet=True)
    (clip,) = read_clips(tmp_path / "out")
    assert len(clip) == 5
    assert sorted(set(clip.objects.frame.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("change", [{"instances": False}, {"instances_from": 9}])
def test_networks_that_learned_without_masks_predict_without(
    change: dict[str, int], trained: Checkpoint, networks: Networks, tmp_path: Path
) -> None:
    """Their camera network has never seen a masked frame."""
    objective = replace(trained.config.objective, **change)  # type: ignore[arg-type]
    checkpoint.save(
        tmp_path / "run.pt", replace(trained, config=replace(trained.config, objective=objective))
    )
    shards = write_set(tmp_path / "set", {"two": 2})
    predict(tmp_path / "run.pt", shards, tmp_path / "out", device="cpu", quiet=True)
    (clip,) = read_clips(tmp_path / "out")
    with ShardSet(shards) as opened, torch.no_grad():
        images = [
            torch.from_numpy(opened.image(opened.manifest.clips[0], k)).permute(2, 0, 1)[None].float() / 255
            for k in (0, 1)
        ]
        answer = networks.ego(*images)
    assert len(clip.objects) == 0
    np.testing.assert_allclose(
        clip.later_T_earlier[0], se3.from_euler(answer[:, :3], answer[:, 3:])[0], atol=1e-6
    )


def test_motions_are_aligned_as_in_training_or_left_as_the_networks_propose_them(
    trained: Checkpoint, run: Path, tmp_path: Path
) -> None:
    alignment = AlignmentConfig(camera_steps=1, object_steps=1)
    objective = trained.config.objective
    aligned = replace(objective, motion=replace(objective.motion, alignment=alignment))
    checkpoint.save(tmp_path / "run.pt", replace(trained, config=replace(trained.config, objective=aligned)))
    shards = write_set(tmp_path / "set", {"two": 3})
    predict(run, shards, tmp_path / "never", device="cpu", quiet=True)
    predict(tmp_path / "run.pt", shards, tmp_path / "off", device="cpu", align=False, quiet=True)
    predict(tmp_path / "run.pt", shards, tmp_path / "on", device="cpu", quiet=True)
    (never,), (off,), (on,) = (list(read_clips(tmp_path / each)) for each in ("never", "off", "on"))
    np.testing.assert_array_equal(off.later_T_earlier, never.later_T_earlier)
    np.testing.assert_array_equal(off.objects.motion, never.objects.motion)
    assert np.abs(on.later_T_earlier - off.later_T_earlier).max() > 1e-6
    assert np.abs(on.objects.motion - off.objects.motion).max() > 1e-6


# ---------------------------------------------------------------------------- one line each


def test_what_cannot_be_predicted_is_one_line(run: Path, street_shards: Path, tmp_path: Path) -> None:
    for arguments, kind, message in (
        ((tmp_path, street_shards), TrainingError, "no best.pt or last.pt there"),
        ((run, tmp_path), ShardError, "no shard set"),
        ((run, street_shards, "strict"), ShardError, "strict"),
        ((run, street_shards, "default", "cuda:97"), ConfigError, "cuda:97 asked for"),
        (
            (run, street_shards, "default", "cpu", ("none*",)),
            ConfigError,
            "no clip fits none*; look at include",
        ),
    ):
        source, shards, *others = arguments
        with pytest.raises(kind) as error:
            predict(source, shards, tmp_path / "out", *others, quiet=True)  # type: ignore[arg-type]
        assert message in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
