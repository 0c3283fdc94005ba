"""The shapes in annotations hold on real calls, and every annotation can be read."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import AbstractArray, jaxtyped
from problems import CASES

import natgrad as ng
from natgrad.metrics.kronecker import factors
from natgrad.model import batch, weights
from natgrad.solvers import (
    NewtonSchulz,
    block_elimination,
    conjugate_gradients,
    dense,
    gram,
    spd_inverse,
    spectral,
)

ANNOTATED = ("tree", "control_flow", "model", "solvers", "metrics", "typing")


def holds(hint, value):
    """Is the value what a hint of arrays says? Other hints are not looked at."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    if typing.get_origin(hint) is tuple:
        hints = typing.get_args(hint)
        if hints[-1] is Ellipsis:
            hints = hints[:1] * len(value)
        return all(map(holds, hints, value))
    return True


def check_call(function, *args):
    """Call the function, its arguments and its result held against its annotations."""
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)
    with jaxtyped("context"):
        for name, value in signature.bind(*args).arguments.items():
            hint = hints.get(name, typing.Any)  # `self` has none
            assert holds(hint, value), f"{name}: {hint}"
        assert holds(hints["return"], function(*args)), hints["return"]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def spd(seed, size):
    rows = normal(seed, size, size + 2)
    return rows @ rows.T


def jacobian():
    model, params, x, y = CASES["categorical"].problem()
    curvature = ng.curvature.Gram(model, ng.curvature.Exact())
    metric = curvature.at(params, x)
    return metric.jacobian, params, model, x, y


CALLS = {
    "direct_solution": lambda: (dense.direct_solution, spd(0, 5), normal(1, 5), 0.1),
    "diagonal": lambda: (dense.diagonal_solution, jnp.ones(4), normal(1, 4), 0.1),
    "inverses": lambda: (
        spd_inverse.inverses,
        [spd(0, 4)],
        [jnp.asarray(0.0)],
    ),
    "spd_inverse": lambda: (block_elimination.spd_inverse, spd(2, 6)),
    "newton_schulz": lambda: (NewtonSchulz().__call__, spd(2, 6), jnp.array(1e-3)),
    "eigh": lambda: (spectral.eigh, spd(3, 4)),
    "spectral_root": lambda: (spectral.spectral_root, spd(3, 4), jnp.asarray(0.1)),
    "conjugate_gradients": lambda: (
        conjugate_gradients.conjugate_gradients,
        lambda v: 2 * v,
        normal(0, 3),
        lambda v: v,
        conjugate_gradients.RelativeResidual(),
    ),
    "eigen_solve": lambda: (
        factors.eigen_solve,
        factors.decompose([(spd(0, 3), spd(1, 2))])[0],
        jnp.asarray(0.1),
    ),
    "factor_weights": lambda: (
        weights.factor_weights,
        jnp.ones(4),
        (4, 2),
        jnp.ones((4, 2, 3)),
    ),
    "total_weight": lambda: (weights.total_weight, jnp.ones((4, 2))),
}


def traced(test):
    """The test by shapes alone: tracing computes nothing."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        CASES["categorical"].problem()  # is kept, so made outside of the trace
        jax.eval_shape(lambda: test(*args, **kwargs))

    return run


@pytest.mark.parametrize("name", CALLS)
@traced
def test_shapes_of_a_function_hold_on_a_call(name):
    check_call(*CALLS[name]())


@traced
def test_shapes_of_the_score_jacobian_hold_on_calls():
    b, params, model, x, y = jacobian()
    rows = normal(0, b.size)
    check_call(type(b).push, b, params)
    check_call(type(b).pull, b, rows)
    check_call(type(b).gram, b)
    check_call(type(b).explicit, b)
    check_call(gram.gram_solution, b, rows, 0.1)
    for block in b.pieces:
        u = normal(1, *block.columns)
        check_call(type(block).push, block, block.pull(u))
        check_call(type(block).gram, block)
    check_call(ng.Model.loss, model, params, x, y)
    check_call(ng.Model.log_prob, model, params, x, y)
    check_call(ng.Model.outputs, model, params, x)
    check_call(batch.example_keys, jax.random.key(0), 3)


@traced
def test_a_wrong_shape_is_seen():
    with pytest.raises(AssertionError, match="v: "):
        check_call(dense.direct_solution, spd(0, 5), normal(1, 4), 0.1)


@pytest.mark.parametrize("metric", ["Dense", "KFAC", "EKFAC", "Diagonal", "Gram"])
@traced
def test_shapes_of_metrics_hold_on_calls(metric):
    model, params, x, y = CASES["categorical"].problem()
    value = getattr(ng.curvature, metric)(model).at(params, x, y)
    for name, args in {
        "mv": (params,),
        "solve": (params, 0.1),
        "dense": (),
        "trace": (),
        "norm": (params,),
        "logdet": (0.1,),
    }.items():
        check_call(getattr(type(value), name), value, *args)


def public_functions(module):
    """The functions of a module, and those of its classes."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield value
            yield from filter(inspect.isfunction, vars(value).values())
        elif inspect.isfunction(value):
            yield value


def modules(name):
    module = importlib.import_module(f"natgrad.{name}")
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        yield importlib.import_module(f"natgrad.{name}.{info.name}")


@pytest.mark.parametrize("name", ANNOTATED)
def test_annotations_name_what_exists(name):
    functions = [f for module in modules(name) for f in public_functions(module)]
    for function in functions:
        typing.get_type_hints(function)
    assert functions or name == "typing"
