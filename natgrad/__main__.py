"""The `natgrad` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from natgrad import __version__
from natgrad.cli import compare, completion, config, devices, race, report, spectrum
from natgrad.cli.shared import FAILED, INTERRUPTED, USAGE, UsageError
from natgrad.compare.extras import MissingExtra

# Modules with register(subparsers), whose parsers set `run`: arguments -> exit code.
COMMANDS = (compare, race, spectrum, report, devices, completion)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments; the exit code."""
    parser, commands = _parsers()
    typed = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parser.parse_args(typed)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if getattr(arguments, "config", None) is not None:
            arguments = _configured(parser, commands, arguments, typed)
        return arguments.run(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted, wrote nothing", INTERRUPTED)
    except UsageError as error:
        return _fail(arguments, f"error: {error}", USAGE)
    except (MissingExtra, OSError) as error:
        return _fail(arguments, f"error: {error}", FAILED)


def _parsers() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands."""
    parser = _Parser(
        prog="natgrad",
        description="Differentiable natural-gradient optimizers for JAX.",
    )
    parser.add_argument("--version", action="version", version=f"natgrad {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, parser_class=_Parser
    )
    for module in COMMANDS:
        module.register(commands)
    for name, command in commands.choices.items():
        if name != "completion":
            config.add(command)
    return parser, commands.choices


def _configured(
    parser: _Parser,
    commands: dict[str, argparse.ArgumentParser],
    arguments: argparse.Namespace,
    typed: list[str],
) -> argparse.Namespace:
    """The arguments with those of the --config file before what was typed."""
    name = arguments.command
    read = config.arguments(arguments.config, name, commands)
    place = typed.index(name) + 1
    return parser.parse_args([*typed[:place], *read, *typed[place:]])


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    print(f"natgrad {arguments.command}: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
