"""The ablation runner: rows, seeds, milestones; what is finished is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from pipeline.configuration import from_dict, read_recipe
from pipeline.errors import ConfigError
from pipeline.lease import lease
from training.config import TrainConfig
from training.record import read_metrics
from workflows.ablation import RECIPE, ROWS, Arguments, changed, main

SMALL = """
data: {frames: 2, batch_size: 2, workers: 0}
networks: {depth: {width: 0.25}, ego: {width: 0.25}, objects: {width: 0.25}}
objective: {anchors: {size: 0.1}}
picture_every: 0
"""


def test_every_row_is_an_objective_of_its_own() -> None:
    base = from_dict(TrainConfig, read_recipe(RECIPE))
    objectives = [changed(base, changes) for changes in ROWS.values()]
    assert all(a != b for n, a in enumerate(objectives) for b in objectives[:n])
    assert changed(base, ROWS["full"]) == base.objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ("ful",)}, "no row 'ful'"),
        ({"steps": 10, "milestones": 3}, "multiple of milestones"),
        ({"test_size": (416, 129)}, "the shape of size"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Arguments(tmp_path, tmp_path, **settings)


def test_rows_are_trained_scored_drawn_and_kept(
    streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / "streets").mkdir(exist_ok=True)
        (tmp_path / "streets" / split).symlink_to(streets)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL)
    arguments = Arguments(
        tmp_path / "streets",
        tmp_path / "out",
        rows=("geo", "full"),
        background_steps=1,
        steps=2,
        milestones=2,
        recipe=recipe,
    )
    main(arguments)
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split()[:3] == ["seeds", "all", "bg"]
    assert [line.split()[0] for line in table[1:]] == ["geo", "full"]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    picture = cv2.imread(str(tmp_path / "out" / "depth.png"))
    clips = len(list(streets.glob("*/truth.h5")))
    assert picture.shape == (min(clips, 6) * 64, 4 * 208, 3)  # image, truth and two rows
    full = tmp_path / "out" / "runs" / "full-0"
    assert len(list(full.glob("score_*.json"))) == 2
    assert "size" in read_metrics(full)[0]
    assert "size" not in read_metrics(tmp_path / "out" / "runs" / "geo-0")[0]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("*.pt")}
    with lease(tmp_path / "out" / "shards" / "train", "another seed"):
        main(arguments)  # finished shards are read, not built again
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # Scored on larger test frames as well: newest weights only, networks see what they were trained at.
    main(replace(arguments, test_size=(416, 128)))
    names = {path.name for path in full.glob("score_*.json")}
    assert names == {"score_000001.json", "score_000002.json", "score_000002-416x128.json"}
    larger = cv2.imread(str(tmp_path / "out" / "depth.png"))
    assert larger.shape == (min(clips, 6) * 128, 4 * 416, 3)
    assert before == {path: path.stat().st_mtime_ns for path in before}
