"""Our detections are detectron2's own, taken before it pastes and forgets its soft masks."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import detection
from pipeline.classes import CLASS_INDEX
from pipeline.detections import Detections, SourceFrame
from pipeline.detectors import BUNDLED_CONFIG, BUNDLED_WEIGHTS, DetectorConfig, make_detector
from pipeline.errors import DetectorError
from pipeline.masks import paste
from pipeline.streetworld.render import render_frames
from pipeline.streetworld.scene import draw_scene


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Streets with objects, of several sizes."""
    found = [f.image for seed in (200_004, 200_005) for f in render_frames(draw_scene(seed, 2), "cpu")]
    return [found[0], found[2], found[3][:, 60:330], found[1][20:]]


@pytest.fixture(scope="module")
def bundled():
    return make_detector(DetectorConfig(device="cpu"))


def detect(detector, images) -> list[Detections]:
    return detector.detect(
        [SourceFrame(image=image, clip="c", name=str(k)) for k, image in enumerate(images)]
    )


def predictor(config_path: Path, weights: Path, min_score: float):
    """detectron2's own way from an image to masks."""
    from detectron2.engine import DefaultPredictor  # here: it warns unless pipeline.detection came first

    config = detection.read_config(config_path)
    config.MODEL.WEIGHTS, config.MODEL.DEVICE = str(weights), "cpu"
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = min_score
    return DefaultPredictor(config)


def assert_same_as_detectron2(ours: list[Detections], images, theirs, names, min_score: float) -> None:
    intersection = union = 0
    for found, image in zip(ours, images, strict=True):
        expected = theirs(image[:, :, ::-1])["instances"]  # it takes BGR
        found = found.select(np.flatnonzero(found.scores >= min_score))
        # The same arithmetic on the same thread: equal to the last bit, but for the shift
        # of half a pixel, which rounds.
        np.testing.assert_array_equal(found.scores, expected.scores.numpy())
        np.testing.assert_array_equal(found.boxes, expected.pred_boxes.tensor.numpy() - np.float32(0.5))
        np.testing.assert_array_equal(found.classes, [CLASS_INDEX[names[c]] for c in expected.pred_classes])
        for grid, box, mask in zip(found.masks, found.boxes, expected.pred_masks.numpy(), strict=True):
            pasted = np.zeros_like(mask)
            patch = paste(grid, box, (mask.shape[1], mask.shape[0]))
            pasted[patch.slices] = patch.mask
            # Masks are kept to 1/255: only pixels within 0.002 of the cut may differ.
            assert (pasted != mask).sum() <= 2 + 0.01 * mask.sum()
            intersection += (pasted & mask).sum()
            union += (pasted | mask).sum()
    assert union > 1000  # there was something to compare
    assert intersection / union >= 0.999


def test_cut_at_one_half_equals_detectron2(images, bundled):
    theirs = predictor(BUNDLED_CONFIG, BUNDLED_WEIGHTS, 0.5)
    assert_same_as_detectron2(detect(bundled, images), images, theirs, ["car", "person"], 0.5)


def test_the_evidence_reaches_down_to_the_lowest_score(images, bundled):
    scores = np.concatenate([d.scores for d in detect(bundled, images)])
    assert detection.MIN_SCORE <= scores.min() < 0.3


def test_real_frames_equal_detectron2(test_data, bundled):
    import cv2

    folder = test_data / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync/image_02/data"
    if not folder.is_dir():
        pytest.skip(f"no KITTI frames at {folder}")
    images = [cv2.imread(str(path))[:, :, ::-1] for path in sorted(folder.glob("*.png"))[::30]]
    theirs = predictor(BUNDLED_CONFIG, BUNDLED_WEIGHTS, 0.2)
    assert_same_as_detectron2(detect(bundled, images), images, theirs, ["car", "person"], 0.2)


def test_neighbours_and_repetition_change_nothing(images, bundled):
    together = detect(bundled, images)
    backwards = detect(bundled, images[::-1])[::-1]
    for a, b in zip(together, backwards, strict=True):
        for field in ("boxes", "scores", "classes"):
            assert getattr(a, field).tobytes() == getattr(b, field).tobytes()
        assert [m.tobytes() for m in a.masks] == [m.tobytes() for m in b.masks]


def test_detections_are_well_formed(images, bundled):
    for found, image in zip(detect(bundled, images), images, strict=True):
        assert len(found) <= detection.MAX_DETECTIONS
        assert (np.diff(found.scores) <= 0).all()
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.classes.dtype == np.uint8
        assert all(mask.shape == (28, 28) and mask.dtype == np.uint8 for mask in found.masks)
        edges = np.array([image.shape[1], image.shape[0]] * 2) - 0.5
        assert (found.boxes >= -0.5).all()
        assert (found.boxes <= edges).all()
    assert detect(bundled, []) == []


class Oracle(torch.nn.Module):
    """Sees four things at half the frame's size, whatever it is shown."""

    def inference(self, inputs, do_postprocess):
        from detectron2.structures import Boxes, Instances

        assert not do_postprocess
        instances = Instances((50, 100))
        corners = [[10, 10, 20, 30], [0, 0, 100, 50], [40, 5, 60, 25], [30, 30, 30, 40]]
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32))
        instances.scores = torch.tensor([0.5, 0.9, 0.5, 0.8])
        instances.pred_classes = torch.tensor([1, 0, 2, 1])
        probabilities = torch.tensor([0.0, 0.497, 0.5, 1.0]).reshape(2, 2)  # 0.497 is 126.7 of 255
        instances.pred_masks = probabilities.expand(4, 1, 2, 2)
        return [instances]


def test_from_the_network_s_instances_to_detections():
    form = detection.InputFormat(short_side=50, long_side=1000, bgr=False)
    detector = detection.MaskRCNN(Oracle(), form, [None, 2, 0], torch.device("cpu"), 1)
    (found,) = detect(detector, [np.zeros((100, 200, 3), np.uint8)])
    # The second is of a class that is dropped, the fourth has no width; ties keep their order.
    assert found.boxes.tolist() == [[19.5, 19.5, 39.5, 59.5], [79.5, 9.5, 119.5, 49.5]]
    assert found.scores.tolist() == [0.5, 0.5]
    assert found.classes.tolist() == [2, 0]
    assert [mask.tolist() for mask in found.masks] == [[[0, 127], [128, 255]]] * 2


def test_an_empty_picture_has_no_cars_in_it(bundled):
    (found,) = detect(bundled, [np.full((128, 416, 3), 90, np.uint8)])
    assert (found.scores < 0.5).all()


# ---------------------------------------------------------------------------- other networks


@pytest.fixture(scope="module")
def coco_like(tmp_path_factory) -> Path:
    """An untrained network of 80 classes that takes BGR, eager to see things; with weights."""
    folder = tmp_path_factory.mktemp("coco")
    path = folder / "custom.yaml"
    model = "{ROI_HEADS: {NUM_CLASSES: 80}, RPN: {POST_NMS_TOPK_TEST: 40}}"
    inputs = "{FORMAT: BGR, MIN_SIZE_TEST: 96}"
    path.write_text(f"_BASE_: {BUNDLED_CONFIG}\nMODEL: {model}\nINPUT: {inputs}\n")
    torch.manual_seed(0)
    network = detection.build_network(detection.read_config(path))
    scores = network.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        scores.weight.mul_(0.1)  # untrained features are large
        scores.bias[[2, 9, 16]] += 6.0  # car, traffic light, dog
    torch.save({"model": network.state_dict(), "iteration": 3}, folder / "model.pth")
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    (folder / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Zoo"}, protocol=2))
    return path


@pytest.mark.parametrize("weights", ["model.pth", "model.pkl"])
def test_any_configuration_with_weights(coco_like, images, weights):
    config = DetectorConfig(detector=str(coco_like), weights=coco_like.with_name(weights), device="cpu")
    ours = detect(make_detector(config), images[:2])
    theirs = predictor(coco_like, coco_like.with_name("model.pth"), detection.MIN_SCORE)
    moving = {2: "car", 16: "animal"}
    for found, image in zip(ours, images, strict=False):
        expected = theirs(image[:, :, ::-1])["instances"]
        kept = [k for k, c in enumerate(expected.pred_classes.tolist()) if c in moving]
        assert 0 < len(kept) < len(expected)  # the traffic lights are gone
        np.testing.assert_array_equal(found.scores, expected.scores.numpy()[kept])
        classes = [CLASS_INDEX[moving[c]] for c in expected.pred_classes[kept].tolist()]
        np.testing.assert_array_equal(found.classes, classes)


def test_weights_of_another_network_are_refused(coco_like):
    with pytest.raises(DetectorError, match=r"belong to another network: .* another shape"):
        make_detector(DetectorConfig(detector=str(coco_like), weights=BUNDLED_WEIGHTS, device="cpu"))


def test_weights_that_lack_arrays_are_refused(coco_like, tmp_path):
    state = torch.load(coco_like.with_name("model.pth"), weights_only=True)["model"]
    del state["roi_heads.mask_head.predictor.weight"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(DetectorError, match=r"missing, such as roi_heads\.mask_head\.predictor\.weight"):
        make_detector(DetectorConfig(detector=str(coco_like), weights=tmp_path / "model.pth", device="cpu"))


def test_files_that_hold_more_than_weights_are_refused(coco_like, tmp_path):
    torch.save({"step": 3, "network": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(DetectorError, match="holds more than weights, such as 'step'"):
        make_detector(
            DetectorConfig(detector=str(coco_like), weights=tmp_path / "checkpoint.pt", device="cpu")
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: !!python/object/apply:os.system ['true']", "tag that runs code"),
        ("MODEL: {WEIGHT: 3}", "not a detectron2 configuration"),
        ("MODEL: [", "not a detectron2 configuration"),
        ("- a\n- b", "not a detectron2 configuration"),
        ("MODEL: {META_ARCHITECTURE: RetinaNet}", "expected a Mask R-CNN"),
        ("VERSION: 2", "expected a Mask R-CNN"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "custom.yaml"
    path.write_text(text)
    with pytest.raises(DetectorError, match=message) as caught:
        detection.read_config(path)
    assert "\n" not in str(caught.value)


def test_code_in_a_base_file_is_refused_too(tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: !!python/object/apply:os.system ['true']")
    (tmp_path / "custom.yaml").write_text("_BASE_: base.yaml")
    with pytest.raises(DetectorError, match="tag that runs code"):
        detection.read_config(tmp_path / "custom.yaml")


def test_a_device_that_is_not_there():
    with pytest.raises(DetectorError, match=r"device nonsense cannot be used .* give auto, cpu or cuda"):
        detection.resolve_device("nonsense")
    assert detection.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name", ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "Cityscapes/mask_rcnn_R_50_FPN.yaml"]
)
def test_zoo_models_are_found_by_name(name):
    config = detection.read_config(detection.zoo_config_path(name))
    assert config.MODEL.MASK_ON
    assert config.MODEL.WEIGHTS == ""
    stem = name.removesuffix(".yaml")
    assert detection.zoo_weights_url(name).startswith(f"https://dl.fbaipublicfiles.com/detectron2/{stem}/")


def test_unknown_zoo_models_and_those_without_masks():
    with pytest.raises(DetectorError, match="zoo has no nonsense; give 'bundled'"):
        detection.zoo_config_path("nonsense")
    with pytest.raises(DetectorError, match="expected a Mask R-CNN"):
        detection.read_config(detection.zoo_config_path("COCO-Detection/faster_rcnn_R_50_FPN_3x"))


def test_detecting_is_quiet_and_leaves_threads_alone():
    """A fresh process: no warnings, no log lines, torch's threads as they were."""
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "import numpy as np\n"
        "from pipeline.detectors import DetectorConfig, make_detector\n"
        "from pipeline.detections import SourceFrame\n"
        "frame = SourceFrame(image=np.zeros((128, 416, 3), np.uint8), clip='c', name='0')\n"
        "make_detector(DetectorConfig(device='cpu')).detect([frame])\n"
        "assert torch.get_num_threads() == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_warnings_are_not_hidden():
    with pytest.warns(UserWarning, match="ours"), detection._known_warnings_hidden():
        warnings.warn("ours", UserWarning, stacklevel=1)
