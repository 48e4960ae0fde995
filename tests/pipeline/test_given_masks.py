"""Masks that the user has come through pixel by pixel, for the right frames and classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from pipeline.classes import CLASSES
from pipeline.detections import Detections, SourceFrame
from pipeline.errors import DetectorError
from pipeline.given_masks import _decode, fingerprint, read_given_masks
from pipeline.masks import paste

W, H = 40, 30


def frame(clip: str = "drive/cam", name: str = "000001", rectify=None) -> SourceFrame:
    return SourceFrame(image=np.zeros((H, W, 3), np.uint8), clip=clip, name=name, rectify=rectify)


def pasted(found: Detections) -> list[tuple[str, np.ndarray]]:
    """Class name and (H, W) mask of every detection."""
    result = []
    for grid, box, index in zip(found.masks, found.boxes, found.classes, strict=True):
        mask = np.zeros((H, W), bool)
        patch = paste(grid, box, (W, H))
        mask[patch.slices] = patch.mask
        result.append((CLASSES[index], mask))
    return result


@pytest.fixture
def shapes() -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap, one of them with a hole and reaching the image's corner."""
    first, second = np.zeros((H, W), bool), np.zeros((H, W), bool)
    first[3:12, 5:20] = True
    first[6:8, 8:11] = False
    second[8:, 15:] = True
    return first, second


def write_labels(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write_coco(path: Path, annotations: list[dict], **changes) -> Path:
    images = [{"id": 7, "file_name": "drive/cam/000001.jpg", "height": H, "width": W}]
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "pedestrian"}, {"id": 3, "name": "tree"}]
    annotations = [{"id": k, "image_id": 7, "category_id": 1, **a} for k, a in enumerate(annotations)]
    content = {"images": images, "categories": categories, "annotations": annotations, **changes}
    path.write_text(json.dumps(content))
    return path


def compressed(mask: np.ndarray) -> dict:
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": [H, W], "counts": [0, *counts] if flat[0] else counts}


# ---------------------------------------------------------------------------- label images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_images_with_a_class_table(tmp_path, shapes, dtype):
    labels = np.zeros((H, W), dtype)
    labels[shapes[0]], labels[shapes[1]] = 9, 4
    write_labels(tmp_path / "drive/cam/000001.png", labels)
    (tmp_path / "drive/cam/classes.json").write_text('{"9": "car", "4": "Pedestrian"}')

    (found,) = read_given_masks(tmp_path).detect([frame()])

    (name_a, mask_a), (name_b, mask_b) = pasted(found)
    assert (name_a, name_b) == ("person", "car")  # ordered by id
    np.testing.assert_array_equal(mask_a, labels == 4)
    np.testing.assert_array_equal(mask_b, labels == 9)
    assert (found.scores == 1).all()
    assert found.boxes[0].tolist() == [14.5, 7.5, W - 0.5, H - 0.5]


def test_label_images_by_cityscapes_rule(tmp_path):
    labels = np.zeros((H, W), np.uint16)
    for k, value in enumerate((24001, 25000, 26999, 33002, 29001, 26, 7)):  # 29 is a caravan
        labels[2 * k, :] = value
    write_labels(tmp_path / "drive/cam/000001.png", labels)
    (found,) = read_given_masks(tmp_path).detect([frame()])
    assert [name for name, _ in pasted(found)] == ["person", "person", "car", "bicycle"]


def test_more_objects_than_eight_bits_hold_survive_rectification(tmp_path):
    labels = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    write_labels(tmp_path / "drive/cam/000001.png", labels)
    (tmp_path / "drive/cam/classes.json").write_text(json.dumps({str(i): "car" for i in range(1, H * W)}))

    (found,) = read_given_masks(tmp_path).detect([frame(rectify=lambda image: image[:, ::-1])])

    assert len(found) == H * W - 1
    x, y = found.boxes[[0, -1], :2].T + 0.5
    assert list(zip(x, y, strict=True)) == [(W - 2, 0), (0, H - 1)]  # mirrored


def test_an_object_that_rectification_moves_out_of_the_frame_is_no_detection(tmp_path, shapes):
    path = write_coco(tmp_path / "masks.json", [{"segmentation": compressed(shapes[0])}])
    (found,) = read_given_masks(path).detect([frame(rectify=np.zeros_like)])
    assert len(found) == 0


def test_label_images_that_cannot_be_used(tmp_path):
    with pytest.raises(DetectorError, match="do not exist"):
        read_given_masks(tmp_path / "none")
    with pytest.raises(DetectorError, match=r"holds no \.png"):
        read_given_masks(tmp_path)
    path = tmp_path / "drive/cam/000001.png"
    write_labels(path, np.full((H, W), 5, np.uint8))
    (path.parent / "classes.json").write_text('{"1": "car"}')
    with pytest.raises(DetectorError, match="lacks id 5"):
        read_given_masks(tmp_path).detect([frame()])
    (path.parent / "classes.json").write_text('["car"]')
    with pytest.raises(DetectorError, match="no table of classes"):
        read_given_masks(tmp_path).detect([frame()])
    write_labels(path, np.zeros((H, W, 3), np.uint8))
    with pytest.raises(DetectorError, match="RGB image; expected ids in one channel"):
        read_given_masks(tmp_path).detect([frame()])
    write_labels(path, np.zeros((H, W + 1), np.uint8))
    with pytest.raises(DetectorError, match="is 41x30, but frame drive/cam/000001 is 40x30"):
        read_given_masks(tmp_path).detect([frame()])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DetectorError, match="not a readable PNG"):
        read_given_masks(tmp_path).detect([frame()])


# ---------------------------------------------------------------------------- COCO


@pytest.mark.parametrize("encode", [compressed, uncompressed])
def test_coco_rle(tmp_path, shapes, encode):
    path = write_coco(
        tmp_path / "masks.json",
        [
            {"segmentation": encode(shapes[0]), "score": 0.25},
            {"segmentation": encode(shapes[1]), "score": 0.75, "category_id": 2},
            {"segmentation": encode(shapes[1]), "category_id": 3},  # trees stay where they are
            {"segmentation": encode(shapes[1]), "iscrowd": 1},
        ],
    )
    (found,) = read_given_masks(path).detect([frame()])

    (name_a, mask_a), (name_b, mask_b) = pasted(found)
    assert (name_a, name_b) == ("person", "car")
    np.testing.assert_array_equal(mask_a, shapes[1])  # overlapping masks stay whole
    np.testing.assert_array_equal(mask_b, shapes[0])
    assert found.scores.tolist() == [0.75, 0.25]


@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_compressed_runs_decode_as_pycocotools_encoded_them(seed, share):
    mask = np.random.default_rng(seed).random((H, W)) < share
    decoded = _decode(compressed(mask), {"height": H, "width": W}, "here")
    np.testing.assert_array_equal(decoded, mask)


def test_coco_polygons(tmp_path):
    square = [10.0, 5.0, 20.0, 5.0, 20.0, 15.0, 10.0, 15.0]
    path = write_coco(tmp_path / "masks.json", [{"segmentation": [square, [x + 15 for x in square]]}])
    (found,) = read_given_masks(path).detect([frame()])
    expected = np.zeros((H, W), bool)
    expected[5:15, 10:20] = True
    expected[20:30, 25:35] = True
    ((_, mask),) = pasted(found)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": {"size": [H, W], "counts": [3, 4]}}, "7 of 1200 pixels"),
        ({"segmentation": {"size": [W, H], "counts": [1200]}}, r"size \[40, 30\]"),
        ({"segmentation": None}, "no readable segmentation"),
        ({"segmentation": {"size": [H, W], "counts": "zzz"}}, "damaged RLE text"),
        ({"segmentation": {"size": [H, W], "counts": "00"}}, "0 of 1200 pixels"),
        ({"segmentation": {"size": [H, W], "counts": "`"}}, "cut off"),
        ({"segmentation": {"size": [H, W], "counts": [-5, 1205]}}, "no readable segmentation"),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "polygon"),
        ({"segmentation": []}, "no polygon"),
        ({"segmentation": {"size": [H, W], "counts": [1200]}, "score": 3}, "score 3, expected"),
    ],
)
def test_broken_annotations_are_named(tmp_path, annotation, message):
    path = write_coco(tmp_path / "masks.json", [annotation])
    with pytest.raises(DetectorError, match=r"annotation 0 of drive/cam/000001\.jpg.*" + message):
        read_given_masks(path).detect([frame()])


def test_files_that_are_no_coco(tmp_path):
    path = tmp_path / "masks.json"
    for text, message in [
        ("{", "not JSON"),
        ("[]", "needs images, annotations and categories"),
        ('{"images": [{}], "annotations": [], "categories": []}', "file_name"),
    ]:
        path.write_text(text)
        with pytest.raises(DetectorError, match=message):
            read_given_masks(path)
    write_coco(path, [], categories=[{"id": 1, "name": "tree"}])
    with pytest.raises(DetectorError, match="no category moves by itself, found tree"):
        read_given_masks(path)
    write_coco(path, [], images=[{"id": i, "file_name": f"a/b.{e}"} for i, e in enumerate(("png", "jpg"))])
    with pytest.raises(DetectorError, match="same file_name"):
        read_given_masks(path)


# ---------------------------------------------------------------------------- which frame


def test_frames_without_masks_have_no_objects(tmp_path, shapes):
    path = write_coco(tmp_path / "masks.json", [{"segmentation": compressed(shapes[0])}])
    counts = [len(d) for d in read_given_masks(path).detect([frame(), frame(name="000002"), frame(clip="x")])]
    assert counts == [1, 0, 0]


def test_a_bare_frame_name_will_do_for_one_clip(tmp_path):
    write_labels(tmp_path / "000001.png", np.full((H, W), 26001, np.uint16))
    masks = read_given_masks(tmp_path)
    masks.check({"drive/cam": ["000000", "000001"]})
    assert len(masks.detect([frame()])[0]) == 1
    with pytest.raises(DetectorError, match=r"'000001' do not say to which of 2 clips.*'drive/cam/000000'"):
        masks.check({"drive/cam": ["000000", "000001"], "other": ["000001"]})


def test_masks_that_match_no_frame_show_both_spellings(tmp_path):
    write_labels(tmp_path / "cam/1.png", np.zeros((H, W), np.uint8))
    with pytest.raises(DetectorError, match="first frame is 'drive/cam/000000', the first masks are 'cam/1'"):
        read_given_masks(tmp_path).check({"drive/cam": ["000000", "000001"]})


def test_the_fingerprint_follows_the_masks(tmp_path, shapes):
    path = write_coco(tmp_path / "masks.json", [{"segmentation": compressed(shapes[0])}])
    before = fingerprint(path)
    assert fingerprint(path) == before
    write_coco(path, [{"segmentation": compressed(shapes[1])}])
    assert fingerprint(path) != before

    write_labels(tmp_path / "labels/cam/1.png", np.zeros((H, W), np.uint8))
    before = fingerprint(tmp_path / "labels")
    (tmp_path / "labels/cam/classes.json").write_text("{}")
    assert fingerprint(tmp_path / "labels") != before


def test_streetworld_exports_its_truth_as_given_masks(tmp_path):
    from pipeline.streetworld.clip import ClipConfig, render_clip
    from pipeline.streetworld.truth import read_truth, write_label_images

    render_clip(tmp_path / "test_0004", 4, ClipConfig(frames=2, size=(208, 64)))
    truth = read_truth(tmp_path / "test_0004/truth.h5")
    write_label_images(tmp_path / "test_0004", tmp_path / "masks/test_0004")
    image = np.zeros((64, 208, 3), np.uint8)
    found = read_given_masks(tmp_path / "masks").detect(
        [SourceFrame(image=image, clip="test_0004", name=f"{k:06d}") for k in range(2)]
    )
    label_of = dict(zip(truth.objects.id.tolist(), truth.objects.label, strict=True))
    for detections, ids in zip(found, truth.ids, strict=True):
        visible = [i for i in np.unique(ids).tolist() if i]
        assert visible
        assert [CLASSES[c] for c in detections.classes] == [label_of[i] for i in visible]
        for grid, box, i in zip(detections.masks, detections.boxes, visible, strict=True):
            patch = paste(grid, box, (208, 64))
            assert patch.mask.sum() == (ids == i).sum()
            assert (ids[patch.slices][patch.mask] == i).all()
