"""A metric of each class that there is."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from problems import CASES

import natgrad as ng

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]


def looked_up(params, ids):
    """A table, a dense layer, and a parameter that nothing reads."""
    return jnp.tanh(params["table"][ids]) @ params["w"]


TABLE = {
    "table": jax.random.normal(KEY, (5, 2), "float64"),
    "w": jax.random.normal(jax.random.PRNGKey(1), (2, 3), "float64"),
    "idle": jnp.ones(2, "float64"),
}
IDS = jnp.array([0, 1, 1, 4, 2, 0])


def of_curvature(name):
    with jax.ensure_compile_time_eval():
        model, params, x, y = CASE.problem()
    return ng.CURVATURES[name](model).at(params, x, y, KEY)


def of_table(name):
    model = ng.Model(looked_up, ng.families.Categorical(), example_inputs=IDS)
    return ng.CURVATURES[name](model).at(TABLE, IDS, IDS % 3, KEY)


def first_of_each_kind():
    """One curvature of the registry for each class of metrics."""
    kinds = {}
    for name in ng.CURVATURES:
        metric = jax.eval_shape(functools.partial(of_curvature, name))
        kinds.setdefault(type(metric), name)
    return list(kinds.values())


METRICS = {
    name: functools.partial(of_curvature, name) for name in first_of_each_kind()
} | {
    "kfac of a table": functools.partial(of_table, "kfac"),
    "a multiple": lambda: 3 * of_curvature("kfac"),
    "a sum": lambda: of_curvature("kfac") * 0.5 + of_curvature("diagonal"),
}


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape, "float64")
