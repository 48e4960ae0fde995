"""What `workflows.ablation` draws: figures against steps, and depth beside truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np

from evaluation.predict import predict_clips
from evaluation.streetworld import StoredTruth, stored_truth
from pipeline.overlay import write_picture
from pipeline.shards.reader import ShardSet
from pipeline.streetworld.truth import TRUTH_FILE, read_truth
from training.checkpoint import load, restore_networks
from training.pictures import colour_disparity

CURVES = (
    "AbsRel, background",
    "AbsRel, object",
    "far share, moving cars",
    "object translation error, relative",
)
FRAME = 2
"""Frame of a clip that is shown."""
SHOWN_CLIPS = 6


def score_path(run: Path, step: int, suffix: str = "") -> Path:
    """Where a run's figures at a step are kept; the suffix tells apart what they were scored on."""
    return run / f"score_{step:06d}{suffix}.json"


def draw_curves(runs: Mapping[str, Sequence[Path]], path: Path, suffix: str = "") -> None:
    """The main figures against steps, one line a row, thin lines its seeds.

    Args:
        runs: of each row the folders of its seeds, with their scores.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(4 * len(CURVES), 3.6))
    for number, (row, folders) in enumerate(runs.items()):
        for axis, name in zip(axes, CURVES, strict=True):
            lines = []
            for run in folders:
                found = sorted(run.glob(f"score_??????{suffix}.json"))
                points = [(int(each.name[6:12]), json.loads(each.read_text())[name]) for each in found]
                if points:
                    lines.append(points)
                    axis.plot(*zip(*points, strict=True), color=f"C{number}", alpha=0.3, linewidth=0.8)
            if lines:
                steps = [step for step, _ in lines[0]]
                means = [mean(dict(line).get(step, float("nan")) for line in lines) for step in steps]
                axis.plot(steps, means, color=f"C{number}", label=row, marker="o", markersize=3)
    for axis, name in zip(axes, CURVES, strict=True):
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("steps after the background")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_depths(
    runs: Mapping[str, Path], size: tuple[int, int], shards: Path, streets: Path, path: Path
) -> None:
    """Image, true depth and each row's depth, median scaled, of the clips with most of moving cars.

    Args:
        runs:    of each row one run.
        size:    width and height at which networks see frames.
        streets: STREETS/<clip name>/truth.h5.
    """
    pictures: dict[str, list[np.ndarray]] = {}
    truths: dict[str, StoredTruth] = {}
    for run in runs.values():
        checkpoint = load(run / "last.pt")
        networks, objective = restore_networks(checkpoint, "cpu"), checkpoint.config.objective
        for clip in predict_clips(
            networks,
            objective.motion,
            shards,
            include=tuple(truths),
            use_instances=objective.instances,
            size=size,
        ):
            if clip.name not in truths:
                truths[clip.name] = stored_truth(read_truth(streets / clip.name / TRUTH_FILE), clip)
            true = truths[clip.name].depth_m[_shown(truths[clip.name])]
            depth = clip.depth(_shown(truths[clip.name]))
            near = true < 80
            scale = np.median(true[near]) / np.median(depth[near])
            top = float(np.percentile(1 / true, 95))
            columns = pictures.setdefault(clip.name, [colour_disparity(1 / true, top)])
            columns.append(colour_disparity(1 / (depth * scale), top))
        chosen = sorted(truths, key=lambda name: -_moving_pixels(truths[name]))[:SHOWN_CLIPS]
        truths = {name: truths[name] for name in chosen}  # the other runs predict these only
    with ShardSet(shards) as opened:
        lines = [
            np.concatenate([opened.image(opened.clip(name), _shown(truth)), *pictures[name]], 1)
            for name, truth in truths.items()
        ]
    write_picture(path, np.concatenate(lines))


def _shown(truth: StoredTruth) -> int:
    return min(FRAME, len(truth) - 1)


def _moving_pixels(truth: StoredTruth) -> int:
    return int(truth.mask(_shown(truth), truth.moving & truth.car).sum())
