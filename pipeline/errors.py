"""Errors that the user can mend: one line each, no traceback.

Every message says what was found, what was expected and what to do next.
Anything that is not an `InstanceMotionError` is our bug and keeps its traceback.
"""


class InstanceMotionError(Exception):
    """Base of all errors that a user can mend; the command prints it as one line."""


class ConfigError(InstanceMotionError, ValueError):
    """A setting has a value that it cannot have (exit code 2)."""


class SourceError(InstanceMotionError, ValueError):
    """Input video, images or calibration are missing, damaged or implausible."""


class ShardError(InstanceMotionError, ValueError):
    """A shard set is damaged, hostile, incomplete or of another version."""


class DetectorError(InstanceMotionError, ValueError):
    """A detector, its weights or given masks cannot be used."""


class BuildError(InstanceMotionError, RuntimeError):
    """A build cannot start or go on: lease held, resource missing, plan changed."""


class TrainingError(InstanceMotionError, RuntimeError):
    """A training cannot start or go on: run folder, checkpoint, or losses that are not numbers."""
