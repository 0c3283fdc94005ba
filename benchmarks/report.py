"""What every benchmark writes: NAME.json, NAME.md and pictures, into one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(
    folder: Path | None,
    name: str,
    report: dict[str, Any],
    text: str,
    figures: dict[str, Any] | None = None,
) -> None:
    """Files in `folder`, none where that is None.

    Args:
        folder: made where it is missing.
        name: of the files.
        report: figures, with "environment"; numbers that are not finite become null.
        text: Markdown below the lines on the machine, its title line first.
        figures: matplotlib's, by what follows NAME- in the file's name.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(finite(report), indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(content + "\n")
    pictures = []
    for key, figure in (figures or {}).items():
        file = f"{name}-{key.replace(' ', '-')}.png"
        figure.savefig(folder / file, dpi=110)
        pictures += [f"![{key}]({file})", ""]
    title, body = text.split("\n", 1)
    lines = [title, "", *about(report["environment"]), "", body.strip(), "", *pictures]
    (folder / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n")


def finite(tree: Any) -> Any:
    """The tree with None for infinities and NaN."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def about(environment: dict[str, Any]) -> list[str]:
    """Machine, load, versions, threads and commit as a Markdown list."""
    load = environment["load_average"]
    threads = {k: v for k, v in environment["threads"].items() if v}
    lines = [
        f"{environment['device']}, {environment['processor']}, "
        f"{environment['cores']} cores",
        "load average at the start "
        + ("unknown" if load is None else ", ".join(f"{one:.1f}" for one in load)),
        ", ".join(f"{k} {v}" for k, v in environment["versions"].items() if v),
        ", ".join(f"`{k}={v}`" for k, v in threads.items()) or "threads as they come",
        f"commit {environment['commit']}",
    ]
    return [f"- {line}" for line in lines]


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats with three digits, None as –."""
    body = [[cell(value) for value in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any, digits: int = 3) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        plain = 1e-3 <= abs(value) < 1e5 or value == 0
        short = f"{value:.{digits}g}"
        return f"{value:.0f}" if plain and "e" in short else short
    return str(value)


def quartiles(found: dict[str, float], digits: int = 3) -> str:
    """Median and quartiles as one cell."""
    middle, low, high = (cell(found[key], digits) for key in ("median", "low", "high"))
    return middle if low == high == middle else f"{middle} ({low} to {high})"
