"""Settings of a run: what cannot be is refused, what is written is what is read, rates as on paper."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.configuration import from_dict, read_yaml, to_dict
from pipeline.errors import ConfigError
from training.config import OptimiserConfig, TrainConfig
from training.data import DataConfig, ShardSource
from training.networks.depth import DepthConfig
from training.objective import ObjectiveConfig


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        (OptimiserConfig, "rate", 0.0, "rate must be positive, got 0.0"),
        (OptimiserConfig, "rate", math.nan, "rate must be positive, got nan"),
        (OptimiserConfig, "object_rate", math.inf, "object_rate must be positive, got inf"),
        (OptimiserConfig, "betas", (0.9, 1.0), "betas must lie in [0, 1), got (0.9, 1.0)"),
        (OptimiserConfig, "weight_decay", -0.1, "weight_decay and warmup must be 0 or more, got -0.1, 0"),
        (OptimiserConfig, "weight_decay", math.nan, "weight_decay and warmup must be 0 or more, got nan, 0"),
        (OptimiserConfig, "warmup", -1, "weight_decay and warmup must be 0 or more, got 0.0, -1"),
        (
            OptimiserConfig,
            "decay_after",
            1.1,
            "decay_after must lie in [0, 1], decay in (0, 1], got 1.1, 0.2",
        ),
        (OptimiserConfig, "decay", 0.0, "decay_after must lie in [0, 1], decay in (0, 1], got 0.7, 0.0"),
        (OptimiserConfig, "clip_norm", 0.0, "clip_norm must be positive, got 0.0"),
        (OptimiserConfig, "clip_norm", math.nan, "clip_norm must be positive, got nan"),
        (OptimiserConfig, "ema", 1.0, "ema must lie in (0, 1), got 1.0"),
        (TrainConfig, "steps", 0, "steps must be at least 1, got 0"),
        (TrainConfig, "checkpoint_every", 0, "checkpoint_every must be at least 1, got 0"),
        (TrainConfig, "validate_every", 0, "validate_every must be at least 1, got 0"),
        (TrainConfig, "picture_every", -1, "picture_every must be at least 0, got -1"),
        (TrainConfig, "log_every", 0, "log_every must be at least 1, got 0"),
        (TrainConfig, "bad_steps", 0, "bad_steps must be at least 1, got 0"),
        (TrainConfig, "training_seed", -1, "training_seed must be at least 0, got -1"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(kind: Any, setting: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(**{setting: value})
    assert str(error.value) == message


def test_settings_survive_yaml_and_json(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=7,
        data=DataConfig(shards=(ShardSource(Path("a"), "strict", 2.0),), size=(104, 32), strides=(1, 2)),
        objective=ObjectiveConfig(instances_from=3, reprojection="min"),
        optimise=OptimiserConfig(optimiser="adamw", schedule="cosine", clip_norm=None, ema=0.99),
        init_from=Path("runs/pretrained"),
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert from_dict(TrainConfig, read_yaml(tmp_path / "config.yaml")) == config
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_what_a_recipe_leaves_out_keeps_its_default() -> None:
    config = from_dict(TrainConfig, {"networks": {"depth": {"width": 0.5}}, "optimise": {"ema": 0.9}})
    base = TrainConfig()
    networks = replace(base.networks, depth=DepthConfig(width=0.5))
    assert config == replace(base, networks=networks, optimise=OptimiserConfig(ema=0.9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stesp": 3}, "unknown key 'stesp'"),
        ({"optimise": {"rate": "fast"}}, "optimise.rate: expected float, found 'fast'"),
        ({"optimise": {"schedule": "linear"}}, "'linear' is none of 'constant', 'step', 'cosine'"),
        ({"data": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(TrainConfig, data)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# ---------------------------------------------------------------------------- rates


def test_step_schedule() -> None:
    config = OptimiserConfig(schedule="step", decay_after=0.5, decay=0.1)
    assert [config.rate_at(step, 4) for step in range(4)] == [1, 1, 0.1, 0.1]


def test_cosine_schedule() -> None:
    config = OptimiserConfig(schedule="cosine")
    assert [config.rate_at(step, 4) for step in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert config.rate_at(9, 4) == pytest.approx(0)


def test_warmup_multiplies_any_schedule() -> None:
    config = OptimiserConfig(schedule="constant", warmup=4)
    assert [config.rate_at(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    late = OptimiserConfig(schedule="step", decay_after=0.0, decay=0.5, warmup=2)
    assert [late.rate_at(step, 100) for step in range(3)] == [0.25, 0.5, 0.5]


@given(
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 1000),
    step=st.integers(0, 1000),
)
def test_the_rate_is_a_share_of_the_first_and_never_rises_after_warmup(
    schedule: Any, warmup: int, steps: int, step: int
) -> None:
    config = OptimiserConfig(schedule=schedule, warmup=warmup)
    assert 0 <= config.rate_at(step, steps) <= 1
    if step >= warmup:
        assert config.rate_at(step + 1, steps) <= config.rate_at(step, steps)
