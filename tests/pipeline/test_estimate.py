"""The estimate of a build: known numbers, and the real build beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import evidence_build
from pipeline.build import BuildConfig, build, describe
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.errors import SourceError
from pipeline.estimate import Estimate, Work, estimate, find_standing, makespan
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig, plan_files
from pipeline.sample import Cost, Line, Rates, Sample, spread
from pipeline.shards.manifest import read_manifest
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.scan import scan
from pipeline.streetworld.truth import write_label_images
from tests.builds import CUT, SIZE, run
from workflows import cli
from workflows.commands.build import duration, megabytes, outlook

HERE = GraphConfig(workers=0)


@pytest.fixture(scope="module")
def config(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildConfig:
    """True masks instead of a network; pieces of 3 frames, files of 6."""
    masks = tmp_path_factory.mktemp("masks")
    for clip in streets.iterdir():
        write_label_images(clip, masks / clip.name)
    return BuildConfig(
        frames=FramesConfig(size=(208, 64)),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        masks=MaskConfig(min_area=20),
        plan=PlanConfig(frames_per_piece=3, frames_per_file=6),
    )


@pytest.fixture(scope="module")
def example(streets: Path, config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    return estimate(streets, tmp_path_factory.mktemp("sets") / "set", config, HERE, quiet=True)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A build in this process leaves torch with one thread."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of everything below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def description(source: Path, config: BuildConfig, **frames: int) -> dict[str, Any]:
    """What a build of the source writes down before it begins."""
    clips = [clip for clip in scan(source, config.source) if isinstance(clip, Clip)]
    return describe(replace(config, frames=replace(config.frames, **frames)), clips, [])


def stored_bytes(out: Path) -> dict[str, int]:
    manifest = read_manifest(out)
    files = {
        "frames": manifest.frames,
        "evidence": manifest.evidence,
        "masks": manifest.masks["default"].files,
    }
    return {layer: sum(entry.bytes for entry in entries.values()) for layer, entries in files.items()}


def test_jobs_go_in_order_to_the_worker_that_is_free_first() -> None:
    assert makespan([3, 3, 3], 1) == 9
    assert makespan([3, 3, 3], 2) == 6
    assert makespan([5, 1, 1, 1, 4], 2) == 7
    assert makespan([2], 8) == 2
    assert makespan([], 4) == 0


def test_bytes_follow_the_line_through_a_small_and_a_large_file() -> None:
    line = Line.through([((2, 1200), (5, 1500)), ((2, 1000), (6, 1400))])
    assert line == Line(per_frame=100.0, per_file=900.0)
    assert line.of(frames=1000, files=2) == 101_800
    # All pieces as short as each other: nothing tells what a file alone weighs.
    assert Line.through([((2, 1000), (2, 1000)), ((2, 3000), (2, 3000))]) == Line(
        per_frame=1000.0, per_file=0.0
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100])
def test_samples_are_spread_and_none_is_taken_twice(count: int) -> None:
    order = list(spread(count))
    assert sorted(order) == list(range(count))
    if count >= 8:
        first = [*sorted(order[:4]), count]
        assert max(b - a for a, b in itertools.pairwise(first)) <= count / 2


def cost(frames: int, detect_s: float, piece_s: float, size: int) -> Cost:
    return Cost(
        frames=frames,
        seconds={"detect": detect_s, "flow": 0.1 * frames, "overlaps": 0.05 * frames},
        piece_s=piece_s,
        file_s=0.5 + 0.01 * frames,
        masks_s=0.02 * frames,
        cpu_s=0.7 * frames,
        bytes=dict.fromkeys(("frames", "evidence", "masks", "pieces"), size),
    )


RATES = Rates.of(
    [
        Sample(worker="a:1", on_gpu=True, small=cost(2, 1.0, 7.2, 300), large=cost(4, 2.0, 2.4, 500)),
        Sample(worker="a:2", on_gpu=True, small=cost(2, 1.0, 1.2, 300), large=cost(12, 6.0, 7.2, 1300)),
    ],
    ["detect"],
)


def test_rates_are_means_a_frame_and_loading_is_what_the_first_frames_took_longer() -> None:
    assert RATES.workers == 2
    assert RATES.frames == 16
    assert RATES.seconds == pytest.approx({"detect": 0.5, "flow": 0.1, "overlaps": 0.05})
    assert RATES.step_s == pytest.approx(0.15)
    assert RATES.piece_s == pytest.approx(0.6)
    assert RATES.load_s == pytest.approx(6.0)
    assert RATES.gpu_s == pytest.approx(0.5)  # the flow here needs no network
    assert RATES.cpu_s == pytest.approx(0.7)
    assert RATES.bytes["frames"] == Line(per_frame=100.0, per_file=100.0)
    assert RATES.file_s.of(100) == pytest.approx(1.5)
    assert RATES.masks_s.of(100) == pytest.approx(2.0)


def test_flow_of_a_network_counts_as_gpu_time_and_is_not_made_again_between_pieces() -> None:
    sample = Sample(worker="a:1", on_gpu=True, small=cost(2, 1.0, 1.2, 300), large=cost(4, 2.0, 2.4, 500))
    rates = Rates.of([sample], ["detect", "flow"])
    assert rates.gpu_s == pytest.approx(0.6)
    assert rates.step_s == pytest.approx(0.05)


def test_without_a_gpu_networks_take_no_gpu_time() -> None:
    sample = Sample(worker="a:1", on_gpu=False, small=cost(2, 1, 1, 1), large=cost(4, 2, 2, 2))
    assert Rates.of([sample], ["detect"]).gpu_s == 0


def work(*lengths: int, per_file: int = 100, per_piece: int = 10) -> Work:
    plan = PlanConfig(frames_per_file=per_file, frames_per_piece=per_piece)
    files = {file: file.pieces(per_piece) for file in plan_files(lengths, plan)}
    return Work(
        files=files, left=tuple(piece for each in files.values() for piece in each), missing=tuple(files)
    )


def test_time_is_that_of_pieces_files_and_masks_on_all_workers() -> None:
    whole = work(100, 60)  # two files, 16 pieces of 10 frames, of which 9 and 5 do not begin a clip
    assert whole.pieces_s(RATES) == pytest.approx(80 * 0.6)
    assert whole.files_s(RATES) == pytest.approx(0.5 + 100 * 0.01 + 9 * 0.15)
    assert whole.masks_s(RATES) == pytest.approx(100 * 0.02)
    rest = replace(whole, left=whole.left[-2:], missing=whole.missing[1:])
    assert rest.pieces_s(RATES) == pytest.approx(10 * 0.6)
    assert rest.files_s(RATES) == pytest.approx(0.5 + 60 * 0.01 + 5 * 0.15)
    done = replace(whole, left=(), missing=())
    assert (done.pieces_s(RATES), done.files_s(RATES)) == (0, 0)
    assert done.masks_s(RATES) == whole.masks_s(RATES)


def test_the_build_folder_holds_the_largest_file_a_piece_a_worker_and_the_borders_of_long_clips() -> None:
    assert work(100, 60).peak(workers=1) == (100, 10)
    assert work(100, 60).peak(workers=3) == (120, 12)
    assert work(230).peak(workers=1) == (120, 12)  # files of 100, 100, 30: two borders
    assert work(5, 5).peak(workers=8) == (10, 2)  # never more than there are


@pytest.mark.parametrize("plan", [PlanConfig(frames_per_piece=3, frames_per_file=6), PlanConfig()])
def test_numbers_and_bytes_are_those_of_the_real_build(
    streets: Path, config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: PlanConfig
) -> None:
    config = replace(config, plan=plan)
    out = tmp_path / "set"
    before = contents(streets)
    found = estimate(streets, out, config, HERE, quiet=True)
    assert not out.exists()
    assert contents(streets) == before
    assert (found.standing, found.remark) == ("new", "does not exist yet")

    peaks: list[int] = []
    assemble = evidence_build.run_file

    def watched(job):  # type: ignore[no-untyped-def]
        peaks.append(sum(path.stat().st_size for path in (out / ".build" / "pieces").iterdir()))
        return assemble(job)

    monkeypatch.setattr(evidence_build, "run_file", watched)
    report = build(streets, out, config, HERE, quiet=True)
    assert (found.clips, found.frames, found.frames_left) == (
        report.clips,
        report.frames,
        report.worked_frames,
    )
    manifest = read_manifest(out)
    assert found.files == len(manifest.frames) == len(peaks)
    assert found.pieces == found.pieces_left == {3: 9, 32: 3}[plan.frames_per_piece]
    assert set(found.seconds) == set(report.seconds)
    assert (found.workers, found.on_gpu, found.gpu_hours) == (1, False, 0)
    assert found.cpu_hours > 0
    parts = (found.start_s, found.pieces_s, found.files_s, found.masks_s)
    assert min(parts) > 0
    assert found.wall_s == pytest.approx(sum(parts), abs=0.01)
    for layer, size in stored_bytes(out).items():
        # HDF5 lays small data out in blocks of 2048 bytes, which is much of files as small as these.
        assert found.bytes[layer] == pytest.approx(size, abs=0.05 * size + 2048 * found.files), layer
    assert found.build_folder_bytes == pytest.approx(max(peaks), rel=0.15)
    assert found.needed_bytes == sum(found.bytes.values()) + found.build_folder_bytes


def stopped(
    source: Path, out: Path, config: BuildConfig, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """A real build that is stopped after so many pieces."""
    done, work_on = [], evidence_build.run_piece

    def counted(job):  # type: ignore[no-untyped-def]
        if len(done) == pieces:
            raise KeyboardInterrupt
        done.append(job)
        return work_on(job)

    with monkeypatch.context() as patch:
        patch.setattr(evidence_build, "run_piece", counted)
        with pytest.raises(KeyboardInterrupt):
            build(source, out, config, HERE, quiet=True)


def test_what_an_unfinished_build_has_done_is_not_counted_again(
    streets: Path, config: BuildConfig, example: Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    stopped(streets, out, config, monkeypatch, pieces=3)  # one file of 6 frames, and 3 frames more
    assert len(list((out / ".build" / "files").iterdir())) == 1
    before = contents(out)
    found = estimate(streets, out, config, HERE, quiet=True)
    assert contents(out) == before
    assert found.standing == "unfinished"
    assert (found.frames, found.frames_left) == (26, 17)
    assert (found.pieces, found.pieces_left) == (9, 6)
    there = sum(path.stat().st_size for path in out.rglob("*.h5"))
    assert there > 0
    assert found.needed_bytes == pytest.approx(example.needed_bytes - there, rel=0.1)
    standing, remark = find_standing(out, description(streets, config, quality=50), config.masks)
    assert standing == "other"
    assert "unfinished build with other frames" in remark
    report = build(streets, out, config, HERE, quiet=True)
    assert report.worked_frames == found.frames_left


def test_a_complete_set_says_so_and_states_its_bytes(
    streets: Path, config: BuildConfig, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build(streets, out, config, HERE, quiet=True)
    found = estimate(streets, out, config, HERE, quiet=True)
    assert (found.standing, found.frames_left, found.needed_bytes) == ("complete", 0, 0)
    assert found.bytes == stored_bytes(out)
    same, other = description(streets, config), description(streets, config, quality=50)
    standing, remark = find_standing(out, same, MaskConfig(min_area=99))
    assert standing == "complete"
    assert "other mask settings" in remark
    assert find_standing(out, other, config.masks)[0] == "other"
    (out / "shardset.json").write_text("{}")
    standing, remark = find_standing(out, same, config.masks)
    assert standing == "other"
    assert "expected 'instance-motion shard set'" in remark


def test_a_folder_with_something_else_is_found_out(tmp_path: Path) -> None:
    assert find_standing(tmp_path, {}, MaskConfig()) == ("new", "holds nothing of this build")
    (tmp_path / "frames").mkdir()
    assert find_standing(tmp_path, {}, MaskConfig())[0] == "other"
    (tmp_path / "file").write_text("")
    assert find_standing(tmp_path / "file", {}, MaskConfig())[0] == "other"
    (tmp_path / "set" / ".build").mkdir(parents=True)
    for plan, words in (("{", "cannot be read"), ("[" * 100_000, "cannot be read"), ("[]", "is damaged")):
        (tmp_path / "set" / ".build" / "plan.json").write_text(plan)
        standing, remark = find_standing(tmp_path / "set", {}, MaskConfig())
        assert standing == "other"
        assert f"plan.json {words}" in remark


def damage(source: Path, name: str, *, whole: bool) -> None:
    """Make a clip unusable: not a video at all, or one that opens and then cannot be decoded."""
    video = source / name / "video.mp4"
    data = bytearray(video.read_bytes())
    if whole:
        video.write_bytes(b"no video")
        return
    first, end = data.index(b"mdat"), data.index(b"moov")
    start = first + (end - first) * 7 // 10
    data[start : start + 1000] = bytes(1000)
    video.write_bytes(data)


def test_clips_that_cannot_be_used_are_listed_with_the_reason_of_the_build(
    streets: Path, config: BuildConfig, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(streets, tmp_path / "streets"))
    damage(source, "test_0001", whole=True)
    damage(source, "test_0002", whole=False)
    assert [type(clip) for clip in scan(source, config.source)] == [Clip, BadClip, Clip]
    found = estimate(source, tmp_path / "set", config, HERE, quiet=True)
    report = build(source, tmp_path / "set", config, HERE, quiet=True)
    unusable, failing = report.quarantine
    assert found.unusable == (unusable,)
    # Which damaged frame is met first depends on the piece.
    assert (failing.clip, found.failing[0].clip) == ("test_0002", "test_0002")
    assert "cannot be decoded" in found.failing[0].reason
    damage(source, "test_0000", whole=True)
    with pytest.raises(SourceError, match="every clip that was tried failed; the first: test_0002"):
        estimate(source, tmp_path / "other", config, HERE, quiet=True)
    damage(source, "test_0002", whole=True)
    with pytest.raises(SourceError, match="no usable clip: test_0000"):
        estimate(source, tmp_path / "other", config, HERE, quiet=True)


def test_a_disk_without_room_is_a_warning(example: Estimate) -> None:
    assert example.fits
    assert "warning" not in outlook(example)
    full = replace(example, needed_bytes=5_300_000_000, free_bytes=1_000_000_000)
    assert not full.fits
    assert "warning: 4.3 GB too little room on that disk" in outlook(full)


def test_the_command_prints_the_estimate_and_writes_nothing(
    streets: Path,
    config: BuildConfig,
    example: Estimate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["build", str(streets), str(tmp_path / "set"), *SIZE, *CUT]
    line += ["--detector", config.detector.detector, "--workers", "0", "--dry-run", "--quiet"]
    assert cli.main([*line, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["frames"], data["files"], data["pieces"], data["fits"]) == (26, 5, 9, True)
    assert not (tmp_path / "set").exists()
    text = outlook(example)
    assert "clips       3, 26 frames; 0 unusable" in text
    assert "plan        5 files, 9 pieces" in text
    assert "GPU 0, CPU" in text


def test_durations_and_sizes_are_short() -> None:
    assert [duration(each) for each in (4.4, 99, 200, 18420)] == ["4 s", "99 s", "3:20 min", "5:07 h"]
    assert [megabytes(each) for each in (1_200_000, 34_500_000_000, 6.7e12)] == [
        "1.2 MB",
        "34.5 GB",
        "6.7 TB",
    ]


@pytest.mark.slow
def test_workers_and_the_bundled_detector_are_sampled_as_they_build(
    streets: Path, reference: Path, tmp_path: Path
) -> None:
    done = run("build", streets, tmp_path / "set", *SIZE, *CUT, "--dry-run", "--quiet", "--json", workers=2)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    found = json.loads(done.stdout)
    assert found["workers"] == 2
    for layer, size in stored_bytes(reference).items():
        assert found["bytes"][layer] == pytest.approx(size, rel=0.15), layer
