"""`instance-motion train-detector`: train the bundled Mask R-CNN on synthetic streets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.masks import FrameMasks, MaskAP, ap_table, mask_ap
from pipeline.classes import CLASSES, class_named
from pipeline.detections import Detections, Detector, SourceFrame
from pipeline.detector_training import Sample, TrainingConfig
from pipeline.detectors import BUNDLED_CLASSES
from pipeline.errors import ConfigError
from pipeline.masks import paste
from pipeline.progress import Bar

DEFAULTS = TrainingConfig()


def train_detector(
    streetworld: Path,
    out: Path,
    training: TrainingConfig = DEFAULTS,
    device: str = "auto",
    validate_every: int = 300,
    checkpoint_every: int = 100,
) -> Path:
    """Train the bundled Mask R-CNN, keeping the weights that do best on the val clips.

    Interrupted, it goes on where it was when it is run again. Prints mask AP of the kept
    weights on the test clips, if there are any, and writes the table to OUT/test.md.

    Args:
        streetworld: Folder with train, val and test, rendered by `instance-motion streetworld`.
        out: Folder for checkpoint.pt, weights.pt (the best so far) and validation.jsonl.
        training: How long and on what to train.
        device: auto (a GPU if there is one), cpu, cuda.
        validate_every: Steps between measurements on val; a multiple of checkpoint_every.
        checkpoint_every: Steps between checkpoints.

    Returns:
        The weights file.
    """
    import torch

    from pipeline import detection, detector_training
    from pipeline.detector_samples import read_samples
    from pipeline.detectors import BUNDLED_CONFIG

    if checkpoint_every < 1 or validate_every < 1 or validate_every % checkpoint_every:
        raise ConfigError(
            f"validate_every {validate_every} must be a multiple of checkpoint_every {checkpoint_every}"
        )
    config = detection.read_config(BUNDLED_CONFIG)
    place = detection.resolve_device(device)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        network = detection.build_network(config).to(place)
    mean_network = detection.build_network(config)
    weights, log = out / "weights.pt", out / "validation.jsonl"
    samples, held_out = read_samples(streetworld / "train"), read_samples(streetworld / "val")

    def detector() -> Detector:
        classes = [class_named(name) for name in BUNDLED_CLASSES]
        return detection.MaskRCNN(mean_network, detection.InputFormat.of(config), classes, place, 8)

    def validate(step: int, mean: dict[str, torch.Tensor]) -> None:
        if step % validate_every and step != training.steps:
            return
        mean_network.load_state_dict(mean)
        results = measure(detector(), held_out)
        score = overall(results)
        best = max((entry["score"] for entry in read_log(log) if entry["step"] < step), default=-math.inf)
        if score > best:
            detector_training.save_weights(mean, weights)
        figures = {f"{r.name} {r.size} {r.protocol}": round(r.value, 4) for r in results if r.count}
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "score": round(score, 4), **figures}) + "\n")
        Bar.write(f"step {step}: mean AP50 {score:.3f}{' (best)' if score > best else ''}")

    out.mkdir(parents=True, exist_ok=True)
    detector_training.train(network, samples, training, out / "checkpoint.pt", validate, checkpoint_every)
    if (streetworld / "test").is_dir():
        detection.load_weights(mean_network, weights)
        table = ap_table(measure(detector(), read_samples(streetworld / "test")))
        (out / "test.md").write_text(table + "\n")
        print(table)
    return weights


def measure(detector: Detector, samples: Sequence[Sample]) -> list[MaskAP]:
    """Mask AP of a detector on frames with true masks, masks cut at 0.5, all scores."""
    predictions = []
    for k, sample in enumerate(Bar(samples, unit="frame", desc="measure", leave=False)):
        (found,) = detector.detect([SourceFrame(image=sample.image, clip="", name=str(k))])
        predictions.append(predicted_masks(found, (sample.ids.shape[1], sample.ids.shape[0])))
    return mask_ap([true_masks(sample) for sample in samples], predictions)


def true_masks(sample: Sample) -> FrameMasks:
    ids = [i for i in np.unique(sample.ids).tolist() if i in sample.classes]
    masks = sample.ids == np.array(ids, sample.ids.dtype).reshape(-1, 1, 1)
    return FrameMasks(masks=masks, classes=[BUNDLED_CLASSES[sample.classes[i]] for i in ids])


def predicted_masks(found: Detections, size: tuple[int, int]) -> FrameMasks:
    masks = np.zeros((len(found), size[1], size[0]), dtype=bool)
    for mask, grid, box in zip(masks, found.masks, found.boxes, strict=True):
        patch = paste(grid, box, size)
        mask[patch.slices] = patch.mask
    return FrameMasks(masks=masks, classes=[CLASSES[c] for c in found.classes], scores=found.scores)


def overall(results: Sequence[MaskAP]) -> float:
    """Mean AP50 of the classes over all sizes: by this weights are kept."""
    return float(np.mean([r.value for r in results if r.size == "all" and r.protocol == "AP50" and r.count]))


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
