"""Settings to and from plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.configuration import canonical_json, digest, from_dict, read_yaml, to_dict
from pipeline.errors import ConfigError
from tests.faults.table import Fault


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: tuple[int, int] = (3, 4)
    names: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5
    limit: int | None = None
    path: Path | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


def test_a_round_trip_changes_nothing() -> None:
    config = Outer(
        inner=Inner(names=("x",), mode="b"),
        limit=3,
        path=Path("w.pt"),
        table={"k": Inner()},
        anything={"z": [1, None]},
    )
    assert from_dict(Outer, to_dict(config)) == config


def test_absent_keys_keep_their_defaults() -> None:
    assert from_dict(Outer, {"inner": {"mode": "b"}}) == Outer(inner=Inner(mode="b"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rat": 1.0}, r"unknown key 'rat'; known are inner, rate"),
        ({"rate": "fast"}, r"rate: expected float, found 'fast'"),
        ({"rate": True}, r"rate: expected float, found True"),
        ({"limit": 1.5}, r"limit: expected int, found 1.5"),
        ({"inner": {"size": [1]}}, r"inner.size: expected 2 values, found 1"),
        ({"inner": {"mode": "c"}}, r"inner.mode: 'c' is none of 'a', 'b'"),
        ({"inner": 3}, r"inner: expected a mapping, found int"),
        ({"table": {"k": {"size": 3}}}, r"table.k.size: expected a list, found 3"),
    ],
)
def test_a_wrong_value_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, data)


def test_whole_numbers_serve_as_floats() -> None:
    assert from_dict(Outer, {"rate": 2}).rate == 2.0


def test_equal_data_has_one_digest() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError, match="NaN|nan|Out of range"):
        canonical_json(float("nan"))


@pytest.mark.fault(Fault.HOSTILE_YAML)
def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / "evil.yaml"
    file.write_text(f"a: !!python/object/apply:os.system ['touch {trap}']\n")
    with pytest.raises(ConfigError, match="not plain YAML"):
        read_yaml(file)
    assert not trap.exists()


def test_a_missing_or_odd_yaml_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping of settings, found list"):
        read_yaml(tmp_path / "list.yaml")
