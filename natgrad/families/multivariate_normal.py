"""Normal law of a vector y of d entries, with covariance S and precision P = S⁻¹.

The last axis of z holds d(d + 3)/2 numbers, the natural parameters

    (P m)_i  for i = 1 … d,   then   −P_ii/2 and −P_ij, i < j,

the latter in the order of the upper triangle's rows, (1, 1), (1, 2), …, (1, d), (2, 2),
…; the statistic is T(y) = (y_i, then y_i y_j for i ≤ j in that order). An entry off the
diagonal stands for two entries of the symmetric matrix −P/2, so that

    ⟨η, T(y)⟩ = ⟨P m, y⟩ − yᵀP y/2,    A(η) = mᵀP m/2 − log det(P)/2 + d log(2π)/2,

and the mean is (m, S_ij + m_i m_j). With L Lᵀ = P, D = P' − P, I + X a Cholesky factor
of I + L⁻¹ D L⁻ᵀ and g = (P'm') − (P m) − D m = P'(m' − m),

    KL = ‖X‖²/2 + Σ_i (X_ii − log(1 + X_ii)) + gᵀP'⁻¹g/2,

whose terms are all nonnegative.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import aligned
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.gaussian_rule import gaussian_rule
from natgrad.families.numerics.remainders import log1p_remainder, ratio_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class MultivariateNormal(ExponentialFamily):
    """y ~ N(m, S), y [d]: the last axis of z holds (S⁻¹m, the free entries of −S⁻¹/2).

    See the module for their order, and `from_mean_and_covariance`. Everything is NaN
    where the precision is not positive definite.
    """

    parameter_ndim: ClassVar[int] = 1
    label_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "the z of a positive definite precision matrix"

    def from_mean_and_covariance(self, mean: Array, covariance: Array) -> Array:
        """The natural parameters of laws with these means and covariances.

        Args:
            mean: m [..., d].
            covariance: S [..., d, d], symmetric.

        Returns:
            η [..., d(d + 3)/2]; NaN where S is not positive definite.
        """
        precision = _inverse(covariance)
        return _joined(jnp.einsum(_MV, precision, mean, precision="highest"), precision)

    def mean_and_covariance(self, eta: Array) -> tuple[Array, Array]:
        """The means and covariances of laws with these natural parameters.

        Args:
            eta: η [..., d(d + 3)/2].

        Returns:
            m [..., d] and S [..., d, d].
        """
        return _moments(*_split(eta))

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −|Lᵀ(y − m)|²/2 + log det(L) − d log(2π)/2 with L Lᵀ = P."""
        first, precision = _split(z)
        factor = jnp.linalg.cholesky(precision)
        y = jnp.asarray(y, z.dtype)
        turned = jnp.einsum(_MTV, factor, y, precision="highest")
        residual = turned - _solve(factor, first[..., None])[..., 0]
        constant = 0.5 * math.log(2 * math.pi) * first.size
        return _log_diagonal(factor) - 0.5 * jnp.sum(residual**2) - constant

    def log_normalizer(self, eta: Array) -> Array:
        """Σ mᵀP m/2 − log det(P)/2 + d log(2π)/2."""
        first, precision = _split(eta)
        factor = jnp.linalg.cholesky(precision)
        whitened = _solve(factor, first[..., None])
        constant = 0.5 * math.log(2 * math.pi) * first.size
        return 0.5 * jnp.sum(whitened**2) - _log_diagonal(factor) + constant

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (y, y_i y_j for i ≤ j)."""
        y = jnp.asarray(y)
        rows, columns = np.triu_indices(y.shape[-1])
        return jnp.concatenate([y, y[..., rows] * y[..., columns]], axis=-1)

    def mean(self, eta: Array) -> Array:
        """(m, S_ij + m_i m_j for i ≤ j)."""
        m, covariance = self.mean_and_covariance(eta)
        rows, columns = np.triu_indices(m.shape[-1])
        second = covariance[..., rows, columns] + m[..., rows] * m[..., columns]
        return jnp.concatenate([m, second], axis=-1)

    def natural(self, mu: Array) -> Array:
        """η of these moments; NaN unless S = E[y yᵀ] − m mᵀ is positive definite."""
        m, free = _parts(mu)
        second = _symmetric(free, m.shape[-1], 1.0, 1.0)
        return self.from_mean_and_covariance(
            m, second - m[..., :, None] * m[..., None, :]
        )

    def mean_complement(self, eta: Array) -> Array:
        """The covariance S = E[y yᵀ] − m mᵀ, where that cancels; [..., d, d]."""
        return self.mean_and_covariance(eta)[1]

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """η of the mean in mu and the covariance; NaN unless that is definite."""
        return self.from_mean_and_covariance(_parts(mu)[0], complement)

    def entropy(self, eta: Array) -> Array:
        """Σ d log(2πe)/2 − log det(P)/2."""
        first, precision = _split(eta)
        constant = 0.5 * (1 + math.log(2 * math.pi)) * first.size
        return constant - _log_diagonal(jnp.linalg.cholesky(precision))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ ‖X‖²/2 + Σ_i (X_ii − log(1 + X_ii)) + gᵀP2⁻¹g/2."""
        (_, precision), (_, difference) = _split(z), _split(z2 - z)
        change = _congruence(_inverse_root(precision), difference)
        near = jnp.all(jnp.abs(change) < 0.25 / change.shape[-1], axis=(-2, -1))
        return jnp.sum(divergence(self, _divergence, z, z2, near))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Of the order of d² points, exact to degree 5 in y (see `gaussian_rule`)."""
        first, precision = _split(z)
        points, weights = gaussian_rule(first.shape[-1])
        m, _ = self.mean_and_covariance(z)
        root = _inverse_root(precision)
        moves = jnp.matmul(jnp.asarray(points, z.dtype), root, precision="highest")
        return m[None] + moves, jnp.asarray(weights, z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + L⁻ᵀε with ε standard normal, of shape z.shape[:-1] + (d,)."""
        m, _ = self.mean_and_covariance(z)
        root = _inverse_root(_split(z)[1])
        noise = jax.random.normal(key, m.shape, z.dtype)
        return m + jnp.einsum(_MTV, root, noise, precision="highest")

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether all entries of y are finite."""
        del z
        return jnp.all(jnp.isfinite(y), axis=-1)

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...]:
        """z_shape[:-1] + (d,)."""
        return (*z_shape[:-1], _dimension(z_shape))


_MV, _MTV, _MTM = "...ij,...j->...i", "...ji,...j->...i", "...ki,...kj->...ij"


def _dimension(shape: tuple[int, ...]) -> int:
    size = shape[-1] if shape else 0
    d = (math.isqrt(9 + 8 * size) - 3) // 2
    if d < 1 or d * (d + 3) != 2 * size:
        raise ValueError(
            f"MultivariateNormal: z has shape {shape}; expected a last axis of length "
            "d(d + 3)/2 (2, 5, 9, 14, …): d numbers S⁻¹m, then the d(d + 1)/2 free "
            "entries of −S⁻¹/2. For a diagonal S use MultivariateNormalDiag()."
        )
    return d


def _parts(z: Array) -> tuple[Array, Array]:
    d = _dimension(z.shape)
    return z[..., :d], z[..., d:]


def _split(eta: Array) -> tuple[Array, Array]:
    """P m and P."""
    first, free = _parts(eta)
    return first, _symmetric(free, first.shape[-1], -2.0, -1.0)


def _symmetric(free: Array, d: int, on: float, off: float) -> Array:
    """The symmetric matrix of these entries times `on` or `off` the diagonal."""
    rows, columns = np.triu_indices(d)
    place = np.zeros((d, d), int)
    place[rows, columns] = place[columns, rows] = np.arange(rows.size)
    factors = np.where(np.eye(d, dtype=bool), on, off)
    entries = free[..., place]
    return entries * aligned(factors, entries)


def _joined(first: Array, precision: Array) -> Array:
    rows, columns = np.triu_indices(first.shape[-1])
    factors = aligned(np.where(rows == columns, -0.5, -1.0), first)
    return jnp.concatenate([first, factors * precision[..., rows, columns]], axis=-1)


def _divergence(z: Array, z2: Array) -> Array:
    """KL of each factor; of far laws ½ Σ (M_ii − 1) − log det(M)/2, M = L⁻¹ P2 L⁻ᵀ."""
    (first, precision), (first2, precision2) = _split(z), _split(z2)
    step, difference = _split(z2 - z)
    root, factor2 = _inverse_root(precision), jnp.linalg.cholesky(precision2)
    m = _moments(first, precision)[0]
    change = _congruence(root, difference)
    near = jnp.all(jnp.abs(change) < 0.25 / change.shape[-1], axis=(-2, -1))
    x = _cholesky_step(jnp.where(near[..., None, None], change, 0.0))
    diagonal = jnp.diagonal(x, axis1=-2, axis2=-1)
    close = 0.5 * jnp.sum(x**2, axis=(-2, -1)) + jnp.sum(log1p_remainder(diagonal), -1)
    y = jnp.einsum("...ij,...jk->...ik", root, factor2, precision="highest")
    diagonal = jnp.diagonal(y, axis1=-2, axis2=-1)
    off = jnp.sum(jnp.tril(y, -1) ** 2, axis=(-2, -1))
    # X² − 1 − 2 log X of the diagonal is 2 (X − 1 − log X) + (X − 1)².
    apart = ratio_remainder(jnp.ones_like(diagonal), diagonal, diagonal - 1)
    apart = 0.5 * off + jnp.sum(apart + 0.5 * (diagonal - 1) ** 2, axis=-1)
    g = step - jnp.einsum(_MV, difference, m, precision="highest")
    beside = _solve(factor2, g[..., None])[..., 0]
    beyond = _solve(factor2, first2[..., None])[..., 0] - jnp.einsum(
        _MTV, factor2, m, precision="highest"
    )
    distance = jnp.where(near[..., None], beside, beyond)
    return jnp.where(near, close, apart) + 0.5 * jnp.sum(distance**2, axis=-1)


@jax.custom_jvp
def _moments(first: Array, precision: Array) -> tuple[Array, Array]:
    """m and S of P m and P."""
    covariance = _inverse(precision)
    return jnp.einsum(_MV, covariance, first, precision="highest"), covariance


@_moments.defjvp
def _moments_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """S (d(P m) − dP m) and −S dP S."""
    d_first, d_precision = tangents
    m, covariance = _moments(*primals)
    moved = d_first - jnp.einsum(_MV, d_precision, m, precision="highest")
    d_m = jnp.einsum(_MV, covariance, moved, precision="highest")
    return (m, covariance), (d_m, -_congruence(covariance, d_precision))


def _solve(factor: Array, right: Array) -> Array:
    """L⁻¹ B for a lower triangular L."""
    return jax.lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)


def _inverse_root(matrix: Array) -> Array:
    """L⁻¹ with L Lᵀ = matrix."""
    return _solve(jnp.linalg.cholesky(matrix), _identity(matrix))


def _inverse(matrix: Array) -> Array:
    root = _inverse_root(matrix)
    return jnp.einsum(_MTM, root, root, precision="highest")


def _congruence(root: Array, matrix: Array) -> Array:
    return jnp.einsum(
        "...ij,...jk,...lk->...il", root, matrix, root, precision="highest"
    )


def _identity(like: Array) -> Array:
    """Identity matrices of this shape and precision."""
    return jnp.broadcast_to(aligned(np.eye(like.shape[-1]), like), like.shape)


def _log_diagonal(factor: Array) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)))


def _cholesky_step(e: Array) -> Array:
    """The lower triangular X with (I + X)(I + X)ᵀ = I + E, accurate for small E.

    Subtracting I from the factor leaves an error of the order of rounding; one step of
    Newton's method on E − X − Xᵀ − X Xᵀ, which does not cancel, squares it.
    """
    eye = _identity(e)
    factor = jnp.linalg.cholesky(eye + e)
    x = factor - eye
    square = jnp.einsum("...ik,...jk->...ij", x, x, precision="highest")
    residual = e - x - jnp.swapaxes(x, -1, -2) - square
    change = _congruence(_solve(factor, eye), residual)
    half = jnp.tril(change) - 0.5 * change * eye
    return x + jnp.einsum("...ij,...jk->...ik", factor, half, precision="highest")
