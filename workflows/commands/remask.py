"""Make a new masks layer under other thresholds, next to the old ones, without a network.

Byte for byte what a full build with these settings would make. Prints how the new layer
differs from another one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import tyro

from pipeline.configuration import to_dict
from pipeline.graph import GraphConfig
from pipeline.inspection import compare_layers
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    name: str
    """Name of the new layer: letters, digits, '.', '_', '-'."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    against: str = DEFAULT_LAYER
    """Layer to compare the new one with."""
    replace: bool = False
    """Make it again where there is a layer of that name, whatever its settings."""
    json: bool = False
    """Print the comparison as JSON."""
    quiet: bool = False
    """No progress bars."""


def run(arguments: Arguments) -> int:
    remask(
        arguments.shards,
        arguments.name,
        arguments.masks,
        arguments.graph,
        replace_layer=arguments.replace,
        quiet=arguments.quiet,
    )
    with ShardSet(arguments.shards) as shards:
        difference = compare_layers(shards, arguments.against, arguments.name)
    print(json.dumps(to_dict(difference), indent=1) if arguments.json else difference.table())
    return 0
