"""What a run leaves behind for people: configuration, curves, pictures, and bad batches."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.errors import TrainingError
from pipeline.shards.hdf5 import publish
from training.curves import Curves
from training.data import Batch
from training.objective import Step
from training.pictures import step_pictures


class Record:
    """Writer of a run's folder; where `writes` is False (other processes) it does nothing.

    Args of the constructor:
        first_step: step that the run goes on from; later rows of an earlier attempt are dropped.
    """

    def __init__(self, out: Path, writes: bool, first_step: int = 0) -> None:
        self.out, self.writes = out, writes
        self._metrics = out / "metrics.jsonl"
        self._curves: Curves | None = None
        if writes:
            out.mkdir(parents=True, exist_ok=True)
            for folder in (out, out / "bad"):
                for partial in folder.glob(".*.partial"):  # a kill in the middle of a file
                    partial.unlink()
            kept = [
                row
                for row in _checked_rows(out)
                if row["step"] < first_step or (row["kind"] == "validation" and row["step"] <= first_step)
            ]
            publish(self._metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())
            # From 0 on as well: what a run wrote that was killed before its first checkpoint.
            self._curves = Curves(out / "tensorboard", first_step)
            for row in kept:
                if row["step"] == first_step:  # the validation after the last step goes with the next one's
                    self._draw(**row)

    def configuration(self, config: dict[str, Any]) -> None:
        """Save the resolved configuration."""
        if self.writes:
            publish(self.out / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())

    def scalars(self, kind: str, values: dict[str, float], step: int) -> None:
        """One row of metrics, and its curves."""
        if self._curves is None:
            return
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._draw(kind=kind, step=step, **values)

    def _draw(self, *, kind: str, step: int, **values: float) -> None:
        assert self._curves is not None
        self._curves.scalars({f"{kind}/{name}": value for name, value in values.items()}, step)

    def pictures(self, outcome: Step, step: int) -> None:
        """What the step saw and made of it."""
        if self._curves is not None:
            self._curves.pictures(step_pictures(outcome), step)

    def keep_batch(self, batch: Batch, step: int, rank: int) -> Path:
        """Keep a batch for inspection; readable with `torch.load(path, weights_only=True)`."""
        memory = io.BytesIO()
        content = {each.name: getattr(batch, each.name) for each in dataclasses.fields(batch)}
        torch.save({name: v.cpu() if torch.is_tensor(v) else v for name, v in content.items()}, memory)
        path = self.out / "bad" / f"step_{step:07d}_rank_{rank}.pt"
        publish(path, memory.getvalue())
        return path

    def close(self) -> None:
        if self._curves is not None:
            self._curves.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics; a last line that a kill cut short is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _checked_rows(run: Path) -> list[dict[str, Any]]:
    """Rows as this module writes them.

    Raises:
        TrainingError: others than those; somebody else wrote into the file.
    """
    try:
        rows = read_metrics(run)
    except (ValueError, RecursionError):
        rows = [{}]
    for row in rows:
        if not (isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)):
            raise TrainingError(f"{run / 'metrics.jsonl'} holds other rows than a training's; take it away")
    return rows
