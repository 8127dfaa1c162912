"""The command line: which commands there are, and what an error looks like."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from openhcs_stream.cli._logging import VALUE_OPTIONS, add_log_arguments, logging_to_stderr
from openhcs_stream.errors import StreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_PROGRAM = "openhcs-stream"

#: Exit statuses: the caller's mistake, as argparse has it, and everything else that went wrong.
_USAGE, _FAILED, _INTERRUPTED = 2, 1, 130


@dataclass(frozen=True)
class _Command:
    """One subcommand; its module has ``add_arguments(parser)`` and ``run(arguments) -> int``."""

    module: str
    help: str


_COMMANDS = {
    "send": _Command("_send", "show files in a viewer"),
    "status": _Command("_status", "list the running viewers and their queues"),
    "stop": _Command("_stop", "end a running viewer"),
    "screenshot": _Command("_screenshot", "save what a viewer shows as a PNG file"),
    "bench": _Command("_bench", "measure this machine's paths beside its limits"),
    "edits": _Command("_edits", "list, or save, corrections that no worker has taken"),
    "clear": _Command("_clear", "remove everything that a viewer shows"),
    "record": _Command("_record", "write what workers stream into a file"),
    "replay": _Command("_replay", "send a recorded file into a viewer"),
    "demo": _Command("_demo", "stream a small plate of real images, end to end"),
    "doctor": _Command("_doctor", "check what this machine lacks, and how to mend it"),
    "bundle": _Command("_bundle", "collect what a bug report needs, without secrets"),
    "gc": _Command("_gc", "remove what viewers and workers left that were killed"),
}


class _Parser(argparse.ArgumentParser):
    """Its errors are ours: one line, with the cure, and no list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", cure=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``openhcs-stream`` command.

    Parameters
    ----------
    argv : sequence of str or None
        The arguments without the program's name; None: those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 it could not be done, 2 it can't be asked for like this.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except SystemExit as end:  # argparse, after --help and --version
        return end.code if isinstance(end.code, int) else _FAILED
    except StreamError as error:
        if debug:
            raise
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return _USAGE if isinstance(error, UsageError) else _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). Nothing more is to be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _run(arguments: list[str]) -> int:
    from openhcs_stream.discovery import installed_viewers, unknown_viewer

    viewers = installed_viewers()
    chosen = _command_in(arguments)
    if chosen is not None and chosen not in _COMMANDS and chosen not in viewers:
        raise unknown_viewer(
            chosen,
            what=f"{chosen!r} is no command and no installed viewer. "
            f"Commands: {', '.join(_COMMANDS)}.",
        )
    parser = _Parser(
        prog=_PROGRAM,
        description="Show images, labels and outlines in a viewer while they are made.",
        epilog="A viewer's name starts that viewer; see `openhcs-stream COMMAND --help`.",
    )
    parser.add_argument("--version", action=_Version)
    shared = _Parser(add_help=False)
    for each in (parser, shared):
        add_log_arguments(each)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    rows = {name: _Command("_receive", f"start the {name} viewer") for name in viewers} | _COMMANDS
    for name, command in rows.items():
        about = command.help[0].upper() + command.help[1:] + "."
        sub = commands.add_parser(
            name, help=command.help, description=about, parents=[shared], allow_abbrev=False
        )
        if name == chosen:  # the others' modules stay unread
            module = importlib.import_module(f"openhcs_stream.cli.{command.module}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        if chosen not in viewers:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        from openhcs_stream.cli._receive import viewer_options

        parsed.option = [*parsed.option, *viewer_options(rest)]
    # Whoever starts a viewer wants to follow what comes.
    level = logging.INFO if chosen in viewers or chosen == "record" else logging.WARNING
    with logging_to_stderr(parsed, level=level):
        status: int = parsed.run(parsed)
    return status


def _command_in(arguments: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of one."""
    words = iter(arguments)
    for word in words:
        if word in VALUE_OPTIONS:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


class _Version(argparse.Action):
    """Look the version up only when somebody asks for it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"{_PROGRAM} {version('openhcs-stream')}")
        parser.exit()
