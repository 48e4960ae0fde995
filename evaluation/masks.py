"""Average precision of instance masks, by COCO's protocol and COCO's own code.

A prediction counts when its mask overlaps a true mask of its class, not yet taken by a
better scored one, with at least the IoU threshold. Precision is averaged over 101 recall
levels; AP is that, averaged over thresholds .5, .55, ... .95, and AP50 at .5 alone. True
objects outside a size range, and predictions that match them or that are outside the
range and match nothing, count neither way (COCO's rule for areas).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MIN_AREA = 16
"""Objects with fewer visible pixels are left out of every figure."""

SIZE_BINS: Mapping[str, tuple[float, float]] = {
    "all": (MIN_AREA, math.inf),
    "16-99 px": (MIN_AREA, 99),
    "100-999 px": (100, 999),
    "from 1000 px": (1000, math.inf),
    "from 100 px": (100, math.inf),
}


@dataclass(frozen=True, kw_only=True)
class FrameMasks:
    """The instances of one frame, true or predicted; masks may overlap.

    masks:   (N, H, W) bool
    classes: N class names
    scores:  (N,) in [0, 1], predictions only; None for the truth
    """

    masks: np.ndarray
    classes: Sequence[str]
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.masks)
        if self.masks.ndim != 3 or self.masks.dtype != bool or len(self.classes) != count:
            raise ValueError(
                f"masks must be (N, H, W) bool with N classes, found {self.masks.dtype} "
                f"{self.masks.shape} with {len(self.classes)} classes"
            )
        if self.scores is not None and np.shape(self.scores) != (count,):
            raise ValueError(f"{count} masks need {count} scores, found {np.shape(self.scores)}")


@dataclass(frozen=True, kw_only=True)
class MaskAP:
    """One average precision, in [0, 1]; NaN where there is no true object.

    name:     class name
    size:     key of the size bins
    protocol: "AP50" or "AP50:95"
    count:    true objects in the figure
    """

    name: str
    size: str
    value: float
    protocol: str
    count: int
    unit: str = "fraction"


def mask_ap(
    truth: Sequence[FrameMasks],
    predictions: Sequence[FrameMasks],
    bins: Mapping[str, tuple[float, float]] = SIZE_BINS,
) -> list[MaskAP]:
    """AP50 and AP50:95 of every class in the truth and every size bin.

    Args:
        truth, predictions: one entry a frame, in the same order and of the same size
        bins: name -> (least, most) visible area of true objects, pixels, both inclusive

    Raises:
        ValueError: the two lists have different lengths, or predictions lack scores.
    """
    if len(truth) != len(predictions):
        raise ValueError(f"{len(truth)} true frames but {len(predictions)} predicted ones")
    if any(frame.scores is None for frame in predictions):
        raise ValueError("predictions need scores")
    names = sorted({name for frame in truth for name in frame.classes})
    if not names:
        return []
    evaluation = COCOeval(iouType="segm")
    evaluation.cocoGt = _coco(truth, names)
    evaluation.cocoDt = _coco(predictions, names)
    evaluation.params.imgIds = list(range(len(truth)))
    evaluation.params.catIds = list(range(len(names)))
    evaluation.params.areaRng = [list(limits) for limits in bins.values()]
    evaluation.params.areaRngLbl = list(bins)
    evaluation.params.maxDets = [max([1, *(len(frame.masks) for frame in predictions)])]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]  # thresholds, recalls, classes, bins

    results = []
    for k, name in enumerate(names):
        for a, (size, (least, most)) in enumerate(bins.items()):
            count = sum(
                int(least <= mask.sum() <= most)
                for frame in truth
                for mask, found in zip(frame.masks, frame.classes, strict=True)
                if found == name
            )
            for protocol, values in (("AP50", precision[0, :, k, a]), ("AP50:95", precision[:, :, k, a])):
                value = float(values.mean()) if count else math.nan
                results.append(MaskAP(name=name, size=size, value=value, protocol=protocol, count=count))
    return results


def ap_table(results: Sequence[MaskAP]) -> str:
    """The results as a Markdown table: one row per class and size."""
    rows = ["| class | size | objects | AP50 | AP50:95 |", "|---|---|---|---|---|"]
    for name, size in dict.fromkeys((r.name, r.size) for r in results):
        here = {r.protocol: r for r in results if (r.name, r.size) == (name, size)}
        ap50, ap = here["AP50"], here["AP50:95"]
        rows.append(f"| {name} | {size} | {ap50.count} | {ap50.value:.3f} | {ap.value:.3f} |")
    return "\n".join(rows)


def _coco(frames: Sequence[FrameMasks], names: Sequence[str]) -> COCO:
    """The frames as pycocotools wants them; classes that the truth lacks are left out."""
    annotations: list[dict] = []
    for image, frame in enumerate(frames):
        scores = np.ones(len(frame.masks)) if frame.scores is None else frame.scores
        for mask, name, score in zip(frame.masks, frame.classes, scores, strict=True):
            if name not in names:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": image,
                    "category_id": names.index(name),
                    "segmentation": rle.encode(np.asfortranarray(mask, dtype=np.uint8)),
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image, "height": frame.masks.shape[1], "width": frame.masks.shape[2]}
            for image, frame in enumerate(frames)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
