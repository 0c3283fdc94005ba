"""Progress with the time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

# (what is being done now, how many parts were finished since the last call).
Advance = Callable[[str, float], None]

# Seconds between two lines where there is no terminal.
_INTERVAL = 15.0


@contextlib.contextmanager
def progress(total: float) -> Iterator[Advance]:
    """Shows on standard error how much of `total` is done."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(total) as advance:
            yield advance
    else:
        yield _Lines(total)


@contextlib.contextmanager
def _bar(total: float) -> Iterator[Advance]:
    import rich.console
    import rich.progress as parts

    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(bar_width=None),
        parts.TaskProgressColumn(),
        parts.TimeElapsedColumn(),
        parts.TextColumn("left"),
        parts.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True, highlight=False)
    with parts.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda text, done: bar.update(task, description=text, advance=done)


class _Lines:
    """Prints a line if the last is `_INTERVAL` seconds old."""

    def __init__(self, total: float):
        self._total = total
        self._done = 0.0
        self._start = self._last = time.monotonic()

    def __call__(self, text: str, done: float) -> None:
        self._done = min(self._done + done, self._total)
        now = time.monotonic()
        if now - self._last < _INTERVAL:
            return
        self._last = now
        left = ""
        if self._done:
            rest = (now - self._start) * (self._total / self._done - 1)
            left = f", about {rest:.0f} s left"
        share = f"{self._done / self._total:.0%}"
        print(f"{share} {text}{left}", file=sys.stderr, flush=True)
