"""The `natgrad` command, which needs the `report` extra."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

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
    sys.unraisablehook = _interrupt_again
    code = main()
    if code == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt_again(ignored: Any) -> None:
    """Repeat a Ctrl-C that came while JAX looked at Python's garbage, and was lost."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    command()
