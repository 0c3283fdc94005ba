"""Solves and first steps as the library is used: float32, XLA as it comes, real widths.

Everything is compared with NumPy in float64 on the same statistics: eigenvalues of
the very factors, matrices or rows that the library made in float32. The other tests run
in float64 with XLA's optimisation off (see conftest.py); `shipped` puts both back, for
its function alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    BlockDiagonal,
    Dense,
    Gram,
    LayerDiagonal,
    MatrixFree,
    Sampled,
)
from natgrad.metrics.base import DiagonalMetric
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.tree import Layout

SCALES = ("from 0 to 1", "standardised", "from 0 to 255")
# λ -> the largest relative error of a block's direction.
BOUNDS = {1e-3: 1e-3, 1e-5: 1e-2}
KEY = np.array([0, 7], np.uint32)
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _float32():
    with jax.enable_x64(False):
        yield


def shipped(function):
    """jit with the flags that conftest.py changes as XLA has them by default."""
    flags = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_multi_thread_eigen": True,
    }
    return jax.jit(function, compiler_options=flags)


def scaled(scale, *shape):
    """Inputs as they come: uniform, of mean 0 and variance 1, or whole bytes."""
    x = np.random.default_rng(0).uniform(size=shape)
    spread = {"standardised": (x - 0.5) * 12**0.5, "from 0 to 255": np.round(255 * x)}
    return np.asarray(spread.get(scale, x), np.float32)


def parameters(**shapes):
    """Weights that keep the size of what they multiply, biases of 0."""
    draw = np.random.default_rng(1)
    size = lambda shape: np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0
    return {
        name: np.asarray(size(shape) * draw.normal(size=shape), np.float32)
        for name, shape in shapes.items()
    }


def classifier(hidden=256):
    def apply(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["v"] + p["c"][None]

    shapes = {"w": (784, hidden), "b": (hidden,), "v": (hidden, 10), "c": (10,)}
    return apply, parameters(**shapes), (784,)


def convolution():
    """3 x 3 x 128 = 1152 inputs."""

    def apply(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "VALID", dimension_numbers=dims
        )
        x = jax.nn.relu(x + p["b"][None, None, None])
        return x.mean((1, 2)) @ p["v"]

    return apply, parameters(k=(3, 3, 128, 16), b=(16,), v=(16, 10)), (5, 5, 128)


def transformer():
    """One block of width 512, a norm before each part and before the mean."""

    def norm(x):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def apply(p, x):
        heads = lambda w: (norm(x) @ w).reshape(*x.shape[:2], 8, 64)
        q, k, v = heads(p["q"]), heads(p["k"]), heads(p["v"])
        seen = jax.nn.softmax(jnp.einsum("nshi,nthi->nhst", q, k) / 8)
        x = x + jnp.einsum("nhst,nthi->nshi", seen, v).reshape(x.shape) @ p["o"]
        x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
        return norm(x).mean(1) @ p["out"]

    square = dict.fromkeys(("q", "k", "v", "o", "up", "down"), (512, 512))
    return apply, parameters(**square, out=(512, 10)), (8, 512)


PROBLEMS = {
    "classifier": (classifier, 128),
    "convolution": (convolution, 16),
    "transformer": (transformer, 16),
}


def error(given, expected):
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# What each solves, of a block's statistics, its gradient V and λ.


def exact(statistics, v, damping):
    """(A ⊗ G + λI)⁻¹ V."""
    (a, left), (g, right) = (np.linalg.eigh(factor) for factor in statistics)
    s = np.maximum(a, 0)[:, None] * np.maximum(g, 0)
    return left @ ((left.T @ v @ right) / (s + damping)) @ right.T


def factored(statistics, v, damping):
    """(A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹."""
    a, g = statistics
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    root = np.sqrt(damping)
    half = np.linalg.solve(a + pi * root * np.eye(len(a)), v)
    return np.linalg.solve(g + root / pi * np.eye(len(g)), half.T).T


def in_basis(statistics, v, damping):
    """U_A [(U_Aᵀ V U_G) / (s + λ)] U_Gᵀ."""
    left, right, s = statistics
    return left @ ((left.T @ v @ right) / (s + damping)) @ right.T


@functools.cache
def layerwise(name):
    """Statistics of (params, x, y), solves of these, and blocks: compiled once."""
    make, examples = PROBLEMS[name]
    apply, params, shape = make()
    model = ng.Model(
        apply,
        ng.families.Categorical(),
        example_inputs=np.zeros((1, *shape), np.float32),
    )
    curvatures = [c(model, Sampled(1)) for c in (KFAC, EKFAC, LayerDiagonal)]

    @shipped
    def found(params, x, y):
        gradient = jax.grad(model.loss)(params, x, y)
        return gradient, [c.estimate(params, x, key=KEY) for c in curvatures]

    @shipped
    def solved(statistics, params, gradient, damping):
        metrics = [
            c.metric(s, params) for c, s in zip(curvatures, statistics, strict=True)
        ]
        return {
            "kfac": metrics[0].solve(gradient, damping),
            "factored": FactoredTikhonov()(metrics[0], gradient, damping),
            "ekfac": metrics[1].solve(gradient, damping),
            "diagonal": metrics[2].solve(gradient, damping),
        }

    blocks = (
        curvatures[0].captured(params, np.zeros((examples, *shape), np.float32)).blocks
    )
    return params, (examples, *shape), found, solved, blocks


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "name",
    ["classifier", *(pytest.param(name, marks=slow) for name in list(PROBLEMS)[1:])],
)
def test_layerwise_solves(name, scale):
    params, shape, found, solved, blocks = layerwise(name)
    y = np.arange(shape[0]) % 10
    gradient, statistics = found(params, scaled(scale, *shape), y)
    kfac, ekfac, diagonal = wide(statistics)
    for damping, bound in BOUNDS.items():
        steps = solved(statistics, params, gradient, np.float32(damping))
        for i, block in enumerate(blocks):
            matrix = lambda tree, b=block: wide(b.to_matrix(jax.tree.leaves(tree)))
            v, s = matrix(gradient), (kfac.inputs[i], kfac.outputs[i])
            basis = ekfac.bases.left[i], ekfac.bases.right[i], ekfac.scales[i]
            expected = {
                "kfac": exact(s, v, damping),
                "factored": factored(s, v, damping),
                "ekfac": in_basis(basis, v, damping),
            }
            for form, right in expected.items():
                off = error(matrix(steps[form]), right)
                assert off < bound, (form, block.name, damping, off)
        flat = lambda tree: np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)])
        right = flat(wide(gradient)) / (diagonal + damping)
        assert error(flat(wide(steps["diagonal"])), right) < 1e-6


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(wide(tree))])


def clipped(matrix, v, damping):
    """(F + λI)⁻¹ v with negative eigenvalues of F as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ ((vectors.T @ v) / (np.maximum(values, 0) + damping))


def from_rows(rows, v, damping):
    """(Bᵀ B + λI)⁻¹ v by the singular values of B."""
    values, left = np.linalg.eigh(rows @ rows.T)
    inner = left @ ((left.T @ (rows @ v)) / (np.maximum(values, 0) + damping))
    return (v - rows.T @ inner) / damping


@functools.cache
def whole(name):
    """The same for forms of the whole F; `dense` and its blocks of the last layer."""
    apply, params, shape = classifier(64)
    example = np.zeros((1, *shape), np.float32)
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=example)
    last = lambda p, h: h @ p["v"] + p["c"][None]
    head = ng.Model(last, model.family)
    forms = {
        "dense": Dense(head),
        "blocks": BlockDiagonal(head),
        "gram": Gram(model),
        "sampled": Gram(model, Sampled(1)),
        "matrix_free": MatrixFree(model),
    }
    form = forms[name]

    small = form.model is head

    @shipped
    def of(params, x, y):
        if small:
            x = jax.nn.relu(x @ params["w"] + params["b"][None])
            params = {"v": params["v"], "c": params["c"]}
            made = form.at(params, x).dense()
        else:
            made = Gram(model, form.labels).at(params, x, key=KEY).jacobian.explicit()
        return params, x, jax.grad(form.model.loss)(params, x, y), made

    @shipped
    def solved(params, x, gradient, damping):
        return form.at(params, x, key=KEY).solution(gradient, damping)

    return params, of, solved, small


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "gram",
        pytest.param("blocks", marks=slow),
        pytest.param("sampled", marks=slow),
        pytest.param("matrix_free", marks=slow),
    ],
)
def test_solves_of_the_whole(name, scale):
    params, of, solved, small = whole(name)
    x, y = scaled(scale, 40, 784), np.arange(40) % 10
    params, x, gradient, made = of(params, x, y)
    solve = clipped if small else from_rows
    for damping, bound in BOUNDS.items():
        given = solved(params, x, gradient, np.float32(damping)).value
        right = solve(np.asarray(made, np.float64), vector(gradient), damping)
        off = error(vector(given), right)
        assert off < bound, (damping, off)


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
            tx, more = getattr(ng, name)(1.0, model, damping=damping), {}
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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_first_steps_layer_by_layer(name, scale):
    params, step, blocks = first_step(name)
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
            assert error(-given, alpha * part) < bound, damping
        # The trust region's radius is 0.1, and it does not shorten without need.
        kl = divergence(classifier()[0], params, update, x)
        assert kl <= 0.1 * 1.001
        assert 0 < alpha < 1 + bound
        assert kl > 0.02 or alpha > 1 - bound


@slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["gram", "spring", "natural_gradient", "matrix_free"])
def test_first_steps_of_the_whole(name, scale):
    params, step, _ = first_step(name)
    x, y = scaled(scale, 40, 784), np.arange(40) % 10
    for damping, bound in BOUNDS.items():
        gradient, update, rows = step(params, x, y, np.float32(damping))
        d = from_rows(np.asarray(rows, np.float64), vector(gradient), damping)
        if name == "spring":
            d = d * min(1, np.sqrt(1e-3) / np.linalg.norm(d))
        assert error(-vector(update), d) < bound, damping


@slow
@pytest.mark.parametrize("scale", SCALES)
def test_first_steps_of_the_diagonal(scale):
    """`diagonal_fisher`, and the solve of its metric."""
    params, step, _ = first_step("diagonal_fisher")
    x, y = scaled(scale, 40, 784), np.arange(40) % 10
    solve = shipped(DiagonalMetric.solve)
    for damping in BOUNDS:
        gradient, update, statistics = step(params, x, y, np.float32(damping))
        expected = vector(gradient) / (np.asarray(statistics, float) + damping)
        metric = DiagonalMetric(Layout.of(params), statistics)
        given = solve(metric, gradient, np.float32(damping))
        assert error(-vector(update), expected) < 1e-6
        assert error(vector(given), expected) < 1e-6


@slow
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
        tx = ng.empirical_fisher(1.0, model, damping=damping)
        more = {"inputs": h, "targets": y}
        update, state = tx.update(gradient, tx.init(head), head, **more)
        return gradient, update, state[0].statistics

    z = wide(last(head, h))
    p = np.exp(z - z.max(1, keepdims=True))
    off = p / p.sum(1, keepdims=True) - np.eye(10)[y]
    each = np.concatenate(
        [off, (wide(h)[:, :, None] * off[:, None]).reshape(40, -1)], 1
    )
    for damping, bound in BOUNDS.items():
        gradient, update, matrix = step(np.float32(damping))
        assert error(np.asarray(matrix, float), each.T @ each / 40) < 1e-5
        d = clipped(np.asarray(matrix, float), vector(gradient), damping)
        assert error(-vector(update), d) < bound, damping


@slow
@pytest.mark.parametrize("scale", SCALES)
def test_first_steps_of_adaptive_kfac(scale):
    """Of steepest descent, each layer's length from the quadratic model; λ >= loss/10³.

    A step that raises the loss is halved, four times at most, and then undone.
    """
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
