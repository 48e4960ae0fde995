"""Frozen dataclasses to and from plain data (JSON, YAML), strictly.

Every setting lives in a frozen dataclass beside the code that reads it; its
`__post_init__` refuses values that it cannot have. This module only carries them to
and from files: an unknown key or a value of another type is an error that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import ConfigError

T = TypeVar("T")

MAX_YAML_BYTES = 1 << 18
"""Of a file of settings; the longest has some thousand."""
MAX_YAML_VALUES = 1 << 14
"""Values of such a file once every alias has been put in; a few aliases of aliases would be billions."""
MAX_YAML_DEPTH = 32
MAX_RECIPES = 16
"""Files that a recipe may go back to, one by way of the other."""


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a (nested) dataclass as JSON-able data."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "configuration") -> T:
    """Build a (nested) dataclass; absent keys keep their defaults.

    Raises:
        ConfigError: unknown key, or a value that the field's type does not admit.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {type(data).__name__}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(key if isinstance(key, str) else _short(key) for key in data if key not in names)
    if unknown:
        raise ConfigError(f"{where}: unknown key {_short(unknown[0])}; known are {', '.join(names)}")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read without running anything or making room for more than the file holds.

    Raises:
        ConfigError: no such file, too long, not plain YAML, a key twice, aliases that hold themselves or
            multiply without end.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise ConfigError(f"{path}: no regular file; give a YAML file")
        with open(path, "rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a YAML file") from None
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_YAML_BYTES} bytes; this is no file of settings")
    try:
        data = _plain_yaml(content.decode("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not plain YAML (nested too deep)") from None
    except Exception as error:  # PyYAML lets errors of many kinds through: of dates, numbers, characters
        raise ConfigError(f"{path}: not plain YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return data


def _plain_yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _count_values(root, {}, 0) > MAX_YAML_VALUES:
            raise ConfigError(
                f"more than {MAX_YAML_VALUES} values once its aliases are put in; write it plainly"
            )
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Values below a node with every alias put in; `known` are the counts of nodes, None while at work."""
    if depth > MAX_YAML_DEPTH:
        raise ConfigError(f"nested more than {MAX_YAML_DEPTH} deep; write it plainly")
    if id(node) not in known:
        known[id(node)] = None
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key in seen:  # PyYAML would silently take the last
                    line = node.start_mark.line + 1
                    raise ConfigError(
                        f"key {_short(key)} twice in the mapping of line {line}; keep one of them"
                    )
                seen.add(key)
            below = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_count_values(each, known, depth + 1) for each in below)
    count = known[id(node)]
    if count is None:
        raise ConfigError(f"an alias in line {node.start_mark.line + 1} holds itself; write it plainly")
    return count


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML mapping that may build on another file of its folder: `extends: other.yaml`.

    What it says itself goes before what the other says, key by key.

    Raises:
        ConfigError: not plain YAML, a file outside the folder, or files that extend each other.
    """
    return _read_recipe(path, ())


def _read_recipe(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if len(before) > MAX_RECIPES:
        raise ConfigError(f"{path}: more than {MAX_RECIPES} files extend each other; merge some")
    if path in before:
        raise ConfigError(f"{path} extends itself, by way of {before[-1].name}; break the circle")
    data = read_yaml(path)
    name = data.pop("extends", None)
    if name is None:
        return data
    if not isinstance(name, str) or not name.isprintable() or name in ("", "..") or Path(name).name != name:
        raise ConfigError(f"{path}: extends {_short(name)}; expected the name of a file in the same folder")
    return _merged(_read_recipe(path.with_name(name), (*before, path)), data)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over`, and what `base` has beside it."""
    both = {
        key: _merged(base[key], value)
        for key, value in over.items()
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **over, **both}


def canonical_json(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(data: Any) -> str:
    """SHA-256 of `canonical_json(data)`, 64 hex digits."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} as plain data")


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for arg in (arg for arg in args if arg is not type(None)):
            try:
                return _typed(arg, value, where)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]
    if origin is Literal:
        if not isinstance(value, (str, int)) or value not in args:
            raise ConfigError(f"{where}: {_short(value)} is none of {', '.join(map(repr, args))}")
        return value
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: expected a mapping, found {_short(value)}")
        return {key: _typed(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {_short(value)}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], item, where) for item in value)
        if len(args) != len(value):
            raise ConfigError(f"{where}: expected {len(args)} values, found {len(value)}")
        return tuple(_typed(arg, item, where) for arg, item in zip(args, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1023:
        return float(value)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if hint is Any or (hint in (int, float, str, bool) and type(value) is hint):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {_short(value)}")


class _Repr(reprlib.Repr):
    """A value in some words, however large it is and however often it holds a part of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = self.maxdict = self.maxlist = self.maxtuple = 3
        self.maxstring = self.maxother = 60

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 128:  # Python itself refuses to write very long ones
            return f"a number of {value.bit_length()} bits"
        return super().repr_int(value, level)


_short = _Repr().repr
