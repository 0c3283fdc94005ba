"""Commands of typer with list options of several values: `--hidden 16 8`.

Click reads one value an option, so the words after a list option are spelled out as
`--hidden 16 --hidden 8` before click sees them. Where a list option is given twice the
last one counts.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_OPEN = "natgrad.cli.parsing.open"


class Command(TyperCommand):
    """A command whose list options take the words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name, list options spelled out."""
        lists = {
            text
            for option in self.params
            if getattr(option, "multiple", False)
            for text in option.opts
        }
        spelled, ctx.meta[_OPEN] = spell_out(args, lists)
        return super().parse_args(ctx, spelled)

    def shell_complete(self, ctx: Any, incomplete: str) -> list:
        """What may follow: values of the list option that came last, or options."""
        if not incomplete.startswith("-"):
            for option in self.params:
                if ctx.meta[_OPEN] in option.opts:
                    return option.shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)


def spell_out(args: list[str], lists: set[str]) -> tuple[list[str], str | None]:
    """Repeat the name of a list option before each of its values.

    Args:
        args: words of a command line.
        lists: names of the options that take several values, such as "--hidden".

    Returns:
        The words with one value an option, and the list option that the last word
        belongs to; None where it belongs to none.
    """
    values: dict[str, list[str]] = {}
    others: list[str] = []
    current = None
    for word in args:
        if word.startswith("-") and not word[1:2].isdigit():
            current = word if word in lists else None
            if current is None:
                others.append(word)
            else:
                values[current] = []
        elif current is None:
            others.append(word)
        else:
            values[current].append(word)
    pairs = [
        part for name, words in values.items() for w in words for part in (name, w)
    ]
    # Click says that these need a value.
    empty = [name for name, words in values.items() if not words]
    return [*pairs, *others, *empty], current
