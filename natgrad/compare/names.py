"""Choosing from a table by name, with an error that helps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def choose(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of `table` called `name`.

    Raises:
        ValueError: naming the closest entry, and all of them.
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"There is no {kind} called {name!r}.{hint} Known: {', '.join(table)}."
    )
