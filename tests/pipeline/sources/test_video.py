"""Video: every frame is the right one whatever range it is read in, and damage is an error."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.sources.orientation import Orientation
from pipeline.sources.video import VideoIndex, VideoReader, probe
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, number_of, numbered_frames

COUNT = 60
FRAMES = numbered_frames(COUNT)
GOP20_B3 = {"g": "20", "bf": "3", "sc_threshold": "0"}

KINDS: dict[str, dict[str, Any]] = {
    "one-keyframe.mp4": {"codec_options": {"g": "600", "bf": "3"}},
    "b-frames.mp4": {"codec_options": GOP20_B3},
    "faststart.mp4": {"codec_options": GOP20_B3, "container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {
        "codec_options": GOP20_B3,
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "b-frames.mkv": {"codec_options": GOP20_B3, "container": "matroska"},
    "open-gop.mkv": {
        "codec_options": {**GOP20_B3, "x264-params": "open-gop=1:b-pyramid=2"},
        "container": "matroska",
    },
    "open-gop.mp4": {"codec_options": {**GOP20_B3, "x264-params": "open-gop=1:b-pyramid=2"}},
    "intra-refresh.mp4": {"codec_options": {"g": "20", "x264-params": "intra-refresh=1"}},
    "broadcast.ts": {"codec_options": GOP20_B3, "container": "mpegts"},
    "open-gop.ts": {"codec_options": {**GOP20_B3, "x264-params": "open-gop=1"}, "container": "mpegts"},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"g": "20", "x265-params": "log-level=none:pools=1"}},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "codec_options": {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10"},
    },
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"g": "20", "q:v": "3"}},
    "b-frames.avi": {"codec_options": GOP20_B3},
    "raw.h264": {"codec_options": GOP20_B3},
    "raw.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "10-bit.mp4": {"codec_options": GOP20_B3, "pix_fmt": "yuv420p10le"},
    "grey.mp4": {"codec_options": GOP20_B3, "pix_fmt": "gray"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: encode(folder / name, FRAMES, **options) for name, options in KINDS.items()}


def reader(path: Path) -> VideoReader:
    index = probe(path)
    return VideoReader(path=path, index=index, picks=np.arange(len(index.pts)))


def read_all(path: Path) -> list[np.ndarray]:
    video = reader(path)
    return list(video.frames(0, len(video.picks)))


def damaged(path: Path, name: str, change) -> Path:
    copy = path.with_name(name)
    copy.write_bytes(change(path.read_bytes()))
    return copy


@pytest.mark.parametrize("name", KINDS)
def test_every_range_gives_the_bytes_of_the_whole(videos, name):
    video = reader(videos[name])
    whole = list(video.frames(0, COUNT))

    assert [number_of(frame) for frame in whole] == list(range(COUNT))
    assert all(frame.shape == (64, 96, 3) and frame.dtype == np.uint8 for frame in whole)
    np.testing.assert_allclose(video.index.timestamps_s, np.arange(COUNT) / 25, atol=1e-9)
    for start, stop in [(0, 1), (5, 9), (18, 23), (20, 21), (37, 43), (41, 60), (59, 60), (30, 30)]:
        frames = list(video.frames(start, stop))
        assert len(frames) == stop - start
        for number, frame in enumerate(frames, start):
            np.testing.assert_array_equal(frame, whole[number], err_msg=f"frame {number} of {start}..{stop}")


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "open-gop.mp4"])
def test_seeking_starts_at_the_keyframe_before_the_range(videos, name, monkeypatch):
    video = reader(videos[name])
    assert not video.index.sequential
    assert len(video.index.keyframes) == 3
    tried = []
    decode_from = VideoReader._decode_from

    def spy(self: VideoReader, keyframe: int | None, wanted: np.ndarray) -> Iterator[np.ndarray]:
        tried.append(keyframe)
        return decode_from(self, keyframe, wanted)

    monkeypatch.setattr(VideoReader, "_decode_from", spy)
    list(video.frames(45, 50))
    assert tried == [video.index.keyframes[2]]


def test_only_containers_without_times_are_read_from_the_beginning(videos):
    sequential = {name for name, path in videos.items() if probe(path).sequential}
    assert sequential == {"b-frames.avi", "raw.h264"}


def test_selected_frames_only(videos):
    index = probe(videos["b-frames.mp4"])
    video = VideoReader(path=videos["b-frames.mp4"], index=index, picks=np.array([3, 19, 21, 58]))
    assert [number_of(frame) for frame in video.frames(1, 4)] == [19, 21, 58]


@pytest.mark.fault(Fault.ODD_INPUT)
def test_variable_rate_keeps_its_times(tmp_path):
    pts = np.cumsum([0, *np.random.default_rng(1).integers(5, 90, COUNT - 1)])
    path = encode(tmp_path / "vfr.mkv", FRAMES, pts=[int(time) for time in pts], container="matroska")
    video = reader(path)
    np.testing.assert_allclose(video.index.timestamps_s, pts / 1000, atol=1e-9)
    assert [number_of(frame) for frame in video.frames(33, 36)] == [33, 34, 35]


@pytest.mark.parametrize("name", KINDS)
def test_a_part_gives_the_bytes_of_the_whole(videos, name):
    every = reader(videos[name])
    some = VideoReader(path=every.path, index=every.index, picks=np.arange(1, COUNT, 3))
    for video in (every, some):
        whole = list(video.frames(0, len(video.picks)))
        for start, stop in [(0, 2), (5, 9), (13, len(whole)), (len(whole) - 1, len(whole))]:
            part = video.part(start, stop)
            assert len(part.picks) == stop - start
            for number, frame in enumerate(part.frames(0, stop - start), start):
                np.testing.assert_array_equal(frame, whole[number])
            again = part.part(1, 2) if stop - start > 1 else part.part(0, 1)
            np.testing.assert_array_equal(next(again.frames(0, 1)), whole[start + (stop - start > 1)])


def test_a_part_of_a_long_video_is_small_and_names_frames_by_their_place_in_the_file(videos):
    count = 100_000
    index = replace(probe(videos["b-frames.mp4"]), pts=np.arange(count) * 2, keyframes=np.arange(count) * 2)
    video = VideoReader(path=videos["b-frames.mp4"], index=index, picks=np.arange(count))
    part = video.part(90_000, 90_033)
    assert len(pickle.dumps(video)) > 1_000_000
    assert len(pickle.dumps(part)) < 5_000
    with pytest.raises(SourceError, match="frame 090000 of 100000 "):
        list(part.frames(0, 33))


def test_a_reader_travels_to_workers(videos):
    video = pickle.loads(pickle.dumps(reader(videos["b-frames.mp4"])))  # noqa: S301 (our own bytes)
    assert number_of(next(video.frames(7, 8))) == 7


def test_a_range_outside_the_clip_is_our_bug_not_padding(videos):
    with pytest.raises(IndexError):
        list(reader(videos["b-frames.mp4"]).frames(50, COUNT + 1))


# --- geometry and colour -------------------------------------------------------------------------


@pytest.mark.fault(Fault.ODD_INPUT)
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("flip", [False, True])
def test_display_rotation_is_applied(tmp_path, degrees, flip):
    def set_up(stream: VideoStream) -> None:
        stream.set_display_rotation(degrees, hflip=flip)

    path = encode(tmp_path / "phone.mp4", FRAMES[:3], set_up=set_up, codec_options={"crf": "5"})
    image = read_all(path)[1].astype(float)
    expected = np.rot90(FRAMES[1], degrees // 90).astype(float)  # positive is counter-clockwise
    expected = expected[:, ::-1] if flip else expected

    assert probe(path).size == (image.shape[1], image.shape[0])
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 8


def test_orientation_of_an_upright_phone_swaps_the_size():
    assert Orientation(quarter_turns=1).size(1920, 1080) == (1080, 1920)
    assert Orientation(quarter_turns=2).size(1920, 1080) == (1920, 1080)


@pytest.mark.fault(Fault.ODD_INPUT)
def test_pixel_aspect_is_reported(tmp_path):
    def set_up(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = encode(tmp_path / "anamorphic.mp4", FRAMES[:3], set_up=set_up)
    assert probe(path).pixel_aspect == Fraction(4, 3)
    assert probe(encode(tmp_path / "square.mp4", FRAMES[:3])).pixel_aspect == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        {"pix_fmt": "yuv420p10le"},
        {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    ],
    ids=["limited", "full", "10-bit", "rgb"],
)
def test_colours_survive_limited_and_full_range(tmp_path, options):
    colours = [(0, 0, 0), (255, 255, 255), (200, 60, 40), (30, 180, 90), (20, 40, 220)]
    flat = [np.full((64, 96, 3), colour, np.uint8) for colour in colours]
    for image, colour in zip(
        read_all(encode(tmp_path / "flat.mkv", flat, container="matroska", **options)), colours, strict=True
    ):
        np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), colour, atol=4)


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize(
    "name",
    [
        "b-frames.mp4",
        "faststart.mp4",
        "fragmented.mp4",
        "b-frames.mkv",
        "vp9.webm",
        "mpeg4.avi",
        "b-frames.avi",
        "raw.h264",
        "raw.mjpeg",
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_cut_file_is_an_error_and_is_named(videos, name, share):
    path = damaged(videos[name], f"cut-{share}-{name}", lambda data: data[: int(share * len(data))])
    with pytest.raises(SourceError, match=rf"cut-{share}-{name}: .*(trunc|cut|damaged)") as error:
        read_all(path)
    assert "\n" not in str(error.value)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_file_cut_between_index_and_reading_is_an_error_at_the_missing_frame(videos, tmp_path):
    video = reader(videos["faststart.mp4"])
    cut = tmp_path / "later.mp4"
    cut.write_bytes(videos["faststart.mp4"].read_bytes()[:-2000])
    late = VideoReader(path=cut, index=video.index, picks=video.picks)

    assert number_of(next(late.frames(0, 1))) == 0
    with pytest.raises(SourceError, match=r"later\.mp4: frame 0000[2345]\d of 60"):
        list(late.frames(0, COUNT))


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "hevc.mp4", "raw.mjpeg"])
def test_zeroed_bytes_in_the_middle_are_noticed(videos, name):
    def wipe(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes(600) + data[middle + 600 :]

    with pytest.raises(SourceError):
        read_all(damaged(videos[name], f"wiped-{name}", wipe))


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "mpeg4.avi", "vp9.webm", "broadcast.ts"])
def test_flipped_bits_never_pad_skip_or_crash(videos, name):
    rng = np.random.default_rng(3)
    raised = 0
    for _ in range(40):
        where, bit = int(rng.integers(videos[name].stat().st_size)), 1 << int(rng.integers(8))
        path = damaged(
            videos[name], f"flip-{name}", lambda d, w=where, b=bit: d[:w] + bytes([d[w] ^ b]) + d[w + 1 :]
        )
        try:
            video = reader(path)
            frames = list(video.frames(0, len(video.picks)))
        except SourceError:
            raised += 1
        else:
            assert len(frames) == len(video.picks)
            assert all(frame.shape == frames[0].shape for frame in frames)
    if name != "vp9.webm":  # its arithmetic coder decodes nearly anything to some picture
        assert raised >= 5, "a decoder that never objects is not told to"


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_no_video_at_all(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    for name in ["empty.mp4", "text.mp4"]:
        with pytest.raises(SourceError, match=f"{name}: not a readable video"):
            probe(tmp_path / name)
    with pytest.raises(SourceError, match="cannot be opened"):
        probe(tmp_path / "absent.mp4")
    with pytest.raises(SourceError, match="cannot be opened"):
        probe(tmp_path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_playlist_in_disguise_opens_no_other_file(videos):
    path = videos["broadcast.ts"].with_name("playlist.mp4")
    path.write_text("ffconcat version 1.0\nfile broadcast.ts\n")
    with pytest.raises(SourceError, match="not a readable video"):
        probe(path)


@pytest.mark.fault(Fault.ODD_INPUT)
def test_one_frame_is_no_clip(tmp_path):
    with pytest.raises(SourceError, match="1 frame"):
        probe(encode(tmp_path / "one.mp4", FRAMES[:1]))


@pytest.mark.fault(Fault.ODD_NAMES)
@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe undecodable.mp4",
        b"new\nline.mp4",
        b'it\'s "quoted".mp4',
        "日本語.mp4".encode(),
        b"%n%s.mp4",
    ],
)
def test_odd_file_names_work_and_are_printed_on_one_line(tmp_path, videos, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(videos["b-frames.mp4"].read_bytes())
    assert number_of(next(reader(path).frames(25, 26))) == 25

    path.write_bytes(b"broken")
    with pytest.raises(SourceError) as error:
        probe(path)
    assert str(error.value).isprintable()


def test_real_dashcam(test_data):
    path = test_data / "video" / "dashcam_960x540.mp4"
    if not path.exists():
        pytest.skip(f"no {path}")
    index = probe(path)
    assert isinstance(index, VideoIndex)
    assert (len(index.pts), index.size, index.sequential) == (221, (960, 540), False)
    np.testing.assert_allclose(index.timestamps_s, np.arange(221) / 25, atol=1e-9)

    video = VideoReader(path=path, index=index, picks=np.arange(221))
    whole = list(video.frames(85, 100))
    for start in (85, 89, 90, 99):
        np.testing.assert_array_equal(next(video.frames(start, start + 1)), whole[start - 85])
