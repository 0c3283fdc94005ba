"""One HTML page that holds everything: text, tables, and pictures as data URIs.

It asks for nothing beside itself, which its content security policy also forbids, and
reads on a phone as on a desk: tables and pictures scroll sideways in their own boxes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from natgrad.compare import plots, tables
from natgrad.compare.extras import require


def render(values: Mapping[str, Any]) -> str:
    """Fill in page.html, which stands beside this file.

    Args:
        values: name in the template -> value; text is escaped.

    Returns:
        The page.

    Raises:
        MissingExtra: where jinja2 is not installed.
        jinja2.UndefinedError: for a name of the template that has no value.
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("natgrad.cli", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["legend"] = tables.legend
    return environment.get_template("page.html").render(values)


def data_uri(figure: Any) -> str:
    """A matplotlib figure as the `src` of an image.

    Args:
        figure: what to show.

    Returns:
        A PNG in base64.
    """
    buffer = io.BytesIO()
    plots.save(figure, buffer)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
