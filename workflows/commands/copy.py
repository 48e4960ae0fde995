"""Copy a finished shard set to another folder, or to an object store and back.

    instance-motion copy shards/kitti s3://bucket/kitti
    instance-motion copy s3://bucket/kitti shards/kitti --layer default

Every file is checked on its way. The copy is complete or no shard set: its index comes last. Run again, it
goes on where it was stopped, and adds layers made since. Keys and endpoint are the driver's matter: for S3,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or ~/.aws.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import tyro

from pipeline.configuration import to_dict
from pipeline.copy import copy_set
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    destination: tyro.conf.Positional[ShardLocation]
    """Where to: a folder or a URL."""
    layer: tuple[str, ...] = ()
    """Masks layers to copy; none is all."""
    threads: int = 4
    """Transfers at a time; each holds one file in memory."""
    check: bool = False
    """Read back what an object store has already, and write again what differs."""
    json: bool = False
    """Print what was copied as JSON."""
    quiet: bool = False
    """No progress bar."""


def run(arguments: Arguments) -> int:
    report = copy_set(
        arguments.shards,
        arguments.destination,
        layers=arguments.layer,
        threads=arguments.threads,
        check=arguments.check,
        quiet=arguments.quiet,
    )
    print(json.dumps(to_dict(report), indent=1) if arguments.json else report.summary())
    return 0
