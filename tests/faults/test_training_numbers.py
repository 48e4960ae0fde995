"""Numbers that are none, and data with almost nothing in them: one line that names them, or an ordinary run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from evaluation.predict import predict
from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, InstanceMotionError, ShardError, TrainingError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from tests.faults.table import Fault
from tests.training.runs import checkpoint_of, difference_of_runs, settings
from tests.training.shardsets import write_set
from training import checkpoint, loop
from training.anchors import AnchorConfig
from training.config import TrainConfig
from training.data import ShardSource
from training.loop import train
from training.objective import Step
from training.record import read_metrics

SMALL = (96, 32)


def quietly(config: TrainConfig, out: Path, resume: bool = False) -> list[str]:
    said: list[str] = []
    train(config, out, resume=resume, quiet=True, say=said.append)
    return said


def on(folder: Path, **changes: Any) -> TrainConfig:
    """Three steps on a set of any size, with instances from the first."""
    base = settings(folder, steps=3, objective_instances_from=0, data_held_out=(), data_validation_size=None)
    config = replace(base, data=replace(base.data, size=None, batch_size=1, epoch_size=None))
    for name, value in changes.items():
        config = replace(config, data=replace(config.data, **{name: value}))
    return config


# ---------------------------------------------------------------------------- settings


def numbers_in(data: dict[str, Any], where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys to every setting that may be a fraction, also those that are none at first."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from numbers_in(value, (*where, key))
        elif isinstance(value, list):
            yield from ((*where, key, n) for n, each in enumerate(value) if isinstance(each, float))
        elif isinstance(value, float) or key in ("gate_margin_cut", "grounded", "ema", "clip_norm"):
            yield (*where, key)


DEFAULTS = to_dict(TrainConfig())
HARMLESS = {(("optimise", "clip_norm"), math.inf)}  # gradients are not shortened


@pytest.mark.fault(Fault.NAN)
@pytest.mark.parametrize("where", list(numbers_in(DEFAULTS)), ids=lambda where: ".".join(map(str, where)))
def test_no_setting_may_be_a_number_that_is_none(where: tuple[Any, ...]) -> None:
    for value in (math.nan, math.inf, -math.inf):
        data = json.loads(json.dumps(DEFAULTS))
        inner = data
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        if (where, value) in HARMLESS:
            from_dict(TrainConfig, data)
            continue
        with pytest.raises(ConfigError) as error:
            from_dict(TrainConfig, data)
        assert len(str(error.value).splitlines()) == 1


# ---------------------------------------------------------------------------- data


def spoil_camera(folder: Path, row: int, column: int, value: float) -> None:
    """Write a value into the first clip's intrinsics."""
    path = folder / "shardset.json"
    data = json.loads(path.read_text())
    data["clips"][0]["K"][row][column] = value
    path.write_text(json.dumps(data))


@pytest.mark.fault(Fault.NAN)
@pytest.mark.parametrize(
    ("row", "column", "value"),
    [(0, 0, math.nan), (1, 1, math.inf), (0, 2, math.nan), (0, 0, 0.0), (1, 1, -4.0), (2, 2, 0.0)],
)
def test_intrinsics_that_are_no_cameras_are_named(
    row: int, column: int, value: float, tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", {"a": 4}, size=SMALL)
    spoil_camera(folder, row, column, value)
    with pytest.raises(ShardError) as error:
        quietly(on(folder), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1
    assert "set" in str(error.value)


@pytest.mark.fault(Fault.NAN)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_times_that_do_not_rise_are_named(value: float, workers: int, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"a": 4}, size=SMALL)
    with h5py.File(folder / "frames/00000.h5", "r+") as file:
        file["timestamps_s"][1] = value
    with pytest.raises(ShardError, match="clip a: its times do not rise") as error:
        quietly(on(folder, workers=workers), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1


# ---------------------------------------------------------------------------- losses


@pytest.mark.fault(Fault.NAN)
@pytest.mark.parametrize(
    ("term", "value"),
    [
        *(("photometric", math.inf), ("photometric", math.nan), ("instance_photometric", math.nan)),
        *(("geometric", math.nan), ("smoothness", math.nan), ("hint", math.nan), ("size", math.nan)),
        *(("contact", math.nan), ("consistency", math.nan)),
    ],
)
def test_every_term_that_is_no_number_is_named_with_its_step(
    term: str, value: float, street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The term turns bad at step 1 and stays so; the weights stay what they were after step 0."""
    original = loop.training_step
    seen: list[set[str]] = []

    def spoilt(nets: Any, batch: Any, config: Any, step: int) -> Step:
        outcome = original(nets, batch, config, step)
        seen.append(set(outcome.terms))
        if step < 1:
            return outcome
        bad = outcome.terms[term] * value
        return replace(outcome, total=outcome.total + bad, terms={**outcome.terms, term: bad})

    monkeypatch.setattr(loop, "training_step", spoilt)
    config = settings(
        street_shards,
        steps=4,
        checkpoint_every=1,
        bad_steps=2,
        data_held_out=(),
        objective_instances_from=0,
        objective_hint=1.0,
        objective_anchors=AnchorConfig(contact=0.05, size=0.1, consistency=0.1),
    )
    out = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        quietly(config, out)
    assert term in seen[0]
    assert str(error.value).startswith(
        f"term {term} was not a number 2 steps in a row, up to step 2; look at "
    )
    assert len(str(error.value).splitlines()) == 1
    assert checkpoint_of(out).progress.step == 2
    assert checkpoint_of(out).progress.bad_in_a_row == 1
    assert all(value.isfinite().all() for value in checkpoint_of(out).networks.values())


@pytest.mark.fault(Fault.NAN)
def test_after_losses_that_were_no_numbers_a_run_goes_on_as_if_it_had_not_stopped(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 to 4 are bad. A run that may bear three goes through; one that bears two is resumed to the same."""
    original = loop.training_step

    def spoilt(nets: Any, batch: Any, config: Any, step: int) -> Step:
        outcome = original(nets, batch, config, step)
        return replace(outcome, total=outcome.total * math.nan) if 2 <= step <= 4 else outcome

    monkeypatch.setattr(loop, "training_step", spoilt)
    config = settings(street_shards, steps=6, checkpoint_every=1, data_held_out=(), bad_steps=4)
    quietly(config, tmp_path / "whole")
    with pytest.raises(TrainingError, match="the gradient was not a number 2 steps in a row, up to step 3"):
        quietly(replace(config, bad_steps=2), tmp_path / "run")
    with pytest.raises(
        TrainingError, match="2 steps in a row, up to step 3"
    ):  # it has not forgotten the first
        quietly(replace(config, bad_steps=2), tmp_path / "run", resume=True)
    quietly(config, tmp_path / "run", resume=True)
    torch.save({"a": 1}, tmp_path / "run" / "best.pt")  # neither has one; the comparison wants it
    torch.save({"a": 1}, tmp_path / "whole" / "best.pt")
    last = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("run", "whole")]
    assert last[0]["progress"] == last[1]["progress"]
    for name in last[0]["networks"]:
        assert torch.equal(last[0]["networks"][name], last[1]["networks"][name])
    assert read_metrics(tmp_path / "run")[-1] == read_metrics(tmp_path / "whole")[-1]


# ---------------------------------------------------------------------------- almost nothing to learn from


@pytest.mark.fault(Fault.ODD_INPUT)
def test_a_set_without_any_instance_is_trained_and_predicted(street_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(street_shards, folder)
    remask(folder, "none", MaskConfig(min_area=10**6), GraphConfig(workers=0), quiet=True)
    base = settings(street_shards, steps=3, objective_instances_from=0)
    config = replace(base, data=replace(base.data, shards=(ShardSource(folder, "none"),)))
    said = quietly(config, tmp_path / "run")
    assert any("0% with matched instances" in line for line in said)
    rows = read_metrics(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert not any("instance_photometric" in row for row in rows)
    assert all(value.isfinite().all() for value in checkpoint_of(tmp_path / "run").networks.values())
    index = predict(tmp_path / "run", folder, tmp_path / "out", layer="none", quiet=True)
    assert len(index.clips) == 3


@pytest.mark.fault(Fault.ODD_INPUT)
def test_a_set_in_which_nothing_moves_is_refused_or_trained(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"a": 5}, size=SMALL, static={"a": (1, 2, 3, 4)})
    with pytest.raises(ConfigError, match=r"no window in 1 clips for train \(4 static ones left out\)"):
        quietly(on(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    quietly(on(folder, skip_static=False), tmp_path / "run")
    assert checkpoint_of(tmp_path / "run").progress.step == 3


@pytest.mark.fault(Fault.ODD_INPUT)
def test_one_window_is_enough(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"a": 2}, size=SMALL)
    quietly(on(folder), tmp_path / "run")
    state = checkpoint_of(tmp_path / "run").progress
    assert (state.step, state.epoch, state.epoch_step) == (3, 3, 0)
    with pytest.raises(ConfigError, match="an epoch of 1 samples is shorter than one batch of 2 x 1"):
        quietly(on(folder, batch_size=2), tmp_path / "two")


@pytest.mark.fault(Fault.ODD_INPUT)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ("nothing",)}, "no clip is left for validation"),
        ({"held_out": ("*",)}, "no clip is left for train"),
        ({"validation_share": 1e-9}, "no clip is left for validation"),
    ],
)
def test_an_empty_side_of_the_split_is_one_line_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", {"a": 4, "b": 4}, size=SMALL)
    with pytest.raises(InstanceMotionError, match=message):
        quietly(on(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(Fault.ODD_INPUT)
def test_a_set_that_has_shrunk_since_is_not_waited_for(tmp_path: Path) -> None:
    """A run that stands at batch 5 of an epoch of which only 3 are left, from when nobody noted the set."""
    folder = write_set(tmp_path / "set", {"a": 9}, size=SMALL)
    config = replace(on(folder), steps=5)
    quietly(config, tmp_path / "run")
    found = checkpoint_of(tmp_path / "run")
    assert found.progress.epoch_step == 5
    checkpoint.save(tmp_path / "run" / "last.pt", replace(found, data=None))
    shutil.rmtree(folder)
    write_set(folder, {"a": 4}, size=SMALL)
    with pytest.raises(
        ConfigError, match="batch 5 of an epoch of 3 batches is asked for; the shard sets are others"
    ):
        quietly(replace(config, steps=6), tmp_path / "run", resume=True)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_a_set_that_was_built_or_masked_anew_since_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"a": 9}, size=SMALL)
    config, run = replace(on(folder), steps=2), tmp_path / "run"
    quietly(config, run)
    (digest,) = checkpoint_of(run).data or ()
    assert digest == ShardSet(folder).digest("default")
    shutil.copytree(folder, tmp_path / "as it was")
    shutil.rmtree(folder)
    write_set(folder, {"b": 9}, size=SMALL)
    with pytest.raises(
        ConfigError, match="layer default, is not what the run to resume was trained on: it has"
    ):
        quietly(replace(config, steps=3), run, resume=True)
    assert checkpoint_of(run).progress.step == 2
    shutil.rmtree(folder)
    (tmp_path / "as it was").rename(folder)
    quietly(replace(config, steps=3), run, resume=True)
    assert checkpoint_of(run).progress.step == 3


@pytest.mark.fault(Fault.ODD_INPUT)
def test_pictures_of_one_colour_teach_nothing_and_break_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.training.shardsets.image_of",
        lambda clip, frame, size: np.zeros((size[1], size[0], 3), np.uint8),
    )
    folder = write_set(tmp_path / "set", {"a": 4}, size=SMALL)
    quietly(on(folder), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert all(math.isfinite(row["total"]) for row in rows)
    assert all(value.isfinite().all() for value in checkpoint_of(tmp_path / "run").networks.values())


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_the_comparison_of_runs_sees_a_difference(street_shards: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        quietly(settings(street_shards, steps=4, training_seed=seed), tmp_path / name)
    assert difference_of_runs(tmp_path / "a", tmp_path / "b", but=("data", "training_seed")) is not None
