"""Inverses of Kronecker products: equal to the dense solve of the same matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from kfac_problems import normal
from problems import CASES, ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    KFAC,
)
from natgrad.metrics import eigenbasis
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov, KroneckerMetric

LAMBDA = 0.03


def kronecker_problem(seed=0):
    model, params, x, _ = CASES["categorical"].problem(seed=seed)
    metric = KFAC(model).at(params, x)
    layout = ng.tree.Layout.of(params)
    return metric, layout.unravel(normal(seed + 5, layout.size))


def test_every_exact_inverse_is_the_dense_solve(tolerance):
    metric, v = kronecker_problem()
    matrix = metric.dense() + LAMBDA * jnp.eye(metric.layout.size)
    expected = jnp.linalg.solve(matrix, ravel(v))
    rotated = Eigenbasis(ng.solvers.JacobiRotations())
    for given in (
        metric.solve(v, LAMBDA),
        Eigenbasis()(metric, v, LAMBDA),
        rotated(metric, v, LAMBDA),
    ):
        assert relative_error(ravel(given), expected) < tolerance("identity")


@pytest.mark.parametrize(
    "rule", [ng.solvers.BlockElimination(), ng.solvers.NewtonSchulz()]
)
def test_factored_tikhonov_inverts_the_damped_factors(rule, tolerance):
    """(A + π√λ I) ⊗ (G + √λ/π I) = F + λI + √λ (A ⊗ I/π + π I ⊗ G)."""
    metric, v = kronecker_problem()
    damped, cross = [], []
    for a, g in zip(metric.inputs, metric.outputs, strict=True):
        pi = jnp.sqrt((jnp.trace(a) / len(a)) / (jnp.trace(g) / len(g)))
        eye_a, eye_g, root = jnp.eye(len(a)), jnp.eye(len(g)), LAMBDA**0.5
        damped.append(jnp.kron(a + pi * root * eye_a, g + root / pi * eye_g))
        cross.append(root * (jnp.kron(a, eye_g) / pi + pi * jnp.kron(eye_a, g)))
    damped, cross = metric.placed(damped), metric.placed(cross)
    given = ravel(FactoredTikhonov(rule=rule)(metric, v, LAMBDA))
    expected = jnp.linalg.solve(damped, ravel(v))
    assert relative_error(given, expected) < tolerance("identity")
    exact = metric.dense() + LAMBDA * jnp.eye(metric.layout.size)
    assert relative_error(damped - exact, cross) < tolerance("identity")
    assert relative_error(given, ravel(metric.solve(v, LAMBDA))) > 0.05


def test_pi_makes_the_extra_damping_smallest():
    """Among all splits of λ, π minimises the trace norm of the cross terms."""
    metric, _ = kronecker_problem()
    for a, g in zip(metric.inputs, metric.outputs, strict=True):
        extra = lambda pi, a=a, g=g: (
            jnp.trace(a) * len(g) / pi + pi * len(a) * jnp.trace(g)
        )
        pi = jnp.sqrt((jnp.trace(a) / len(a)) / (jnp.trace(g) / len(g)))
        assert abs(jax.grad(extra)(pi)) < 1e-12 * extra(pi)
        assert extra(pi) < extra(1.1 * pi)


def test_inverses_are_equal_where_the_damping_is_nothing(tolerance):
    """For F regular and λ → 0 all inverses agree."""
    metric, v = kronecker_problem()
    regular = KroneckerMetric(
        metric.layout,
        metric.blocks,
        tuple(a + jnp.eye(len(a)) for a in metric.inputs),
        tuple(g + jnp.eye(len(g)) for g in metric.outputs),
    )
    exact = ravel(regular.solve(v, 1e-18))
    assert relative_error(ravel(FactoredTikhonov()(regular, v, 1e-18)), exact) < 1e-7


@pytest.mark.parametrize("solver", [Eigenbasis(), FactoredTikhonov()])
def test_zero_factors_and_zero_gradients_give_finite_steps(solver):
    metric, v = kronecker_problem()
    zero = jax.tree.map(jnp.zeros_like, metric)
    for part in ("inputs", "outputs"):
        factors = getattr(metric, part)
        dead = tuple(f.at[0].set(0).at[:, 0].set(0) for f in factors)
        cases = {part: dead}, {part: tuple(jnp.zeros_like(f) for f in factors)}
        for case in cases:
            given = solver(_with(metric, **case), v, 1e-3)
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(given))
    given = solver(zero, v, 1e-3)
    assert relative_error(ravel(given), ravel(v) / 1e-3) < 1e-9
    nothing = jax.tree.map(jnp.zeros_like, v)
    assert jnp.abs(ravel(solver(metric, nothing, 1e-3))).max() == 0


def _with(metric, inputs=None, outputs=None):
    return KroneckerMetric(
        metric.layout, metric.blocks, inputs or metric.inputs, outputs or metric.outputs
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_factors_of_one_size_are_decomposed_by_one_call(platform):
    """Six equal layers: one call for all A and G, in a loop or of a batch."""
    params = [normal(i, 4, 4) for i in range(6)]

    def apply(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    x = normal(9, 5, 4)
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    metric = KFAC(model).at(params, x)
    for solve, names in (
        (lambda m, v: m.solve(v, 0.1), ["lapack_dsyevd", "cusolver_syevd"]),
        (
            lambda m, v: FactoredTikhonov()(m, v, 0.1),
            ["lapack_dpotrf", "cusolver_potrf"],
        ),
    ):
        traced = jax.jit(solve).trace(metric, params)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert sum(text.count(f"@{name}_ffi") for name in names) == 1
        assert "12x4x4" in text
        assert ("stablehlo.while" in text) == (platform == "cpu")


def test_the_derivative_of_an_eigenbasis_is_finite_and_right():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 2.0, 0.0, 0.0]))
    tangent = normal(0, 5, 5)
    tangent = tangent + tangent.T

    def projector(m):
        vectors = eigenbasis.eigh(m)[1]
        return vectors[:, -2:] @ vectors[:, -2:].T

    given = jax.jvp(projector, (matrix,), (tangent,))[1]
    h = 1e-5
    expected = (
        (projector(matrix + h * tangent) - projector(matrix - h * tangent)) / 2 / h
    )
    assert relative_error(given, expected) < 1e-8  # of a subspace, though 2 repeats
