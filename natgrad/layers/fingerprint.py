"""What a traced program does, as a key: equal keys mean equal equations.

Variables are numbered in the order in which they are made, so two traces of one program
have one key, whichever objects they consist of. Literals count by their value, arrays
that are closed over by their type, or by their value where that is asked for. Rules of
custom derivatives are Python functions, made anew with each trace, and do not count:
whoever depends on one has to ask what it does (`natgrad.layers.nesting`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.extend as jex
import numpy as np

from natgrad.layers import jaxprs

# Arrays up to this size count by their value where that is asked for.
SMALL = 1024


def fingerprint(jaxpr: jaxprs.Jaxpr, values: bool = False) -> Hashable:
    """The key of a jaxpr.

    Args:
        jaxpr: closed or open.
        values: whether arrays that are closed over count by their value.

    Raises:
        TypeError: something in it cannot be part of a key: with `values` an array that
            is traced, or of more than `SMALL` entries.
    """
    opened, constants = jaxprs.opened(jaxpr)
    number: dict[Any, int] = {}

    def name(v) -> Hashable:
        if jaxprs.is_literal(v):
            return _array(v.val), v.aval
        return number.setdefault(v, len(number))

    def made(variables) -> Hashable:
        return tuple((name(v), v.aval) for v in variables)

    key = [made((*opened.constvars, *opened.invars))]
    key += [_array(c) for c in constants] if values else []
    for equation in opened.eqns:
        custom = equation.primitive.name in jaxprs.CUSTOM
        params = tuple(
            (k, _key(v, values))
            for k, v in sorted(equation.params.items())
            if not (custom and _is_rule(v))
        )
        read = tuple(name(v) for v in equation.invars)
        key.append((equation.primitive, read, params, made(equation.outvars)))
    key.append(tuple(name(v) for v in opened.outvars))
    return tuple(key)


def _is_rule(value) -> bool:
    plain = (jex.core.Jaxpr, jex.core.ClosedJaxpr, bool, int, str, tuple, type(None))
    return not isinstance(value, plain)


def _key(value, values: bool) -> Hashable:
    if isinstance(value, jex.core.Jaxpr | jex.core.ClosedJaxpr):
        return fingerprint(value, values)
    if isinstance(value, tuple | list):
        return tuple(_key(item, values) for item in value)
    if isinstance(value, dict):
        return tuple((k, _key(v, values)) for k, v in sorted(value.items()))
    if isinstance(value, np.ndarray | jax.Array):
        return _array(value)
    hash(value)
    return value


def _array(value) -> Hashable:
    """Type, shape and entries of a small array.

    Raises:
        TypeError: it is traced, or not small.
    """
    if isinstance(value, jax.core.Tracer) or np.size(value) > SMALL:
        raise TypeError("not a small constant")
    if jax.dtypes.issubdtype(jax.typeof(value).dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    value = np.asarray(value)
    return value.dtype.name, value.shape, value.tobytes()
