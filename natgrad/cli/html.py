"""One HTML page that holds everything: text, tables, and pictures as data URIs.

It asks for nothing beside itself, which its content security policy also forbids, and
reads on a phone as on a desk: tables and pictures scroll sideways in their own boxes.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from natgrad.compare import tables
from natgrad.compare.tables import Table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: #1b1b1b;
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid #ddd; }
p { max-width: 46rem; }
.about { color: #555; margin-top: 0; overflow-wrap: anywhere; }
.verdict { background: #eef6f3; border-left: 5px solid #009E73; padding: 1rem 1.25rem;
  margin: 1.25rem 0; }
.verdict p { font-size: 1.15rem; font-weight: 600; margin: 0 0 .5rem; }
.verdict ul { margin: 0; padding-left: 1.2rem; }
.verdict li { margin: .3rem 0; max-width: 46rem; }
.unfinished { background: #fdf3e7; border-left: 5px solid #D55E00;
  padding: .5rem 1rem; }
nav a { display: inline-block; margin: 0 1rem .4rem 0; color: #0072B2; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; font-weight: 600; }
td { border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; }
figure { margin: .75rem 0; }
figure img { display: block; width: 100%; min-width: 44rem; height: auto; }
figcaption, details { color: #555; font-size: .9rem; max-width: 46rem; }
dt { font-weight: 600; } dd { margin: 0 0 .35rem 1rem; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        parts: HTML, from the functions of this module.
    """

    title: str
    parts: tuple[str, ...]


def page(
    title: str,
    about: Sequence[str],
    headline: str,
    points: Sequence[str],
    sections: Sequence[Section],
    warning: str = "",
) -> str:
    """The whole page.

    Args:
        title: of the page.
        about: lines under the title.
        headline: the verdict in one sentence.
        points: what else there is to know.
        sections: what it rests on.
        warning: shown above the verdict where there is one.
    """
    text = html.escape
    named = [(f"part{index}", section) for index, section in enumerate(sections, 1)]
    links = " ".join(f'<a href="#{n}">{text(s.title)}</a>' for n, s in named)
    body = "".join(
        f'<section id="{n}"><h2>{text(s.title)}</h2>{"".join(s.parts)}</section>\n'
        for n, s in named
    )
    items = "".join(f"<li>{text(point)}</li>" for point in points)
    warned = f'<p class="unfinished">{text(warning)}</p>' if warning else ""
    lines = "<br>".join(map(text, about))
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>
{_STYLE}</style>
</head>
<body>
<header><h1>{text(title)}</h1><p class="about">{lines}</p></header>
{warned}
<section class="verdict"><p>{text(headline)}</p><ul>{items}</ul></section>
<nav>{links}</nav>
{body}</body>
</html>
"""


def paragraph(words: str) -> str:
    """Some sentences."""
    return f"<p>{html.escape(words)}</p>"


def table(
    columns: Table, rows: Iterable[Any], notes: Sequence[tuple[str, str]] = ()
) -> str:
    """A table and, folded, what its columns mean.

    Args:
        columns: of the table.
        rows: one a line.
        notes: (mark, meaning) beside those of the columns.
    """
    text = html.escape
    heads = "".join(
        f"<th>{text(column.title).replace(chr(10), '<br>')}</th>" for column in columns
    )
    lines = "".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in line)}</tr>"
        for line in tables.cells(columns, rows)
    )
    legend = "".join(
        f"<dt>{text(title)}</dt><dd>{text(meaning)}</dd>"
        for title, meaning in [*notes, *tables.legend(columns)]
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
        f"<details><summary>What the columns mean</summary><dl>{legend}</dl></details>"
    )


def picture(figure: Any, save: Callable[[Any, BinaryIO], None], caption: str) -> str:
    """A matplotlib figure inside the page.

    Args:
        figure: what to show.
        save: writes it as PNG.
        caption: what it shows, also for those who cannot see it.
    """
    buffer = io.BytesIO()
    save(figure, buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    words = html.escape(caption)
    return (
        f'<figure><div class="wide"><img alt="{words}" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{words}</figcaption></figure>"
    )
