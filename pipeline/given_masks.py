"""Masks that the user already has, as a detector: COCO JSON or folders of label images.

Which masks belong to which frame: a mask file is named after `<clip>/<frame>` (names as
`pipeline.sources.clip.Clip` has them; `instance-motion inspect` lists them). Where the
source has one clip only, `<frame>` alone will do. A frame without masks has no objects.

COCO JSON (PATH is a file): `images` with `file_name` `<clip>/<frame>.<any ending>`;
`annotations` with `segmentation` as compressed or uncompressed RLE or as polygons, and
`score` (1 where absent); `categories` by name, under COCO's and Cityscapes' names too.
Crowds (`iscrowd` 1) are left out: they are not one object.

Label images (PATH is a folder): `PATH/<clip>/<frame>.png`, 8 or 16 bits, one channel or a
palette; a pixel's value is its object's id, 0 is background. `classes.json` beside the
images maps ids to class names: {"1": "car", "2": "person"}; every id must be in it.
Without it ids follow Cityscapes' rule `label * 1000 + number` (24 person, 25 rider,
26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle), and lower values are
background. The same object may have the same id in every frame, or not: ids are not used
for matching.

Classes that do not move by themselves are dropped. Masks belong to the frame as it was
recorded; lens distortion is removed from them as from the frame.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from pipeline.classes import CLASSES, class_named
from pipeline.detections import Detections, SourceFrame
from pipeline.errors import DetectorError

CITYSCAPES_LABELS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


@dataclass(frozen=True)
class GivenObject:
    """One object of one frame. mask: (H, W) bool; class_index into `CLASSES`."""

    mask: np.ndarray
    class_index: int
    score: float


class MaskSource(Protocol):
    """Where given masks come from."""

    where: str

    def has(self, key: str) -> bool:
        """Whether there are masks under `<clip>/<frame>`, or `<frame>`."""
        ...

    def keys(self) -> Iterator[str]:
        """All of them, for messages."""
        ...

    def objects(self, key: str, frame: SourceFrame) -> list[GivenObject]:
        """The objects under a key, rectified to the frame, highest score first."""
        ...


class GivenMasks:
    """A `pipeline.detections.Detector` over masks that exist already.

    A mask's grid has one cell per pixel, its box is the tightest of whole pixels, so that
    it pastes exactly. All objects are kept, however many.
    """

    def __init__(self, source: MaskSource) -> None:
        self._source = source

    def detect(self, frames: Sequence[SourceFrame]) -> list[Detections]:
        return [self._detect(frame) for frame in frames]

    def check(self, frame_names: Mapping[str, Sequence[str]]) -> None:
        """Refuse masks that match no frame of a source, or match several clips at once.

        Args:
            frame_names: names of the frames of every clip, by the clip's name
        """
        frames = [(clip, name) for clip, names in frame_names.items() for name in names]
        if any(self._source.has(f"{clip}/{name}") for clip, name in frames):
            return
        ours = f"{frames[0][0]}/{frames[0][1]}" if frames else "(no frames)"
        theirs = next(self._source.keys(), "(none)")
        if not any(self._source.has(name) for _, name in frames):
            raise DetectorError(
                f"{self._source.where}: no masks match any frame; the first frame is {ours!r}, "
                f"the first masks are {theirs!r}; name masks <clip>/<frame>"
            )
        if len(frame_names) > 1:
            raise DetectorError(
                f"{self._source.where}: masks such as {theirs!r} do not say to which of {len(frame_names)} "
                f"clips they belong; name masks <clip>/<frame>, for example {ours!r}"
            )

    def _detect(self, frame: SourceFrame) -> Detections:
        for key in (f"{frame.clip}/{frame.name}", frame.name):
            if self._source.has(key):
                return _to_detections(self._source.objects(key, frame))
        return Detections.empty()


def read_given_masks(path: Path) -> GivenMasks:
    """Open a COCO JSON file or a folder of label images.

    Raises:
        DetectorError: neither of the two, or damaged.
    """
    if path.is_dir():
        return GivenMasks(LabelImages(path))
    if path.is_file():
        return GivenMasks(CocoMasks(path))
    raise DetectorError(f"masks {path} do not exist; give a COCO JSON file or a folder of label images")


def fingerprint(path: Path) -> str:
    """Changes when the masks change: of a JSON file its bytes, of a folder its files' names
    and sizes and the class tables."""
    if not path.exists():
        read_given_masks(path)  # says what is missing
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes())
        return digest.hexdigest()
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() == ".png":
            digest.update(os.fsencode(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n"))
        elif file.name == "classes.json":
            digest.update(file.read_bytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------- COCO JSON


class CocoMasks:
    """Annotations of a COCO JSON file."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        content = _read_json(path)
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
            raise DetectorError(f"{path} is no COCO file; it needs images, annotations and categories")
        try:
            self._classes = {c["id"]: class_named(c["name"]) for c in content["categories"]}
            self._images = {_without_ending(image["file_name"]): image for image in content["images"]}
            self._annotations: dict[object, list[dict]] = {image["id"]: [] for image in content["images"]}
            for annotation in content["annotations"]:
                self._annotations[annotation["image_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            raise DetectorError(f"{path} is no COCO file: an entry lacks or misnames {error}") from error
        if len(self._images) != len(content["images"]):
            raise DetectorError(f"{path}: two images have the same file_name; name each <clip>/<frame>")
        if all(index is None for index in self._classes.values()):
            names = ", ".join(str(c["name"]) for c in content["categories"])
            raise DetectorError(
                f"{path}: no category moves by itself, found {names}; known are {', '.join(CLASSES)}"
            )

    def has(self, key: str) -> bool:
        return key in self._images

    def keys(self) -> Iterator[str]:
        return iter(self._images)

    def objects(self, key: str, frame: SourceFrame) -> list[GivenObject]:
        image = self._images[key]
        found = []
        for annotation in self._annotations[image["id"]]:
            class_index = self._classes.get(annotation.get("category_id"))
            if class_index is None or annotation.get("iscrowd"):
                continue
            where = f"{self.where}: annotation {annotation.get('id')} of {image['file_name']}"
            score = annotation.get("score", 1.0)
            if not isinstance(score, (int, float)) or not 0 <= score <= 1:
                raise DetectorError(f"{where} has score {score!r}, expected a number from 0 to 1")
            mask = _decode(annotation.get("segmentation"), image, where)
            _check_size(mask, frame, where)
            if frame.rectify is not None:
                mask = frame.rectify(mask.astype(np.uint8)) > 0
            found.append(GivenObject(mask, class_index, float(score)))
        return sorted(found, key=lambda given: -given.score)


def _decode(segmentation: object, image: dict, where: str) -> np.ndarray:
    """(H, W) bool from polygons, compressed or uncompressed RLE."""
    try:
        height, width = int(image["height"]), int(image["width"])
        if isinstance(segmentation, list):
            segmentation = _rle_of_polygons(segmentation, height, width)
        if not isinstance(segmentation, dict):
            raise ValueError(f"found {type(segmentation).__name__}")
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"RLE of size {segmentation['size']} in an image of {[height, width]}")
        counts = segmentation["counts"]
        runs = np.array(counts if isinstance(counts, list) else _runs(counts), np.int64)
        if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError(f"RLE of {runs.sum()} of {height * width} pixels")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DetectorError(
            f"{where} has no readable segmentation ({error}); write RLE or polygons"
        ) from error
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _rle_of_polygons(polygons: list, height: int, width: int) -> dict:
    for polygon in polygons:
        points = np.array(polygon, np.float64)
        # pycocotools walks along every edge pixel by pixel: far points would take all memory.
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not (abs(points) < 1e5).all():
            raise ValueError(f"polygon {str(polygon)[:60]}")
    if not polygons:
        raise ValueError("no polygon")
    return rle.merge(rle.frPyObjects(polygons, height, width))


def _runs(text: str | bytes) -> list[int]:
    """Run lengths from COCO's compressed text: five bits a character, least first, and from
    the fourth run on the difference to the last but one. Ours, because pycocotools takes
    damaged text for a mask."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        code -= 48
        if not 0 <= code < 64 or shift > 40:
            raise ValueError("damaged RLE text")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("RLE text is cut off")
    return runs


def _without_ending(file_name: str) -> str:
    return PurePosixPath(file_name.replace("\\", "/")).with_suffix("").as_posix()


# ----------------------------------------------------------------------------- label images


class LabelImages:
    """A folder of label images."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        self._tables: dict[Path, Callable[[int], str | None]] = {}
        if next(self.keys(), None) is None:
            raise DetectorError(f"{folder} holds no .png file; expected {folder}/<clip>/<frame>.png")

    def has(self, key: str) -> bool:
        return os.path.isfile(self._path(key))  # Path's own refuses to say where the name is too long

    def keys(self) -> Iterator[str]:
        for path in sorted(self._folder.rglob("*.png")):
            yield path.relative_to(self._folder).with_suffix("").as_posix()

    def objects(self, key: str, frame: SourceFrame) -> list[GivenObject]:
        path = self._path(key)
        labels = _read_labels(path)
        _check_size(labels, frame, str(path))
        class_of = self._table(path.parent)
        values, dense = np.unique(labels, return_inverse=True)
        dense = dense.reshape(labels.shape)
        indices = np.zeros(len(values), np.int64) - 1
        for i, value in enumerate(values.tolist()):
            name = class_of(value) if value else None
            index = None if name is None else class_named(name)
            indices[i] = -1 if index is None else index
        found: list[GivenObject] = []
        kept = np.flatnonzero(indices >= 0)
        for some in np.array_split(kept, max(1, -(-len(kept) // 255))):  # rectify takes 8 bits
            number = np.zeros(len(values), np.uint8)
            number[some] = np.arange(1, len(some) + 1)
            numbers = number[dense]
            if frame.rectify is not None:
                numbers = frame.rectify(numbers)
            found += [
                GivenObject(numbers == n, int(indices[i]), 1.0) for n, i in enumerate(some.tolist(), start=1)
            ]
        return found

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.png"

    def _table(self, folder: Path) -> Callable[[int], str | None]:
        """The class names of the ids in one folder."""
        if folder not in self._tables:
            path = folder / "classes.json"
            self._tables[folder] = _listed(path) if path.is_file() else _cityscapes
        return self._tables[folder]


def _listed(path: Path) -> Callable[[int], str]:
    table = _read_json(path)
    if not isinstance(table, dict) or not all(k.isdecimal() and isinstance(v, str) for k, v in table.items()):
        raise DetectorError(f'{path} is no table of classes; expected {{"1": "car", "2": "person"}}')

    def class_of(value: int) -> str:
        name = table.get(str(value))
        if name is None:
            raise DetectorError(
                f"{path} lacks id {value}, which the label images have; list it with its class"
            )
        return name

    return class_of


def _cityscapes(value: int) -> str | None:
    return CITYSCAPES_LABELS.get(value // 1000)


def _read_labels(path: Path) -> np.ndarray:
    """(H, W) integers."""
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DetectorError(f"{path} is not a readable PNG ({error}); write it again") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise DetectorError(f"{path} is a {mode} image; expected ids in one channel of 8 or 16 bits")
    return labels


# ----------------------------------------------------------------------------- both


def _to_detections(objects: Sequence[GivenObject]) -> Detections:
    boxes, kept, masks = [], [], []
    for given in objects:
        extent = ndimage.find_objects(given.mask.view(np.uint8))
        if not extent or extent[0] is None:  # rectified out of the frame
            continue
        rows, columns = extent[0]
        boxes.append([columns.start - 0.5, rows.start - 0.5, columns.stop - 0.5, rows.stop - 0.5])
        masks.append(given.mask[rows, columns].astype(np.uint8) * np.uint8(255))
        kept.append(given)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array([given.score for given in kept], np.float32),
        classes=np.array([given.class_index for given in kept], np.uint8),
        masks=tuple(masks),
    )


def _check_size(mask: np.ndarray, frame: SourceFrame, where: str) -> None:
    if mask.shape != frame.image.shape[:2]:
        raise DetectorError(
            f"{where} is {mask.shape[1]}x{mask.shape[0]}, but frame {frame.clip}/{frame.name} is "
            f"{frame.image.shape[1]}x{frame.image.shape[0]}; give masks of the source's own size"
        )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise DetectorError(f"{path} is not JSON ({error}); write it again") from error
