"""First steps of the optimizers as they are used, compared with NumPy in float64."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from as_shipped import (
    BOUNDS,
    SCALES,
    classifier,
    clipped,
    error,
    factored,
    from_rows,
    in_basis,
    scaled,
    shipped,
    vector,
    wide,
)

import natgrad as ng
from natgrad.curvature import KFAC, Dense, Empirical, Gram, Sampled
from natgrad.metrics.matrices import DiagonalMetric
from natgrad.tree import Layout

RADIUS = ng.damping.AdaptiveRadius().initial

pytestmark = pytest.mark.usefixtures("single_precision")


@functools.cache
def first_step(name):
    """Of an optimizer with η = 1: (params, x, y, λ) -> (update, its statistics)."""
    layered = name in ("kfac", "ekfac")
    apply, params, shape = classifier(256 if layered else 64)
    example = np.zeros((1, *shape), np.float32)
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=example)

    @shipped
    def step(params, x, y, damping):
        loss, gradient = jax.value_and_grad(model.loss)(params, x, y)
        more = {"value": loss, "value_fn": model.loss, "targets": y}
        if name == "kfac_adaptive":
            tx = ng.kfac_adaptive(model, damping=damping)
        else:
            # The trust region of the layered forms is tested with them.
            more = {} if layered else {"trust_region": None}
            more |= {"constraint": 1e-3} if name == "spring" else {}
            more |= {"labels": Sampled(1)} if name == "gram" else {}
            tx, more = getattr(ng, name)(1.0, model, damping=damping, **more), {}
        update, state = tx.update(gradient, tx.init(params), params, inputs=x, **more)
        if layered or name == "diagonal_fisher":
            return gradient, update, state[0].statistics
        if name == "gram":
            state = state[0].statistics
            rows = Gram(model, Sampled(1)).metric(state, params, x)
        else:
            rows = Gram(model).at(params, x)
        return gradient, update, rows.jacobian.explicit()

    blocks = KFAC(model).captured(params).blocks
    return params, step, blocks


def shortened(update, d):
    """α of the step −α d: of the trust region, one for all blocks."""
    inner = lambda a, b: sum(np.sum(x * y) for x, y in zip(a, b, strict=True))
    return -inner(update, d) / inner(d, d)


def divergence(apply, params, update, x):
    """The mean KL divergence over a step, of class probabilities, in nats."""
    moved = jax.tree.map(np.add, params, jax.device_get(update))
    z, z2 = (wide(apply(p, x)) for p in (params, moved))
    log_p, log_q = (a - np.log(np.exp(a).sum(1, keepdims=True)) for a in (z, z2))
    return np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_first_steps_layer_by_layer(name):
    params, step, blocks = first_step(name)
    for scale in SCALES:
        x, y = scaled(scale, 128, 784), np.arange(128) % 10
        for damping, bound in BOUNDS.items():
            gradient, update, statistics = step(params, x, y, np.float32(damping))
            matrices = lambda tree: [
                wide(block.to_matrix(jax.tree.leaves(tree))) for block in blocks
            ]
            if name == "kfac":
                factors = list(zip(*wide(tuple(statistics)), strict=True))
                d = [
                    factored(s, v, damping)
                    for s, v in zip(factors, matrices(gradient), strict=True)
                ]
            else:
                known = wide((*statistics.bases, statistics.scales))
                bases = list(zip(*known, strict=True))
                d = [
                    in_basis(s, v, damping)
                    for s, v in zip(bases, matrices(gradient), strict=True)
                ]
            steps = matrices(update)
            alpha = shortened(steps, d)
            for given, part in zip(steps, d, strict=True):
                assert error(-given, alpha * part) < bound, (scale, damping)
            # The trust region does not shorten without need.
            kl = divergence(classifier()[0], params, update, x)
            assert kl <= RADIUS * 1.001
            assert 0 < alpha < 1 + bound
            assert kl > 0.15 * RADIUS or alpha > 1 - bound


@pytest.mark.parametrize("name", ["gram", "spring", "natural_gradient", "matrix_free"])
def test_first_steps_of_the_whole(name):
    params, step, _ = first_step(name)
    for scale in SCALES:
        x, y = scaled(scale, 20, 784), np.arange(20) % 10
        solve = None
        for damping, bound in BOUNDS.items():
            gradient, update, rows = step(params, x, y, np.float32(damping))
            if solve is None:  # gradient and rows do not depend on λ
                solve = from_rows(np.asarray(rows, np.float64), vector(gradient))
            d = solve(damping)
            if name == "spring":
                d = d * min(1, np.sqrt(1e-3) / np.linalg.norm(d))
            assert error(-vector(update), d) < bound, (scale, damping)


def test_first_steps_of_the_diagonal():
    """`diagonal_fisher`, and the solve of its metric."""
    params, step, _ = first_step("diagonal_fisher")
    solve = shipped(DiagonalMetric.solve)
    for scale in SCALES:
        x, y = scaled(scale, 40, 784), np.arange(40) % 10
        for damping in BOUNDS:
            gradient, update, statistics = step(params, x, y, np.float32(damping))
            expected = vector(gradient) / (np.asarray(statistics, float) + damping)
            metric = DiagonalMetric(Layout.of(params), statistics)
            given = solve(metric, gradient, np.float32(damping))
            assert error(-vector(update), expected) < 1e-6
            assert error(vector(given), expected) < 1e-6


def test_first_steps_of_the_empirical_fisher():
    """Of the last layer, whose gradients NumPy knows: h ⊗ (p − y).

    Its rank is 40 of 650. With larger inputs eigenvalues that are rounding reach λ, and
    which step is right hangs on how they are clipped.
    """
    _, params, _ = classifier(64)
    h = np.maximum(scaled("from 0 to 1", 40, 784) @ params["w"], 0)
    y = np.arange(40) % 10
    head = {name: params[name] for name in ("c", "v")}
    last = lambda p, h: h @ p["v"] + p["c"][None]
    model = ng.Model(last, ng.families.Categorical())

    @shipped
    def step(damping):
        gradient = jax.grad(model.loss)(head, h, y)
        tx = ng.empirical_fisher(1.0, model, damping=damping, trust_region=None)
        more = {"inputs": h, "targets": y}
        update, _ = tx.update(gradient, tx.init(head), head, **more)
        matrix = Dense(model, Empirical()).estimate(head, h, y)
        return gradient, update, matrix

    z = wide(last(head, h))
    p = np.exp(z - z.max(1, keepdims=True))
    off = p / p.sum(1, keepdims=True) - np.eye(10)[y]
    each = np.concatenate(
        [off, (wide(h)[:, :, None] * off[:, None]).reshape(40, -1)], 1
    )
    for damping, bound in BOUNDS.items():
        gradient, update, matrix = step(np.float32(damping))
        assert error(np.asarray(matrix, float), each.T @ each / 40) < 1e-5
        d = clipped(np.asarray(matrix, float), vector(gradient))(damping)
        assert error(-vector(update), d) < bound, damping


def assert_steepest_descent(scale):
    params, step, _ = first_step("kfac_adaptive")
    x, y = scaled(scale, 40, 784), np.arange(40) % 10
    gradient, update, rows = step(params, x, y, np.float32(1e-5))

    def loss(p):
        h = np.maximum(x.astype(float) @ p["w"] + p["b"], 0)
        z = h @ p["v"] + p["c"]
        z = z - z.max(1, keepdims=True)
        return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(40), y])

    here, g = wide(params), wide(gradient)
    zero = jax.tree.map(np.zeros_like, g)
    layers = [vector(zero | {k: g[k] for k in pair}) for pair in ("bw", "cv")]
    layers = np.stack(layers)
    seen = layers @ np.asarray(rows, float).T
    curved = seen @ seen.T + 1e-3 * loss(here) * (layers @ layers.T)
    lengths = np.linalg.solve(curved, layers @ vector(gradient))
    lengths = dict(zip("bwcv", np.repeat(lengths, 2), strict=True))
    d = {k: -lengths[k] * g[k] for k in g}
    lowers = lambda t: loss({k: here[k] + t * d[k] for k in d}) <= loss(here)
    part = next((t for t in 0.5 ** np.arange(5) if lowers(t)), 0)
    off = np.linalg.norm(vector(update) - part * vector(d))
    assert off <= BOUNDS[1e-3] * part * np.linalg.norm(vector(d))


def test_first_steps_of_adaptive_kfac():
    """Of steepest descent, each layer's length from the quadratic model; λ >= loss/10³.

    A step that raises the loss is halved, four times at most, and then undone.
    """
    for scale in SCALES:
        assert_steepest_descent(scale)
