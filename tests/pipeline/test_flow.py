"""Flow: known motion is found, both directions agree where they should, and kept flow is what is used."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torchvision.models.optical_flow import raft_large, raft_small

from pipeline.configuration import from_dict
from pipeline.errors import ConfigError, DetectorError
from pipeline.flow import (
    MAX_KEPT_PX,
    Flow,
    FlowConfig,
    compute_flow,
    consistent,
    dequantise,
    flow_identity,
    load_flow_model,
    quantise,
    warp_error,
)
from pipeline.flow_benchmark import compare, stored_frames
from pipeline.raft import Raft, torchvision_names

H, W = 96, 160
PRESETS = ["ultrafast", "fast", "medium"]


def texture(height: int = H + 60, width: int = W + 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height // 2 + 1, width // 2 + 1, 3), dtype=np.uint8)
    return cv2.GaussianBlur(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), 1.5)


def shifted(dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Two frames; what is at p in the first is at p + (dx, dy) in the second."""
    image = texture()
    return image[30 : 30 + H, 30 : 30 + W].copy(), image[30 - dy : 30 - dy + H, 30 - dx : 30 - dx + W].copy()


def constant(u: float, v: float, height: int = H, width: int = W) -> np.ndarray:
    return np.full((height, width, 2), (u, v), np.float32)


# --- DIS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dx", "dy"), [(3, -2), (-6, 4), (0, 1)])
def test_known_shifts_are_found_in_both_directions(preset, dx, dy):
    flow = compute_flow(*shifted(dx, dy), FlowConfig(dis_preset=preset))
    inner = np.s_[12:-12, 12:-12]
    assert np.median(np.abs(flow.forward[inner] - (dx, dy))) < 0.1
    assert np.median(np.abs(flow.backward[inner] + (dx, dy))) < 0.1
    assert np.nanmean(warp_error(*shifted(dx, dy), flow.forward)) < 0.02
    mask_a, mask_b = consistent(flow)
    assert mask_a[inner].mean() > 0.95
    assert mask_b[inner].mean() > 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_static_frames_have_no_flow_and_agree_everywhere(preset):
    a, _ = shifted(0, 0)
    flow = compute_flow(a, a, FlowConfig(dis_preset=preset))
    assert np.abs(flow.forward).max() == 0
    assert all(mask.all() for mask in consistent(flow))
    grey = np.full((H, W, 3), 128, np.uint8)
    assert np.abs(compute_flow(grey, grey, FlowConfig(dis_preset=preset)).forward).max() == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_flow_does_not_depend_on_threads_or_on_what_was_computed_before(preset):
    rng = np.random.default_rng(1)
    a, b = (texture(256, 832, seed) for seed in (1, 2))
    b = np.where(rng.random((256, 832, 1)) < 0.5, a, b).astype(np.uint8)
    threads = cv2.getNumThreads()
    results = []
    try:
        for count in (1, 2, 3, 8):
            cv2.setNumThreads(count)
            compute_flow(b, a, FlowConfig(dis_preset=preset))
            results.append(compute_flow(a, b, FlowConfig(dis_preset=preset)))
    finally:
        cv2.setNumThreads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(other.forward, results[0].forward)
        np.testing.assert_array_equal(other.backward, results[0].backward)


def test_wrong_frames_are_refused():
    a, b = shifted(1, 0)
    with pytest.raises(ValueError, match="equal"):
        compute_flow(a, b[:-1], FlowConfig())
    with pytest.raises(ValueError, match="uint8"):
        compute_flow(a.astype(np.float32), b.astype(np.float32), FlowConfig())
    with pytest.raises(ConfigError, match="too small"):
        compute_flow(a[:8], b[:8], FlowConfig())
    with pytest.raises(ValueError, match="load_flow_model"):
        compute_flow(a, b, FlowConfig(flow="raft"))
    with pytest.raises(ValueError, match="float32"):
        Flow(forward=np.zeros((4, 4, 2)), backward=np.zeros((4, 4, 2)))


@pytest.mark.parametrize(
    "wrong", [{"flow": "farneback"}, {"dis_preset": "slow"}, {"raft_size": "huge"}, {"raft_updates": 0}]
)
def test_impossible_settings_cannot_be_constructed(wrong):
    with pytest.raises(ConfigError):
        FlowConfig(**wrong)


# --- consistency ---------------------------------------------------------------------------------


def test_zero_flow_keeps_every_pixel_up_to_the_last_column():
    """A grid normalised by W / 2 instead of (W - 1) / 2 loses or shifts the right border."""
    flow = Flow(forward=constant(0, 0), backward=constant(0, 0))
    assert all(mask.all() for mask in consistent(flow))
    a, _ = shifted(0, 0)
    np.testing.assert_array_equal(warp_error(a, a, flow.forward), 0)


@given(u=st.integers(-20, 20), v=st.integers(-20, 20))
@settings(max_examples=30)
def test_pixels_that_leave_the_image_are_not_consistent_all_others_are(u, v):
    mask_a, mask_b = consistent(Flow(forward=constant(u, v), backward=constant(-u, -v)))
    y, x = np.mgrid[:H, :W]
    np.testing.assert_array_equal(mask_a, (x + u >= 0) & (x + u < W) & (y + v >= 0) & (y + v < H))
    np.testing.assert_array_equal(mask_b, (x - u >= 0) & (x - u < W) & (y - v >= 0) & (y - v < H))


def test_thresholds_by_hand():
    # |f + b|^2 = d^2 must stay below 0.01 (|f|^2 + |b|^2) + 0.5; with f = (10, 0), b = (-10 + d, 0).
    for d, agrees in [(1.4, True), (1.6, False)]:
        assert (d**2 < 0.01 * (100 + (10 - d) ** 2) + 0.5) == agrees
        mask, _ = consistent(Flow(forward=constant(10, 0), backward=constant(-10 + d, 0)))
        assert mask[:, :-10].all() == agrees


def test_the_way_back_is_sampled_between_pixels():
    # backward = -x / 4 in u: at p + f, halfway between pixels, it must be the mean of both.
    backward = np.zeros((H, W, 2), np.float32)
    backward[..., 0] = -np.arange(W) / 4
    forward = np.zeros((H, W, 2), np.float32)
    forward[..., 0] = np.arange(W) / 3  # exactly inverse: x + x/3 - (x + x/3)/4 = x
    mask, _ = consistent(Flow(forward=forward, backward=backward))
    assert mask[:, : int((W - 1) / (4 / 3))].all()


def test_what_a_passing_object_hides_is_not_consistent():
    # A square of 40 pixels at column 40 moves 12 to the right over a background that stands still.
    square_a, square_b = np.zeros((2, H, W), bool)
    square_a[30:70, 40:80] = True
    square_b[30:70, 52:92] = True
    flow = Flow(
        forward=np.where(square_a[..., None], (12, 0), (0, 0)).astype(np.float32),
        backward=np.where(square_b[..., None], (-12, 0), (0, 0)).astype(np.float32),
    )
    mask_a, mask_b = consistent(flow)
    np.testing.assert_array_equal(~mask_a, square_b & ~square_a)  # covered in b
    np.testing.assert_array_equal(~mask_b, square_a & ~square_b)  # was covered in a


def test_flow_that_is_not_a_number_is_not_consistent():
    forward = constant(0, 0)
    forward[3, 4] = np.nan
    mask, _ = consistent(Flow(forward=forward, backward=constant(0, 0)))
    assert not mask[3, 4]
    assert mask.sum() == H * W - 1


# --- kept flow -----------------------------------------------------------------------------------

sizes = st.tuples(st.integers(2, 33), st.integers(2, 33))


@given(size=sizes, u=st.floats(-500, 500), v=st.floats(-500, 500))
def test_constant_flow_survives_to_half_a_unit_at_odd_sizes_as_well(size, u, v):
    width, height = size
    flow = Flow(forward=constant(u, v, height, width), backward=constant(-u, v, height, width))
    kept = quantise(flow)
    assert kept.shape == (2, (height + 1) // 2, (width + 1) // 2, 2)
    assert kept.dtype == np.int16
    back = dequantise(kept, size)
    np.testing.assert_allclose(back.forward, flow.forward, atol=1 / 128 + 1e-4)
    np.testing.assert_allclose(back.backward, flow.backward, atol=1 / 128 + 1e-4)


def test_linear_flow_survives_but_for_the_outermost_pixels():
    y, x = np.mgrid[:H, :W].astype(np.float32)
    field = np.stack([0.3 * x - 0.1 * y, 0.02 * x + 0.25 * y], axis=-1)
    back = dequantise(quantise(Flow(forward=field, backward=-field)), (W, H))
    np.testing.assert_allclose(back.forward[1:-1, 1:-1], field[1:-1, 1:-1], atol=0.02)
    np.testing.assert_allclose(back.forward, field, atol=0.21)


def test_cells_are_means_of_their_pixels_and_lone_borders_count_alone():
    field = np.zeros((3, 3, 2), np.float32)
    field[..., 0] = [[1, 2, 10], [3, 6, 20], [5, 7, 40]]
    kept = quantise(Flow(forward=field, backward=field))
    np.testing.assert_array_equal(kept[0, ..., 0] / 64, [[3, 15], [6, 40]])


def test_what_is_too_long_is_cut_to_the_range():
    flow = Flow(forward=constant(2000, -2000), backward=constant(MAX_KEPT_PX, 0))
    back = dequantise(quantise(flow), (W, H))
    np.testing.assert_array_equal(back.forward, constant(MAX_KEPT_PX, -MAX_KEPT_PX))
    np.testing.assert_array_equal(back.backward, flow.backward)


@given(npst.arrays(np.int16, (2, 5, 7, 2), elements=st.integers(-32767, 32767)))
def test_kept_flow_read_back_is_kept_as_it_was(stored):
    flow = dequantise(stored, (13, 10))
    np.testing.assert_array_equal(quantise(flow), stored)
    assert np.abs(flow.forward).max() <= MAX_KEPT_PX


def test_upsampling_is_bilinear_at_half_pixel_offsets():
    stored = np.zeros((2, 2, 2, 2), np.int16)
    stored[0, ..., 0] = [[0, 64], [128, 192]]
    expected = cv2.resize(np.array([[0, 1], [2, 3]], np.float32), (4, 4), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(dequantise(stored, (4, 4)).forward[..., 0], expected)


def test_kept_flow_of_another_size_is_refused():
    with pytest.raises(ValueError, match="kept flow of 160x96"):
        dequantise(np.zeros((2, 48, 81, 2), np.int16), (W, H))
    with pytest.raises(ValueError, match="int16"):
        dequantise(np.zeros((2, 48, 80, 2), np.float32), (W, H))


# --- RAFT ----------------------------------------------------------------------------------------


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names -> those in the authors' files, by a list written by hand."""
    table = [
        ("feature_encoder.", "fnet."),
        ("context_encoder.", "cnet."),
        ("net.convnormrelu.0.", "net.conv1."),
        ("net.convnormrelu.1.", "net.norm1."),
        ("net.conv.", "net.conv2."),
        *[(f".convnormrelu{n}.0.", f".conv{n}.") for n in (1, 2, 3)],
        *[(f".convnormrelu{n}.1.", f".norm{n}.") for n in (1, 2, 3)],
        *[(f"motion_encoder.convcorr{n}.0.", f"encoder.convc{n}.") for n in (1, 2)],
        *[(f"motion_encoder.convflow{n}.0.", f"encoder.convf{n}.") for n in (1, 2)],
        ("motion_encoder.conv.0.", "encoder.conv."),
        *[(f"recurrent_block.convgru{n}.conv{g}.", f"gru.conv{g}{n}.") for n in (1, 2) for g in "zrq"],
        ("mask_predictor.convrelu.0.", "update_block.mask.0."),
        ("mask_predictor.conv.", "update_block.mask.2."),
    ]
    renamed = {}
    for key, value in state.items():
        for ours, theirs in table:
            key = key.replace(ours, theirs)
        renamed[f"module.{key}"] = value
        if ".downsample.1." in key:
            renamed[f"module.{key}".replace(".downsample.1.", ".norm3.")] = value
    return renamed


def test_names_of_the_authors_large_network_are_mapped():
    state = raft_large(weights=None).state_dict()
    renamed = authors_names(state)
    assert "module.cnet.layer2.0.norm3.running_mean" in renamed
    assert "module.update_block.gru.convq2.bias" in renamed
    mapped = torchvision_names(renamed)
    assert set(mapped) == set(state)
    assert all(mapped[key] is state[key] for key in state)
    assert torchvision_names(state).keys() == state.keys()


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "raft.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("size", [(96, 64), (101, 131), (160, 136)])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_any_size_is_padded_and_cut_back_and_used_as_it_is_kept(random_weights, size, enlarge):
    config = FlowConfig(flow="raft", raft_weights=random_weights, raft_updates=1, raft_enlarge=enlarge)
    model = load_flow_model(config)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(2))
    flow = compute_flow(a, b, config, model)
    assert flow.forward.shape == (size[1], size[0], 2)
    np.testing.assert_array_equal(dequantise(quantise(flow), size).forward, flow.forward)
    swapped = compute_flow(b, a, config, model)
    np.testing.assert_allclose(swapped.forward, flow.backward, atol=0.05)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not found; give the path"),
        (b"no weights", "no weights file or damaged"),
        ({"a": 3}, "no table of tensors"),
        ({"a": torch.zeros(2)}, "does not fit RAFT small"),
    ],
)
def test_wrong_weights_are_one_line_errors(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DetectorError, match=words) as error:
        load_flow_model(FlowConfig(flow="raft", raft_weights=path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_the_other_size_say_so(random_weights):
    with pytest.raises(DetectorError, match="does not fit RAFT large"):
        load_flow_model(FlowConfig(flow="raft", raft_size="large", raft_weights=random_weights))


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.raises(DetectorError, match=r"unreachable.*put them at .*checkpoints/raft_small.*\.pth"):
        load_flow_model(FlowConfig(flow="raft"))


def test_identity_goes_by_content_and_can_be_read_back(tmp_path, random_weights):
    assert flow_identity(FlowConfig(dis_preset="fast", raft_updates=3)) == flow_identity(
        FlowConfig(dis_preset="fast")
    )
    assert flow_identity(FlowConfig(dis_preset="fast")) != flow_identity(FlowConfig(dis_preset="medium"))
    copy = tmp_path / "copy.pth"
    copy.write_bytes(random_weights.read_bytes())
    raft, same = (
        flow_identity(FlowConfig(flow="raft", raft_weights=path)) for path in (random_weights, copy)
    )
    assert raft == same
    copy.write_bytes(b"other")
    assert flow_identity(FlowConfig(flow="raft", raft_weights=copy)) != raft
    for identity in (
        raft,
        flow_identity(FlowConfig(dis_preset="medium")),
        flow_identity(FlowConfig(flow="raft")),
    ):
        read = from_dict(FlowConfig, json.loads(json.dumps(identity)))
        assert read.flow == identity["flow"]
    assert from_dict(FlowConfig, flow_identity(FlowConfig(dis_preset="medium"))) == FlowConfig(
        dis_preset="medium"
    )
    with pytest.raises(DetectorError, match="cannot be read"):
        flow_identity(FlowConfig(flow="raft", raft_weights=tmp_path / "absent.pth"))


@pytest.fixture(scope="module")
def raft(test_data) -> tuple[FlowConfig, Raft]:
    path = test_data / "weights" / "raft-small.pth"
    if not path.exists():
        pytest.skip(f"no {path}")
    config = FlowConfig(flow="raft", raft_weights=path)
    return config, Raft.load(config)


@pytest.mark.parametrize("enlarge", [1, 2])
def test_the_authors_weights_find_known_motion(raft, enlarge):
    config = replace(raft[0], raft_enlarge=enlarge)
    model = Raft(raft[1]._network, torch.device("cpu"), config)
    assert sum(p.numel() for p in model._network.parameters()) == 990_162
    a, b = shifted(5, -3)
    flow = compute_flow(a, b, config, model)
    inner = np.s_[16:-16, 16:-16]
    assert np.median(np.abs(flow.forward[inner] - (5, -3))) < 0.3
    assert np.median(np.abs(flow.backward[inner] + (5, -3))) < 0.3
    still = compute_flow(a, a, config, model)
    assert np.median(np.hypot(*np.moveaxis(still.forward, 2, 0))) < 0.15


def test_a_zoom_is_found_without_a_shift_at_any_width(raft):
    """Cells read a few pixels off bias a zoom by its gradient; how far off must not grow with the width."""
    config, model = raft
    for width, height in [(128, 128), (320, 128)]:
        image = texture(height + 40, width + 40)
        v, u = np.mgrid[:height, :width].astype(np.float32)
        zoom, centre = 1.08, np.array([(width - 1) / 2, (height - 1) / 2])

        def view(scale: float, image=image, u=u, v=v, centre=centre) -> np.ndarray:
            x, y = (u - centre[0]) / scale + centre[0] + 20, (v - centre[1]) / scale + centre[1] + 20
            return cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC)

        flow = compute_flow(view(1.0), view(zoom), config, model)
        true = (np.stack([u, v], axis=-1) - centre) * (zoom - 1)
        inner = np.s_[24:-24, 24:-24]
        assert np.abs(np.mean((flow.forward - true)[inner], axis=(0, 1))).max() < 0.12
        assert np.median(np.abs((flow.forward - true)[inner])) < 0.15


@pytest.mark.slow
def test_raft_beats_the_default_dis_on_the_real_drive(raft, test_data, capsys):
    folder = test_data / "kitti_raw"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    pairs = []
    for first in (12, 38, 64):
        a, b = stored_frames(folder, [first, first + 1], (832, 256))
        pairs.append((a, b))
    scores = compare(pairs, {"dis": (FlowConfig(), None), "raft": raft})
    with capsys.disabled():
        print(
            {
                name: f"warp error {score.error:.2f}, consistent {score.consistent:.1%}"
                for name, score in scores.items()
            }
        )
    assert scores["raft"].error < scores["dis"].error
    assert scores["raft"].consistent > scores["dis"].consistent
