"""Small runs on `street_shards`; as a program, a run of its own that tests may interrupt or kill.

python -m tests.training.runs SETTINGS.yaml OUT [--resume]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.configuration import from_dict, to_dict
from pipeline.errors import InstanceMotionError
from tests.conftest import ROOT
from training import checkpoint
from training.anchors import AnchorConfig
from training.checkpoint import Checkpoint
from training.config import OptimiserConfig, TrainConfig
from training.data import DataConfig, ShardSource
from training.loop import train
from training.motion import MotionConfig
from training.networks.build import NetworksConfig, ObjectConfig
from training.networks.depth import DepthConfig
from training.networks.pose import PoseConfig
from training.objective import ObjectiveConfig
from training.record import read_metrics

SMALL = NetworksConfig(
    depth=DepthConfig(width=0.25, norm="group"),
    ego=PoseConfig(width=0.25),
    objects=ObjectConfig(width=0.25),
)


def settings(shards: Path, **changes: Any) -> TrainConfig:
    """Eight steps that see an epoch's end (after five) and the first instances (at step four).

    Changes may name fields of the run, of its data (`data_...`), objective (`objective_...`) and
    optimisation (`optimise_...`).
    """
    base = TrainConfig(
        steps=8,
        data=DataConfig(
            shards=(ShardSource(shards),),
            size=(104, 32),
            frames=2,
            batch_size=2,
            epoch_size=10,
            workers=0,
            seed=3,
        ),
        networks=SMALL,
        objective=ObjectiveConfig(
            instances_from=4,
            auto_mask_from=2,
            motion=MotionConfig(crop_px=32, alpha=2),
            anchors=AnchorConfig(contact=0.05),
        ),
        optimise=OptimiserConfig(rate=1e-3, ema=0.9),
        device="cpu",
        checkpoint_every=3,
        validate_every=4,
        picture_every=0,
        log_every=1,
    )
    base = replace(base, data=replace(base.data, held_out=("test_0001",), validation_size=3))
    for part in ("data", "objective", "optimise"):
        own = {
            name.removeprefix(f"{part}_"): changes.pop(name)
            for name in list(changes)
            if name.startswith(f"{part}_")
        }
        base = replace(base, **{part: replace(getattr(base, part), **own)})
    return replace(base, **changes)


def start(
    config: TrainConfig, out: Path, *options: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """A run as a process (group) of its own."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(to_dict(config)))
    with open(_said_by(out), "w") as said:  # no pipe: workers of a killed run would hold it open
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "tests.training.runs", str(file), str(out), *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], out: Path, timeout_s: float = 240) -> tuple[int, str]:
    """Exit code and everything that was said."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return code, _said_by(out).read_text()


def wait_for_step(process: subprocess.Popen[bytes], out: Path, step: int, timeout_s: float = 240) -> None:
    """Until a run has logged a step."""
    end = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in read_metrics(out)):
        if process.poll() is not None or time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"step {step} never came: {finish(process, out)}")
        time.sleep(0.005)


def checkpoint_of(out: Path) -> Checkpoint:
    return checkpoint.load(out / "last.pt")


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two nested values differ in any bit, or None."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return None if same else f"{where}: another tensor"
    if isinstance(a, dict) and isinstance(b, dict):
        if list(a) != list(b):
            return f"{where}: {list(a)} is not {list(b)}"
        return next((d for key in a if (d := difference(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for k, (x, y) in pairs if (d := difference(x, y, f"{where}[{k}]"))), None)
    return None if a == b else f"{where}: {a} is not {b}"


def difference_of_runs(a: Path, b: Path, but: tuple[str, ...] = ("data",)) -> str | None:
    """Where the last checkpoints, the best ones or the metrics of two runs differ in any bit.

    Args:
        but: settings that may differ.
    """
    for name in ("last.pt", "best.pt"):
        content = [torch.load(run / name, weights_only=True) for run in (a, b)]
        for each in content:
            config = json.loads(each["config"])
            each["config"] = {key: value for key, value in config.items() if key not in but}
        if found := difference(*content, name):
            return found
    return difference(read_metrics(a), read_metrics(b), "metrics")


def _said_by(out: Path) -> Path:
    return out.with_suffix(".log")


def main() -> int:
    file, out, *options = sys.argv[1:]
    config = from_dict(TrainConfig, yaml.safe_load(Path(file).read_text()))
    torch.set_num_threads(1)
    try:
        train(
            config,
            Path(out),
            resume="--resume" in options,
            quiet=True,
            say=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}", flush=True)
        return 130
    except (InstanceMotionError, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    print(json.dumps({"done": config.steps}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
