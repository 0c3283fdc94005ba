"""An exponential family from T, h and A alone.

    ng.families.exponential_family(
        lambda y: jnp.stack([jnp.log(y), y]),                # T
        lambda y: 0.0,                                       # h
        lambda eta: gammaln(eta[0] + 1) - (eta[0] + 1) * jnp.log(-eta[1]),  # A
        start=jnp.array([0.0, -1.0]),
    )

All else is derived. The mean is ∇A. `natural` minimises the convex A(η) − ⟨η, μ⟩ by
Newton's method, each step halved until it stays in the domain and decreases the
function (Boyd & Vandenberghe, Convex Optimization, 2004, section 9.5), with the
derivative of the solution, F⁻¹, of every order; where it does not converge it is NaN.
The divergence is A's Bregman divergence, or where that cancels the integral of F along
the segment (`ExponentialFamily.kl`), and the score columns are a root of F. Labels are
needed for `sample`, for `score_nodes` (a Monte-Carlo estimate) and for the entropy's
E[h]: these need `sample`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.custom import Constant, OfOneFactor
from natgrad.families.numerics.checks import inside
from natgrad.typing import Array, Key

_ITERATIONS = 100
_HALVINGS = 60


def exponential_family(
    sufficient_statistics: Callable[[Array], Array],
    log_base_measure: Callable[[Array], Array],
    log_normalizer: Callable[[Array], Array],
    *,
    sample: Callable[[Key, Array], Array] | None = None,
    start: Array | None = None,
    parameter_ndim: int = 1,
    label_ndim: int = 0,
    samples: int = 256,
) -> ExponentialFamily:
    """The family log p(y | η) = ⟨η, T(y)⟩ − A(η) + h(y); the functions read ONE factor.

    Args:
        sufficient_statistics: T(y), shaped like η.
        log_base_measure: h(y), shape (), in nats.
        log_normalizer: A(η), shape (), in nats; infinite or NaN outside of the domain.
        sample: `sample(key, eta)`, one label. None: `sample`, `score_nodes` and
            `entropy` raise a ValueError.
        start: an η inside of the domain, at which `natural` begins. None: zeros.
        parameter_ndim: axes of one factor's η; any axes before them are factors.
        label_ndim: axes of one factor's y.
        samples: labels drawn to estimate what `sample` is needed for.

    Returns:
        The family, an `ExponentialFamily`.

    Raises:
        ValueError: for impossible arguments; when used, for a `start` that is not
            shaped like the η of one factor.
    """
    functions = {
        "sufficient_statistics": sufficient_statistics,
        "log_base_measure": log_base_measure,
        "log_normalizer": log_normalizer,
    }
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(
                f"exponential_family: {name} is {function!r}; expected a function of "
                + ("eta." if name == "log_normalizer" else "y.")
            )
    for name, number, least in (
        ("parameter_ndim", parameter_ndim, 0),
        ("label_ndim", label_ndim, 0),
        ("samples", samples, 1),
    ):
        if not isinstance(number, int) or number < least:
            raise ValueError(
                f"exponential_family: {name} is {number!r}; expected an integer of at "
                f"least {least}."
            )
    return _FromStatistics(
        parameter_ndim=parameter_ndim,
        monte_carlo_samples=samples,
        given_statistics=sufficient_statistics,
        given_base_measure=log_base_measure,
        given_normalizer=log_normalizer,
        given_sample=sample,
        start=None if start is None else Constant(jnp.asarray(start)),
        label_ndim=label_ndim,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromStatistics(OfOneFactor, ExponentialFamily):
    given_statistics: Callable[[Array], Array]
    given_base_measure: Callable[[Array], Array]
    given_normalizer: Callable[[Array], Array]
    given_sample: Callable[[Key, Array], Array] | None
    start: Constant | None
    label_ndim: int

    def log_normalizer(self, eta: Array) -> Array:
        return jnp.sum(self._map(self.given_normalizer, eta))

    def sufficient_statistics(self, y: Array) -> Array:
        return self._map_labels(self.given_statistics, jnp.asarray(y))

    def log_base_measure(self, y: Array) -> Array:
        base = lambda y: jnp.asarray(self.given_base_measure(y))
        return jnp.sum(self._map_labels(base, jnp.asarray(y)))

    def natural(self, mu: Array) -> Array:
        return self._map(self._natural_of_one, mu)

    def sample(self, key: Key, z: Array) -> Array:
        given_sample = self.given_sample
        if given_sample is None:
            raise ValueError(
                "exponential_family: sample is None, and labels are needed to sample "
                "and for the estimates of nodes and entropy; pass "
                "sample=lambda key, eta: …, which draws one label."
            )

        def draw(z, key):
            y = jnp.asarray(given_sample(key, z))
            return y.astype(z.dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y

        return self._map(draw, z, self._keys(key, z))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether h(y) and T(y) are finite."""
        del z

        def finite(y):
            statistics = jnp.isfinite(self.given_statistics(y))
            return jnp.all(statistics) & jnp.isfinite(self.given_base_measure(y))

        return self._map_labels(finite, jnp.asarray(y))

    def _map_labels(self, function: Callable[[Array], Array], y: Array) -> Array:
        for _ in range(y.ndim - self.label_ndim):
            function = jax.vmap(function)
        return function(y)

    def _natural_of_one(self, mu: Array) -> Array:
        start = jnp.zeros_like(mu) if self.start is None else self.start.value
        if start.shape != mu.shape:
            raise ValueError(
                f"exponential_family: start has shape {start.shape}, and mu of one "
                f"factor {mu.shape}; expected the same. Pass start= shaped like one "
                "factor's eta, or set parameter_ndim."
            )
        return inverse_gradient(self.given_normalizer, mu, start.astype(mu.dtype))


def inverse_gradient(
    potential: Callable[[Array], Array], mu: Array, start: Array
) -> Array:
    """The η with ∇A(η) = μ for a strictly convex A, by damped Newton steps.

    Shaped like mu and `start`. NaN where the steps do not converge, as for a μ that is
    not a gradient of A, or where the rounding of μ leaves η uncertain by more than
    1e-3. Derivatives of every order are those of the solution.
    """
    shape = mu.shape
    flat = lambda eta: potential(eta.reshape(shape))
    equations = lambda eta: jax.grad(flat)(eta) - mu.ravel()

    def search(_, eta):
        return _minimise(flat, mu.ravel(), eta)

    def tangent_solve(linear, right):
        matrix = jax.vmap(linear, out_axes=1)(jnp.eye(right.size, dtype=right.dtype))
        return jnp.linalg.solve(matrix, right)

    eta, converged = jax.lax.custom_root(
        equations, start.ravel(), search, tangent_solve, has_aux=True
    )
    return inside(converged > 0, eta).reshape(shape)


def _minimise(
    potential: Callable[[Array], Array], mu: Array, start: Array
) -> tuple[Array, Array]:
    """The minimum of A(η) − ⟨η, μ⟩, and whether it was found, 1 or 0."""
    eps = jnp.finfo(mu.dtype).eps
    objective = lambda eta: potential(eta) - jnp.vdot(eta, mu, precision="highest")
    gradient = jax.grad(potential)

    def newton(eta):
        step = jnp.linalg.solve(jax.hessian(potential)(eta), mu - gradient(eta))
        # λ² = stepᵀ F step, twice the decrease to be expected.
        return step, jnp.vdot(step, mu - gradient(eta), precision="highest")

    def unfinished(state):
        count, _, _, decrement, moved, _ = state
        return (count < _ITERATIONS) & (decrement > 0) & moved

    def iterate(state):
        count, eta, step, decrement, *_ = state
        value = objective(eta)
        slack = 8 * eps * (jnp.abs(value) + jnp.abs(potential(eta)))

        def too_long(trial):
            halvings, length = trial
            decrease = value - objective(eta + length * step)
            good = decrease >= 0.25 * length * decrement - slack
            return (halvings < _HALVINGS) & ~good

        shorten = lambda trial: (trial[0] + 1, 0.5 * trial[1])
        _, length = jax.lax.while_loop(too_long, shorten, (0, jnp.ones_like(value)))
        new = eta + length * step
        new_step, new_decrement = newton(new)
        # At rounding the decrement no longer falls.
        small = new_decrement < 1e-4
        stuck = small & (new_decrement >= 0.8 * decrement)
        size = jnp.max(jnp.abs(new_step) / (jnp.abs(new) + 1))
        return count + 1, new, new_step, new_decrement, ~stuck, size

    step, decrement = newton(start)
    infinite = jnp.full((), jnp.inf, mu.dtype)
    state = (0, start, step, decrement, jnp.asarray(True), infinite)
    _, eta, _, decrement, _, size = jax.lax.while_loop(unfinished, iterate, state)
    # At infinity too the decrement vanishes, but there rounding of μ moves η freely.
    inverse = jnp.linalg.inv(jax.hessian(potential)(eta))
    blur = jnp.sum(jnp.abs(inverse) * (eps * jnp.abs(mu))[None], axis=-1)
    blur = jnp.max(blur / (jnp.abs(eta) + 1))
    found = (decrement < 1e-3) & (size < 1e-3) & (blur < 1e-3)
    return eta, found.astype(mu.dtype)
