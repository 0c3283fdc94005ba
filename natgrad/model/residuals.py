"""Residuals in named groups, each with points and a weight of its own, as one output.

    z_m = √(M w_g / N_g) r_gn,     m = 1 … M

M the number of all residuals, so that (1/M) Σ_m ½ z_m² = ½ Σ_g w_g mean_n |r_gn|².
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.eager import call, note_impossible
from natgrad.model import batch, placeholders
from natgrad.model.weights import nan_unless
from natgrad.typing import Apply, Array, ArrayLike, Inputs, Params

# The entry of the inputs that replaces weights.
WEIGHTS = "weights"
Residual = Callable[[Params, Inputs], Array]


class Group(NamedTuple):
    """One group, and its rows as a model of their own.

    Attributes:
        residual: residual(params, points) -> [N_g, K_g].
        points: of N_g points, or None.
        row: (params, inputs) -> z [M_g], row m of input m alone.
        inputs: of the M_g = N_g K_g rows: each row's point, its factor, and which
            number it is of the point's residual.
    """

    residual: Residual
    points: Inputs
    row: Apply
    inputs: Inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Residuals:
    """apply(params, batch) -> z [M], the weighted residuals of all groups.

    Attributes:
        functions: name -> residual(params, points).
        weights: name -> w_g; 1 where a name is missing.
    """

    functions: Mapping[str, Residual]
    weights: Mapping[str, ArrayLike]

    def __post_init__(self):
        functions, weights = self.functions, self.weights
        if not isinstance(functions, Mapping) or not functions:
            raise ValueError(
                "least_squares takes a mapping from names to functions residual(params,"
                f' points) -> [N, ...], such as {{"interior": f}}; got {functions!r}.'
            )
        if bad := [n for n, f in functions.items() if not callable(f) or n == WEIGHTS]:
            raise ValueError(
                f"least_squares: the groups {bad} are no functions residual(params, "
                f'points) -> [N, ...], or are called "{WEIGHTS}", which is the entry '
                "of a batch that replaces weights; give functions, under other names."
            )
        object.__setattr__(self, "functions", dict(functions))
        object.__setattr__(self, "weights", self._checked(weights))

    def __call__(self, params: Params, inputs: Inputs) -> Float[Array, " M"]:
        """z [M], group by group; arguments are those of `Model.apply`."""
        parts = self.evaluate(params, inputs)
        total = sum(r.size for r, _ in parts.values())
        rows = [
            _times_root(total * factor[:, None], r).reshape(-1)
            for r, factor in parts.values()
        ]
        return jnp.concatenate(rows)

    def evaluate(
        self, params: Params, inputs: Inputs
    ) -> dict[str, tuple[Float[Array, "N K"], Float[Array, " N"]]]:
        """name -> residuals [N_g, K_g], and w_g / N_g [N_g].

        Args:
            params: θ.
            inputs: name -> points.

        Raises:
            ValueError: as `least_squares` says.
        """
        points, _ = self._points(inputs)
        parts = {
            name: _of_group(name, residual)(params, points[name])
            for name, residual in self.functions.items()
        }
        factors = self._factors(inputs, parts)
        return {name: (r, factors[name]) for name, r in parts.items()}

    def groups(self, params: Params, inputs: Inputs) -> list[Group]:
        """The groups, in the order of the outputs.

        Args:
            params: θ; shapes do.
            inputs: name -> points.
        """
        points, _ = self._points(inputs)
        parts = jax.eval_shape(self.evaluate, params, inputs)
        total = sum(r.size for r, _ in parts.values())
        factors = self._factors(inputs, {name: r for name, (r, _) in parts.items()})
        found = []
        for name, residual in self.functions.items():
            count, width = parts[name][0].shape
            rows = points[name], total * factors[name]
            if width > 1:
                rows = jax.tree.map(lambda a, n=width: jnp.repeat(a, n, axis=0), rows)
            which = jnp.tile(jnp.arange(width), count)
            of_group = _of_group(name, residual)
            found.append(Group(of_group, points[name], _row(of_group), (*rows, which)))
        return found

    def restricted(self, model_params: Params) -> Residuals:
        """The same of a part of the parameters; see `Model.with_frozen`."""

        def of_part(residual):
            def function(part, points):
                params = placeholders.fill_placeholders(part, model_params)
                return call(residual, params, points)

            return function

        functions = {name: of_part(f) for name, f in self.functions.items()}
        return Residuals(functions, self.weights)

    def _points(self, inputs: Inputs) -> tuple[Mapping, Mapping]:
        """name -> points, and name -> weight."""
        names = list(self.functions)
        if not isinstance(inputs, Mapping):
            raise ValueError(
                f"least_squares: inputs must be a mapping from the groups {names} to "
                f"their points, got {jax.tree.map(jnp.shape, inputs)}."
            )
        points = {name: leaf for name, leaf in inputs.items() if name != WEIGHTS}
        if missing := [name for name in names if name not in points]:
            raise ValueError(
                f"least_squares: the batch has no points for {missing}; it has "
                f"{list(points)}. Every group has points in every batch; a weight of 0 "
                "leaves one out."
            )
        if unknown := [name for name in points if name not in names]:
            raise ValueError(
                f"least_squares: the batch has points for {unknown}, and the groups "
                f"are {names}. Leave them out, or give them a residual."
            )
        return points, {**self.weights, **self._checked(inputs.get(WEIGHTS, {}))}

    def _factors(self, inputs: Inputs, shaped: Mapping[str, Any]) -> dict[str, Array]:
        """name -> w_g / N_g, [N_g], for residuals of these shapes."""
        _, weights = self._points(inputs)
        factors = {}
        for name, r in shaped.items():
            weight = jnp.asarray(weights.get(name, 1.0), r.dtype)
            if weight.shape not in ((), r.shape[:1]):
                raise ValueError(
                    f"least_squares: the weight of {name!r} must be a number, or one a "
                    f"point [{r.shape[0]}]; got shape {weight.shape}."
                )
            factors[name] = jnp.broadcast_to(weight / r.shape[0], r.shape[:1])
        return factors

    def _checked(self, weights: Any) -> dict[str, ArrayLike]:
        """The weights, NaN where they are negative."""
        names = list(self.functions)
        if not isinstance(weights, Mapping) or not set(weights) <= set(names):
            raise ValueError(
                "least_squares: weights must be a mapping from groups, which are "
                f"{names}, to numbers; got {weights!r}."
            )
        return {name: _nonnegative(name, weight) for name, weight in weights.items()}


def _of_group(name: str, residual: Residual) -> Residual:
    """residual(params, points), [N, K]."""

    def of_group(params, points):
        count = _count(name, points)
        return _checked_residual(name, call(residual, params, points), count)

    return of_group


def _row(residual: Residual) -> Apply:
    """(params, (points, factors, which)) -> √factor residual[which], [M]."""

    def row(params, inputs):
        points, factors, which = inputs
        r = residual(params, points)
        own = which[:, None] == jnp.arange(r.shape[1])[None]
        return _times_root(factors, jnp.sum(jnp.where(own, r, 0), axis=1))

    return row


def _times_root(factor: Array, r: Array) -> Array:
    """√factor r; 0 where the factor is, whatever r holds."""
    out = factor == 0
    root = jnp.sqrt(jnp.where(out, 1, factor))
    return jnp.where(out, 0, root * jnp.where(out, 0, r))


def _count(name: str, points: Inputs) -> int | None:
    """N_g, None where there are no points to tell."""
    try:
        return batch.input_count(points, 0)
    except ValueError as error:
        raise ValueError(
            f"least_squares: the points of {name!r} must be arrays with one leading "
            f"axis N >= 1; got shapes {jax.tree.map(jnp.shape, points)}."
        ) from error


def _checked_residual(name: str, r: Any, count: int | None) -> Float[Array, "N K"]:
    """The residuals of a group, [N_g, K_g]."""
    real = hasattr(r, "dtype") and jnp.issubdtype(r.dtype, jnp.floating)
    if not real or r.size == 0 or r.ndim == 0 or count not in (None, r.shape[0]):
        given = jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a).name), r)
        raise ValueError(
            f"least_squares: the residual of {name!r} must be one real floating array "
            f"[{'N' if count is None else count}, ...], a row a point; got {given}."
        )
    return r.reshape(r.shape[0], -1)


def _nonnegative(name: str, weight: ArrayLike) -> ArrayLike:
    """The weight, NaN under jit where it is negative or infinite."""
    with jax.ensure_compile_time_eval():
        weight = jnp.asarray(weight, float)
        good = jnp.isfinite(weight) & (weight >= 0)
        if not isinstance(good, jax.core.Tracer):
            if bool(jnp.all(good)):
                return weight
            raise ValueError(
                f"least_squares: the weight of {name!r} must be finite and at least 0, "
                f"got {weight}."
            )
    note_impossible(~jnp.all(good))
    return nan_unless(good, weight)
