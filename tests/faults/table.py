"""What can go wrong: one name for each row of the table of faults.

A test says which fault it is about, wherever the test stands:

    @pytest.mark.fault(Fault.DISK_FULL)

It first shows that the fault really happens, then that nothing is lost. `make test-faults` runs
all of them and prints, for every row, its tests and how they ended.
"""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Rows, in the order in which they are printed."""

    DISK_FULL = "disk full while writing"
    KILLED = "kill -9 of build or remask, workers or driver, at any point"
    STOPPED = "Ctrl-C at any point"
    DAMAGED_VIDEO = "damaged, truncated, empty, one-frame video"
    BIT_ROT = "bit rot in a shard"
    TASK_TWICE = "a task runs twice"
    POISON_CLIP = "a clip that always kills its worker"
    NO_GPU = "no worker has the GPU asked for"
    TWO_WRITERS = "two builds into one directory"
    ODD_NAMES = "odd file names"
    HOSTILE_SHARD = "hostile shard"
    MUTATED_SHARD = "shards mutated at random"
    HOSTILE_CHECKPOINT = "hostile checkpoint"
    HOSTILE_YAML = "hostile YAML"
    WRONG_VERSION = "unknown version, missing layer, mixed layers"
    FORK_AND_THREADS = "fork and threads with open files"
    TRAINING_KILLED = "training killed"
    NAN = "NaN"
    ODD_INPUT = "degenerate input"
    MANY_TASKS = "100,000 tasks"
    CLUSTER = "workers of a cluster killed, joining, retiring"
    STORAGE = "object store: partial writes, damage, a cache in trouble"
