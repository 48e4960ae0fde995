"""train, predict, evaluate motion and export as a user types them; recipes of the paper's tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from pipeline.configuration import from_dict, read_recipe
from pipeline.errors import ConfigError
from tests.workflows.test_cli import run
from training.config import TrainConfig
from workflows import cli

RECIPES = Path(cli.__file__).parent / "recipes"


def test_every_training_recipe_is_a_valid_configuration() -> None:
    found = sorted(RECIPES.glob("train-*.yaml"))
    assert len(found) >= 14
    for path in found:
        config = from_dict(TrainConfig, read_recipe(path), path.name)
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("instance-motion train" in line for line in head), f"{path.name} names no command"
        assert path.name in "".join(head), f"{path.name}: its command names another recipe"
        assert not config.data.shards  # given on the command line


@pytest.mark.parametrize(
    ("row", "instances", "geometric", "warp"),
    [
        ("ablation-none", False, False, None),
        ("ablation-geo", False, True, None),
        ("ablation-inst-inverse", True, False, "inverse"),
        ("ablation-inst-geo-inverse", True, True, "inverse"),
        ("ablation-inst-forward", True, False, "forward"),
        ("dispresnet", True, True, "forward"),
    ],
)
def test_recipes_of_table_2_set_its_switches(
    row: str, instances: bool, geometric: bool, warp: str | None
) -> None:
    config = from_dict(TrainConfig, read_recipe(RECIPES / f"train-kitti-{row}.yaml"))
    assert config.networks.depth.architecture == "dispresnet"
    assert config.objective.instances == instances
    assert bool(config.objective.geometric) == geometric
    if warp:
        assert config.objective.motion.object_warp == warp


def test_a_recipe_goes_before_what_it_extends_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: {p: 2, q: 3}}\nb: 4\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\na: {y: {q: 5}}\n")
    assert read_recipe(tmp_path / "top.yaml") == {"a": {"x": 1, "y": {"p": 2, "q": 5}}, "b": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: self.yaml\n", "extends itself"),
        ("extends: ../other.yaml\n", "the name of a file in the same folder"),
        ("extends: 3\n", "the name of a file in the same folder"),
        ("extends: nothing.yaml\n", "nothing.yaml: No such file"),
    ],
)
def test_a_recipe_that_cannot_be_extended_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_train_predict_evaluate_export(
    street_shards: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        "steps: 2\n"
        "data: {frames: 2, batch_size: 2, workers: 0}\n"
        "networks: {depth: {width: 0.25}, ego: {width: 0.25}, objects: {width: 0.25}}\n"
        "picture_every: 0\n"
    )
    train = ("train", str(street_shards), "--out", str(out), "--recipe", str(recipe), "--quiet")
    code, printed, _ = run(capsys, *train, "--optimise.rate", "3e-4")
    assert code == 0
    assert printed.strip() == str(out / "last.pt")
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["optimise"]["rate"] == 3e-4  # the command line
    assert kept["networks"]["depth"]["width"] == 0.25  # the recipe
    assert kept["objective"]["anchors"]["size"] == TrainConfig().objective.anchors.size  # the default

    code, _, error = run(capsys, *train)
    assert (code, error.count("\n")) == (1, 1)
    assert "--resume goes on with it" in error
    code, _, _ = run(capsys, *train, "--optimise.rate", "3e-4", "--resume", "--steps", "3")
    assert code == 0

    predictions = tmp_path / "predictions"
    code, printed, _ = run(capsys, "predict", str(out), str(street_shards), str(predictions), "--quiet")
    assert code == 0
    assert "3 clips, 26 frames" in printed
    poses = (predictions / "text" / "test_0000.kitti.txt").read_text().splitlines()
    assert len(poses) == 14
    assert [float(x) for x in poses[0].split()] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    with open(predictions / "text" / "test_0000.objects.csv", newline="") as file:
        assert {"frame", "track"} <= set(csv.DictReader(file).fieldnames or ())

    code, printed, _ = run(capsys, "evaluate", "motion", str(predictions), str(streets), "--json")
    assert code == 0
    figures = {row["name"]: row["value"] for row in json.loads(printed)}
    assert figures["AbsRel, all"] > 0
    assert "object translation error, relative" in figures

    code, printed, _ = run(capsys, "export", str(out), str(tmp_path / "onnx"), "--size", "96", "64")
    assert code == 0
    assert all(Path(line).is_file() for line in printed.split())


def test_several_networks_have_a_width_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "train", "--help")
    assert code == 0
    for option in ("--networks.depth.width", "--networks.ego.width", "--objective.motion.alpha", "--steps"):
        assert option in printed
