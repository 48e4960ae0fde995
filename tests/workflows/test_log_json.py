"""`--log-json` of real commands: what is recorded of every end that a command can come to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.shards.manifest import read_manifest
from pipeline.streetworld.truth import write_label_images
from tests.builds import CUT, SIZE, command, run
from tests.faults.table import Fault
from tests.pipeline.test_events import read, wait_until
from workflows import cli


@contextmanager
def blocked(folder: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that has started and reads from a pipe into which nobody writes."""
    pipe = folder / "never"
    os.mkfifo(pipe)
    line = command("tables", "--measured", f"4/ResNet18 K={pipe}", "--log-json", log, workers=None)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ends: list[int] = []

    def reads() -> bool:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError):  # until somebody has opened it for reading
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    wait_until(reads)
    yield process
    os.close(ends[0])


def names(found: list[dict[str, Any]]) -> list[str]:
    return [each["event"] for each in found]


def test_a_command_that_succeeds_is_recorded_from_start_to_end(street_shards: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run("verify", street_shards, "--log-json", log, "--quiet", workers=None)
    assert done.returncode == 0, done.stderr
    found, torn = read(log)
    assert not torn
    assert names(found) == ["start", "progress", "progress", "end"]
    start, checksums, contents, end = found
    assert start["arguments"] == ["verify", str(street_shards), "--quiet"]
    assert start["version"]
    assert start["host"] == os.uname().nodename
    assert (checksums["title"], checksums["done"]) == ("checksums", checksums["total"])
    assert (contents["title"], contents["unit"], contents["done"]) == ("contents", "frame", 26)
    assert (end["exit_code"], end["error"]) == (0, None)
    assert end["seconds"] > 0
    assert {each["command"] for each in found} == {"verify"}
    assert len({each["process"] for each in found}) == 1


def test_standard_error_gets_lines_of_json_and_no_bar(street_shards: Path) -> None:
    done = run("verify", street_shards, "--log-json", "-", workers=None)
    assert done.returncode == 0
    assert names([json.loads(line) for line in done.stderr.splitlines()]) == [
        "start", "progress", "progress", "end",
    ]  # fmt: skip


ENDS = {
    "cannot be done": (("inspect", "{}"), 1, "no shard set (shardset.json is missing)"),
    "wrong setting": (("build", "a", "b", "--min-score", "3"), 2, "min_score must lie in"),
    "no such command": (("bild",), 2, "did you mean build?"),
    "what the system says": (("build", "{}", "{}/file/set"), 1, "Not a directory"),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_error_is_recorded_as_it_was_printed(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments, code, message = ENDS[case]
    log = tmp_path / "log"
    words = [word.format(tmp_path) for word in arguments]
    assert cli.main([f"--log-json={log}", *words]) == code
    start, end = read(log)[0]
    assert start["arguments"] == words
    assert end["exit_code"] == code
    assert message in end["error"]
    assert capsys.readouterr().err == end["error"] + "\n"


def test_a_bug_is_recorded_and_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflows.commands import verify

    def broken(arguments: object) -> int:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(verify, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["verify", "x", "--log-json", str(tmp_path / "log")])
    end = read(tmp_path / "log")[0][-1]
    assert (end["event"], end["exit_code"]) == ("end", 1)
    assert end["error"] == "ZeroDivisionError: nobody thought of this"


def test_help_is_a_start_and_an_end_without_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["verify", "--help", "--log-json", str(tmp_path / "log")])
    end = read(tmp_path / "log")[0][-1]
    assert (end["event"], end["exit_code"], end["error"]) == ("end", 0, None)


def test_a_log_that_cannot_be_opened_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tables", "--log-json", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {tmp_path}: Is a directory\n")
    assert cli.main(["tables", "--log-json"]) == 2
    assert "--log-json needs a file, or - for standard error" in capsys.readouterr().err


def test_a_build_tells_its_pieces_its_files_and_the_clips_that_it_leaves_out(
    streets: Path, tmp_path: Path
) -> None:
    source, masks = Path(shutil.copytree(streets, tmp_path / "streets")), tmp_path / "masks"
    for clip in source.iterdir():
        write_label_images(clip, masks / clip.name)
    video = source / "test_0002" / "video.mp4"
    data = bytearray(video.read_bytes())
    first, end = data.index(b"mdat"), data.index(b"moov")
    start = first + (end - first) * 7 // 10
    data[start : start + 1000] = bytes(1000)  # it opens, and cannot be decoded
    video.write_bytes(data)
    log, threads = tmp_path / "log", torch.get_num_threads()
    words = ["build", str(source), str(tmp_path / "set"), *SIZE, *CUT, "--detector", f"masks:{masks}"]
    assert cli.main([*words, "--workers", "0", "--quiet", "--log-json", str(log)]) == 1
    torch.set_num_threads(threads)
    found, torn = read(log)
    assert not torn
    pieces = [each for each in found if each["event"] == "piece_done"]
    assert sum(each["frames"] for each in pieces if each["clip"] != "test_0002") == 20
    assert all(each["seconds"]["detect"] > 0 for each in pieces)
    files = {(each["layer"], each["file"]): each for each in found if each["event"] == "file_published"}
    manifest = read_manifest(tmp_path / "set")
    for layer, entries in (("frames", manifest.frames), ("evidence", manifest.evidence)):
        for name, entry in entries.items():
            each = files[layer, name]
            assert (each["frames"], each["bytes"]) == (entry.frames, entry.bytes)
    ((clip, reason),) = [
        (each["clip"], each["reason"]) for each in found if each["event"] == "clip_quarantined"
    ]
    assert clip == "test_0002"
    assert "cannot be decoded" in reason
    assert f"quarantined {clip}: {reason}" in [each.get("line") for each in found]
    assert found[-1]["exit_code"] == 1


@pytest.mark.fault(Fault.STOPPED)
def test_ctrl_c_is_recorded_with_exit_code_130(tmp_path: Path) -> None:
    with blocked(tmp_path, tmp_path / "log") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    start, end = read(tmp_path / "log")[0]
    assert (start["event"], end["event"], end["exit_code"]) == ("start", "end", 130)
    assert end["error"] == "stopped; run the same command again to go on"
    assert end["error"] in said


@pytest.mark.fault(Fault.KILLED)
def test_kill_9_leaves_a_start_without_end_and_the_next_run_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with blocked(tmp_path, log) as process:
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with open(log, "a") as file:
        file.write('{"time": "2026-03-01T12:0')  # as a disk that fills at that moment leaves it
    assert run("tables", "--log-json", log, workers=None).returncode == 0
    found, torn = read(log)
    assert names(found) == ["start", "start", "end"]
    assert [each["process"] == process.pid for each in found] == [True, False, False]
    assert len(torn) == 1


@pytest.mark.fault(Fault.DISK_FULL)
def test_a_full_disk_under_the_log_is_said_once_and_stops_nothing(street_shards: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        full.write(b"x")
    done = run("verify", street_shards, "--quiet", "--log-json", "/dev/full", workers=None)
    assert done.returncode == 0
    assert "0 problem(s)" in done.stdout
    assert done.stderr.splitlines() == [
        "warning: /dev/full: lines are missing from the log (No space left on device); the command goes on"
    ]


@pytest.mark.slow
@pytest.mark.fault(Fault.KILLED)
def test_a_build_killed_and_run_again_is_one_readable_log(streets: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "set"
    arguments = ("build", streets, out, *SIZE, *CUT, "--quiet", "--log-json", log)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(out.glob(".build/pieces/*.evidence.h5"))) >= 2)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    found, torn = read(log)
    assert len(torn) <= 1
    first, second = ([e for e in found if (e["process"] == process.pid) is mine] for mine in (True, False))
    assert "end" not in names(first)
    assert names(second)[0] == "start"
    assert names(second)[-1] == "end"
    built = [each for each in second if each.get("title") == "build"]
    assert (built[-1]["done"], built[-1]["total"]) == (26, 26)
