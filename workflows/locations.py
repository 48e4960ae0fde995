"""The place of a shard set on the command line: a folder, or a URL such as s3://bucket/kitti."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from pipeline.shards.storage import Location, parse_location

ShardLocation = Annotated[
    Location,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FOLDER|URL",
        instance_from_str=lambda words: parse_location(words[0]),
        is_instance=lambda value: isinstance(value, (Path, str)),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A `pipeline.shards.storage.Location`, as tyro is to parse and show it."""
