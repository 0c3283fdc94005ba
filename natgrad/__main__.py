"""The `natgrad` command, which needs the `report` extra."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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


if __name__ == "__main__":
    sys.exit(main())
