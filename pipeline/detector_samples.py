"""Frames of streetworld clips with their true masks, to train and measure detectors on."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from pipeline.detector_training import Sample
from pipeline.detectors import BUNDLED_CLASSES
from pipeline.errors import SourceError
from pipeline.progress import Bar
from pipeline.streetworld.truth import TRUTH_FILE, VIDEO_FILE, read_truth


def read_samples(folder: Path) -> list[Sample]:
    """Every frame of every clip in one split of streetworld, kept in memory.

    Classes are the bundled network's; decoded from the video, so that the network meets
    what compression leaves.

    Raises:
        SourceError: no clips, or a video that does not fit its truth.
    """
    clips = sorted(
        path.parent for path in folder.glob(f"*/{TRUTH_FILE}") if not path.parent.name.startswith(".")
    )
    if not clips:
        raise SourceError(
            f"{folder} holds no streetworld clips; render them with `instance-motion streetworld`"
        )
    samples: list[Sample] = []
    for clip in Bar(clips, unit="clip", desc=f"read {folder.name}"):
        truth = read_truth(clip / TRUTH_FILE)
        images = _decode(clip / VIDEO_FILE)
        if len(images) != len(truth):
            raise SourceError(
                f"{clip} has {len(images)} frames of video and {len(truth)} of truth; render it again"
            )
        labels = zip(truth.objects.id.tolist(), truth.objects.label, strict=True)
        classes = {i: BUNDLED_CLASSES.index(label) for i, label in labels}
        samples += [Sample(image, ids.copy(), classes) for image, ids in zip(images, truth.ids, strict=True)]
    return samples


def _decode(path: Path) -> list[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(f"{path} cannot be decoded ({error}); render the clip again") from error
