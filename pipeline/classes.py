"""Classes of things that move by themselves, as stored in every shard.

The index in `CLASSES` is what the evidence and masks layers hold, so the order is
part of the shard format: append only.
"""

CLASSES: tuple[str, ...] = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "train",
    "truck",
    "animal",
)

CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
