"""The console command `instance-motion`: find the command, parse, run, turn errors into exit codes.

Every command is a module of `workflows.commands` with a frozen dataclass `Arguments`, whose
fields are the command line, and a function `run(arguments) -> exit code`. A command that
reads recipes has `from_recipe(data) -> Arguments` as well; ALIASES are other names of subcommands.

Exit codes: 0 done; 1 it could not be done, or something in it failed (a quarantined clip, a
damaged file); 2 the command line or a setting is wrong; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from pipeline.configuration import read_recipe
from pipeline.errors import ConfigError, InstanceMotionError

PROGRAM = "instance-motion"
COMMANDS: dict[str, str] = {
    "build": "raw video or a data set -> shard set; resumes by itself",
    "remask": "new masks under other thresholds, without running a network",
    "inspect": "what is in a shard set: table, JSON, overlay video, contact sheet",
    "verify": "check every checksum and invariant of a shard set",
    "train": "shard sets -> checkpoint: depth, camera motion, object motion",
    "predict": "checkpoint and shard set -> depth, motions, trajectories",
    "demo": "any video and a run -> video of what moves and how, and its numbers",
    "evaluate": "numbers for predictions of any origin, each with its protocol",
    "tables": "the paper's tables as published, and what was measured here beside them",
    "report": "a run as one HTML page: curves, figures, best and worst pictures, links",
    "export": "depth and camera motion as ONNX files",
    "streetworld": "render synthetic streets with exact truth",
    "train-detector": "train the bundled detector on streetworld, and measure it",
    "quickstart": "all of it on synthetic streets, offline, in minutes",
}
UNPREFIXED = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
PREFIXED = (tyro.conf.OmitSubcommandPrefixes,)
"""For a command whose settings would otherwise share names: its module says PREFIXES = True."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped; run the same command again to go on'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InstanceMotionError as error:  # the user can mend it; anything else is our bug
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # full disk, no permission: what the system says is what there is to say
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {name!r}; {hint}")
    # Only the command's own module is loaded: `inspect` need not wait for detectron2.
    module = importlib.import_module(f"workflows.commands.{name.replace('-', '_')}")
    return module.run(_parse(module, name, rest))


def _parse(module: ModuleType, name: str, arguments: Sequence[str]) -> Any:
    """The command's `Arguments`, from the command line and, where given, a recipe.

    Raises:
        ConfigError: one line that says what is wrong.
        SystemExit: help was asked for and has been printed.
    """
    default = tyro.MISSING_NONPROP
    if arguments and arguments[0] in getattr(module, "ALIASES", {}):
        arguments = [module.ALIASES[arguments[0]], *arguments[1:]]
    if hasattr(module, "from_recipe"):
        recipe, arguments = _take_option(arguments, "--recipe")
        default = module.from_recipe(read_recipe(Path(recipe)) if recipe else {})
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                module.Arguments,
                prog=f"{PROGRAM} {name}",
                description=module.__doc__,
                args=arguments,
                default=default,
                config=PREFIXED if getattr(module, "PREFIXES", False) else UNPREFIXED,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_complaint(complaint.getvalue())}; see {PROGRAM} {name} --help") from None


def _take_option(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option that decides the defaults of the others, and the rest."""
    value, rest = None, list(arguments)
    for index, argument in enumerate(arguments):
        if argument == option:
            if index + 1 == len(arguments):
                raise ConfigError(f"{option} needs a YAML file")
            value, rest = arguments[index + 1], [*arguments[:index], *arguments[index + 2 :]]
        elif argument.startswith(option + "="):
            value, rest = argument.removeprefix(option + "="), [*arguments[:index], *arguments[index + 1 :]]
    return value, rest


def _complaint(box: str) -> str:
    """What tyro has to say about a command line, from its drawn box, as one line."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    words: list[str] = []
    for line in lines:
        if set(line) == {"─"}:
            break
        words += line.split()
    return " ".join(words) or "the command line cannot be read"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND ...\n\n"
        "Raw driving video in; depth, camera motion and each object's own 6-DoF motion out.\n\n"
        f"{commands}\n\n{PROGRAM} COMMAND --help describes a command."
    )


if __name__ == "__main__":
    sys.exit(main())
