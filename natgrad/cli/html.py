"""One HTML page that holds everything: text, tables, and pictures as data URIs.

It asks for nothing beside itself, which its content security policy also forbids, and
reads on a phone as on a desk: panels stack, and what is wider scrolls in its own box.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from natgrad.compare import plots, tables
from natgrad.compare.extras import require

# Pixels an inch.
_DPI = 130


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


def pictures(figure: Any) -> list[str]:
    """A matplotlib figure as the `src` of images, one a panel where panels stand alone.

    Args:
        figure: what to show; one whose panels share axes is one image.

    Returns:
        PNGs in base64.
    """
    buffer, axes = io.BytesIO(), figure.axes
    groups = [g for a in axes for g in (a.get_shared_x_axes(), a.get_shared_y_axes())]
    if any(len(group.get_siblings(axis)) > 1 for axis in axes for group in groups):
        plots.save(figure, buffer)
        return [_data_uri(buffer)]
    figure.set_dpi(_DPI)
    canvas = require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    uris = []
    for axis in axes:
        # Drawn by matplotlib from the lower edge, stored from the upper one.
        box = axis.get_tightbbox(canvas.get_renderer()).padded(_DPI // 16)
        left, right, low, high = (
            max(0, round(x)) for x in (*box.intervalx, *box.intervaly)
        )
        rows = slice(max(0, len(pixels) - high), len(pixels) - low)
        buffer = io.BytesIO()
        require("matplotlib.image").imsave(buffer, pixels[rows, left:right])
        uris.append(_data_uri(buffer))
    return uris


def _data_uri(buffer: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
