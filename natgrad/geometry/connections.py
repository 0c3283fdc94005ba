"""The α-connections, their Christoffel symbols and the Amari-Chentsov tensor.

The e-connection (α = 1) is flat in η and the m-connection (α = −1) in μ, so in a chart
x, with η'' = ∂²η/∂x² and μ'' = ∂²μ/∂x²,

    F Γ^(e) = J_μᵀ η'',  F Γ^(m) = J_ηᵀ μ'',  Γ^(α) = ((1 + α) Γ^(e) + (1 − α) Γ^(m))/2.

Lowered, Γ^(α) = Γ^(e) + (1 − α)/2 T with T = E[s s s], which is ∇³A in η; α = 0 is the
Levi-Civita connection of F. A connection's geodesics solve x'' = −Γ(x', x').

Source: Amari (2016), sections 5.3, 6.3 and 6.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.arguments import check_number
from natgrad.geometry.atlases import Map
from natgrad.geometry.information import jacobians, raise_index
from natgrad.geometry.points import Point, Tangent
from natgrad.geometry.validation import expected
from natgrad.typing import Array, ArrayLike

EXPONENTIAL, LEVI_CIVITA, MIXTURE = 1.0, 0.0, -1.0


def amari_chentsov(point: Point) -> Float[Array, "*xxx"]:
    """The Amari-Chentsov tensor T_ijk = E[s_i s_j s_k] in the point's chart.

    Args:
        point: where, and in which chart.

    Returns:
        T, shape x.shape * 3, symmetric.

    Raises:
        ValueError: `point` is not a Point.
    """
    expected(Point, point, "amari_chentsov")
    shape = point.coordinates.shape
    eta = point.natural
    third = jax.jacfwd(point.family.fisher)(eta).reshape((eta.size,) * 3)
    j, _ = jacobians(point)
    tensor = jnp.einsum("abc,ai,bj,ck->ijk", third, j, j, j, precision="highest")
    return tensor.reshape(shape * 3)


def christoffel(point: Point, alpha: ArrayLike = LEVI_CIVITA) -> Float[Array, "*xxx"]:
    """The Christoffel symbols Γ^k_ij of the α-connection in the point's chart.

    Args:
        point: where, and in which chart.
        alpha: 1 for the e-connection, −1 for the m-connection, 0 for Levi-Civita.

    Returns:
        Γ with the axes [k, i, j], shape x.shape * 3.

    Raises:
        ValueError: `point` is not a Point, or alpha not one number.
    """
    expected(Point, point, "christoffel")
    lowered = lowered_christoffel(point, alpha)
    shape, size = point.coordinates.shape, point.coordinates.size
    columns = lowered.reshape(-1, size)
    raise_one = lambda column: raise_index(point, column.reshape(shape)).ravel()
    return jax.vmap(raise_one)(columns).T.reshape(shape * 3)


def lowered_christoffel(
    point: Point, alpha: ArrayLike = LEVI_CIVITA
) -> Float[Array, "*xxx"]:
    """The lowered symbols Γ_ij,k = Σ_l F_kl Γ^l_ij of the α-connection.

    Args:
        point: where, and in which chart.
        alpha: as for `christoffel`.

    Returns:
        Γ with the axes [i, j, k], shape x.shape * 3.

    Raises:
        ValueError: `point` is not a Point, or alpha not one number.
    """
    expected(Point, point, "lowered_christoffel")
    x = point.coordinates
    j_natural, j_mean = jacobians(point)

    def second(f: Map) -> Array:
        return jax.jacfwd(jax.jacfwd(f))(x).reshape(-1, x.size, x.size)

    bent_natural, bent_mean = (
        second(point.chart.to_natural),
        second(point.chart.mean_map(point.family)),
    )
    lower = lambda bent, j: jnp.einsum("aij,ak->ijk", bent, j, precision="highest")
    exponential, mixture = lower(bent_natural, j_mean), lower(bent_mean, j_natural)
    return _between(alpha, exponential, mixture).reshape(x.shape * 3)


def christoffel_contraction(v: Tangent, alpha: ArrayLike = LEVI_CIVITA) -> Tangent:
    """Γ^(α)(v, v) in the tangent's chart, by second derivatives along v and one solve.

    It is not a tangent in the strict sense: in another chart it is another vector. It
    is what a straight line of this chart lacks to be a geodesic.

    Args:
        v: the tangent.
        alpha: as for `christoffel`.

    Returns:
        The contraction, as components at the point of v.

    Raises:
        ValueError: `v` is not a Tangent, or alpha not one number.
    """
    expected(Tangent, v, "christoffel_contraction")
    x = v.point.coordinates
    natural, mean = v.point.chart.to_natural, v.point.chart.mean_map(v.point.family)

    def lowered(f: Map, dual: Map) -> Array:
        along = lambda x: jax.jvp(f, (x,), (v.components,))[1]
        bent = jax.jvp(along, (x,), (v.components,))[1]
        return jax.vjp(dual, x)[1](bent)[0]

    exponential, mixture = lowered(natural, mean), lowered(mean, natural)
    total = _between(alpha, exponential, mixture)
    return Tangent(v.point, raise_index(v.point, total))


def _between(alpha: ArrayLike, exponential: Array, mixture: Array) -> Array:
    """((1 + α) Γ^(e) + (1 − α) Γ^(m))/2, the symbols of the α-connection."""
    check_number("alpha", alpha)
    alpha = jnp.asarray(alpha, exponential.dtype)
    return ((1 + alpha) * exponential + (1 - alpha) * mixture) / 2
