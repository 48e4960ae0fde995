"""Open shard sets and forks, fresh processes, threads: everybody reads the same, nobody waits for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.shards.reader import ShardSet
from tests.faults.readers import in_child, read, read_all
from tests.faults.table import Fault
from tests.training.shardsets import write_set
from tests.training.test_data import assert_equal_batches, config_of
from training.data import make_loader

pytestmark = pytest.mark.fault(Fault.FORK_AND_THREADS)

DEADLINE_S = 120
CLIPS = {"a": 24, "b": 9, "c": 15}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small files, so that several are open at once."""
    return write_set(tmp_path_factory.mktemp("handles") / "set", CLIPS, file_frames=3)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """One reader, one file after the other."""
    with ShardSet(folder) as shards:
        return read_all(shards)


@contextmanager
def deadline() -> Iterator[None]:
    """Nobody may wait for ever: the test fails instead."""

    def late(*_: Any) -> None:
        raise AssertionError(f"still waiting after {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_read_what_the_parent_has_open(
    method: str, folder: Path, expected: dict[tuple[int, int], tuple[bytes, ...]]
) -> None:
    context = multiprocessing.get_context(method)
    count = 4 if method == "fork" else 1
    with ShardSet(folder) as shards, deadline():
        assert read_all(shards) == expected
        held = len(shards._open)
        assert held == 32  # 16 files of two layers
        answers = context.Queue()
        children = [context.Process(target=in_child, args=(shards, n, answers)) for n in range(count)]
        for child in children:
            child.start()
        while_they_read = read_all(shards, 3)
        found = [answers.get() for _ in children]
        for child in children:
            child.join()
            assert child.exitcode == 0
        assert while_they_read == expected
        for _, opened, frames in found:
            assert opened == (held if method == "fork" else 0)  # inherited by a fork, and then not used
            assert frames == expected
        assert read_all(shards, 5) == expected


def test_a_fork_uses_files_of_its_own(folder: Path) -> None:
    """A parent's open file shares its position with a fork: two readers would move it for each other."""
    with ShardSet(folder) as shards, deadline():
        read_all(shards)
        inherited = list(shards._open.values())
        child = os.fork()
        if not child:
            read(shards, 0, 0)
            opened = list(shards._open.values())
            os._exit(int(any(one is other for one in opened for other in inherited) or not opened))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(shards._open.values()) == inherited


def test_eight_threads_share_one_set(
    folder: Path, expected: dict[tuple[int, int], tuple[bytes, ...]]
) -> None:
    with deadline():
        for _ in range(3):
            with ShardSet(folder) as shards, ThreadPoolExecutor(8) as pool:
                gate = threading.Barrier(8)  # all open files at the same moment

                def work(shift: int, shards: ShardSet = shards, gate: threading.Barrier = gate) -> Any:
                    gate.wait()
                    return read_all(shards, shift)

                assert all(found == expected for found in pool.map(work, range(8)))


def test_threads_of_a_fork_share_one_set(
    folder: Path, expected: dict[tuple[int, int], tuple[bytes, ...]]
) -> None:
    """The first reads of a fork, where the parent's files are let go, by eight threads at once."""
    with ShardSet(folder) as shards, deadline():
        read_all(shards)
        for _ in range(5):
            child = os.fork()
            if not child:
                code = 1
                try:
                    gate = threading.Barrier(8)

                    def work(shift: int, gate: threading.Barrier = gate) -> bool:
                        gate.wait()
                        return read_all(shards, shift) == expected

                    with ThreadPoolExecutor(8) as pool:
                        code = 0 if all(pool.map(work, range(8))) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_while_another_thread_reads_does_not_wait_for_its_lock(
    folder: Path, expected: dict[tuple[int, int], tuple[bytes, ...]]
) -> None:
    """HDF5 has one lock for all; a fork in the middle of a read must not inherit it locked."""
    with ShardSet(folder) as shards, deadline():
        stop, rounds = threading.Event(), [0]

        def read_on() -> None:
            with ShardSet(folder) as own:
                while not stop.is_set():
                    read_all(own)
                    own.close()  # so that files are opened in every round
                    rounds[0] += 1

        reader = threading.Thread(target=read_on)
        reader.start()
        try:
            for _ in range(8):
                child = os.fork()
                if not child:
                    signal.alarm(30)  # a child that waits for ever is ended, and seen
                    os._exit(0 if read_all(shards) == expected else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            stop.set()
            reader.join()
        assert rounds[0] > 1  # it did read meanwhile


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_data_workers_start_while_the_parent_reads(
    workers: int, method: Literal["fork", "forkserver"], folder: Path
) -> None:
    """Two epochs, while two threads of this process read the same files."""
    config = config_of(folder, seed=5)
    wanted = [batch for loader in [make_loader(config)] for _ in range(2) for batch in loader]
    with ShardSet(folder) as shards, deadline():
        read_all(shards)
        loader = make_loader(config_of(folder, seed=5, workers=workers, start_method=method))
        loader.dataset.read(0, 0)  # handles of the very set that the workers get
        stop = threading.Event()

        def read_on(shift: int) -> None:
            while not stop.is_set():
                read_all(shards, shift)
                time.sleep(0.001)

        readers = [threading.Thread(target=read_on, args=(shift,)) for shift in (0, 1)]
        for reader in readers:
            reader.start()
        try:
            found = [batch for _ in range(2) for batch in loader]
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    assert_equal_batches(found, wanted)
    assert all(torch.is_tensor(batch.images) for batch in found)
