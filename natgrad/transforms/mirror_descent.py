"""Mirror descent on the parameters of an exponential family, as optax transformations.

With μ = ∇A(η) and step size h,

    mirror_descent        params η, gradient ∇_η L:   μ' = μ − h ∇_η L,   η' = ∇A*(μ')
    dual_mirror_descent   params η, gradient ∇_η L:   η' = η − h F⁻¹ ∇_η L = η − h ∇_μ L

The first is mirror descent with potential A, and is the natural gradient in μ; the
second is mirror descent on μ with potential A*, and is the natural gradient in η. Both
identities are exact at finite step, and they are different iterates: of the mean
negative log-likelihood of data, one step of size 1 of the first lands on the maximum of
likelihood; of KL(q ‖ p), one of the second on p.

On the expectation parameters themselves, `mirror_descent(h, DualPotential(family))`
is mirror descent with potential A*: params μ, gradient ∇_μ L, η' = η − h ∇_μ L. For
`Categorical` that is exponentiated gradient, p' ∝ p e^{−h g}.

Params are any tree of arrays that the family reads, each axis before its own a factor.
A factor that would leave its domain is stopped short of it (see
`natgrad.geometry.domain`): nothing changes below 99 % of the way to the boundary.

Source: Nemirovski & Yudin (1983); Raskutti & Mukherjee (2015), The information geometry
of mirror descent; Kivinen & Warmuth (1997), Exponentiated gradient versus gradient
descent for linear predictors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.eager import call
from natgrad.families.base import ExponentialFamily
from natgrad.geometry.atlases import charts
from natgrad.geometry.domain import retract_into_domain
from natgrad.geometry.duality import DualPotential, Potential
from natgrad.geometry.information import raise_index
from natgrad.geometry.points import Point
from natgrad.transforms.validation import transformation
from natgrad.typing import Array


class MirrorDescentState(NamedTuple):
    """The state of mirror descent.

    Attributes:
        count: steps taken, for schedules.
    """

    count: Array


def mirror_descent(
    learning_rate: optax.ScalarOrSchedule,
    family: ExponentialFamily | Potential | DualPotential,
) -> optax.GradientTransformationExtraArgs:
    """Mirror descent: μ' = μ − h ∇_η L for parameters η, and η' = ∇A*(μ').

    Args:
        learning_rate: h, or an optax schedule.
        family: whose natural parameters η the params are, with potential A; or
            `DualPotential(family)`, with params μ, potential A*: η' = η − h ∇_μ L.

    Raises:
        ValueError: for a family that is not an exponential one; in `update`, where
            `params` is missing.
    """
    potential = Potential(family) if isinstance(family, ExponentialFamily) else family
    if not isinstance(potential, Potential | DualPotential):
        raise ValueError(
            f"mirror_descent: {family!r} was given; expected an ExponentialFamily, or "
            "geometry.DualPotential(family) for expectation parameters."
        )

    def step(x: Array, gradient: Array, h: Array) -> Array:
        dual = retract_into_domain(
            potential.dual_chart, potential.mean(x), -h * gradient
        )
        return potential.natural(dual) - x

    return _transformation(learning_rate, potential.family, step)


def dual_mirror_descent(
    learning_rate: optax.ScalarOrSchedule, family: ExponentialFamily
) -> optax.GradientTransformationExtraArgs:
    """The natural gradient in η: η' = η − h F⁻¹ ∇_η L = η − h ∇_μ L.

    Args:
        learning_rate: h, or an optax schedule.
        family: whose natural parameters η the params are.

    Raises:
        ValueError: as for `mirror_descent`.
    """
    natural = charts(family)["natural"]

    def step(eta: Array, gradient: Array, h: Array) -> Array:
        dual = raise_index(Point(family, natural, eta), gradient)
        return retract_into_domain(natural, eta, -h * dual) - eta

    return _transformation(learning_rate, family, step)


def scale_by_dual(family: ExponentialFamily) -> optax.GradientTransformationExtraArgs:
    """Replace ∇_η L by ∇_μ L = F⁻¹ ∇_η L, for params η; nothing is kept in the domain.

    Args:
        family: whose natural parameters η the params are.

    Raises:
        ValueError: as for `mirror_descent`.
    """
    natural = charts(family)["natural"]

    def dual(eta, gradient, _):
        return raise_index(Point(family, natural, eta), gradient)

    return _transformation(0.0, family, dual)


def _transformation(
    learning_rate: optax.ScalarOrSchedule,
    family: ExponentialFamily,
    step: Callable[[Array, Array, Array], Array],
) -> optax.GradientTransformationExtraArgs:
    """The transformation with this step (x, gradient, h) -> update of one factor."""

    def init(params):
        tree.check_params(params)
        return MirrorDescentState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "Mirror descent moves from where the parameters are: call "
                "update(gradient, state, params)."
            )
        rate = learning_rate
        h = call(rate, state.count) if callable(rate) else rate

        def leaf(x, gradient):
            dtype = tree.working_dtype(x)
            at = x.astype(dtype), gradient.astype(dtype)
            moves = _over_factors(family, step, *at, jnp.asarray(h, dtype))
            return moves.astype(x.dtype)

        moves = jax.tree.map(leaf, params, updates)
        return moves, MirrorDescentState(tree.increment(state.count))

    return transformation(init, update)


def _over_factors(family, step, x: Array, gradient: Array, h: Array) -> Array:
    """The steps of all factors of a leaf, each on its own."""
    own = family.parameter_ndim
    if own is None or x.ndim <= own:
        return step(x, gradient, h)
    factor = (-1, *x.shape[x.ndim - own :])
    of_factor = jax.vmap(lambda x, gradient: step(x, gradient, h))
    moves = of_factor(x.reshape(factor), gradient.reshape(factor))
    return moves.reshape(x.shape)
