"""The command line: one-line errors, exit codes, recipes, help."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # help
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


WRONG = {
    "no such command": (("bild",), "no command 'bild'; did you mean build?"),
    "no such option": (("build", "a", "b", "--siz", "3"), "Unrecognized options: --siz"),
    "missing argument": (("build", "a"), "Missing from instance-motion build"),
    "not a number": (("build", "a", "b", "--size", "3", "x"), "Error parsing --size"),
    "impossible value": (("build", "a", "b", "--min-score", "3"), "min_score must lie in [0.05, 1], got 3.0"),
    "unknown choice": (("build", "a", "b", "--flow", "magic"), "magic"),
    "two places to run": (
        ("build", "a", "b", "--workers", "2", "--scheduler", "tcp://x:1"),
        "give either --scheduler or --workers",
    ),
    "recipe without a file": (("build", "a", "b", "--recipe"), "--recipe needs a YAML file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = WRONG[case]
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"usage: instance-motion {command}" in out
    assert "--help" in out


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {name}" in out for name in cli.COMMANDS)


def test_what_the_user_can_mend_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "inspect", str(tmp_path))
    assert code == 1
    assert err == f"error: {tmp_path}: no shard set (shardset.json is missing)\n"


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "build", str(tmp_path), str(tmp_path / "file" / "set"))
    assert code == 1
    assert "Not a directory" in err
    assert len(err.strip().splitlines()) == 1


def test_a_recipe_gives_defaults_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    from workflows.commands import build

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "frames: {size: [416, 128], quality: 80}\nmasks: {min_score: 0.7}\nflow: {flow: raft}\n"
    )
    arguments = cli._parse(build, "build", ["src", "out", "--recipe", str(recipe), "--quality", "90"])
    assert arguments.settings.frames.size == (416, 128)
    assert arguments.settings.frames.quality == 90
    assert arguments.settings.masks.min_score == 0.7
    assert arguments.settings.flow.flow == "raft"
    assert arguments.source == Path("src")


def test_a_recipe_with_an_unknown_key_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("frames: {siz: [416, 128]}\n")
    code, _, err = run(capsys, "build", "a", "b", "--recipe", str(tmp_path / "r.yaml"))
    assert code == 2
    assert "recipe.frames: unknown key 'siz'" in err


def test_every_recipe_in_the_package_can_be_read() -> None:
    from pipeline.configuration import read_yaml
    from workflows.commands import build

    recipes = sorted((Path(cli.__file__).parent / "recipes").glob("build-*.yaml"))
    assert recipes
    for recipe in recipes:
        build.from_recipe(read_yaml(recipe))
