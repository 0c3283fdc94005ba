"""The rows of docs/troubleshooting.md that speak of a step: each happens as it says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad.transforms.health import REASONS

PAGE = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(size=(12, 3)))
Y = jnp.asarray(DRAW.integers(0, 2, 12))
PARAMS = jnp.asarray(DRAW.normal(size=(3, 2)))
MODEL = ng.Model(lambda params, x: x @ params, ng.families.Categorical())


@jax.jit
def stepped(x, y, rate, damping):
    """One step from PARAMS: the loss after it, and the state."""
    tx = ng.natural_gradient(rate, MODEL, damping=damping)
    grads = jax.grad(MODEL.loss)(PARAMS, x, y)
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS, inputs=x)
    return MODEL.loss(optax.apply_updates(PARAMS, updates), x, y), state


SKIPPED = {
    "impossible label": (X, Y.at[2].set(-100), 0.1, 1e-3, 1),
    "inputs that are not finite": (X.at[2, 1].set(jnp.nan), Y, 0.1, 1e-3, 1),
    "damping below 0": (X, Y, 0.1, -1.0, 2),
    "learning rate of NaN": (X, Y, jnp.nan, 1e-3, 5),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_a_skipped_step_says_why_and_the_page_quotes_it(case):
    *arguments, reason = SKIPPED[case]
    _, state = stepped(*arguments)
    assert bool(optax.tree.get(state, "skipped"))
    with pytest.raises(ValueError, match=re.escape(REASONS[reason][:40])):
        ng.check_health(state)
    said = re.split(r"[.:]", REASONS[reason])[0]
    assert said in PAGE


def test_a_rate_of_adams_size_hardly_moves():
    start = float(MODEL.loss(PARAMS, X, Y))
    small, state = stepped(X, Y, 1e-3, 1e-3)
    usual, _ = stepped(X, Y, 0.3, 1e-3)
    assert 0 < start - small < (start - usual) / 50
    # Health speaks of the whole step, whatever the rate.
    assert optax.tree.get(state, "predicted_decrease") > 10 * (start - small)


def test_a_long_step_is_shortened_and_health_has_by_how_much():
    loss, state = stepped(X, Y, 30.0, 1e-3)
    short, small = stepped(X, Y, 1e-3, 1e-3)
    assert 0 < optax.tree.get(state, "scale") < 1 == optax.tree.get(small, "scale")
    assert loss < short


def test_a_singular_fisher_without_damping_falls_back():
    twice = X.at[:, 1].set(X[:, 0])
    loss, state = stepped(twice, Y, 0.3, 0.0)
    assert bool(optax.tree.get(state, "fallback"))
    assert loss < MODEL.loss(PARAMS, twice, Y)
    _, state = stepped(twice, Y, 0.3, 1e-3)
    assert not bool(optax.tree.get(state, "fallback"))


def test_the_loss_of_a_perfect_regression_is_the_constant_of_the_page():
    model = ng.Model(lambda params, x: x @ params, ng.families.NormalMean())
    loss = float(model.loss(PARAMS[:, :1], X, X @ PARAMS[:, :1]))
    assert loss == pytest.approx(math.log(2 * math.pi) / 2)
    assert f"{loss:.3f}" in PAGE
