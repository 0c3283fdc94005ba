"""Functions f(F) of an operator, exact or by its products alone.

    f(F) = Σ_i f(s_i) u_i u_iᵀ,     F u_i = s_i u_i,  s_i >= 0

for any JAX function f of an array of eigenvalues, taken elementwise, which may close
over traced values, such as a damping. Here F is known by products F v alone: f(F) v is
by Lanczos's method, traces and diagonals are estimates from random probes. Metrics that
are written out decompose F, and are exact.

Source: Higham (2008), Functions of Matrices; Ubaru, Chen & Saad (2017), Fast estimation
of tr(f(A)) via stochastic Lanczos quadrature; Bekas, Kokiopoulou & Saad (2007), An
estimator for the diagonal of a matrix.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.arguments import check_count
from natgrad.metrics.programs import one_program
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    LeafDamping,
    entries,
    resolve_damping,
)
from natgrad.solvers.lanczos import function_of_operator, largest_eigenvalue
from natgrad.solvers.matrix_functions import Spectral, shifted
from natgrad.tree import Layout
from natgrad.typing import Array, Key, Params

# Random probes of an estimate that does not say how many.
NUM_PROBES = 32


class Estimate(NamedTuple):
    """The mean over random probes.

    Attributes:
        value: a scalar, or a tree like the parameters in the working dtype.
        standard_error: of the value, of the same shape; 0 where it is exact.
    """

    value: Params
    standard_error: Params


class Decomposition(NamedTuple):
    """F by its eigenvalues, found once for what needs both them and f(F).

    Attributes:
        values: arrays of them, those below 0 as 0; None where F is known by products.
            Derivatives hold them constant.
        outside: how many parameters have the eigenvalue 0 beside these.
        function: (f, v) -> f(F) v, as `OperatorFunctions.function`.
    """

    values: Sequence[Array] | None
    outside: int
    function: Callable[[Spectral, Params], Params]


def damped_noise(layout: Layout, of_f: Params, key: Key, damping: Array) -> Params:
    """A draw of N(0, F + Λ), of which (F + Λ)⁻¹ makes one of N(0, (F + Λ)⁻¹).

    Args:
        layout: of the parameters.
        of_f: a draw of N(0, F), a tree like the parameters.
        key: a random key for the rest.
        damping: λ >= 0, in the units of F; or the diagonal of Λ, [P].

    Returns:
        A tree like the parameters, in their dtypes.
    """
    noise = jax.random.normal(key, (layout.size,), layout.dtype)
    return layout.unravel(layout.ravel(of_f) + jnp.sqrt(damping) * noise)


class OperatorFunctions(abc.ABC):
    """What follows from products F v, for F positive semi-definite.

    Attributes:
        layout: how the parameters lie in a vector.
    """

    layout: Layout

    @abc.abstractmethod
    def mv(self, v: Params) -> Params:
        """F v, a tree like the parameters.

        Args:
            v: a tree like the parameters.

        Raises:
            ValueError: v is not shaped like the parameters.
        """

    def operator(self) -> Callable[[Array], Array]:
        """x -> F x of vectors [P], for many products."""
        return lambda x: self.layout.ravel(self.mv(self.layout.unravel(x)))

    @property
    def lanczos_iterations(self) -> int:
        """The most products F v that f(F) v takes, where F is known by products."""
        return 100

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """f(F + Λ) v.

        Args:
            f: of an array of eigenvalues, elementwise.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F; by layer: `natgrad.solvers.damping`.

        Returns:
            A tree like the parameters, in their dtypes.

        Raises:
            ValueError: v is not shaped like the parameters.
        """
        product, found = self.operator(), resolve_damping(damping, self)
        # What all directions have is in f: where Lanczos's method ends early it reads
        # f at λ, and not at 0.
        by_layer = isinstance(found, LeafDamping | EntryDamping)
        least = jnp.min(found.values) if by_layer else found
        rest = entries(found, self) - least
        damped = (lambda x: product(x) + rest * x) if by_layer else product
        vector, most = self.layout.ravel(v), self.lanczos_iterations
        found = function_of_operator(shifted(f, least), damped, vector, most)
        return self.layout.unravel(found)

    def decomposed(self) -> Decomposition:
        """Eigenvalues, and f(F) from the same decomposition; no values here."""
        return Decomposition(None, 0, self.function)

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """tr f(F + Λ); of an operator `estimate_of_trace` with a fixed key.

        Args:
            f: of an array of eigenvalues, elementwise.
            damping: as of `function`.
        """
        return self.estimate_of_trace(f, jax.random.PRNGKey(0), damping=damping).value

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """diag f(F + Λ); of an operator `estimate_of_diagonal` with a fixed key.

        Args:
            f: of an array of eigenvalues, elementwise.
            damping: as of `function`.

        Returns:
            A tree like the parameters, in the working dtype.
        """
        key = jax.random.PRNGKey(0)
        return self.estimate_of_diagonal(f, key, damping=damping).value

    @one_program
    def sample(self, key: Key, damping: DampingLike) -> Params:
        """A draw of the normal law N(0, (F + Λ)⁻¹).

        Args:
            key: a random key.
            damping: λ >= 0, in the units of F; > 0 where F is singular.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        layout = self.layout
        noise = jax.random.normal(key, (layout.size,), layout.dtype)
        return self.function(lambda s: s**-0.5, layout.unravel(noise), damping)

    @one_program
    def inverse_diagonal(self, damping: DampingLike) -> Params:
        """diag (F + Λ)⁻¹: `diagonal_of` with f(s) = 1/s.

        Args:
            damping: λ >= 0, in the units of F; > 0 where F is singular.

        Returns:
            A tree like the parameters, in the working dtype.
        """
        return self.diagonal_of(lambda s: 1 / s, damping)

    @final
    @one_program
    def effective_dimension(self, damping: DampingLike) -> Float[Array, ""]:
        """tr F (F + Λ)⁻¹, the number of directions that F determines beside Λ.

        Args:
            damping: λ > 0, in the units of F.
        """
        found = resolve_damping(damping, self)
        if not isinstance(found, LeafDamping | EntryDamping):
            return self.trace_of(lambda s: s / (s + found))
        inverse = self.layout.ravel(self.inverse_diagonal(found))
        return jnp.sum(1 - entries(found, self) * inverse)

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """log det(F + Λ), `trace_of` log s; −inf where singular.

        Of an operator of more than 32 parameters it is an estimate, the same in every
        call; `estimate_of_trace(jnp.log, key, damping=damping)` has its standard error.

        Args:
            damping: λ >= 0, in the units of F.
        """
        return self.trace_of(jnp.log, damping)

    @final
    @one_program
    def largest_eigenvalue(self) -> Float[Array, ""]:
        """max s, from inside, by Lanczos's method from a fixed random vector."""
        key, layout = jax.random.PRNGKey(0), self.layout
        start = jax.random.normal(key, (layout.size,), layout.dtype)
        return largest_eigenvalue(self.operator(), start, self.lanczos_iterations)

    @final
    def estimate_of_trace(
        self,
        f: Spectral,
        key: Key,
        num_probes: int = NUM_PROBES,
        damping: DampingLike = 0.0,
    ) -> Estimate:
        """tr f(F + Λ) as the mean of zᵀ f(F) z over random signs z.

        For an operator this is stochastic Lanczos quadrature. From P probes on they are
        the unit vectors, and the result is exact.

        Args:
            f: of an array of eigenvalues, elementwise.
            key: a random key.
            num_probes: how many z; at least 2.
            damping: as of `function`.

        Returns:
            The trace and its standard error, shapes ().
        """
        return self._estimate(jnp.vdot, f, key, num_probes, damping)

    @final
    def estimate_of_diagonal(
        self,
        f: Spectral,
        key: Key,
        num_probes: int = NUM_PROBES,
        damping: DampingLike = 0.0,
    ) -> Estimate:
        """diag f(F + Λ) as the mean of z ∘ f(F) z over random signs z.

        From P probes on they are the unit vectors, and the result is exact.

        Args:
            f: of an array of eigenvalues, elementwise.
            key: a random key.
            num_probes: how many z; at least 2.
            damping: as of `function`.

        Returns:
            The diagonal and the standard error of each entry, trees like the parameters
            in the working dtype.
        """
        found = self._estimate(jnp.multiply, f, key, num_probes, damping)
        return Estimate(*map(self.layout.split, found))

    def _estimate(
        self,
        combine: Callable,
        f: Spectral,
        key: Key,
        num_probes: int,
        damping: DampingLike,
    ) -> Estimate:
        """The mean over probes of combine(z, f(F + Λ) z)."""
        check_count("num_probes", num_probes, least=2)
        layout, size = self.layout, self.layout.size

        def of_probe(z):
            image = self.function(f, layout.unravel(z), damping)
            return combine(z, layout.ravel(image))

        if num_probes >= size:
            units = jnp.sqrt(float(size)) * jnp.eye(size, dtype=layout.dtype)
            mean = jnp.mean(jax.lax.map(of_probe, units), axis=0)
            return Estimate(mean, jnp.zeros_like(mean))
        signs = jax.random.rademacher(key, (num_probes, size), layout.dtype)
        found = jax.lax.map(of_probe, signs)
        error = jnp.std(found, axis=0, ddof=1) / num_probes**0.5
        return Estimate(jnp.mean(found, axis=0), error)
