"""One training step: every switch and every setting."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close

from pipeline.errors import ConfigError
from tests.training.objectives import (
    ALIGNED,
    FULL,
    GEO,
    LATE,
    TABLE_2,
    gradients,
    input_of,
)
from tests.training.scenes import StubDepth, made_batch, stub_networks
from training import losses
from training.anchors import AnchorConfig
from training.data import Batch
from training.geometry.sampling import resize
from training.loop import TERMS
from training.motion import MotionConfig
from training.objective import (
    ObjectiveConfig,
    training_step,
    view_terms,
)
from training.pairs import direct, predict_disparity


@pytest.mark.parametrize("name", TABLE_2)
@pytest.mark.parametrize("instances", [(2, 1), (0, 0)], ids=["instances", "no instance"])
def test_every_row_of_table_2_and_every_switch_learns(name: str, instances: tuple[int, ...]) -> None:
    """Fault 7: finite values and gradients, with instances and without."""
    config = TABLE_2[name]
    networks = stub_networks(object_input=input_of(config))
    outcome = training_step(networks, made_batch(instances=instances), config, LATE)
    assert set(outcome.terms) <= set(TERMS)
    for term, value in outcome.terms.items():
        assert torch.isfinite(value), term
        assert value.shape == ()
    assert ("geometric" in outcome.terms) == (config.geometric > 0)
    assert math.isfinite(outcome.total.item())
    found = gradients(outcome, networks)
    assert all(each is None or bool(torch.isfinite(each).all()) for each in found.values())
    asked = config.instances and config.motion.object_warp != "none" and max(instances) > 0
    for part, learns in {"depth": True, "ego": True, "objects": asked}.items():
        each = found[f"{part}.layer.weight"]
        assert (each is not None and bool(each.any())) == learns, part
    learned_heights = config.instances and config.anchors.size > 0 and max(instances) > 0
    assert (found["log_height"] is not None and bool(found["log_height"].any())) == learned_heights


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_every_number_of_scales_learns(scales: int) -> None:
    networks = stub_networks(scales=scales)
    batch = made_batch()
    outcome = training_step(networks, batch, FULL, LATE)
    assert torch.isfinite(outcome.total)
    assert all(
        each is None or bool(torch.isfinite(each).all()) for each in gradients(outcome, networks).values()
    )

    # Each scale, brought to full size, is an objective of its own under the same motions.
    disparities = predict_disparity(networks.depth, batch.images)
    each = []
    for disparity in disparities:
        full = 1 / resize(disparity.flatten(0, 1), (32, 48)).unflatten(0, (2, 3))
        each.append(view_terms(direct(batch, full), outcome.motions, FULL, LATE, 3)[0])
    for name in ("photometric", "geometric", "instance_photometric"):
        assert_close(outcome.terms[name], torch.stack([terms[name] for terms in each]).mean())


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_windows_of_any_length_learn(frames: int) -> None:
    outcome = training_step(stub_networks(), made_batch(F=frames), FULL, LATE)
    assert torch.isfinite(outcome.total)
    assert len(outcome.pairs) == 2 * 2 * (frames - 1)
    assert outcome.depth.shape == (2, frames, 1, 32, 48)


def test_a_window_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="windows of one frame have no pair; use two frames or more"):
        training_step(stub_networks(), made_batch(F=1), FULL, LATE)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    config = replace(
        FULL,
        photometric=2.0,
        instance_photometric=0.3,
        geometric=0.7,
        smoothness=0.11,
        hint=0.9,
        scale=0.6,
        alignment=1.7,
        motion=MotionConfig(alignment=ALIGNED),
        anchors=AnchorConfig(size=0.05, contact=0.02, compact=0.2, consistency=0.4),
    )
    outcome = training_step(stub_networks(), made_batch(), config, LATE)
    assert set(outcome.terms) == set(TERMS)
    weights = {each.name: getattr(config, each.name) for each in fields(config)} | {
        each.name: getattr(config.anchors, each.name) for each in fields(config.anchors)
    }
    weights |= {"camera_alignment": 1.7, "object_alignment": 1.7}
    expected = sum(weights[name] * value for name, value in outcome.terms.items())
    assert_close(outcome.total, expected)


def test_the_curriculum_begins_with_the_background() -> None:
    config = replace(FULL, instances_from=10, auto_mask_from=20)
    networks, batch = stub_networks(), made_batch()
    before = training_step(networks, batch, config, 9)
    assert networks.objects.calls == 0
    assert before.pairs.region_count == 1
    geo = training_step(networks, batch, replace(GEO, auto_mask=False), 9)
    assert_close(before.total, geo.total)
    after = training_step(networks, batch, config, 10)
    assert networks.objects.calls == 2
    assert set(after.terms) == set(before.terms) | {"instance_photometric", "size", "contact", "consistency"}
    masked = training_step(networks, batch, config, 20)
    assert masked.terms["photometric"].item() != after.terms["photometric"].item()


def test_smoothness_is_of_disparity() -> None:
    """Fault 11, in the step: not of depth."""
    networks, batch = stub_networks(scales=2), made_batch()
    outcome = training_step(networks, batch, FULL, LATE)
    images = batch.images.flatten(0, 1)
    found = [each.flatten(0, 1) for each in predict_disparity(networks.depth, batch.images)]
    expected = losses.smoothness(found[0], images, FULL.edge_gain)
    expected = expected + losses.smoothness(found[1], resize(images, (16, 24), "area"), FULL.edge_gain) / 2
    assert_close(outcome.terms["smoothness"], expected)
    assert_close(outcome.depth.flatten(0, 1), 1 / found[0])


# --- batches without instances, halves of batches


def test_without_instances_the_object_network_is_not_asked_and_full_equals_geo() -> None:
    networks, batch = stub_networks(), made_batch(instances=(0, 0))
    full = training_step(networks, batch, FULL, LATE)
    geo = training_step(networks, batch, GEO, LATE)
    assert networks.objects.calls == 0
    assert_close(full.total, geo.total)
    there, here = gradients(full, networks), gradients(geo, networks)
    for name in ("depth.layer.weight", "ego.layer.weight"):
        assert_close(there[name], here[name])


def part(batch: Batch, some: slice) -> Batch:
    """Some windows of a batch, with no more slots than they need."""
    classes = batch.classes[some]
    used = int((classes >= 0).sum(2).max()) if classes.numel() else 0
    return Batch(
        images=batch.images[some],
        K=batch.K[some],
        labels=batch.labels[some],
        classes=classes[:, :, :used],
        dt_s=batch.dt_s[some],
        names=batch.names[some],
    )


@pytest.mark.parametrize(
    ("name", "instances", "frames"),
    [
        ("full", (2, 1, 2, 1), 2),
        ("full", (2, 1, 0, 0), 2),
        ("geo", (2, 1, 2, 1), 2),
        ("inst+geo+inverse", (1, 0, 0, 2), 2),
        ("min reprojection", (1, 1, 0, 0), 3),
        ("detached depth", (2, 0, 1, 0), 2),
    ],
)
def test_two_half_batches_average_to_the_whole(name: str, instances: tuple[int, ...], frames: int) -> None:
    """What lets two processes with half a batch each learn as one does with all of it."""
    config, networks = TABLE_2[name], stub_networks()
    batch = made_batch(B=4, F=frames, instances=instances)
    whole, *halves = (
        training_step(networks, part(batch, some), config, LATE)
        for some in (slice(0, 4), slice(0, 2), slice(2, 4))
    )
    for term, value in whole.terms.items():
        # A half without instances may lack the terms of instances.
        mean = sum(each.terms.get(term, torch.zeros(())) for each in halves) / 2
        assert_close(mean, value, msg=lambda text, term=term: f"{term}: {text}")
    assert_close((halves[0].total + halves[1].total) / 2, whole.total)
    nothing = torch.zeros(())
    first, second = (gradients(each, networks) for each in halves)
    for weight, expected in gradients(whole, networks).items():
        if expected is not None:
            found = [nothing if each[weight] is None else each[weight] for each in (first, second)]
            assert_close(((found[0] + found[1]) / 2).expand_as(expected), expected, rtol=2e-3, atol=1e-5)


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"photometric": -1.0}, "photometric must be 0 or more, got -1.0"),
        ({"geometric": math.nan}, "geometric must be 0 or more, got nan"),
        ({"smoothness": math.inf}, "smoothness must be 0 or more, got inf"),
        ({"instance_photometric": -0.1}, "instance_photometric must be 0 or more"),
        ({"ssim_weight": 1.1}, r"ssim_weight must lie in \[0, 1\], got 1.1"),
        ({"instances_from": -1}, "are steps: 0 or more"),
        ({"auto_mask_from": -1}, "are steps: 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**settings)


def test_the_stub_depends_on_the_image() -> None:
    assert StubDepth()(torch.zeros(1, 3, 8, 8))[0].shape == (1, 1, 8, 8)
