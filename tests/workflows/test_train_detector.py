"""The training command from rendered clips to weights and a table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluation.masks import MaskAP
from pipeline.detections import Detections
from pipeline.detector_training import Sample, TrainingConfig
from pipeline.errors import ConfigError
from pipeline.streetworld.clip import ClipConfig, render_clip
from workflows import train_detector as command
from workflows.train_detector import overall, predicted_masks, train_detector, true_masks

TINY = TrainingConfig(steps=3, batch_size=1, crop=(96, 64), warmup_steps=2, learning_rate=1e-4)


@pytest.fixture(scope="module")
def streetworld(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    for seed, split in enumerate(("train", "val", "test"), start=4):
        render_clip(folder / split / f"{split}_0000", seed, ClipConfig(frames=2, size=(208, 64)))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_from_clips_to_weights_and_a_table(streetworld, tmp_path, capsys):
    weights = train_detector(streetworld, tmp_path, TINY, "cpu", validate_every=2, checkpoint_every=1)
    assert weights == tmp_path / "weights.pt"
    assert [json.loads(line)["step"] for line in (tmp_path / "validation.jsonl").open()] == [2, 3]
    table = (tmp_path / "test.md").read_text()
    assert "| car | all |" in table
    assert table in capsys.readouterr().out


def test_the_best_weights_are_kept_also_over_a_restart(streetworld, tmp_path, monkeypatch):
    scores = iter([0.2, KeyboardInterrupt, 0.6, 0.5, 0.0])  # step 1, 2 (interrupted), 2, 3, test
    weights: list[bytes | None] = []

    def measure(detector, samples):
        path = tmp_path / "weights.pt"
        weights.append(path.read_bytes() if path.exists() else None)
        score = next(scores)
        if score is KeyboardInterrupt:
            raise KeyboardInterrupt
        return [
            MaskAP(name="car", size="all", value=score, protocol=protocol, count=1)
            for protocol in ("AP50", "AP50:95")
        ]

    monkeypatch.setattr(command, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        train_detector(streetworld, tmp_path, TINY, "cpu", validate_every=1, checkpoint_every=1)
    train_detector(streetworld, tmp_path, TINY, "cpu", validate_every=1, checkpoint_every=1)

    entries = [json.loads(line) for line in (tmp_path / "validation.jsonl").open()]
    assert [(entry["step"], entry["score"]) for entry in entries] == [(1, 0.2), (2, 0.6), (3, 0.5)]
    before_1, before_2, again_2, before_3, at_test = weights
    assert before_1 is None
    assert before_2 == again_2
    assert before_3 != before_2  # step 2 was better
    assert at_test == before_3  # step 3 was not


def test_measurements_fall_on_checkpoints(streetworld, tmp_path):
    with pytest.raises(ConfigError, match="multiple of checkpoint_every 2"):
        train_detector(streetworld, tmp_path, TINY, "cpu", validate_every=3, checkpoint_every=2)


def test_masks_for_the_measurement():
    ids = np.zeros((6, 8), np.uint16)
    ids[1:3, 2:5], ids[4:, 6:] = 3, 9
    sample = Sample(np.zeros((6, 8, 3), np.uint8), ids, {3: 0, 9: 1, 12: 0})
    true = true_masks(sample)
    assert list(true.classes) == ["car", "person"]
    found = Detections(
        boxes=np.array([[1.5, 0.5, 4.5, 2.5]], np.float32),
        scores=np.array([0.9], np.float32),
        classes=np.array([2], np.uint8),
        masks=(np.full((2, 3), 255, np.uint8),),
    )
    predicted = predicted_masks(found, (8, 6))
    np.testing.assert_array_equal(predicted.masks[0], true.masks[0])
    assert list(predicted.classes) == ["car"]
    assert true_masks(Sample(sample.image, np.zeros_like(ids), {})).masks.shape == (0, 6, 8)


def test_weights_are_chosen_by_the_mean_over_classes_that_there_are():
    def result(name, value, count, size="all", protocol="AP50"):
        return MaskAP(name=name, size=size, value=value, protocol=protocol, count=count)

    results = [
        result("car", 0.8, 5),
        result("person", 0.4, 2),
        result("bus", float("nan"), 0),
        result("car", 0.1, 5, size="16-99 px"),
        result("car", 0.2, 5, protocol="AP50:95"),
    ]
    assert overall(results) == pytest.approx(0.6)
