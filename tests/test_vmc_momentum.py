"""Momentum of variational Monte Carlo: SPRING under any damping, and PRIME-SR."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import relative_error
from vmc_steps import DAMPING, MOMENTUM, path, problem

import natgrad as ng
from natgrad import curvature as curvatures

KEY = jax.random.PRNGKey(3)


# Momenta ----------------------------------------------------------------------------


def test_spring_takes_dampings_that_the_metric_decides():
    """(F + Λ) φ = g + Λ μ φ_before with Λ = c diag F, and with a cap."""
    model, params, x, y = problem("gram", 3)
    rules = {
        ng.ScaleInvariant(0.2): lambda matrix: 0.2 * np.diag(matrix),
        ng.ConditionNumber(30.0): lambda m: np.linalg.eigvalsh(m)[-1] / 29 + 0 * m[0],
    }
    for rule, of in rules.items():
        tx = ng.scale_by_spring(
            curvatures.Gram(model, curvatures.Empirical()),
            damping=rule,
            momentum=MOMENTUM,
        )
        before = 0.0
        for update, gradient, row, _ in zip(
            *path(tx, model, params, x, y)[:3], range(3), strict=True
        ):
            matrix = row.T @ row
            own = of(matrix)
            right = gradient + own * MOMENTUM * before
            before = np.linalg.solve(matrix + np.diag(own), right)
            assert relative_error(update, before) < 1e-9


@pytest.mark.parametrize(("rows", "rate"), [(7, None), (None, None), (7, 0.3)])
def test_the_momentum_of_the_principal_range_is_that_of_the_paper(rows, rate):
    """Equations 4.4 to 4.7 in numpy, with eigenvectors of B Bᵀ, or of Bᵀ B.

    Where the rate is known, 1.5 in the third step as the schedule has it, μ <= 1 − η.
    """
    rates = (rate, rate, 1.5, 0.0) if rate else (0.0,) * 4
    model, params, x, y = problem("gram", 4)
    tx = ng.scale_by_spring(
        curvatures.Gram(model, curvatures.Empirical()),
        damping=DAMPING,
        momentum=ng.PrincipalRange(rows),
        trust_region=rate
        and ng.damping.TrustRegion(None, lambda count: jnp.asarray(rates)[count]),
    )
    record = lambda state: (state.momentum, state.principal[2:])
    updates, gradients, matrices, (momenta, said) = path(
        tx, model, params, x, y, record
    )
    before, last, paper = np.zeros(matrices.shape[2]), None, []
    for k, row in enumerate(matrices):
        left, singular, right = np.linalg.svd(row, full_matrices=False)
        s = singular[singular**2 > len(row) * np.finfo(float).eps * singular[0] ** 2]
        alpha, rank = np.sum(s**2) ** 2 / np.sum(s**4), s.size
        space = (left if rows else right.T)[:, : int(np.ceil(alpha))]
        momentum, overlap = 0.0, 0.0
        if last is not None:
            most = np.sqrt(min(space.shape[1], last.shape[1]))
            overlap = np.linalg.norm(space.T @ last) / most
            momentum = 1 - (1 - np.sqrt(overlap)) * (1 - (alpha / rank) ** 0.25)
            paper.append(momentum)
            momentum = min(momentum, max(1 - rates[k], 0))
        assert relative_error(momenta[k], momentum) < 1e-9
        for given, expected in zip(said, (alpha, rank, overlap), strict=True):
            assert abs(given[k] - expected) < 1e-9 * (1 + expected)
        damped = row.T @ row + DAMPING * np.eye(before.size)
        pulled = gradients[k] + DAMPING * momentum * before
        before, last = np.linalg.solve(damped, pulled), space
        assert relative_error(updates[k], before) < 1e-9
    assert 0 < momenta[-1] < 1
    bounded = [mu < own - 1e-9 for mu, own in zip(momenta[1:], paper, strict=True)]
    assert bounded == [rate is not None] * 2 + [False]


def test_the_principal_range_refuses_other_rows_and_large_matrices():
    model, params, x, y = problem("gram")
    empirical = curvatures.Gram(model, curvatures.Empirical())

    def update(curvature, rows, **batch):
        tx = ng.scale_by_spring(curvature, momentum=ng.PrincipalRange(rows))
        step = lambda p: tx.update(p, tx.init(p), p, **batch)
        return jax.eval_shape(step, params)

    for curvature, rows, message in (
        (empirical, 8, "has 7 score columns"),
        (curvatures.Dense(model), 7, "got a DenseMetric"),
    ):
        with pytest.raises(ValueError, match=message):
            update(curvature, rows, inputs=x[0], targets=y[0])
    with pytest.raises(ValueError, match=r"update\(gradient, state, params, inputs=x"):
        update(curvatures.Dense(model), None)
    large = ng.tree.Layout.of(jax.ShapeDtypeStruct((5000,), "float32"))
    with pytest.raises(ValueError, match="give rows="):
        ng.PrincipalRange().init(large)


def test_a_skipped_step_keeps_the_principal_space_and_the_variance():
    model, params, x, y = problem("gram", 2)
    curvature = curvatures.Gram(model, curvatures.Empirical())
    transforms = (
        ng.scale_by_spring(curvature, momentum=ng.PrincipalRange(7)),
        ng.scale_by_march(curvature),
        ng.scale_by_march(curvature, variance=ng.ScoreVariance()),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def after(tx, gradient, state, x):
        return tx.update(gradient, state, params, inputs=x, targets=y[0])[1]

    gradient = jax.jit(jax.grad(model.loss))(params, x[0], y[0])
    bad = jax.tree.map(lambda g: np.full_like(g, np.nan), gradient)
    for tx in transforms:
        good = after(tx, gradient, tx.init(params), x[0])
        for state in (
            after(tx, bad, good, x[0]),
            after(tx, gradient, good, np.nan * x[0]),
        ):
            assert optax.tree.get(state, "skipped")
            for name in ("principal", "variance", "direction"):
                one, other = (optax.tree.get(s, name, ()) for s in (good, state))
                for a, b in zip(
                    jax.tree.leaves(one), jax.tree.leaves(other), strict=True
                ):
                    np.testing.assert_array_equal(a, b)
