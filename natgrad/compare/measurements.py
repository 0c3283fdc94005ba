"""Gradient noise and curvature of a model on one batch.

With g_n the gradient of example n's share of the loss and g their mean,

    tr Σ = Σ_n |g_n − g|²/(N − 1)     |G|² ≈ |g|² − tr Σ/N     B = tr Σ/|G|²

where G is the gradient over all data, of which the batch is taken to be N draws. B is
the simple noise scale: in a mean over B examples noise and gradient are equally long.

The curvature is that of F's products with random signs: means over probes of Lanczos's
quadrature (`natgrad.solvers.lanczos`), the extreme eigenvalue a bound from inside.

Source: McCandlish, Kaplan, Amodei & the OpenAI Dota Team (2018), An empirical model of
large-batch training, appendix A.1, for B.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare.matrix_free_figures import outweighing
from natgrad.curvature import Empirical, Exact, MatrixFree
from natgrad.curvature.visits import visits
from natgrad.model import Model
from natgrad.model.batch import Batch
from natgrad.solvers.lanczos import Krylov, krylov
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params

# Examples at most that gradients and curvature are measured on, and the products:
# enough for two digits of the trace, and less time than a compilation.
EXAMPLES, PROBES, ITERATIONS = 1024, 4, 32


@dataclasses.dataclass(frozen=True)
class GradientNoise:
    """The gradients of single examples beside their mean.

    Attributes:
        examples: N, how many were measured.
        square: |g|², of the batch's mean gradient.
        variance: tr Σ, of one example's gradient.
    """

    examples: int
    square: float
    variance: float

    @property
    def scale(self) -> float:
        """B, in examples; infinite where the batch cannot tell G from 0."""
        if not self.variance > 0:
            return 0.0
        signal = self.square - self.variance / self.examples
        return self.variance / signal if signal > 0 else math.inf


@dataclasses.dataclass(frozen=True)
class CurvatureFigures:
    """The exact F in figures, estimated from products; NaN where there are none.

    Attributes:
        trace: tr F, nats per squared unit of the parameters.
        largest: the largest eigenvalue, from below.
        effective_dimension: tr F (F + λI)⁻¹, directions that the data determine.
        damping: λ.
    """

    trace: float
    largest: float
    effective_dimension: float
    damping: float


def gradient_noise(
    model: Model, params: Params, inputs: Inputs, targets: Array
) -> GradientNoise:
    """How much the gradients of examples differ, on one batch."""
    count = jnp.shape(targets)[0]
    mean, squares = _gradients(model, params, inputs, targets)
    square = float(np.asarray(mean, float) @ np.asarray(mean, float))
    spread = max(float(squares) - square, 0.0)
    variance = spread * count / (count - 1) if count > 1 else math.inf
    return GradientNoise(count, square, variance)


@functools.partial(jax.jit, static_argnames="model")
def _gradients(model, params, inputs, targets) -> tuple[Array, Array]:
    """The mean of g_n, [P], and of |g_n|²."""
    found = visits(model, Empirical(), Batch(params, inputs, targets))
    log_prob = model.factor_sum(model.family.log_prob)
    layout = Layout.of(params)

    def visit(z, pull, example):
        of_output = lambda z: log_prob(example.weights, z, example.target)
        return layout.ravel(pull(jax.grad(of_output)(z)))

    def collect(gradients):
        return jnp.sum(gradients, axis=0), jnp.sum(gradients**2)

    total, squares = found.fold(visit, collect)
    count = jnp.shape(targets)[0]
    return total / found.total, squares * count / found.total**2


def curvature_figures(
    model: Model, params: Params, inputs: Inputs, damping: float, key: Key
) -> CurvatureFigures:
    """Trace, largest eigenvalue and effective dimension of F on one batch."""
    draws = jax.random.split(key)
    try:
        found = _probes(model, params, inputs, draws[0], draws[1])
    except TypeError:  # a custom_vjp has no forward mode, so F has no products
        return CurvatureFigures(math.nan, math.nan, math.nan, damping)
    rows = zip(*map(np.asarray, found), strict=True)
    rules = [Krylov(a, b, a, (), length).quadrature() for a, b, length in rows]
    dimension = functools.partial(outweighing, damping=damping)
    return CurvatureFigures(
        trace=float(np.mean([nodes @ weights for nodes, weights in rules])),
        largest=max(float(nodes.max()) for nodes, _ in rules),
        effective_dimension=float(np.mean([w @ dimension(x) for x, w in rules])),
        damping=damping,
    )


@functools.partial(jax.jit, static_argnames="model")
def _probes(model, params, inputs, signs, key) -> tuple[Array, Array, Array]:
    """T's diagonal, what is below it and |v|, of probes from random signs."""
    layout = Layout.of(params)
    product = MatrixFree(model, Exact()).product(Batch(params, inputs, None, key))

    def probe(key):
        start = jax.random.rademacher(key, (layout.size,), layout.dtype)
        space = krylov(
            lambda v: (layout.ravel(product(layout.unravel(v))), ()), start, ITERATIONS
        )
        return space.diagonal, space.below, space.length

    return jax.lax.map(probe, jax.random.split(signs, PROBES))
