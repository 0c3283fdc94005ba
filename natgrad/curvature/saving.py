"""Statistics in a file: an .npz of their arrays, with a description in JSON.

The description has the version of the format, that of the library, the curvature and
the tree: what is a dictionary, a tuple, a None, and each array's dtype. Arrays are kept
bit for bit, those of dtypes that numpy does not know (bfloat16) as whole numbers of the
same bits. Nothing is pickled, so a file runs no code when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.curvature.ekfac import Bases, EigenStatistics
from natgrad.curvature.gathered import DataSet
from natgrad.curvature.kfac import KroneckerFactors
from natgrad.curvature.matrix_free import MatrixFreeStatistics
from natgrad.curvature.over import DataAverage, Progress
from natgrad.curvature.preconditioners import LowRank
from natgrad.curvature.rows import GramStatistics
from natgrad.typing import Params

# What is written, and the only one that is read.
FORMAT = 1
_DESCRIPTION = "natgrad"
# What numpy raises for files that are none of these, or parts of one.
_UNREADABLE = OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile
_NAMED = {
    kind.__name__: kind
    for kind in (
        *(Bases, DataAverage, DataSet, EigenStatistics, GramStatistics),
        *(KroneckerFactors, LowRank, MatrixFreeStatistics, Progress),
    )
}


def save(path: str | os.PathLike, curvature: Curvature, statistics: Any) -> None:
    """Write statistics to one .npz file.

    A file of that name is replaced when the new one is complete.

    Args:
        path: of the file, by custom with the ending .npz.
        curvature: whose statistics they are; its kind and settings are written too.
        statistics: of `estimate`, `over` or the `callback` of `over`: a tree of
            dictionaries, lists, tuples, None and arrays.

    Raises:
        ValueError: the tree holds something else.
    """
    arrays: dict[str, np.ndarray] = {}
    description = {
        "format": FORMAT,
        "natgrad": sys.modules["natgrad"].__version__,
        "curvature": _in_words(curvature),
        "tree": _described(statistics, arrays),
    }
    arrays[_DESCRIPTION] = np.array(json.dumps(description))
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(
    path: str | os.PathLike,
    curvature: Curvature | None = None,
    params: Params | None = None,
) -> Any:
    """Read what `save` has written: the same tree, bit for bit.

    The metric needs no data: `curvature.metric(load(path, curvature, params), params)`,
    where layers are read off the model's `example_inputs`.

    Args:
        path: of the file.
        curvature: if given, the statistics must be this one's.
        params: if given beside it, they must have the shapes for these parameters.

    Returns:
        The tree that was saved, of `jax.Array`s.

    Raises:
        ValueError: the file is no such file or of another version of the format, the
            curvature is another, a leaf has another shape, or it needs float64.
        FileNotFoundError: there is none.
    """
    description, arrays = _read(path)
    if curvature is not None and description["curvature"] != _in_words(curvature):
        raise ValueError(
            f"{path} holds statistics of {description['curvature']}, expected "
            f"{_in_words(curvature)}: load it for the curvature that it is of."
        )
    statistics = _rebuilt(description["tree"], arrays)
    if not (curvature is None or params is None or isinstance(statistics, Progress)):
        inner = statistics
        while isinstance(inner, DataAverage | DataSet):
            inner = inner.statistics
        _check_shapes(path, inner, jax.eval_shape(curvature.init, params))
    return jax.tree.map(jnp.asarray, statistics)


def _read(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """The description, and the arrays by name."""
    try:
        # numpy leaves a file open that it opened and cannot read.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        description = json.loads(str(arrays[_DESCRIPTION]))
        version = description["format"]
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is not a complete file of natgrad.save: {error!r}."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has version {version} of the format, written by natgrad "
            f"{description.get('natgrad')}, and this natgrad reads version {FORMAT}: "
            "read it with the one that wrote it."
        )
    return description, arrays


def _described(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A tree in JSON, whose arrays are put into `arrays`."""
    if node is None:
        return None
    kind = type(node)
    if isinstance(node, dict) and all(isinstance(key, str) for key in node):
        return {"dict": {key: _described(n, arrays) for key, n in node.items()}}
    if kind in (list, tuple) or _NAMED.get(kind.__name__) is kind:
        return {kind.__name__: [_described(n, arrays) for n in node]}
    if not isinstance(node, jax.Array | np.ndarray | np.generic | int | float):
        raise ValueError(
            "What is saved must be a tree of dictionaries with names, lists, tuples, "
            f"None and arrays; got a {kind.__name__} in it: {node!r}."
        )
    if jnp.issubdtype(jnp.result_type(node), jax.dtypes.prng_key):
        raise ValueError("A typed key is saved by its bits, jax.random.key_data(key).")
    if isinstance(node, int | float):
        node = jnp.asarray(node)
    array, name = np.asarray(node), f"array_{len(arrays)}"
    known = array.dtype.kind in "biufc"
    arrays[name] = array if known else array.view(f"u{array.dtype.itemsize}")
    return {"array": name, "dtype": array.dtype.name}


def _rebuilt(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The tree of a description."""
    if node is None:
        return None
    if "array" in node:
        dtype = jnp.dtype(node["dtype"])
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"The file holds numbers of type {dtype}, and JAX would shorten them: "
                "switch its 64-bit numbers on first (JAX_ENABLE_X64=1)."
            )
        return arrays[node["array"]].view(dtype)
    ((kind, items),) = node.items()
    if kind == "dict":
        return {key: _rebuilt(each, arrays) for key, each in items.items()}
    items = [_rebuilt(each, arrays) for each in items]
    if kind in _NAMED:
        return _NAMED[kind](*items)
    return items if kind == "list" else tuple(items)


def _in_words(curvature: Curvature) -> str:
    """The kind of a curvature and its settings, all but the model."""
    settings = []
    for field in dataclasses.fields(curvature):
        value = getattr(curvature, field.name)
        if field.init and field.name not in ("model", "previous", "axis_name"):
            plain = re.sub(" at 0x[0-9a-f]+", "", repr(value))
            text = getattr(value, "__qualname__", plain)
            nested = isinstance(value, Curvature)
            settings.append(f"{field.name}={_in_words(value) if nested else text}")
    return f"{type(curvature).__name__}({', '.join(settings)})"


def _check_shapes(path: Any, found: Any, expected: Any) -> None:
    """Raise unless the leaves have the shapes for the parameters."""
    shapes, needed = (
        dict(zip(tree.paths(each), map(jnp.shape, jax.tree.leaves(each)), strict=True))
        for each in (found, expected)
    )
    for name in needed | shapes:
        if shapes.get(name) != needed.get(name):
            raise ValueError(
                f"{path} holds statistics for other parameters: {name or 'the array'} "
                f"has shape {shapes.get(name)}, expected {needed.get(name)} (None: not "
                "there)."
            )
