"""evaluate, as a user types it: other people's files, our predictions, and runs that predict on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.trajectories import chain, kitti_text
from tests.evaluation.made import rigid
from tests.training.runs import settings
from tests.workflows.test_cli import run
from training.loop import train

Capture = pytest.CaptureFixture[str]


def figures(printed: str) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(printed)}


@pytest.fixture(scope="module")
def trained(street_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(settings(street_shards, steps=2, objective_instances_from=0), folder, quiet=True)
    return folder


# ------------------------------------------------------------------------ odometry


def drive(count: int = 300, step_m: float = 2.0) -> np.ndarray:
    """(N, 4, 4) poses of a camera in a wide bend."""
    return chain(np.stack([rigid((0, 0, -step_m), yaw_deg=0.1)] * (count - 1)))


def test_a_trajectory_against_itself_has_no_error_and_a_scale_costs_what_the_rule_leaves(
    tmp_path: Path, capsys: Capture
) -> None:
    truth, half = drive(), drive()
    half[:, :3, 3] *= 0.5
    for folder, poses in (("truth", truth), ("ours", half)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "09.txt").write_text(kitti_text(poses))
    command = ("evaluate", "odometry", str(tmp_path / "ours"), str(tmp_path / "truth"), "--json")
    code, printed, _ = run(capsys, *command)
    found = figures(printed)
    assert code == 0
    assert found["t_err"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["ATE"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["t_err"]["count"] > 50
    code, printed, _ = run(capsys, *command, "--alignment", "none")
    # Half of every way is missing; the end of a segment lies up to a step beyond its length.
    assert figures(printed)["t_err"]["value"] == pytest.approx(50, rel=0.02)


def test_published_odometry_figures_are_found_again(test_data: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = test_data / "kitti_odometry"
    out = tmp_path / "figures.json"
    code, _, _ = run(
        capsys, "evaluate", "odometry", str(folder / "results" / "example_0"), str(folder / "poses"),
        "--out", str(out),
    )  # fmt: skip
    assert code == 0
    rows = json.loads(out.read_text())
    for sequence, published in (
        ("09", {"t_err": 2.8841125, "r_err": 0.2490562, "ATE": 8.3866192}),
        ("10", {"t_err": 3.2978395, "r_err": 0.3045900, "ATE": 6.6301581}),
    ):
        ours = {row["name"]: row["value"] for row in rows if f"sequence {sequence};" in row["protocol"]}
        for name, value in published.items():
            assert round(ours[name], 7) == value


def test_sequences_without_truth_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    for name in ("08", "09"):
        (tmp_path / name).with_suffix(".txt").write_text(kitti_text(drive(20)))
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "10.txt").write_text(kitti_text(drive(20)))
    (tmp_path / "truth" / "09.txt").write_text(kitti_text(drive(20)))
    code, _, error = run(capsys, "evaluate", "odometry", str(tmp_path), str(tmp_path / "truth"))
    assert (code, error.count("\n")) == (2, 1)
    assert "no true trajectory is called 08; there are 09, 10" in error
    (tmp_path / "empty").mkdir()
    code, _, error = run(capsys, "evaluate", "odometry", str(tmp_path / "empty"), str(tmp_path / "truth"))
    assert code == 1
    assert "holds no trajectory" in error


# ------------------------------------------------------------------------ streetworld


def test_a_run_predicts_on_the_spot_what_its_predictions_say(
    trained: Path, street_shards: Path, streets: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, _, _ = run(
        capsys, "predict", str(trained), str(street_shards), str(tmp_path / "p"), "--quiet",
        "--depth-type", "float32",
    )  # fmt: skip
    assert code == 0
    stored, spot = (
        figures(run(capsys, "evaluate", "motion", *arguments, str(streets), "--json", "--quiet")[1])
        for arguments in ((str(tmp_path / "p"),), (str(trained), "--shards", str(street_shards)))
    )
    assert stored == spot
    code, printed, _ = run(capsys, "evaluate", "objects", str(tmp_path / "p"), str(streets), "--json")
    names = set(figures(printed))
    assert "object translation error, relative" in names
    assert not any("AbsRel" in name or "camera" in name for name in names)


def test_untrained_networks_are_not_those_of_the_run(
    trained: Path, street_shards: Path, streets: Path, capsys: Capture
) -> None:
    shards = ("--shards", str(street_shards), "--json", "--quiet")
    fresh, again, learned = (
        figures(run(capsys, "evaluate", "motion", name, str(streets), *shards)[1])
        for name in (f"untrained:{trained}", f"untrained:{trained}", str(trained))
    )
    assert fresh == again
    assert fresh["AbsRel, all"]["value"] != learned["AbsRel, all"]["value"]


def test_what_cannot_be_scored_is_one_line(
    trained: Path, streets: Path, tmp_path: Path, capsys: Capture
) -> None:
    for arguments, code, message in (
        ((str(trained), str(streets)), 2, "give the shard set that it is to predict on (--shards)"),
        ((str(tmp_path), str(streets)), 1, "neither predictions (`predict` writes them), nor a run"),
    ):
        found, _, error = run(capsys, "evaluate", "motion", *arguments)
        assert (found, error.count("\n")) == (code, 1)
        assert message in error


# ------------------------------------------------------------------------ depth benchmarks


@pytest.fixture
def kitti(test_data: Path) -> tuple[str, ...]:
    """The 25 real frames with LiDAR, of 697."""
    split = test_data / "splits" / "eigen_test_697.txt"
    return (str(test_data / "kitti_raw"), "--split", str(split), "--available", "--json", "--quiet")


def test_constant_depth_an_untrained_network_and_a_run_on_real_frames(
    kitti: tuple[str, ...], trained: Path, capsys: Capture
) -> None:
    values = {}
    for name in ("constant", f"untrained:{trained}", str(trained)):
        code, printed, error = run(capsys, "evaluate", "depth", name, *kitti)
        assert code == 0, error
        found = figures(printed)["AbsRel, all"]
        assert found["count"] == 25
        assert "Garg crop" in found["protocol"]
        assert "median" in found["scale"]
        values[name] = found["value"]
    assert values["constant"] == pytest.approx(0.3414, abs=1e-4)
    assert len(set(values.values())) == 3


def test_predictions_in_the_fields_formats_give_the_same_figures(
    kitti: tuple[str, ...], test_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """All 697 in one array, of which the 25 are scored; a plane whose depth grows upwards."""
    disparity = np.tile(np.linspace(0.02, 0.3, 48, dtype=np.float32)[:, None], (1, 160))
    stack = np.broadcast_to(disparity, (697, 48, 160))
    np.save(tmp_path / "disparity.npy", stack)
    np.savez_compressed(tmp_path / "depth.npz", data=1 / stack)
    found = [
        figures(run(capsys, "evaluate", "depth", str(tmp_path / name), *kitti, "--kind", kind)[1])
        for name, kind in (("disparity.npy", "disparity"), ("depth.npz", "depth"))
    ]
    assert found[0]["AbsRel, all"]["value"] == pytest.approx(found[1]["AbsRel, all"]["value"], rel=1e-5)
    assert found[0]["AbsRel, all"]["value"] < 0.3414  # a road is better than a wall
    code, _, error = run(capsys, "evaluate", "depth", str(tmp_path / "disparity.npy"), *kitti)
    assert (code, error.count("\n")) == (2, 1)
    assert "state the kind: depth or disparity" in error


def test_truth_that_is_not_there_is_named(kitti: tuple[str, ...], tmp_path: Path, capsys: Capture) -> None:
    options = [each for each in kitti if each != "--available"]
    code, _, error = run(capsys, "evaluate", "depth", "constant", *options)
    assert (code, error.count("\n")) == (1, 1)
    assert "missing; it comes with KITTI raw" in error
    code, _, error = run(capsys, "evaluate", "depth", "constant", str(tmp_path), *kitti[1:])
    assert code == 1
    assert "has the truth of no image in" in error
