"""What a traced program does, as a key: equal keys mean equal equations.

Variables are numbered in the order in which they are made, so two traces of one program
have one key, whichever objects they consist of. Literals count by their value, arrays
that are closed over by their type, or as `identity` says where that is asked for. Rules
of custom derivatives are Python functions, made anew with each trace, and do not count:
whoever depends on one has to ask what it does (`natgrad.layers.nesting`). Keys hold
digests of arrays, or weak references to them, and keep none of them in memory.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Hashable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from natgrad.layers import jaxprs

# Arrays on a device count by their entries up to this size, larger ones as objects.
SMALL = 1024


def fingerprint(jaxpr: jaxprs.Jaxpr, values: bool = False) -> Hashable:
    """The key of a jaxpr: equal keys mean equal equations.

    Args:
        jaxpr: closed or open.
        values: whether arrays that are closed over count by more than their type.

    Returns:
        A hashable key.

    Raises:
        TypeError: something in it cannot be part of a key.
    """
    opened, constants = jaxprs.opened(jaxpr)
    number: dict[Any, int] = {}

    def name(v) -> Hashable:
        if jaxprs.is_literal(v):
            return identity(v.val), v.aval
        return number.setdefault(v, len(number))

    def made(variables) -> Hashable:
        return tuple((name(v), v.aval) for v in variables)

    key = [made((*opened.constvars, *opened.invars))]
    key += [identity(c) for c in constants] if values else []
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
        return identity(value)
    hash(value)
    return value


def identity(array) -> Hashable:
    """What an array is known by: type, shape and entries; if traced, its type alone.

    A large array on a device, which cannot change, is known as the object that it is.

    Args:
        array: an array or a literal.

    Returns:
        A hashable key, which keeps no array in memory.
    """
    if isinstance(array, Tracer):
        return array.aval
    on_device = isinstance(array, jax.Array)
    if on_device and (array.size > SMALL or not array.is_fully_addressable):
        return _Object(array)
    if jnp.issubdtype(jax.typeof(array).dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            array = jax.random.key_data(array)
    array = np.asarray(array)
    digest = hashlib.sha256(array.tobytes()).digest()
    return array.dtype.name, array.shape, digest


class _Object:
    """Equal to itself and to what was made of the same object, while that lives."""

    def __init__(self, array: jax.Array):
        self._hash, self._reference = id(array), weakref.ref(array)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other) -> bool:
        if not isinstance(other, _Object):
            return False
        array = self._reference()
        return self is other or (array is not None and array is other._reference())
