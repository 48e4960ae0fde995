"""Training: views keep masks on their objects, steps learn, a resumed run is the same run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import detection, detector_training
from pipeline.detection import Target, training_losses
from pipeline.detector_training import Sample, TrainingConfig, draw_view, train, whole_frame
from pipeline.detectors import BUNDLED_CONFIG
from pipeline.errors import ConfigError, DetectorError

TINY = TrainingConfig(steps=4, batch_size=1, short_side=64, crop=(96, 48), warmup_steps=2, learning_rate=1e-4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def street(objects: dict[int, tuple[int, int, int, int]], classes: dict[int, int]) -> Sample:
    """Dark noise with white boxes (y0, x0, y1, x1) by id."""
    ids = np.zeros((64, 128), np.uint16)
    for i, (y0, x0, y1, x1) in objects.items():
        ids[y0:y1, x0:x1] = i
    image = np.random.default_rng(0).integers(0, 60, (64, 128, 3), dtype=np.uint8)
    image[ids > 0] = 255
    return Sample(image, ids, classes)


STREET = street({1: (20, 30, 40, 60), 300: (30, 90, 50, 98), 7: (2, 2, 4, 4)}, {1: 0, 300: 1, 7: 0})


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return detection.build_network(detection.read_config(BUNDLED_CONFIG))


@pytest.mark.parametrize("draw", [draw_view, whole_frame])
def test_masks_stay_on_their_objects_through_crop_zoom_and_mirror(monkeypatch, draw):
    monkeypatch.setattr(
        detector_training, "_change_colours", lambda picture, rng: np.asarray(picture, np.float32)
    )
    for seed in range(30):
        image, target = draw(STREET, TINY, np.random.default_rng(seed))
        assert image.shape[1:] == target.masks.shape[1:]
        white = image.mean(dim=0) > 160
        covered = target.masks.any(dim=0)
        # Interpolated edges, and the object of 4 pixels that is too small to be a target.
        perimeter = 4 * sum(target.masks.shape[1:]) / 2
        assert (white ^ covered).sum() < perimeter * 0.5
        assert (target.masks.sum(dim=(1, 2)) > 0).all()


def test_views_keep_classes_and_drop_specks():
    whole = TrainingConfig(short_side=32, zoom=1.0, crop=(64, 32))
    image, target = draw_view(STREET, whole, np.random.default_rng(0))
    assert image.shape == (3, 32, 64)
    assert target.classes.tolist() == [0, 1]
    assert target.masks.sum(dim=(1, 2)).tolist() == [600 / 4, 160 / 4]


def test_views_look_at_rare_classes_as_often_as_at_common_ones():
    sample = street(
        {i: (5, 8 * i, 12, 8 * i + 6) for i in range(1, 16)}, {i: int(i == 9) for i in range(1, 16)}
    )
    config = TrainingConfig(short_side=256, crop=(40, 40), zoom=1.0, focus=1.0)
    views = [draw_view(sample, config, np.random.default_rng(seed))[1] for seed in range(60)]
    assert sum(1 in target.classes for target in views) > 20  # by area it would be 4


def test_views_of_an_empty_street_have_no_targets_and_can_be_learned_from():
    image, target = draw_view(street({}, {}), TINY, np.random.default_rng(0))
    assert target.masks.shape == (0, *image.shape[1:])
    losses = training_losses(network().train(), [image], [target])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_losses_have_the_parts_of_mask_rcnn_and_reach_every_weight():
    net = network().train()
    masks = torch.zeros(1, 64, 128, dtype=torch.bool)
    masks[0, 10:40, 20:80] = True
    losses = training_losses(net, [torch.rand(3, 64, 128) * 255], [Target(torch.tensor([0]), masks)])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None]
    assert silent == []


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    whole = train(network(), [STREET], TINY, tmp_path / "whole.pt", checkpoint_every=2)

    class Killed(Exception):
        pass

    def kill(step, mean):
        raise Killed

    with pytest.raises(Killed):
        train(network(), [STREET], TINY, tmp_path / "cut.pt", kill, checkpoint_every=2)
    other = network()
    torch.manual_seed(99)  # a resumed process starts from other random numbers
    resumed = train(other, [STREET], TINY, tmp_path / "cut.pt", checkpoint_every=2)

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, monkeypatch):
    step = detector_training.training_step

    def interrupted_step(state, samples, config):
        os.kill(os.getpid(), signal.SIGINT)
        return step(state, samples, config)

    monkeypatch.setattr(detector_training, "training_step", interrupted_step)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(network(), [STREET], TINY, tmp_path / "run.pt")
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt"]


def test_another_configuration_does_not_resume(tmp_path):
    one = TrainingConfig(steps=1, batch_size=1, short_side=64)
    train(network(), [STREET], one, tmp_path / "run.pt")
    other = TrainingConfig(steps=1, batch_size=1, short_side=64, seed=1)
    with pytest.raises(DetectorError, match="another configuration"):
        train(network(), [STREET], other, tmp_path / "run.pt")


def test_a_loss_that_is_not_finite_stops_the_run_naming_it(tmp_path):
    net = network()
    with torch.no_grad():
        net.roi_heads.mask_head.predictor.weight.fill_(float("nan"))
    with pytest.raises(DetectorError, match="loss_mask is nan at step 0"):
        train(net, [STREET], TINY, tmp_path / "run.pt")


def test_saved_weights_load_into_the_network(tmp_path):
    weights = network().state_dict()
    detector_training.save_weights(weights, tmp_path / "w.pt")
    torch.manual_seed(4)
    other = detection.build_network(detection.read_config(BUNDLED_CONFIG))
    detection.load_weights(other, tmp_path / "w.pt")
    for name, value in other.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, weights[name].half().float(), rtol=0, atol=0)
    assert (tmp_path / "w.pt").stat().st_size < 6e6


def test_no_samples_and_senseless_settings(tmp_path):
    with pytest.raises(DetectorError, match="no training frames"):
        train(network(), [], TINY, tmp_path / "run.pt")
    with pytest.raises(ConfigError, match="steps"):
        TrainingConfig(steps=0)
    with pytest.raises(ConfigError, match="zoom"):
        TrainingConfig(zoom=0.5)
    with pytest.raises(ConfigError, match="whole_share"):
        TrainingConfig(whole_share=1.5)


def test_the_rate_warms_up_and_ends_at_zero():
    config = TrainingConfig(steps=1000, warmup_steps=100)
    factors = [detector_training.learning_rate_factor(step, config) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01)
    assert max(factors) == pytest.approx(0.975, abs=0.01)
    assert int(np.argmax(factors)) in range(95, 105)
    assert factors[1000] == pytest.approx(0)


def test_streetworld_clips_become_samples(tmp_path):
    from pipeline.detector_samples import read_samples
    from pipeline.errors import SourceError
    from pipeline.streetworld.clip import ClipConfig, render_clip

    render_clip(tmp_path / "train_0004", 4, ClipConfig(frames=2, size=(208, 64)))
    samples = read_samples(tmp_path)
    assert [s.image.shape for s in samples] == [(64, 208, 3)] * 2
    assert set(np.unique(samples[0].ids)) - {0} <= set(samples[0].classes)
    assert set(samples[0].classes.values()) <= {0, 1}
    with pytest.raises(SourceError, match="holds no streetworld clips"):
        read_samples(tmp_path / "none")
    (Path(tmp_path) / "train_0004/video.mp4").write_bytes(b"cut")
    with pytest.raises(SourceError, match="cannot be decoded"):
        read_samples(tmp_path)
