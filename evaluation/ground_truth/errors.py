"""What is wrong with ground truth that a user gave; every reader of the package raises it."""

from pipeline.errors import InstanceMotionError


class GroundTruthError(InstanceMotionError, ValueError):
    """Ground truth is missing, damaged or not what its benchmark says; the message names the download."""


class MissingTruthError(GroundTruthError):
    """A file is not there at all."""
