"""Problems and NumPy's solutions for tests of the library as it is used.

float32, XLA as it comes, real widths. The other tests run in float64 with XLA's
optimisation off (see `quick_compilation`); `shipped` puts its options back, for its
function alone, and the modules of these tests use the fixture `single_precision`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import quick_compilation

SCALES = ("from 0 to 1", "standardised", "from 0 to 255")
# λ -> the largest relative error of a block's direction.
BOUNDS = {1e-3: 1e-3, 1e-5: 1e-2}
KEY = np.array([0, 7], np.uint32)


def shipped(function):
    """jit with the flags that the tests change as XLA has them by default."""
    return jax.jit(function, compiler_options=quick_compilation.DEFAULTS)


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


def error(given, expected):
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# What each solves, of a block's statistics, its gradient V and λ; what decomposes a
# matrix gives a function of λ.


def exact(statistics, v):
    """λ -> (A ⊗ G + λI)⁻¹ V."""
    (a, left), (g, right) = (np.linalg.eigh(factor) for factor in statistics)
    s = np.maximum(a, 0)[:, None] * np.maximum(g, 0)
    inner = left.T @ v @ right
    return lambda damping: left @ (inner / (s + damping)) @ right.T


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


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(wide(tree))])


def clipped(matrix, v):
    """λ -> (F + λI)⁻¹ v with negative eigenvalues of F as 0."""
    values, vectors = np.linalg.eigh(matrix)
    values, inner = np.maximum(values, 0), vectors.T @ v
    return lambda damping: vectors @ (inner / (values + damping))


def from_rows(rows, v):
    """λ -> (Bᵀ B + λI)⁻¹ v by the singular values of B."""
    of_values = clipped(rows @ rows.T, rows @ v)
    return lambda damping: (v - rows.T @ of_values(damping)) / damping
