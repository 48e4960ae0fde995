"""Damaged video through the real build: right frames or a line that says why not, and the others as ever."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.shards.reader import ShardSet
from tests.builds import command, contents
from tests.conftest import ROOT
from tests.faults.inputs import (
    EXACT,
    FRAMES,
    build_here,
    car_masks,
    clip_bytes,
    decoded,
    here,
    one_line,
    stored,
)
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, number_of, numbered_frames

LONG = numbered_frames(24, 64, 48)
GOP4 = {"codec_options": {"g": "4", "bf": "2"}}
KINDS: dict[str, dict[str, Any]] = {
    "moov-last.mp4": GOP4,
    "moov-first.mp4": {**GOP4, "container_options": {"movflags": "faststart"}},
    "h264.mkv": {**GOP4, "container": "matroska"},
    "mjpeg.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "matroska"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {"g": "4", "cpu-used": "8"}},
    "broadcast.ts": {**GOP4, "container": "mpegts"},
}


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def without(data: bytes, at: int, count: int = 90) -> bytes:
    return data[:at] + data[at + count :]


def wiped(data: bytes, at: int, count: int = 90) -> bytes:
    return data[:at] + bytes(count) + data[at + count :]


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def damages(name: str, data: bytes) -> dict[str, bytes]:
    """Copies of a file that are damaged in ways that its container can tell."""
    rng = np.random.default_rng(7)
    found = {f"cut-{percent}": cut(data, percent / 100) for percent in (4, 30, 50, 80, 97)}
    found["cut-by-one"] = data[:-1]
    if name.endswith(".ts"):
        return found
    # Behind the headers, before an index at the end.
    found |= {f"gap-{i}": without(data, int(rng.integers(600, len(data) - 600))) for i in range(4)}
    if name.endswith(".mkv"):  # its writer leaves checksums
        found |= {f"wiped-{i}": wiped(data, int(rng.integers(100, len(data) - 100))) for i in range(6)}
        flips = zip(rng.integers(64, len(data), 20), rng.integers(0, 8, 20), strict=True)
        found |= {f"flip-{i}": flipped(data, int(at), int(bit)) for i, (at, bit) in enumerate(flips)}
    if name.endswith(".mp4"):
        for box, offset in ((b"stts", 15), (b"stsz", 15), (b"stsz", 19), (b"stco", 15), (b"stss", 15)):
            found[f"{box.decode()}-{offset}-off"] = flipped(data, data.index(box) + offset, 1)
    if name.endswith((".avi", "first.mp4")):  # where a packet ends, so that all that is there is whole
        found["cut-between"] = data[: start_of_packet(data, 15)]
    if name.endswith(".avi"):
        at = data.index(b"vids") + 32  # dwLength of the stream's header
        assert struct.unpack_from("<I", data, at) == (len(LONG),)
        found["more-stated"] = data[:at] + struct.pack("<I", 90) + data[at + 4 :]
    return found


def start_of_packet(data: bytes, number: int) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sorted(packet.pos for packet in container.demux(video=0) if packet.pos is not None)[number]


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_right_one_or_the_clip_is_set_aside(tmp_path: Path, name: str) -> None:
    source, alone = tmp_path / "source", tmp_path / "alone"
    source.mkdir()
    alone.mkdir()
    suffix = Path(name).suffix
    whole = encode(source / f"good{suffix}", LONG, **KINDS[name])
    data, truth = whole.read_bytes(), decoded(whole)
    assert [number_of(frame) for frame in truth] == list(range(24))
    shutil.copy(whole, alone)
    copies = damages(name, data)
    for copy, content in copies.items():
        assert content != data
        (source / f"{copy}{suffix}").write_bytes(content)
    detector = car_masks(tmp_path / "masks", ["good"], 24)

    done = build_here(source, tmp_path / "set", detector)
    assert build_here(alone, tmp_path / "undisturbed", detector).code == 0

    reasons = {entry["clip"]: entry["reason"] for entry in done.json["quarantine"]}
    assert done.code == 1
    for copy, reason in reasons.items():
        assert f"{copy}{suffix}" in reason
        assert reason.isprintable()
    if suffix != ".ts":
        assert len(reasons) >= len(copies) // 2  # most of the damage is real
    for copy in set(copies) - set(reasons):
        found = stored(tmp_path / "set", copy)
        if suffix == ".ts":
            assert wrong_at_their_times(tmp_path / "set", copy, truth) == []
            assert len(found) < 24 or copy == "cut-by-one"
            continue
        assert len(found) == 24, copy
        for number, (frame, right) in enumerate(zip(found, truth, strict=True)):
            np.testing.assert_array_equal(frame, right, err_msg=f"{copy}, frame {number}")
    assert clip_bytes(tmp_path / "set", "good") == clip_bytes(tmp_path / "undisturbed", "good")


def wrong_at_their_times(out: Path, name: str, truth: list[np.ndarray]) -> list[int]:
    """Numbers of the frames that are not the true ones of their times.

    A transport stream states no length: what was cut off is not missed, but nothing moves in time.
    """
    with ShardSet(out) as shards:
        times = shards.timestamps_s(shards.clip(name))
    pairs = zip(stored(out, name), (times * 25).round().astype(int).tolist(), strict=True)
    return [number for frame, number in pairs if not np.array_equal(frame, truth[number])]


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("name", ["moov-first.mp4", "mjpeg.avi", "vp9.webm", "broadcast.ts"])
def test_damage_that_still_decodes_moves_no_other_frame(tmp_path: Path, name: str) -> None:
    """Codecs carry no checksums: a picture may come out wrong, but only until the next keyframe."""
    source = tmp_path / "source"
    source.mkdir()
    suffix = Path(name).suffix
    options = (
        {"g": "4", "bf": "0"} if "vp9" not in name else {"g": "4", "lag-in-frames": "0", "cpu-used": "8"}
    )
    whole = encode(source / f"whole{suffix}", LONG, **{**KINDS[name], "codec_options": options})
    data, truth = whole.read_bytes(), decoded(whole)
    rng = np.random.default_rng(11)
    for i, at in enumerate(rng.integers(len(data) // 2, len(data) * 3 // 4, 12)):
        (source / f"flip-{i}{suffix}").write_bytes(flipped(data, int(at), int(rng.integers(8))))
    done = build_here(source, tmp_path / "set", car_masks(tmp_path / "masks", ["whole"]))
    left_out = {entry["clip"] for entry in done.json["quarantine"]}
    assert done.code == (1 if left_out else 0)
    for copy in {f"flip-{i}" for i in range(12)} - left_out:
        if suffix != ".ts":
            assert len(stored(tmp_path / "set", copy)) == 24
        wrong = wrong_at_their_times(tmp_path / "set", copy, truth)
        assert len({number // 4 for number in wrong}) <= 1, (copy, wrong)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_what_only_bears_a_videos_name_is_listed_and_nothing_waits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    good = encode(source / "good.mp4", FRAMES)
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("no video\n" * 50)
    (source / "playlist.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n"
    )
    (source / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    for kind in ("png", "jpeg"):
        with open(source / f"{kind}.mp4", "wb") as file:
            Image.fromarray(FRAMES[0]).save(file, kind)
    encode(source / "one.mp4", FRAMES[:1])
    only_sound(source / "sound.mp4")
    os.mkfifo(source / "pipe.mp4")  # nobody ever writes into it
    (source / "nowhere.mp4").symlink_to("gone.mp4")
    (source / "loop.mp4").symlink_to("loop.mp4")
    (source / "device.mp4").symlink_to("/dev/zero")
    (source / "sick.mp4").symlink_to("/proc/self/mem")  # reading its first byte is EIO
    shutil.copy(good, source / "locked.mp4")
    (source / "locked.mp4").chmod(0)
    (source / "folder.mp4").mkdir()
    shutil.copy(good, source / "folder.mp4" / "inner.mp4")
    (source / "again").symlink_to(".")  # folders may link to themselves
    (source / "lost+found").mkdir(mode=0)

    line = command("build", source, tmp_path / "set", *EXACT, "--json", "--quiet")
    line += ["--detector", car_masks(tmp_path / "masks", ["good", "folder.mp4/inner"])]
    done = subprocess.run(unprivileged(line), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    reasons = {entry["clip"]: entry["reason"] for entry in report["quarantine"]}
    expected = {
        "empty": "not a readable video",
        "text": "not a readable video",
        "playlist": "not a readable video",
        "concat": "not a readable video",
        "png": "1 frame(s) found",
        "jpeg": "1 frame(s) found",
        "one": "1 frame(s) found",
        "sound": "holds no video",
        "pipe": "it is no file",
        "nowhere": "No such file",
        "loop": "Too many levels of symbolic links",
        "device": "it is no file",
        "sick": "Input/output error",
        "locked": "Permission denied",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name]
        assert f"{name}.mp4: " in reasons[name]
        assert reasons[name].isprintable()
    assert report["clips"] == 2
    for name in ("good", "folder.mp4/inner"):
        assert [number_of(frame) for frame in stored(tmp_path / "set", name)] == list(range(8))


def only_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def unprivileged(line: list[str]) -> list[str]:
    """A command line under which files without read permission cannot be read, for root either."""
    if os.geteuid():
        return line
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *line]


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_videos_that_shrink_and_vanish_during_the_build_and_come_back(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "set"
    source.mkdir()
    long = numbered_frames(60, 64, 48)
    fast = {**GOP4, "container_options": {"movflags": "faststart"}}
    for name in ("a-first", "b-shrinks", "c-vanishes", "d-stays"):
        encode(source / f"{name}.mp4", long if name == "a-first" else FRAMES, **fast)
    whole = {path.name: path.read_bytes() for path in source.iterdir()}
    detector = car_masks(tmp_path / "masks", ["b-shrinks", "d-stays"])
    line = command(
        "build",
        source,
        out,
        *EXACT,
        "--detector",
        detector,
        "--frames-per-piece",
        "2",
        "--frames-per-file",
        "8",
        "--quiet",
    )
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob(".build/pieces/000000-*.evidence.h5")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None
        assert not list(out.glob(".build/pieces/00000[123]-*"))  # scanned, and not begun
        (source / "b-shrinks.mp4").write_bytes(cut(whole["b-shrinks.mp4"], 0.7))
        (source / "c-vanishes.mp4").unlink()
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "Traceback" not in errors
    first = here("verify", out, "--quiet")
    assert first.code == 0, first.out
    assert here("inspect", out, "--json").json["quarantine"] == 2
    again = build_here(source, out, detector, "--frames-per-piece", "2", "--frames-per-file", "8")
    assert again.code == 1  # nothing is forgotten while they are not whole

    for name, content in whole.items():
        (source / name).write_bytes(content)
    options = ("--frames-per-piece", "2", "--frames-per-file", "8")
    repaired = build_here(source, out, detector, *options)
    assert repaired.code == 0, repaired.out
    assert repaired.json["worked_frames"] == 16  # the two, and nothing else again
    assert build_here(source, tmp_path / "undisturbed", detector, *options).code == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_set_without_a_bad_clip_is_not_touched_once_the_clip_is_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("good", "mended"):
        encode(source / f"{name}.mp4", FRAMES)
    whole = (source / "mended.mp4").read_bytes()
    (source / "mended.mp4").write_bytes(cut(whole, 0.5))
    detector = car_masks(tmp_path / "masks", ["good", "mended"])
    assert build_here(source, tmp_path / "set", detector).code == 1
    before = contents(tmp_path / "set")

    (source / "mended.mp4").write_bytes(whole)
    # Another clip is another plan of files, so it is another set.
    assert "built from other input or settings" in one_line(build_here(source, tmp_path / "set", detector))
    assert contents(tmp_path / "set") == before
    done = build_here(source, tmp_path / "new", detector)
    assert (done.code, done.json["clips"]) == (0, 2)
    assert clip_bytes(tmp_path / "new", "good") == clip_bytes(tmp_path / "set", "good")


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_frames_that_change_size_or_repeat_their_times(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    options = {**GOP4, "container": "mpegts"}
    part = encode(source / "good.ts", FRAMES, **options).read_bytes()
    wide = numbered_frames(8, 96, 48)
    sizes = [
        encode(tmp_path / f"{i}.h264", each, **GOP4).read_bytes() for i, each in enumerate((FRAMES, wide))
    ]
    (source / "changes-size.h264").write_bytes(b"".join(sizes))
    (source / "joined.ts").write_bytes(part + part)  # its packets' counters jump
    raw = encode(source / "no-times.h264", FRAMES, **GOP4)
    raw.write_bytes(2 * raw.read_bytes())
    times = [0, 1, 40, 41, 300, 301, 900, 2500]
    encode(source / "uneven.mkv", FRAMES, pts=times, container="matroska")
    done = build_here(source, tmp_path / "set", car_masks(tmp_path / "masks", ["good"]))
    assert done.code == 1
    reasons = {entry["clip"]: entry["reason"] for entry in done.json["quarantine"]}
    assert set(reasons) == {"changes-size", "joined"}
    assert "96x48 before rotation in a clip of 64x48" in reasons["changes-size"]
    twice = stored(tmp_path / "set", "no-times")
    assert [number_of(frame) for frame in twice] == [*range(8), *range(8)]
    assert [number_of(frame) for frame in stored(tmp_path / "set", "uneven")] == list(range(8))
    with ShardSet(tmp_path / "set") as shards:
        np.testing.assert_allclose(shards.timestamps_s(shards.clip("uneven")), np.array(times) / 1000)
        np.testing.assert_allclose(np.diff(shards.timestamps_s(shards.clip("no-times"))), 1 / 25)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_matroska_file_of_unknown_length_is_read(tmp_path: Path) -> None:
    """As a live recording is: there is nothing to compare it with."""
    live = {"container": "matroska", "container_options": {"live": "1"}}
    path = encode(tmp_path / "live.mkv", FRAMES, **GOP4, **live)
    segment = path.read_bytes().index(bytes.fromhex("18538067"))
    assert path.read_bytes()[segment + 4 : segment + 12] == bytes.fromhex("01ffffffffffffff")
    assert [number_of(frame) for frame in decoded(path)] == list(range(8))


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("entry", range(4))
def test_a_display_rotation_that_is_none_is_refused(tmp_path: Path, entry: int) -> None:
    path = encode(tmp_path / "a.mp4", FRAMES, set_up=lambda stream: stream.set_display_rotation(90))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # a b u c d v x y w
    matrix = struct.unpack_from(">9i", data, at)
    assert sorted(matrix[i] for i in (0, 1, 3, 4)) == [-65536, 0, 0, 65536]
    where = at + 4 * (0, 1, 3, 4)[entry]
    data[where : where + 4] = struct.pack(">i", 65536 if not matrix[(0, 1, 3, 4)[entry]] else 0)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is to be shown turned by"):
        decoded(path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_header_that_claims_huge_frames_takes_no_memory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    good = encode(source / "good.avi", FRAMES, codec="mjpeg", pix_fmt="yuvj420p")
    huge = bytearray(good.read_bytes())
    at, claims = -1, 0
    while (at := huge.find(b"\xff\xc0\x00\x11\x08", at + 1)) >= 0:  # the frame header of every JPEG
        huge[at + 5 : at + 9] = struct.pack(">HH", 16000, 16000)
        claims += 1
    assert claims == 8
    (source / "jpeg.avi").write_bytes(huge)
    flat = encode(source / "ffv1.avi", FRAMES, codec="ffv1").read_bytes()
    claimed = flat.replace(struct.pack("<II", 64, 48), struct.pack("<II", 16000, 16000))
    assert claimed != flat
    (source / "ffv1.avi").write_bytes(claimed)

    detector = car_masks(tmp_path / "masks", ["good"])
    build_here(source, tmp_path / "first", detector, "--include", "good")  # everything is loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from now
    before = memory_mb("VmHWM")
    done = build_here(source, tmp_path / "set", detector)
    grown = memory_mb("VmHWM") - before
    assert done.code == 1
    assert [entry["clip"] for entry in done.json["quarantine"]] == ["ffv1", "jpeg"]
    assert grown < 200  # one such frame is 768 MB


def memory_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
