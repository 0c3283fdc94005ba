"""Options from a small TOML file: the same names, as if typed before the others.

    data = "wine"
    hidden = [16, 8]
    quick = true

A table named like the command, [compare], holds what only that command is to read.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Sequence
from typing import Any

from natgrad.cli.shared import UsageError


def add(parser: argparse.ArgumentParser) -> None:
    """--config."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a TOML file of these options, such as hidden = [16, 8]; what is typed "
        "goes first",
    )


def arguments(
    path: str, name: str, commands: dict[str, argparse.ArgumentParser]
) -> list[str]:
    """What a file says, as it would be typed.

    Args:
        path: of the TOML file.
        name: of the command.
        commands: all of them, with their parsers.

    Raises:
        UsageError: for a file that is no TOML, and for unknown options.
        OSError: where the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    own = table.pop(name, {})
    shared = {key: value for key, value in table.items() if key not in commands}
    if not isinstance(own, dict):
        raise UsageError(f"{path}: [{name}] must be a table.")
    options = {
        text: action
        for action in commands[name]._actions
        for text in action.option_strings
        if text not in ("--config", "--help")
    }
    typed: list[str] = []
    for key, value in {**shared, **own}.items():
        option = "--" + key.replace("_", "-")
        if option not in options:
            raise UsageError(f"{path}: {_unknown(key, name, options)}")
        typed += _typed(path, key, value, option, options[option])
    return typed


def _typed(
    path: str, key: str, value: Any, option: str, action: argparse.Action
) -> Sequence[str]:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {key} must be true or false, got {value!r}.")
        return [option] if value else []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list | bool) for item in values):
        raise UsageError(f"{path}: {key} must be a value or a list, got {value!r}.")
    if isinstance(value, list) and action.nargs is None:
        raise UsageError(f"{path}: {key} takes one value, got {value!r}.")
    return [option, *map(str, values)]


def _unknown(key: str, name: str, options: dict) -> str:
    known = [text.removeprefix("--") for text in options if text.startswith("--")]
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"natgrad {name} has no option {key!r}.{hint} Known: {', '.join(known)}."
