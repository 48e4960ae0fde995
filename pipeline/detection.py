"""Mask R-CNN through detectron2: the one module that imports it.

detectron2 pastes masks at 0.5 and forgets the soft masks; shards keep them, so that
thresholds stay changeable. So frames go through its networks as its own predictor would
send them (same resizing, same box arithmetic), and instances are taken before pasting.
Cut at a score of 0.5 and pasted at 0.5 they are what detectron2 itself gives.

detectron2 counts pixels from the CORNER of the top-left pixel; boxes leave this module
with (0, 0) in its CENTRE (see `pipeline.detections`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from pipeline.detections import Detections, SourceFrame
from pipeline.detector_weights import read_pickled_arrays, read_torch_file
from pipeline.errors import DetectorError


@contextlib.contextmanager
def _known_warnings_hidden() -> Iterator[None]:
    """What detectron2 is known to provoke in newer libraries, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
        yield


with _known_warnings_hidden():
    import detectron2
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

# torch 2.14 logs, once, that detectron2 asks it whether it is being traced.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)

MIN_SCORE = 0.05
MAX_DETECTIONS = 100
"""Detections kept of one frame: every one scored above MIN_SCORE, the best MAX_DETECTIONS."""


# ----------------------------------------------------------------------------- configuration


def read_config(path: Path) -> CfgNode:
    """A detectron2 configuration from a YAML file (with its `_BASE_` files).

    detectron2 would let a YAML file run code; such tags are refused here.

    Raises:
        DetectorError: the file is missing, malformed, unsafe, or gives no masks.
    """
    if not path.is_file():
        raise DetectorError(f"detector configuration {path} does not exist; give a detectron2 YAML file")
    config = get_cfg()
    try:
        config.merge_from_file(str(path), allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise DetectorError(f"{path} has a YAML tag that runs code ({error.problem}); remove it") from error
    except (
        yaml.YAMLError,
        KeyError,
        ValueError,
        AssertionError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DetectorError(f"{path} is not a detectron2 configuration: {reason}") from error
    if not config.MODEL.MASK_ON or config.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise DetectorError(
            f"{path} describes {config.MODEL.META_ARCHITECTURE} with MASK_ON {config.MODEL.MASK_ON}, "
            "expected a Mask R-CNN (GeneralizedRCNN with MASK_ON true)"
        )
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = MIN_SCORE
    config.TEST.DETECTIONS_PER_IMAGE = MAX_DETECTIONS
    config.MODEL.WEIGHTS = ""  # weights are named beside the configuration, never taken from it
    return config


def zoo_config_path(name: str) -> Path:
    """The configuration of a model of detectron2's zoo, as it lies in the package.

    Raises:
        DetectorError: the zoo has no such model; lists those with masks.
    """
    configs = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    path = configs / f"{name.removesuffix('.yaml')}.yaml"
    if zoo_weights_url(name) is None or not path.is_file():
        known = sorted(
            n for n in _zoo_urls() if "InstanceSegmentation/mask_rcnn" in n and n.startswith("COCO")
        )
        raise DetectorError(
            f"detectron2's zoo has no {name}; give 'bundled', a YAML file, masks:PATH, or one of its models "
            f"such as {', '.join(known)}"
        )
    return path


def zoo_weights_url(name: str) -> str | None:
    """Where detectron2 offers the weights of a zoo model; None where it does not."""
    suffix = _zoo_urls().get(name.removesuffix(".yaml"))
    return suffix and f"https://dl.fbaipublicfiles.com/detectron2/{name.removesuffix('.yaml')}/{suffix}"


def _zoo_urls() -> Mapping[str, str]:
    with _known_warnings_hidden():
        from detectron2.model_zoo.model_zoo import _ModelZooUrls  # asks for pkg_resources: only when needed
    return _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX


# ----------------------------------------------------------------------------- network


def build_network(config: CfgNode) -> nn.Module:
    """The untrained network of a configuration, on the CPU; torch's generator decides its weights."""
    config = config.clone()
    config.MODEL.DEVICE = "cpu"
    return build_model(config)


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a state_dict (torch.save), a detectron2 checkpoint or a zoo `.pkl`.

    Nothing in the file is run (see `pipeline.detector_weights`).

    Raises:
        DetectorError: the file is missing, damaged, or belongs to another network.
    """
    if not path.is_file():
        raise DetectorError(f"weights {path} do not exist; give the file with --weights FILE")
    level = logging.getLogger("fvcore.common.checkpoint").level
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)  # what it warns of, we raise
    try:
        misfit = _Checkpointer(network).load_strictly(path)
    finally:
        logging.getLogger("fvcore.common.checkpoint").setLevel(level)
    if misfit:
        raise DetectorError(
            f"weights {path} belong to another network: {misfit}; give the ones of this configuration"
        )


class _Checkpointer(DetectionCheckpointer):
    """detectron2's name matching and conversions, over files read without running them."""

    def load_strictly(self, path: Path) -> str:
        """Load, then say what did not fit ('' if all of it did)."""
        self._misfit = ""
        self.load(str(path), checkpointables=[])
        return self._misfit

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            loaded = read_pickled_arrays(Path(filename))
            if "__author__" not in loaded:  # of Caffe2, whose names differ
                arrays = loaded.get("blobs", loaded)
                loaded = {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            loaded = read_torch_file(Path(filename))
            if not isinstance(loaded.get("model"), dict):
                loaded = {"model": loaded}
        strange = [k for k, v in loaded["model"].items() if not isinstance(v, (Tensor, np.ndarray))]
        if strange:
            raise DetectorError(
                f"{filename} holds more than weights, such as {strange[0]!r}; give a state_dict"
            )
        return loaded

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        wrong_shapes = [name for name, *_ in incompatible.incorrect_shapes]
        if wrong_shapes:
            self._misfit = f"{len(wrong_shapes)} arrays have another shape, such as {wrong_shapes[0]}"
        elif incompatible.missing_keys:
            missing = sorted(incompatible.missing_keys)
            self._misfit = f"{len(missing)} arrays are missing, such as {missing[0]}"
        return incompatible


def resolve_device(device: str) -> torch.device:
    """'auto' is the first GPU where there is one, else the CPU; anything else is torch's own name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DetectorError(f"device {device} cannot be used ({reason}); give auto, cpu or cuda") from error
    return resolved


# ----------------------------------------------------------------------------- detector


@dataclass(frozen=True)
class InputFormat:
    """How a network wants its frames: short side resized to `short_side` unless the long one
    then exceeds `long_side` (pixels; short_side 0 leaves frames as they are), RGB or BGR."""

    short_side: int
    long_side: int
    bgr: bool

    @staticmethod
    def of(config: CfgNode) -> InputFormat:
        return InputFormat(
            config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST, config.INPUT.FORMAT == "BGR"
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB to (3, H', W') float32 in [0, 255], as detectron2's predictor does."""
        if self.bgr:
            image = image[:, :, ::-1]
        if self.short_side > 0:
            size = ResizeShortestEdge.get_output_shape(*image.shape[:2], self.short_side, self.long_side)
            image = ResizeTransform(*image.shape[:2], *size, Image.Resampling.BILINEAR).apply_image(image)
        return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))


class MaskRCNN:
    """A `pipeline.detections.Detector` over a detectron2 network.

    On the CPU frames go through one by one, in float32: batches would be no faster there,
    and the convolutions of a batch differ in the last bits from those of a single frame.
    So a frame's detections do not depend on its neighbours, and are the same bytes whenever
    torch uses the same number of threads. On a GPU frames go through in batches of
    `batch_size`, in float16 where that is safe; there the last bits may depend on the batch.
    """

    def __init__(
        self,
        network: nn.Module,
        input_format: InputFormat,
        classes: Sequence[int | None],
        device: torch.device,
        batch_size: int,
    ) -> None:
        """
        Args:
            network: takes and gives what detectron2's GeneralizedRCNN does
            classes: for each of the network's classes the index in `pipeline.classes.CLASSES`,
                     or None where its detections are dropped
        """
        self._network: Any = network.eval().to(device)
        self._format = input_format
        self._classes = np.array([-1 if c is None else c for c in classes], np.int64)
        self._device = device
        self._batch_size = batch_size if device.type == "cuda" else 1

    def detect(self, frames: Sequence[SourceFrame]) -> list[Detections]:
        found: list[Detections] = []
        for start in range(0, len(frames), self._batch_size):
            found += self._detect_batch([frame.image for frame in frames[start : start + self._batch_size]])
        return found

    def _detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        inputs = [{"image": self._format(image)} for image in images]
        with (
            _known_warnings_hidden(),
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.float16, enabled=self._device.type == "cuda"),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True),
        ):
            instances = self._network.inference(inputs, do_postprocess=False)
            return [
                self._to_detections(one, image.shape[:2])
                for one, image in zip(instances, images, strict=True)
            ]

    def _to_detections(self, instances: Instances, source_size: tuple[int, int]) -> Detections:
        """As detectron2's `detector_postprocess` up to the point where it pastes masks."""
        boxes: Boxes = instances.pred_boxes
        boxes.scale(source_size[1] / instances.image_size[1], source_size[0] / instances.image_size[0])
        boxes.clip(source_size)
        keep = boxes.nonempty().cpu().numpy()
        scores = instances.scores.float().cpu().numpy()
        classes = self._classes[instances.pred_classes.cpu().numpy()]
        masks = (instances.pred_masks[:, 0].float() * 255).round().to(torch.uint8).cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[(keep & (classes >= 0))[order]]
        return Detections(
            boxes=boxes.tensor.float().cpu().numpy()[order] - np.float32(0.5),
            scores=scores[order],
            classes=classes[order].astype(np.uint8),
            masks=tuple(masks[order]),
        )


# ----------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Target:
    """What is to be found in one training image.

    classes: (M,) int64, in the network's own order
    masks:   (M, H, W) bool, none empty
    """

    classes: Tensor
    masks: Tensor


def training_losses(
    network: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """The losses of Mask R-CNN by name, for a network in training mode.

    Args:
        images: B tensors (3, H, W) float32 in [0, 255], in the network's channel order
    """
    batch = []
    for image, target in zip(images, targets, strict=True):
        instances = Instances(tuple(image.shape[1:]))
        masks = BitMasks(target.masks)
        instances.gt_masks, instances.gt_boxes = masks, masks.get_bounding_boxes()
        instances.gt_classes = target.classes
        batch.append({"image": image, "instances": instances})
    with _known_warnings_hidden(), EventStorage():  # detectron2's heads log into one
        return network(batch)
