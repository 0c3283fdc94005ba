"""Options of several values, `--hidden 16 8`, and options from a small TOML file.

Click reads one value an option, so the words after a list option are spelled out as
`--hidden 16 --hidden 8` before click sees them. Where a list option is given twice the
last one counts. In a file are the same names, as if typed before the others:

    data = "wine"
    hidden = [16, 8]
    quick = true

A table named like the command, [compare], holds what only that command is to read.
"""

from __future__ import annotations

import tomllib
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from natgrad.cli.shared import UsageError
from natgrad.curvature import choose

# Not for a file.
_TYPED_ONLY = ("--config", "--help")

_OPEN = "natgrad.cli.parsing.open"


class Command(TyperCommand):
    """A command whose list options take the words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name, list options spelled out."""
        several = [o for o in self.params if getattr(o, "multiple", False)]
        lists = {text for option in several for text in option.opts}
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
            if current:
                values[current] = []
                continue
        (values[current] if current else others).append(word)
    pairs = [part for name in values for w in values[name] for part in (name, w)]
    # Click says that these need a value.
    empty = [name for name, words in values.items() if not words]
    return [*pairs, *others, *empty], current


def defaults_from_file(ctx: typer.Context, path: str | None) -> str | None:
    """Make what a TOML file says the defaults of a command's options.

    Returns:
        `path`.

    Raises:
        UsageError: for a file that cannot be read or is no TOML, or unknown options.
    """
    if path is None or ctx.resilient_parsing:
        return path
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    name = ctx.command.name or ""
    own = table.pop(name, {})
    if not isinstance(own, dict):
        raise UsageError(f"{path}: [{name}] must be a table.")
    others = getattr(ctx.find_root().command, "commands", ())
    shared = {key: value for key, value in table.items() if key not in others}
    options = {
        option.opts[0].removeprefix("--"): option
        for option in ctx.command.params
        if isinstance(option, TyperOption) and option.opts[0] not in _TYPED_ONLY
    }
    ctx.default_map, what = {}, f"option of {ctx.command_path}"
    try:
        for key, value in {**shared, **own}.items():
            option = choose(options, key.replace("_", "-"), what)
            ctx.default_map[option.name] = _value(key, value, option)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return path


def _value(key: str, value: Any, option: TyperOption) -> Any:
    """The value as the option reads it: a bool, a text, or a list of texts."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, got {value!r}.")
        return value
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list | bool) for item in values):
        raise ValueError(f"{key} must be a value or a list, got {value!r}.")
    if option.multiple:
        return [str(item) for item in values]
    if isinstance(value, list):
        raise ValueError(f"{key} takes one value, got {value!r}.")
    return str(value)
