"""Inverses renewed by need: a loop of Python over NumPy's inverses says which."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from kfac_steps import BATCHES, MODEL, PARAMS

import natgrad as ng
from natgrad.curvature import KFAC
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov

DAMPING, BOUND, OLDEST = 0.1, 0.3, 5


def shares(a, g):
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    return pi * np.sqrt(DAMPING), np.sqrt(DAMPING) / pi


def inverted(pair):
    return [
        np.linalg.inv(m + share * np.eye(len(m)))
        for m, share in zip(pair, shares(*pair), strict=True)
    ]


def residual(pair, inverses, v):
    found = []
    for m, inverse, share in zip(pair, inverses, shares(*pair), strict=True):
        signs = v[: len(m)]
        rest = inverse @ (m @ signs + share * signs) - signs
        found.append(np.linalg.norm(rest) / np.sqrt(len(m)))
    return max(found)


def factors(state):
    kept = state.statistics
    return [tuple(map(np.asarray, p)) for p in zip(*kept, strict=True)]


@functools.cache
def states():
    tx = ng.scale_by_curvature(
        KFAC(MODEL),
        damping=DAMPING,
        decay=0.5,
        solver=FactoredTikhonov(),
        refresh=ng.Refresh(statistics=2, inverses=ng.WhenStale(BOUND, OLDEST)),
    )
    update = jax.jit(lambda state, x: tx.update(PARAMS, state, PARAMS, inputs=x)[1])
    state, found = tx.init(PARAMS), []
    for x in BATCHES:
        state = update(state, x)
        found.append(state)
    return found


def test_the_stalest_layer_is_renewed_in_a_step_or_the_oldest():
    seen = states()
    sizes = [len(m) for pair in factors(seen[0]) for m in pair]
    v = np.random.default_rng(0).choice([-1.0, 1.0], max(sizes))
    expected = [inverted(pair) for pair in factors(seen[0])]
    need, made = np.zeros(len(expected)), np.zeros(len(expected), int)
    reasons = set()
    for step in range(1, len(seen)):
        before, after = factors(seen[step - 1]), factors(seen[step])
        age = step - 1  # usable steps since the first, before this one
        urgent = np.where(age - made >= OLDEST, np.inf, need)
        first = int(np.argmax(urgent))
        if urgent[first] <= BOUND:
            reasons.add("fresh")
        if age > 0 and urgent[first] > BOUND:
            expected[first] = inverted(before[first])
            need[first], made[first] = 0, age
            reasons.add("old" if np.isinf(urgent[first]) else "stale")
        if step % 2 == 0:  # statistics are estimated in every second step
            need = np.array(
                [residual(*each, v) for each in zip(after, expected, strict=True)]
            )
        for piece, pair in zip(seen[step].inverse.pieces, expected, strict=True):
            np.testing.assert_allclose(piece.inputs, pair[0], rtol=1e-9)
            np.testing.assert_allclose(piece.outputs, pair[1], rtol=1e-9)
        np.testing.assert_allclose(seen[step].inverse.renewal.residual, need, rtol=1e-7)
    assert reasons == {"fresh", "stale", "old"}


def test_residuals_of_fresh_inverses_are_rounding():
    state = states()[0]
    metric = KFAC(MODEL).metric(state.statistics, PARAMS)
    found = FactoredTikhonov().residuals(metric, state.inverse.pieces, DAMPING)
    assert np.all(np.asarray(found) < 1e-12)


def test_impossible_policies_are_refused():
    with pytest.raises(ValueError, match="residual"):
        ng.WhenStale(residual=0.0)
    with pytest.raises(ValueError, match="oldest"):
        ng.WhenStale(oldest=1)
    with pytest.raises(ValueError, match="by count"):
        ng.ekfac(0.1, MODEL, refresh=ng.Refresh(inverses=ng.WhenStale()))
    tx = ng.scale_by_curvature(
        KFAC(MODEL),
        solver=Eigenbasis(),
        refresh=ng.Refresh(inverses=ng.WhenStale()),
    )
    step = lambda p: tx.update(p, tx.init(p), p, inputs=BATCHES[0])
    with pytest.raises(ValueError, match="does not measure"):
        jax.eval_shape(step, PARAMS)
