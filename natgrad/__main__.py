"""The `natgrad` command, which needs the `report` extra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from natgrad.compare.extras import MissingExtra, require


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after `natgrad`; None for those that were typed.

    Returns:
        The exit code.
    """
    try:
        require("typer")
    except MissingExtra as error:
        print(f"natgrad: error: {error}", file=sys.stderr)
        return 1
    from natgrad.cli.main import run

    return run(sys.argv[1:] if argv is None else argv)


def command() -> NoReturn:
    """Run the command that was typed, and exit.

    After Ctrl-C at once: while jaxlib compiles, an ordinary exit can crash it.
    """
    code = main()
    if code == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
