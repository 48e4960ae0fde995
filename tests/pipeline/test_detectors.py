"""What names a detector, what is refused before any work, and what the manifest keeps."""

from __future__ import annotations

import json
import urllib.error

import numpy as np
import pytest
from PIL import Image

from pipeline import detector_weights, detectors
from pipeline.classes import CLASSES, class_named
from pipeline.detector_weights import sha256
from pipeline.detectors import (
    BUNDLED,
    BUNDLED_CONFIG,
    BUNDLED_SHA256,
    BUNDLED_WEIGHTS,
    COCO_CLASSES,
    DetectorConfig,
    check_detector,
    detector_identity,
    make_detector,
)
from pipeline.errors import ConfigError, DetectorError

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
FRAMES = {"drive/cam": ["000000", "000001"]}


def test_the_bundled_weights_are_the_pinned_ones_and_small():
    assert sha256(BUNDLED_WEIGHTS) == BUNDLED_SHA256
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 10e6


def test_damaged_bundled_weights_are_refused(tmp_path, monkeypatch):
    content = bytearray(BUNDLED_WEIGHTS.read_bytes())
    content[100_000] ^= 1
    (tmp_path / "w.pt").write_bytes(content)
    for path, found in [(tmp_path / "w.pt", "SHA-256"), (tmp_path / "none.pt", "no file")]:
        monkeypatch.setattr(detectors, "BUNDLED_WEIGHTS", path)
        with pytest.raises(DetectorError, match=rf"damaged: .*{found}.* install instance-motion again"):
            make_detector(DetectorConfig(device="cpu"))


def test_classes_of_coco_that_move_are_mapped_to_ours():
    assert len(COCO_CLASSES) == 80
    mapped = {name: CLASSES[i] for name in COCO_CLASSES if (i := class_named(name)) is not None}
    assert set(mapped.values()) == set(CLASSES)
    animals = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]
    assert {name for name, ours in mapped.items() if name != ours} == set(animals)
    assert class_named(" Pedestrian") == CLASSES.index("person")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"detector": "model.yaml"}, "needs its weights; give --weights"),
        ({"detector": "masks:x", "weights": "w.pt"}, "neither weights nor"),
        ({"weights": "w.pt"}, "brings its weights"),
        ({"detector": ZOO, "class_names": ("tree", "house")}, "none of the classes tree, house moves"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        DetectorConfig(**settings)


def test_weights_that_cannot_be_fetched_fail_before_a_build(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(detector_weights.urllib.request, "urlopen", urlopen)
    config = DetectorConfig(detector=ZOO)
    for attempt in (lambda: check_detector(config, FRAMES), lambda: detector_identity(config)):
        with pytest.raises(
            DetectorError, match=rf"cannot fetch .*{ZOO}/137849600/model_final_f10217\.pkl"
        ) as caught:
            attempt()
        assert "--weights FILE" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_given_weights_must_exist(tmp_path):
    with pytest.raises(DetectorError, match="do not exist; give the file with --weights"):
        check_detector(DetectorConfig(detector=ZOO, weights=tmp_path / "none.pkl"), FRAMES)
    with pytest.raises(DetectorError, match=r"none\.yaml does not exist"):
        make_detector(DetectorConfig(detector=str(tmp_path / "none.yaml"), weights=BUNDLED_WEIGHTS))


def custom(tmp_path, classes: int) -> DetectorConfig:
    path = tmp_path / f"custom{classes}.yaml"
    path.write_text(f"_BASE_: {BUNDLED_CONFIG}\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: {classes}}}}}\n")
    return DetectorConfig(detector=str(path), weights=BUNDLED_WEIGHTS)


def test_unknown_classes_ask_for_their_names(tmp_path):
    config = custom(tmp_path, 3)
    with pytest.raises(DetectorError, match=r"has 3 classes, .*--class-names"):
        check_detector(config, FRAMES)
    named = DetectorConfig(
        detector=config.detector, weights=config.weights, class_names=("car", "tree", "van")
    )
    check_detector(named, FRAMES)
    short = DetectorConfig(detector=config.detector, weights=config.weights, class_names=("car",))
    with pytest.raises(DetectorError, match="3 classes but 1 names"):
        check_detector(short, FRAMES)


def test_identities_follow_what_decides_the_detections(tmp_path):
    bundled = detector_identity(DetectorConfig())
    assert bundled == detector_identity(DetectorConfig(device="cpu", batch_size=9))
    assert bundled["weights_sha256"] == BUNDLED_SHA256

    two, three = custom(tmp_path, 2), custom(tmp_path, 3)
    three = DetectorConfig(detector=three.detector, weights=three.weights, class_names=("car", "tree", "van"))
    identities = [detector_identity(c) for c in (two, three)]
    assert identities[0]["config_sha256"] != identities[1]["config_sha256"]
    assert identities[0]["weights_sha256"] == identities[1]["weights_sha256"] == BUNDLED_SHA256
    assert identities[1]["classes"] == ["car", "tree", "van"]
    assert json.loads(json.dumps(identities)) == identities


def test_given_masks_are_a_detector_too(tmp_path):
    folder = tmp_path / "drive/cam"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((4, 5), 26001, np.uint16)).save(folder / "000001.png")
    config = DetectorConfig(detector=f"masks:{tmp_path}")
    check_detector(config, FRAMES)
    before = detector_identity(config)
    assert before["kind"] == "masks"
    Image.fromarray(np.full((4, 5), 26001, np.uint16)).save(folder / "000002.png")
    assert detector_identity(config) != before
    with pytest.raises(DetectorError, match="no masks match any frame"):
        check_detector(config, {"other": ["000001"]})
