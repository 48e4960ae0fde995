"""Shard sets spoilt at random: read or refused in one line, never a crash, a hang or a grab for memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.reader import ShardSet
from pipeline.shards.verify import verify_files
from tests.faults.campaign import MEMORY_BYTES, read_mutants, read_sets, summary
from tests.faults.mutants import FILES, contents, mutant, structures, write_set
from tests.faults.table import Fault


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
