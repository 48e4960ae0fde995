"""Shard sets spoilt at random: read or refused in one line, never a crash, a hang or a grab for memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.assembly import Layout, assemble, is_written, seal_of, written_pieces
from pipeline.clip import FramesConfig
from pipeline.errors import BuildError, ShardError
from pipeline.flow import FlowConfig
from pipeline.plan import PlannedFile, PlannedPiece, PlannedSegment
from pipeline.shards.evidence import EvidenceFile
from pipeline.shards.frames import FramesFile
from pipeline.shards.plain_hdf5 import sealed
from pipeline.shards.reader import ShardSet
from pipeline.shards.verify import verify_files
from tests.faults.campaign import MEMORY_BYTES, read_mutants, read_sets, summary
from tests.faults.mutants import FILES, SET_ID, contents, mutant, structures, write_set
from tests.faults.table import Fault
from tests.pipeline.shards import examples


@pytest.mark.fault(Fault.MUTATED_SHARD)
def test_a_reader_that_crashes_hangs_or_takes_memory_is_seen(tmp_path: Path) -> None:
    endings = ("fine", "crash", "hang", "memory", "fine")
    for number, ending in enumerate(endings):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "shardset.json").write_text(ending)
    outcomes = read_sets([tmp_path / str(number) for number in range(len(endings))], how="misbehave")
    assert [outcome.ending for outcome in outcomes] == [
        "refused", "killed by signal 11", "killed by signal 14", "exception", "refused",
    ]  # fmt: skip
    assert "MemoryError" in outcomes[3].words


def check(kind: str, first: int, last: int) -> None:
    outcomes = read_mutants(kind, first, last)
    print(f"{kind}: {summary(outcomes)}")
    assert len(outcomes) == last - first
    bugs = [f"seed {each.number}: {each.ending}\n{each.words}" for each in outcomes if each.is_bug]
    assert not bugs, "\n".join(bugs)
    # Both happen: what is not found is as good as it was, and not everything is refused at the door.
    endings = [outcome.ending for outcome in outcomes]
    assert endings.count("refused") > 0.2 * len(outcomes)
    assert endings.count("read") > 0.01 * len(outcomes)
    assert len({outcome.words[-60:] for outcome in outcomes}) > 20
    assert max(outcome.peak_bytes for outcome in outcomes) < MEMORY_BYTES // 8


@pytest.mark.fault(Fault.MUTATED_SHARD)
@pytest.mark.parametrize("kind", FILES)
def test_mutants_of_every_layer_are_read_or_refused(kind: str) -> None:
    check(kind, 0, 300)


@pytest.mark.slow
@pytest.mark.fault(Fault.MUTATED_SHARD)
@pytest.mark.parametrize("kind", FILES)
def test_many_mutants_of_every_layer_are_read_or_refused(kind: str) -> None:
    check(kind, 10_000, 20_000)


@pytest.mark.fault(Fault.MUTATED_SHARD)
@pytest.mark.parametrize("kind", ["frames", "evidence-flow", "masks"])
def test_mutants_reach_every_part_of_a_file_and_pass_its_checksums(kind: str) -> None:
    whole = contents(kind)[FILES[kind]]
    all_mutants = [mutant(kind, seed)[FILES[kind]] for seed in range(200)]
    same = [data for data in all_mutants if len(data) == len(whole)]
    assert 100 < len(same) < 190  # the others are longer or shorter
    changed = np.array([np.frombuffer(data, np.uint8) for data in same]) != np.frombuffer(whole, np.uint8)
    assert changed.any(axis=1).mean() > 0.9
    blocks = structures(whole)
    assert len(blocks) == 23  # superblock, root, 15 data sets, and the parts of the list of their names
    assert all(changed[:, block.start : block.stop].any() for block in blocks)
    touched = [
        (data, block)
        for data in same[:40]
        for block in blocks
        if data[block.start : block.stop] != whole[block.start : block.stop]
    ]
    assert np.mean([block in structures(data) for data, block in touched]) > 0.3


@pytest.mark.fault(Fault.BIT_ROT)
def test_every_mutant_is_found_by_its_checksum(tmp_path: Path) -> None:
    kinds = [kind for kind in FILES if kind != "manifest"]
    for kind in kinds:
        write_set(tmp_path / kind, kind)
        with ShardSet(tmp_path / kind) as shards:
            assert [finding for _, finding in verify_files(shards) if finding] == []
            whole = contents(kind)
            for seed in range(60):
                spoilt = mutant(kind, seed)
                (tmp_path / kind / FILES[kind]).write_bytes(spoilt[FILES[kind]])
                found = [finding.where for _, finding in verify_files(shards) if finding]
                assert found == ([FILES[kind]] if spoilt != whole else []), seed


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("kind", ["frames", "evidence", "masks"])
def test_a_flipped_bit_in_any_structure_that_is_read_is_refused_on_opening(tmp_path: Path, kind: str) -> None:
    whole = contents(kind)
    name, rng = FILES[kind], np.random.default_rng(0)
    unread = (b"FSHD", b"FSSE")  # free space: for writers
    blocks = [
        each for each in structures(whole[name]) if whole[name][each.start : each.start + 4] not in unread
    ]
    assert len(blocks) == 21
    for block in blocks:
        for at in [block.start, block.stop - 1, *rng.integers(block.start, block.stop, 4)]:
            spoilt = bytearray(whole[name])
            spoilt[at] ^= 1 << int(rng.integers(8))
            write_set(tmp_path, kind, {**whole, name: bytes(spoilt)})
            with ShardSet(tmp_path) as shards, pytest.raises(ShardError, match=f"{Path(name).name}"):
                if kind == "masks":
                    shards.masks_file("default", 0)
                else:
                    (shards.frames_file if kind == "frames" else shards.evidence_file)(0)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_the_stale_checksum_of_images_from_older_libraries_is_mended(tmp_path: Path) -> None:
    """HDF5 1.14 (h5py 3.12) cleared a flag in the image of a file and left its checksum."""
    image = contents("frames")["frames/00000.h5"]
    stale = image[:44] + bytes(4) + image[48:]
    (tmp_path / "stale.h5").write_bytes(stale)
    with pytest.raises(OSError, match="checksum"):
        h5py.File(tmp_path / "stale.h5")
    assert sealed(stale) == image
    (tmp_path / "mended.h5").write_bytes(sealed(stale))
    with h5py.File(tmp_path / "mended.h5") as file:
        assert len(file) == 15


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("kind", ["frames", "evidence", "evidence-flow"])
def test_a_piece_that_rots_is_never_published(tmp_path: Path, kind: str) -> None:
    layout = Layout(
        folder=tmp_path, set_id=SET_ID, frames=FramesConfig(size=examples.SIZE), flow=FlowConfig()
    )
    piece = PlannedPiece(clip_index=0, start=0, stop=4)
    planned = PlannedFile(index=0, segments=(PlannedSegment(clip_index=0, start=0, stop=4),))
    names = ("frames/00000.h5", "evidence/00000.h5")
    sound = [contents(kind)[name] for name in names]
    layout.seal_path(piece).parent.mkdir(parents=True)
    spoilt = 0
    for seed in range(100):
        layout.seal_path(piece).write_bytes(seal_of(sound))
        rotten = [mutant(kind, seed)[name] for name in names]
        if rotten == sound:
            continue
        spoilt += 1
        for path, content in zip(layout.piece_paths(piece), rotten, strict=True):
            path.write_bytes(content)
        with pytest.raises(BuildError, match="piece was removed"):
            assemble(layout, planned, [piece], None)
        assert not is_written(layout, piece)
        assert piece.name not in written_pieces(layout)
    assert spoilt > 90


@pytest.mark.fault(Fault.MUTATED_SHARD)
@pytest.mark.parametrize("kind", ["frames", "evidence", "evidence-flow"])
def test_a_mutated_piece_of_a_build_is_made_again_or_used(tmp_path: Path, kind: str) -> None:
    layout = Layout(
        folder=tmp_path, set_id=SET_ID, frames=FramesConfig(size=examples.SIZE), flow=FlowConfig()
    )
    piece = PlannedPiece(clip_index=0, start=0, stop=4)
    segment = PlannedSegment(clip_index=0, start=0, stop=4)
    paths = dict(zip(("frames/00000.h5", "evidence/00000.h5"), layout.piece_paths(piece), strict=True))
    paths["frames/00000.h5"].parent.mkdir(parents=True)
    published = []
    for seed in range(150):
        for name, path in paths.items():
            path.write_bytes(mutant(kind, seed)[name])
        # Under a seal of its own, as an enemy would make it: rot alone is found by the seal.
        layout.seal_path(piece).write_bytes(seal_of([path.read_bytes() for path in paths.values()]))
        try:
            published.append(assemble(layout, PlannedFile(index=0, segments=(segment,)), [piece], None))
        except BuildError as error:
            assert "the piece was removed" in str(error)
            assert not any(path.exists() for path in paths.values())
        else:
            frames = FramesFile(tmp_path / "frames/00000.h5", set_id=SET_ID, codec="jpeg", size=examples.SIZE)
            evidence = EvidenceFile(tmp_path / "evidence/00000.h5", set_id=SET_ID, size=examples.SIZE)
            assert len(frames) == len(evidence) == 4
    assert 10 < len(published) < 140
