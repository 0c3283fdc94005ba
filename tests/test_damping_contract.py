"""Every transformation that takes a damping takes it by layer."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from contract import CLASSES, FEATURES, X
from optax_rows import ROWS, of_batch

import natgrad as ng

MODEL = ng.Model(
    lambda p, x: jnp.tanh(x @ p["in"]["w"] + p["in"]["b"][None]) @ p["out"],
    ng.families.Categorical(),
    example_inputs=X[:1],
)
PARAMS = {
    "in": {"b": jnp.ones(2), "w": jnp.ones((FEATURES, 2))},
    "out": jnp.ones((2, CLASSES)),
}


def takes_damping(function):
    return "damping" in inspect.signature(function).parameters


DAMPED = [name for name, row in ROWS.items() if takes_damping(row.make)]
# They multiply it by what has a number for each parameter.
NOT_BY_F = {"march", "scale_by_march"}


def program(name, damping):
    """The first update as text."""
    row = ROWS[name]
    tx = row.make(**row.arguments(MODEL) | {"damping": damping})

    def update(params):
        extra = of_batch(params, row.needs, MODEL)
        return tx.update(params, tx.init(params), params, **extra)

    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(update)(PARAMS)))


@pytest.mark.parametrize("name", DAMPED)
def test_a_tree_is_what_its_paths_say_and_what_does_not_fit_is_named(name):
    by_tree = program(name, {"in": 0.1, "out": 0.4})
    assert by_tree == program(name, lambda count: ng.ByPath({"": 0.4, "in": 0.1}))
    if name in NOT_BY_F:
        with pytest.raises(ValueError, match=r"natgrad.Relative.*known without F"):
            program(name, ng.Relative(0.2))
        assert program(name, 0.1) != by_tree
    else:
        assert program(name, ng.Relative(0.2)) != by_tree
    for wrong in ({"in": 0.1, "inn": 0.2}, lambda count: ng.ByPath({"in": 0.1})):
        with pytest.raises(ValueError, match=r"no λ for .'out'.*'in/b', 'in/w'"):
            program(name, wrong)


def test_all_of_them_are_in_the_table():
    takes = {
        name
        for name in ng.__all__
        if inspect.isfunction(each := getattr(ng, name)) and takes_damping(each)
    }
    assert takes - {"doctor", "compare"} == set(DAMPED)
