"""Degenerate input is ordinary input: none or hundreds of objects, tiny, huge, still, dark, odd pixels."""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.stream import VideoStream
from PIL import Image
from pycocotools import mask as rle

from pipeline.shards.reader import ShardSet
from tests.faults.inputs import (
    FRAMES,
    HEIGHT,
    HERE,
    WIDTH,
    build_here,
    car_masks,
    here,
    one_line,
    stored,
    write_labels,
)
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, number_of, numbered_frames
from training.data import DataConfig, ShardSource, WindowDataset

pytestmark = pytest.mark.fault(Fault.ODD_INPUT)


def images(folder: Path, *frames: np.ndarray, mode: str | None = None, suffix: str = "png") -> Path:
    """An image folder."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        image = Image.fromarray(frame)
        (image.convert(mode) if mode else image).save(folder / f"{number}.{suffix}")
    return folder


def windows(out: Path, frames: int = 2, layer: str = "default", **settings: object) -> WindowDataset:
    """What training finds in a set, still frames included."""
    source = ShardSource(out, layer)
    return WindowDataset(DataConfig(shards=(source,), frames=frames, skip_static=False, **settings))  # type: ignore[arg-type]


def reads_well(out: Path) -> None:
    """Every other command takes the set as it is."""
    assert here("verify", out, "--quiet", "--json").json == []
    done = here(
        "inspect", out, "--sheet", out.with_suffix(".png"), "--video", out.with_suffix(".mp4"), "--json"
    )
    assert done.code == 0, done.errors
    done = here("remask", out, "--name", "small", "--min-area", "1", *HERE, "--json")
    assert done.code == 0, done.errors
    assert here("verify", out, "--quiet", "--json").json == []
    assert len(windows(out)) > 0


def test_no_objects_at_all(tmp_path: Path) -> None:
    encode_two(tmp_path / "source")
    for clip in ("a", "b"):
        for number in range(8):
            write_labels(tmp_path / "masks" / clip / f"{number:06d}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    out = tmp_path / "set"
    done = build_here(tmp_path / "source", out, f"masks:{tmp_path / 'masks'}")
    assert (done.code, done.json["detections"]) == (0, 0)
    reads_well(out)
    summary = here("inspect", out, "--json").json
    layer = summary["masks"]["default"]
    assert (summary["raw_detections"], layer["instances"], layer["tracks"]) == (0, 0, 0)
    assert (layer["empty_frames"], layer["match_rate"], layer["track_frames"]) == (16, 0, [0, 0, 0, 0])
    assert "0 instances (none a frame)" in here("inspect", out).out
    window = windows(out, frames=3).read(0, 0)
    assert all(not labels.any() for labels in window.labels)
    assert all(len(match) == 0 for match in window.matches)


def encode_two(folder: Path) -> None:
    folder.mkdir()
    for name in ("a", "b"):
        encode(folder / f"{name}.mp4", FRAMES)


def test_clips_of_one_frame_are_listed_and_clips_of_two_are_clips(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    encode(source / "one.mp4", FRAMES[:1])
    encode(source / "two.mp4", FRAMES[:2])
    detector = car_masks(tmp_path / "masks", ["two"], 2)
    done = build_here(source, tmp_path / "videos", detector)
    assert done.code == 1
    assert [entry["clip"] for entry in done.json["quarantine"]] == ["one"]
    assert (done.json["clips"], done.json["frames"]) == (1, 2)
    reads_well(tmp_path / "videos")
    with ShardSet(tmp_path / "videos") as shards:
        clip = shards.clip("two")
        assert [len(shards.pairs("default", clip, frame)) for frame in (0, 1)] == [0, 1]

    images(tmp_path / "folders" / "one", FRAMES[0])
    images(tmp_path / "folders" / "two", *FRAMES[:2])
    car_masks(tmp_path / "masks", ["folders"], 1)
    done = build_here(tmp_path / "folders", tmp_path / "images", detector)
    assert "no masks match any frame" in one_line(done)
    write_labels(tmp_path / "masks" / "two" / "0.png", np.ones((HEIGHT, WIDTH), np.uint8))
    done = build_here(tmp_path / "folders", tmp_path / "images", detector)
    (entry,) = done.json["quarantine"]
    assert entry["clip"] == "one"
    assert "a clip needs at least 2" in entry["reason"]

    (source / "two.mp4").unlink()
    assert "a clip needs at least 2" in one_line(build_here(source, tmp_path / "none", detector))


def test_one_frame_behind_the_last_piece_and_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    encode(source / "a.mp4", FRAMES[:7])
    detector = car_masks(tmp_path / "masks", ["a"], 7)
    assert build_here(source, tmp_path / "whole", detector).code == 0
    done = build_here(source, tmp_path / "cut", detector, "--frames-per-piece", "2", "--frames-per-file", "3")
    assert done.code == 0, done.errors
    for out in (tmp_path / "whole", tmp_path / "cut"):
        assert [number_of(frame) for frame in stored(out, "a")] == list(range(7))
    with ShardSet(tmp_path / "cut") as shards, ShardSet(tmp_path / "whole") as whole:
        assert [count for _, _, count in shards.clip("a").files] == [3, 3, 1]
        tracks = [
            each.instances("default", each.clip("a"), frame).track.tolist()
            for each in (shards, whole)
            for frame in range(7)
        ]
    assert tracks == [[1]] * 14
    reads_well(tmp_path / "cut")


def test_images_of_every_kind_of_pixel(tmp_path: Path) -> None:
    source, frame = tmp_path / "source", FRAMES[3]
    grey = frame[..., 0]
    deep = grey.astype(np.uint16) * 257
    opaque = np.dstack([frame, grey])
    images(source / "grey", grey, grey)
    images(source / "grey-16", deep, deep)
    images(source / "rgba", opaque, opaque)
    images(source / "palette", frame, frame, mode="P")
    images(source / "bmp", frame, frame, suffix="bmp")
    images(source / "cmyk", frame, frame, mode="CMYK", suffix="jpg")
    turned = source / "turned"
    turned.mkdir()
    for number in range(2):  # EXIF says: show it turned. Calibrations speak of pixels as stored
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(frame).save(turned / f"{number}.png", exif=exif)
        assert Image.open(turned / f"{number}.png").getexif()[0x0112] == 6
    images(source / "mixed", frame, frame[:40])
    detector = car_masks(tmp_path / "masks", ["rgba"], 1)
    write_labels(tmp_path / "masks" / "rgba" / "0.png", np.ones((HEIGHT, WIDTH), np.uint8))
    done = build_here(source, tmp_path / "set", detector)
    reasons = {entry["clip"]: entry["reason"] for entry in done.json["quarantine"]}
    assert done.code == 1
    assert set(reasons) <= {"mixed", "cmyk"}
    assert "1.png: is 64x40 where the frames before are 64x48" in reasons["mixed"]
    for name in ("rgba", "bmp", "turned"):
        np.testing.assert_array_equal(stored(tmp_path / "set", name)[1], frame)
    for name in ("grey", "grey-16"):
        np.testing.assert_array_equal(
            stored(tmp_path / "set", name)[1], np.repeat(grey[..., None], 3, axis=2)
        )
    reads_well(tmp_path / "set")
    if "cmyk" not in reasons:
        shown = np.asarray(Image.open(source / "cmyk" / "0.jpg").convert("RGB")).astype(int)
        assert np.abs(stored(tmp_path / "set", "cmyk")[0] - shown).mean() < 10
    else:
        assert "CMYK" in reasons["cmyk"]


@pytest.mark.parametrize(
    ("width", "height"),
    [(33, 47), (64, 1), (1, 48), (1, 1), (2, 2), (16384, 40), (40, 16384), (16384, 256), (48, 64)],
)
def test_frames_of_odd_sizes_are_right_or_refused(tmp_path: Path, width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, min(width, 64), 3), np.uint8)
    frame = np.resize(frame, (height, width, 3))
    source = images(tmp_path / "source" / "odd", frame, np.roll(frame, 1, axis=1)).parent
    write_labels(tmp_path / "masks" / "odd" / "0.png", np.ones((height, width), np.uint8))
    size = (WIDTH, HEIGHT) if width < 10000 else (2048, 32)
    done = build_here(source, tmp_path / "set", f"masks:{tmp_path / 'masks'}", "--size", *size)
    if done.code:  # a view of a fraction of a degree, in one direction, is no camera's
        assert "implausible intrinsics" in done.errors
        assert "Traceback" not in done.errors
        assert max(width, height) > 40 * min(width, height) or width == height == 1
        return
    reads_well(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shards:
        clip = shards.clip("odd")
        labels = shards.labels("default", clip, 0)
        K = clip.intrinsics
    assert (labels == 1).mean() > (0.99 if width > 2 else 0.8)  # the mask of every pixel stays one
    scale = max(size[0] / width, size[1] / height)
    assert K[0, 0] == pytest.approx(scale * width / 2 / np.tan(np.deg2rad(30)), rel=0.03)
    assert abs(K[0, 2] - (size[0] - 1) / 2) <= 0.6


def test_portrait_and_turned_and_anamorphic_video(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()

    def sideways(stream: VideoStream) -> None:
        stream.set_display_rotation(90)

    def wide_pixels(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    tall = [np.ascontiguousarray(np.rot90(frame)) for frame in FRAMES]
    encode(source / "portrait.mp4", tall, codec_options={"crf": "5"})
    encode(source / "phone.mp4", FRAMES, set_up=sideways, codec_options={"crf": "5"})
    encode(source / "wide.mp4", FRAMES, set_up=wide_pixels)
    encode(source / "large.mp4", numbered_frames(8, 128, 96))
    done = build_here(source, tmp_path / "set", car_masks(tmp_path / "masks", ["wide"]))
    assert done.code == 0, done.errors
    reads_well(tmp_path / "set")
    portrait, phone = stored(tmp_path / "set", "portrait"), stored(tmp_path / "set", "phone")
    for a, b in zip(portrait, phone, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 12  # the same picture, by two ways through the encoder
    assert np.abs(portrait[0].astype(int) - portrait[7]).mean() > 12
    assert [number_of(frame) for frame in stored(tmp_path / "set", "large")] == list(range(8))
    with ShardSet(tmp_path / "set") as shards:
        K = {clip.name: clip.intrinsics for clip in shards.manifest.clips}
    np.testing.assert_allclose(K["portrait"], K["phone"])
    assert K["wide"][1, 1] / K["wide"][0, 0] == pytest.approx(4 / 3)
    np.testing.assert_allclose(K["large"][:2, :2], K["wide"][:2, :2] * [[1, 1], [1, 0.75]], rtol=1e-9)


def test_still_and_black_frames(tmp_path: Path) -> None:
    source, black = tmp_path / "source", np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    images(source / "still", *[FRAMES[0]] * 4)
    images(source / "black", *[black] * 4)
    images(source / "white", *[black + np.uint8(255)] * 4)
    images(source / "moving", *FRAMES[:4])
    for name in ("still", "black"):
        for number in range(4):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[10:30, 10:30] = 1
            write_labels(tmp_path / "masks" / name / f"{number}.png", labels)
    out = tmp_path / "set"
    assert build_here(source, out, f"masks:{tmp_path / 'masks'}").code == 0
    reads_well(out)
    with ShardSet(out) as shards:
        for clip in shards.manifest.clips:
            static = [shards.is_static(clip, frame) for frame in range(4)]
            assert static == [False, *[clip.name != "moving"] * 3], clip.name
        for name in ("still", "black"):
            clip = shards.clip(name)
            assert [shards.instances("default", clip, n).track.tolist() for n in range(4)] == [[1]] * 4
            assert [shards.pairs("default", clip, n).iou.tolist() for n in (1, 2, 3)] == [[[1, 1]]] * 3
    moving = WindowDataset(DataConfig(shards=(ShardSource(out),), frames=2))
    assert len(moving) < len(windows(out)) == 12


def grid_of_objects(columns: int, rows: int, pitch: int = 8) -> np.ndarray:
    """(rows * pitch, columns * pitch) uint16, objects of (pitch - 1)^2 pixels, numbered from 1."""
    labels = np.zeros((rows * pitch, columns * pitch), np.uint16)
    for number in range(columns * rows):
        v, u = divmod(number, columns)
        labels[v * pitch : (v + 1) * pitch - 1, u * pitch : (u + 1) * pitch - 1] = number + 1
    return labels


@pytest.mark.parametrize("form", ["labels", "coco"])
def test_more_than_255_instances_in_a_frame(tmp_path: Path, form: str) -> None:
    labels = grid_of_objects(24, 13)
    height, width = labels.shape
    count = int(labels.max())
    assert count == 312
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    source = images(tmp_path / "source" / "many", *[frame] * 3).parent
    masks = tmp_path / "masks"
    if form == "labels":
        for number in range(3):
            write_labels(masks / "many" / f"{number}.png", labels)
    else:
        masks = tmp_path / "masks.json"
        masks.write_text(json.dumps(coco(labels, [f"many/{number}.png" for number in range(3)])))
    out = tmp_path / "set"
    options = ("--size", width, height, "--min-area", "40")
    done = build_here(source, out, f"masks:{masks}", *options)
    assert (done.code, done.json["detections"]) == (0, 3 * count)
    with ShardSet(out) as shards:
        clip = shards.clip("many")
        for number in range(3):
            found, instances = (
                shards.labels("default", clip, number),
                shards.instances("default", clip, number),
            )
            assert found.dtype == np.uint16
            np.testing.assert_array_equal(found, labels)
            assert len(instances) == count
            assert sorted(instances.track.tolist()) == list(range(1, count + 1))
            assert (instances.area == 49).all()
            assert len(shards.pairs("default", clip, number)) == (count if number else 0)
    reads_well(out)
    window = windows(out, frames=3).read(0, 0)
    assert window.labels[0].max() == count
    assert all(len(match) == count for match in window.matches)
    (sample,) = [windows(out).read(0, 0)]
    assert len(sample.matches[0]) == count
    done = here("remask", out, "--name", "few", "--min-area", "40", "--max-instances", "20", *HERE, "--json")
    assert done.json["instances"] == [3 * count, 60]
    with ShardSet(out) as shards:
        assert shards.labels("few", shards.clip("many"), 0).dtype == np.uint8


def coco(labels: np.ndarray, names: list[str]) -> dict:
    height, width = labels.shape
    runs = {}
    for label in range(1, int(labels.max()) + 1):
        encoded = rle.encode(np.asfortranarray(labels == label).astype(np.uint8))
        runs[label] = {"size": [height, width], "counts": encoded["counts"].decode()}
    return {
        "categories": [{"id": 1, "name": "car"}],
        "images": [
            {"id": n, "file_name": name, "width": width, "height": height} for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n * 1000 + label, "image_id": n, "category_id": 1, "segmentation": run}
            for n in range(len(names))
            for label, run in runs.items()
        ],
    }


def test_masks_of_everything_of_nothing_and_along_the_borders(tmp_path: Path) -> None:
    source = images(tmp_path / "source" / "a", *FRAMES[:3]).parent
    whole = np.ones((HEIGHT, WIDTH), bool)
    ring = whole.copy()
    ring[5:-5, 5:-5] = False
    corner = np.zeros_like(whole)
    corner[-9:, -9:] = True
    content = coco(np.zeros((HEIGHT, WIDTH), np.uint8), [f"a/{number}.png" for number in range(3)])
    for image, mask, score in (
        (0, whole, 0.9),
        (0, ~whole, 0.99),
        (1, ring, 1.0),
        (1, corner, 0.6),
        (2, ~whole, 1),
    ):
        run = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        content["annotations"].append(
            {
                "id": len(content["annotations"]),
                "image_id": image,
                "category_id": 1,
                "score": score,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": run["counts"].decode()},
            }
        )
    (tmp_path / "masks.json").write_text(json.dumps(content))
    out = tmp_path / "set"
    done = build_here(
        source, out, f"masks:{tmp_path / 'masks.json'}", "--max-hidden", "1", "--min-area", "10"
    )
    assert (done.code, done.json["detections"]) == (0, 3)  # masks of no pixel are no detections
    reads_well(out)
    edges = [-0.5, -0.5, WIDTH - 0.5, HEIGHT - 0.5]
    with ShardSet(out) as shards:
        clip = shards.clip("a")
        np.testing.assert_array_equal(shards.labels("default", clip, 0), whole)
        assert shards.instances("default", clip, 0).box.tolist() == [edges]
        np.testing.assert_array_equal(shards.labels("default", clip, 1) == 1, ring)
        np.testing.assert_array_equal(shards.labels("default", clip, 1) == 2, corner & ~ring)
        assert shards.instances("default", clip, 1).box.tolist()[0] == edges
        assert len(shards.instances("default", clip, 2)) == 0


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ("0\n1\n1\n", "do not strictly increase"),
        ("0\n2\n1\n", "do not strictly increase"),
        ("0\nnan\n1\n", "do not strictly increase"),
        ("0\n1\ninf\n", "do not strictly increase"),
        ("0\n1\n", "2 times for 3 frames"),
        ("0\n1\nsoon\n", "is no time"),
        ("", "0 times for 3 frames"),
        ("\0\0\0", "times for 3 frames"),
    ],
)
def test_times_that_are_none_set_the_clip_aside(tmp_path: Path, times: str, words: str) -> None:
    source = tmp_path / "source"
    images(source / "bad", *FRAMES[:3])
    images(source / "good", *FRAMES[:3])
    (source / "bad" / "timestamps.txt").write_text(times)
    detector = f"masks:{tmp_path / 'masks'}"
    write_labels(tmp_path / "masks" / "good" / "0.png", np.ones((HEIGHT, WIDTH), np.uint8))
    done = build_here(source, tmp_path / "set", detector)
    (entry,) = done.json["quarantine"]
    assert (done.code, entry["clip"], done.json["clips"]) == (1, "bad", 1)
    assert words in entry["reason"]


def test_an_image_that_claims_huge_pixels_or_is_a_pipe_is_set_aside(tmp_path: Path) -> None:
    source = tmp_path / "source"
    images(source / "good", *FRAMES[:2])
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    bomb = b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    for name in ("bomb", "pipe", "nowhere", "cut", "cut-later"):
        images(source / name, *FRAMES[:3])
        (source / name / "2.png").unlink()
    for number in range(3):
        (source / "bomb" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    os.mkfifo(source / "pipe" / "2.png")
    release = threading.Timer(30, lambda: os.close(os.open(source / "pipe" / "2.png", os.O_RDWR)))
    release.start()  # whoever waits for the pipe fails the test instead of holding it up
    (source / "nowhere" / "2.png").symlink_to("gone.png")
    whole = (source / "good" / "1.png").read_bytes()
    (source / "cut" / "2.png").write_bytes(whole[:20])
    (source / "cut-later" / "2.png").write_bytes(whole[:-30])  # its header is whole
    write_labels(tmp_path / "masks" / "good" / "0.png", np.ones((HEIGHT, WIDTH), np.uint8))
    done = build_here(source, tmp_path / "set", f"masks:{tmp_path / 'masks'}")
    assert release.is_alive()
    release.cancel()
    reasons = {entry["clip"]: entry["reason"] for entry in done.json["quarantine"]}
    assert done.code == 1
    assert set(reasons) == {"bomb", "pipe", "nowhere", "cut", "cut-later"}
    assert "claims 30000x30000 pixels" in reasons["bomb"]
    for name, words in (
        ("pipe", "it is no file"),
        ("nowhere", "No such file"),
        ("cut", "cut"),
        ("cut-later", "cut"),
    ):
        assert f"{name}/2.png: " in reasons[name]
        assert words in reasons[name]
    assert done.json["clips"] == 1
