"""Settings from somebody else: recipes, and the config.yaml of a run folder. One line, little memory, no code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from pipeline.configuration import from_dict, read_recipe, read_yaml, to_dict
from pipeline.errors import ConfigError
from tests.faults.forks import Forks, forks
from tests.faults.table import Fault
from training.config import TrainConfig

__all__ = ["forks"]

pytestmark = pytest.mark.fault(Fault.HOSTILE_YAML)


def laughs(levels: int, each: int = 9) -> str:
    """A value that holds each ** levels values by aliases of aliases."""
    lines = ["a0: &a0 [lol, lol]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * each)}]")
    return "\n".join(lines)


def merges(levels: int, each: int = 9) -> str:
    """The same by merge keys, which PyYAML multiplies while it reads."""
    lines = ["m0: &m0 {steps: 1, device: cpu}"]
    for level in range(1, levels + 1):
        lines.append(f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * each)}]}}")
    return "\n".join(lines)


HOSTILE = {
    "code": (
        "steps: !!python/object/apply:os.mkdir [CANARY]",
        "not plain YAML (could not determine a constr",
    ),
    "a module": ("steps: !!python/module:os", "not plain YAML"),
    "a new object": ("steps: !!python/object/new:os.system [mkdir CANARY]", "not plain YAML"),
    "laughs": (laughs(9), "more than 16384 values once its aliases are put in"),
    "laughs in keys": ("? " + "&x [a]\n: 1\n? *x\n: 2", "not plain YAML"),
    "laughs below a setting": (laughs(6) + "\ndata: {strides: *a6}", "more than 16384 values"),
    "merges": (merges(9), "more than 16384 values"),
    "a list of itself": ("steps: &a [*a]", "an alias in line 1 holds itself"),
    "a mapping of itself": ("data: &a {x: *a}", "an alias in line 1 holds itself"),
    "deep": ("steps: " + "[" * 50_000, "not plain YAML (nested too deep)"),
    "deep and closed": ("steps: " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
    "deep by indentation": ("\n".join(" " * n + "a:" for n in range(500)), "nested"),
    "huge": ("# " + "x" * (1 << 18), "longer than 262144 bytes"),
    "many keys": ("\n".join(f"k{n}:" for n in range(20_000)), "more than 16384 values"),
    "a key twice": ("steps: 1\nsteps: 2", "key 'steps' twice in the mapping of line 1"),
    "a key twice below": ("data:\n  seed: 1\n  'seed': 2", "key 'seed' twice in the mapping of line 2"),
    "binary": ("\x00\x01\x02", "not plain YAML"),
    "a date that is none": ("steps: 2001-99-99", "not plain YAML (month must be"),
    "a tag that does not fit": ("steps: !!timestamp x", "not plain YAML"),
    "a number of 5000 digits": ("steps: " + "9" * 5000, "not plain YAML (Exceeds the limit"),
    "two documents": ("steps: 1\n---\nsteps: 2", "not plain YAML"),
    "no document": ("", "expected a mapping of settings, found NoneType"),
    "a list": ("- 1", "expected a mapping of settings, found list"),
    "an unknown alias": ("steps: *a", "not plain YAML"),
    "a parent folder": ("extends: ../base.yaml", "expected the name of a file in the same folder"),
    "the parent folder": ("extends: ..", "expected the name of a file in the same folder"),
    "an absolute path": ("extends: /etc/passwd", "expected the name of a file in the same folder"),
    "no name": ("extends: ''", "expected the name of a file in the same folder"),
    "a name with a zero": ('extends: "a\\0b"', "expected the name of a file in the same folder"),
    "a list as name": ("extends: [a]", "expected the name of a file in the same folder"),
    "itself": ("extends: recipe.yaml", "extends itself"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = HOSTILE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("CANARY", str(tmp_path / "canary")))
    with pytest.raises(ConfigError) as error:
        read_recipe(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500 + len(str(path))
    assert not (tmp_path / "canary").exists()


def test_the_traps_are_real(tmp_path: Path) -> None:
    """The same texts do harm where they are read without care."""
    text, _ = HOSTILE["code"]
    yaml.unsafe_load(text.replace("CANARY", str(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()
    small = yaml.safe_load(laughs(3))
    assert str(small).count("lol") > 9**3  # nine times as many a level; the text, nine words
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}  # the first is silently lost
    with pytest.raises(ValueError, match="month"):
        yaml.safe_load(HOSTILE["a date that is none"][0])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"steps: \xff", b"\x80\x02}q\x00."])
def test_bytes_that_are_no_text_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not plain YAML") as error:
        read_yaml(path)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "zero.yaml", "folder.yaml"):
        with pytest.raises(ConfigError, match="no regular file"):
            read_yaml(tmp_path / name)


def test_recipes_do_not_extend_each_other_without_end(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "40.yaml").write_text("steps: 1\n")
    with pytest.raises(ConfigError, match="more than 16 files extend each other"):
        read_recipe(tmp_path / "0.yaml")
    assert read_recipe(tmp_path / "30.yaml") == {"steps": 1}


def test_anchors_and_merges_of_sensible_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}, {"x": 1}]}}


# ---------------------------------------------------------------------------- values


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = 1.0
    steps: int = 1
    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    names: tuple[str, ...] = ()
    anything: dict[str, Any] = field(default_factory=dict)


def shared(levels: int) -> Any:
    """A list that holds itself over and over: short in memory, endless as text."""
    value: Any = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


ODD_VALUES: list[Callable[[], Any]] = [
    lambda: shared(60),
    lambda: {"k": shared(60)},
    lambda: tuple(shared(60)),
    lambda: 10**400,
    lambda: 10**5000,
    lambda: "x" * 10**6,
    lambda: b"bytes",
    lambda: {1: 2},
    lambda: "a\0b",
]


@pytest.mark.parametrize("name", ["rate", "steps", "mode", "path", "names"])
@pytest.mark.parametrize("value", range(len(ODD_VALUES)))
def test_a_value_of_another_kind_is_a_short_line(name: str, value: int) -> None:
    """However often it holds itself: an error that prints it must not expand it."""
    data, fits = ODD_VALUES[value](), {("steps", 3), ("steps", 4)}
    if (name, value) in fits or (name == "path" and isinstance(data, str) and "\0" not in data):
        return
    with pytest.raises(ConfigError) as error:
        from_dict(Settings, {name: data})
    assert len(str(error.value)) < 400
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_key_is_a_short_line() -> None:
    for key in ("x" * 10**6, 10**5000, ("a", "b")):
        with pytest.raises(ConfigError, match="unknown key") as error:
            from_dict(Settings, {key: 1})  # type: ignore[dict-item]
        assert len(str(error.value)) < 400


# ---------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("case", ["merges"])
def test_commands_read_them_in_little_memory_and_time(case: str, forks: Forks, tmp_path: Path) -> None:
    """In a process that may take 256 MB more than it begins with."""
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    text = HOSTILE[case][0].replace("CANARY", str(tmp_path / "canary"))
    recipe.write_text(text)
    run.mkdir()
    (run / "config.yaml").write_text(text)
    begin = time.monotonic()
    limits = {"RLIMIT_AS": 256 << 20}
    training = forks.run("train", "--recipe", recipe, "--out", tmp_path / "new", limits=limits)
    page = forks.run("report", run, "--out", tmp_path / "page.html", limits=limits)
    assert (training.code, page.code) == (2, 2), training.said + page.said
    assert HOSTILE[case][1] in training.error
    assert HOSTILE[case][1] in page.error
    assert time.monotonic() - begin < 120
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "run"}


def test_so_much_memory_is_too_little_for_what_they_hold(forks: Forks) -> None:
    """The limit of the test above bites."""
    running = forks.run(
        str(512 << 20), function="tests.faults.test_yaml:take", limits={"RLIMIT_AS": 256 << 20}
    )
    assert running.code == 3
    assert forks.run(str(64 << 20), function="tests.faults.test_yaml:take").code == 0


def take(words: list[str]) -> int:
    """In a fork: take so many bytes."""
    try:
        return 0 if bytearray(int(words[0])) else 1
    except MemoryError:
        return 3


def test_settings_of_a_run_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    config = TrainConfig()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    assert from_dict(TrainConfig, read_yaml(path)) == config
