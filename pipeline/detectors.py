"""Which detector a build uses, how it is made, and what of it goes into the manifest.

A detector is named in one of these forms:

    bundled             the small Mask R-CNN in `pipeline/bundled` (see its MODEL_CARD.md)
    COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x
                        a model of detectron2's zoo; its weights are downloaded once, or
                        given by `weights`
    PATH.yaml           a detectron2 configuration, with its `weights`
    masks:PATH          masks that exist already (see `pipeline.given_masks`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.classes import class_named
from pipeline.detections import Detector
from pipeline.detector_weights import fetch, sha256
from pipeline.errors import ConfigError, DetectorError

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_CONFIG = BUNDLED / "mask_rcnn_quarter.yaml"
BUNDLED_WEIGHTS = BUNDLED / "mask_rcnn_quarter.pt"
BUNDLED_SHA256 = "25b50512ef21d2f6b759bcf03cc9b848a67f58a24e69751ed9ecbf4ad67037b3"
BUNDLED_CLASSES = ("car", "person")
"""Classes of the bundled network, in its order."""

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("thing that does not move by itself",) * 56,
)
"""COCO's 80 classes in the zoo's order, as far as they matter here."""

CITYSCAPES_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Where detections come from."""

    detector: str = "bundled"
    """bundled, a model of detectron2's zoo (COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x),
    a detectron2 YAML file, or masks:PATH."""
    weights: Path | None = None
    """Weights of the network: .pth or .pkl; needed with a YAML file, else optional."""
    class_names: tuple[str, ...] = ()
    """The network's classes in its order, where they are neither COCO's nor the bundled
    ones; classes that do not move by themselves are dropped."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    batch_size: int = 4
    """Frames a network sees at once on a GPU; on the CPU one by one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.detector.startswith("masks:"):
            if self.weights or self.class_names:
                raise ConfigError(f"{self.detector} takes neither weights nor class names; leave them out")
        elif self.detector == "bundled":
            if self.weights or self.class_names:
                raise ConfigError("the bundled detector brings its weights; give a YAML file for other ones")
        elif _is_file(self.detector) and self.weights is None:
            raise ConfigError(f"{self.detector} needs its weights; give --weights FILE")
        if self.class_names and all(class_named(name) is None for name in self.class_names):
            raise ConfigError(f"none of the classes {', '.join(self.class_names)} moves by itself")


def make_detector(config: DetectorConfig) -> Detector:
    """The detector of a configuration, ready to detect.

    Raises:
        DetectorError: weights cannot be fetched or do not fit, masks cannot be read, the
            device is missing; each says what to do.
    """
    if config.detector.startswith("masks:"):
        from pipeline.given_masks import read_given_masks

        return read_given_masks(_masks_path(config))
    from pipeline import detection  # loads detectron2

    network_config = _network_config(config)
    classes = [class_named(name) for name in _class_names(config, network_config)]
    device = detection.resolve_device(config.device)
    network = detection.build_network(network_config)
    detection.load_weights(network, _weights(config))
    return detection.MaskRCNN(
        network, detection.InputFormat.of(network_config), classes, device, config.batch_size
    )


def check_detector(config: DetectorConfig, frame_names: Mapping[str, Sequence[str]]) -> None:
    """Find out before a long build what would spoil it: for the driver, once.

    Weights are fetched and checked against the configuration's class names; given masks
    must match at least one frame.

    Args:
        frame_names: names of the frames of every clip, by the clip's name

    Raises:
        DetectorError: as `make_detector`, or no given mask matches a frame.
    """
    if config.detector.startswith("masks:"):
        from pipeline.given_masks import read_given_masks

        read_given_masks(_masks_path(config)).check(frame_names)
        return
    _class_names(config, _network_config(config))
    _weights(config)


def detector_identity(config: DetectorConfig) -> dict[str, object]:
    """What decides the detections, for the manifest; two equal identities give equal ones.

    Device and batch size are not part of it. Weights of a zoo model are fetched.
    """
    if config.detector.startswith("masks:"):
        from pipeline.given_masks import fingerprint

        return {"kind": "masks", "fingerprint": fingerprint(_masks_path(config))}
    if config.detector == "bundled":
        text = BUNDLED_CONFIG.read_bytes()
        return {
            "kind": "bundled",
            "config_sha256": hashlib.sha256(text).hexdigest(),
            "weights_sha256": BUNDLED_SHA256,
            "classes": list(BUNDLED_CLASSES),
        }
    network_config = _network_config(config)
    return {
        "kind": "detectron2",
        "name": Path(config.detector).name if _is_file(config.detector) else config.detector,
        "config_sha256": hashlib.sha256(network_config.dump().encode()).hexdigest(),
        "weights_sha256": sha256(_weights(config)),
        "classes": list(_class_names(config, network_config)),
    }


def _is_file(detector: str) -> bool:
    """A YAML file of the user's, rather than a name of the zoo (which may end in .yaml too)."""
    zoo = ("COCO-", "LVISv", "Cityscapes/", "PascalVOC-", "Misc/", "new_baselines/", "Detectron1-")
    is_yaml = detector.endswith((".yaml", ".yml"))
    return Path(detector).is_file() or (is_yaml and not detector.startswith(zoo))


def _masks_path(config: DetectorConfig) -> Path:
    return Path(config.detector.removeprefix("masks:"))


def _network_config(config: DetectorConfig) -> Any:
    from pipeline import detection

    if config.detector == "bundled":
        return detection.read_config(BUNDLED_CONFIG)
    if _is_file(config.detector):
        return detection.read_config(Path(config.detector))
    return detection.read_config(detection.zoo_config_path(config.detector))


def _weights(config: DetectorConfig) -> Path:
    """The weights file, checked if it is ours, fetched if it is the zoo's."""
    if config.detector == "bundled":
        found = f"SHA-256 {sha256(BUNDLED_WEIGHTS)}" if BUNDLED_WEIGHTS.is_file() else "no file"
        if found != f"SHA-256 {BUNDLED_SHA256}":
            raise DetectorError(
                f"{BUNDLED_WEIGHTS} is damaged: {found}, expected {BUNDLED_SHA256}; "
                "install instance-motion again"
            )
        return BUNDLED_WEIGHTS
    if config.weights is not None:
        if not config.weights.is_file():
            raise DetectorError(f"weights {config.weights} do not exist; give the file with --weights FILE")
        return config.weights
    from pipeline import detection

    url = detection.zoo_weights_url(config.detector)
    assert url is not None  # zoo_config_path has refused other names
    return fetch(url)


def _class_names(config: DetectorConfig, network_config: Any) -> Sequence[str]:
    """The network's classes in its order."""
    count = network_config.MODEL.ROI_HEADS.NUM_CLASSES
    if config.class_names:
        names: Sequence[str] = config.class_names
    elif count == len(COCO_CLASSES):
        names = COCO_CLASSES
    elif count == len(BUNDLED_CLASSES):
        names = BUNDLED_CLASSES
    elif count == len(CITYSCAPES_CLASSES) and "cityscapes" in str(network_config.DATASETS.TEST):
        names = CITYSCAPES_CLASSES
    else:
        raise DetectorError(
            f"{config.detector} has {count} classes, which are not COCO's 80; "
            "give their names in the network's order with --class-names"
        )
    if len(names) != count:
        raise DetectorError(
            f"{config.detector} has {count} classes but {len(names)} names were given; give one each"
        )
    return names
