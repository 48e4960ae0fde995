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

_ALIASES: dict[str, str] = {
    "people": "person",
    "pedestrian": "person",
    "rider": "person",
    "cyclist": "person",
    "bike": "bicycle",
    "van": "car",
    "motorbike": "motorcycle",
    "tram": "train",
    "lorry": "truck",
    **dict.fromkeys(("bird", "cat", "dog", "horse", "sheep", "cow"), "animal"),
    **dict.fromkeys(("elephant", "bear", "zebra", "giraffe"), "animal"),
}


def class_named(name: str) -> int | None:
    """Index of the class that other data sets call `name`; None for what does not move by itself."""
    name = name.strip().lower()
    return CLASS_INDEX.get(_ALIASES.get(name, name))
