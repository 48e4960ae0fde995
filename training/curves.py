"""Curves and pictures for TensorBoard.

Written at once and by this thread: torch's SummaryWriter keeps two minutes of curves in memory, which a
kill takes along, and writes them from a thread whose failure on a full disk is a traceback, or a wait
without end.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar


class Curves:
    """A new file of events in a folder.

    Args of the constructor:
        first_step: what earlier files say of this step and later ones is no longer shown.

    Raises (everywhere):
        OSError: disk full, no permission; what was written before can be read.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, also those of one second.
        place = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / f"events.out.tfevents.{place}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"), 0)
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), first_step)
        self._file.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of each curve, by its name."""
        self._write([scalar(name, value) for name, value in values.items()], step)

    def pictures(self, images: Mapping[str, Tensor], step: int) -> None:
        """(3, H, W) images in [0, 1] by their names."""
        self._write([image(name, value, dataformats="CHW") for name, value in images.items()], step)

    def close(self) -> None:
        self._file.close()

    def _write(self, summaries: list[Summary], step: int) -> None:
        for summary in summaries:
            self._add(Event(summary=summary), step)
        self._file.flush()

    def _add(self, event: Event, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._records.write(event.SerializeToString())
