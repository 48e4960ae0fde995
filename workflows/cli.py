"""The console command `instance-motion`: find the command, parse, run, turn errors into exit codes.

Every command is a module of `workflows.commands` with a frozen dataclass `Arguments`, whose
fields are the command line, and a function `run(arguments) -> exit code`. A command that
reads recipes has `from_recipe(data) -> Arguments` as well; ALIASES are other names of subcommands.

Exit codes: 0 done; 1 it could not be done, or something in it failed (a quarantined clip, a
damaged file); 2 the command line or a setting is wrong; 130 stopped by Ctrl-C.

Every command takes --log-json FILE, which is taken out before it parses: see `pipeline.events`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import io
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from pipeline.configuration import read_recipe
from pipeline.errors import ConfigError, InstanceMotionError
from pipeline.events import Event, event, json_log

PROGRAM = "instance-motion"
COMMANDS: dict[str, str] = {
    "build": "raw video or a data set -> shard set; resumes by itself",
    "remask": "new masks under other thresholds, without running a network",
    "inspect": "what is in a shard set: table, JSON, overlay video, contact sheet",
    "verify": "check every checksum and invariant of a shard set",
    "copy": "a shard set to another folder, or to an object store and back",
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
LOG_HELP = "Every command takes --log-json FILE: what happens, appended as JSON lines; - for standard error."
UNPREFIXED = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
PREFIXED = (tyro.conf.OmitSubcommandPrefixes,)
"""For a command whose settings would otherwise share names: its module says PREFIXES = True."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        log, words = _take_option(words, "--log-json", "a file, or - for standard error")
        with json_log(log, words[0] if words else ""):
            return _recorded(words)
    except _EXPECTED as error:  # before there is a log
        return _explain(error)[0]


def _recorded(words: Sequence[str]) -> int:
    """Run one command between its first event and its last."""
    begin = time.monotonic()
    event(Event.START, arguments=words, version=_version(), host=socket.gethostname(), folder=os.getcwd())
    code, line = 1, None
    try:
        code = _run(words)
    except _EXPECTED as error:
        code, line = _explain(error)
    except SystemExit as stop:  # help has been printed
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException as error:  # our bug: it keeps its traceback
        line = f"{type(error).__name__}: {error}"
        raise
    finally:
        event(Event.END, exit_code=code, seconds=round(time.monotonic() - begin, 3), error=line)
    return code


_EXPECTED = (KeyboardInterrupt, InstanceMotionError, OSError)


def _explain(error: BaseException) -> tuple[int, str | None]:
    """Print why a command ended, in one line; the exit code and the line."""
    if isinstance(error, BrokenPipeError):  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, None
    if isinstance(error, KeyboardInterrupt):
        line = str(error) or "stopped; run the same command again to go on"
        print(f"\n{line}", file=sys.stderr)
        return 130, line
    if isinstance(error, InstanceMotionError):  # the user can mend it; anything else is our bug
        line = f"error: {' '.join(str(error).split())}"
    else:  # full disk, no permission: what the system says is what there is to say
        assert isinstance(error, OSError)
        where = f"{' '.join(str(error.filename).split())}: " if error.filename else ""
        line = f"error: {where}{error.strerror or error}"
    print(line, file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1, line


def _version() -> str:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


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
        recipe, arguments = _take_option(arguments, "--recipe", "a YAML file")
        default = module.from_recipe(read_recipe(Path(recipe)) if recipe else {})
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                module.Arguments,
                prog=f"{PROGRAM} {name}",
                description=f"{module.__doc__}\n{LOG_HELP}",
                args=arguments,
                default=default,
                config=PREFIXED if getattr(module, "PREFIXES", False) else UNPREFIXED,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_complaint(complaint.getvalue())}; see {PROGRAM} {name} --help") from None


def _take_option(arguments: Sequence[str], option: str, kind: str) -> tuple[str | None, list[str]]:
    """The value of an option that is not the command's own to parse, and the rest; `kind` says what it is."""
    value, rest = None, list(arguments)
    for index, argument in enumerate(arguments):
        if argument == option:
            if index + 1 == len(arguments):
                raise ConfigError(f"{option} needs {kind}")
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
        f"{commands}\n\n{PROGRAM} COMMAND --help describes a command. {LOG_HELP}"
    )


if __name__ == "__main__":
    sys.exit(main())
