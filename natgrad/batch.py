"""A batch of examples: what its inputs, weights and labels must look like.

Everything here is about shapes, except `check_support`, which looks at labels where
their values are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.typing import Array, ArrayLike, Inputs, Key


class Example(NamedTuple):
    """What a fold over examples knows of one example besides its output z.

    Attributes:
        weights: one weight a factor.
        target: the label, or None.
        key: a random key, or None.
    """

    weights: Array
    target: Array | None
    key: Key | None

    def factor_keys(self, family: Family, z: Array) -> Key | None:
        """A key for each factor of output z; None where the family draws nothing."""
        if not family.drawn(z):
            return None
        return jax.random.split(self.key, self.weights.shape)


def split_inputs(
    inputs: Inputs, in_axes: Any
) -> tuple[list[Array], Callable[[list[Array]], Inputs]]:
    """The leaves with an axis of examples, and a function from one example's to inputs.

    The function adds an axis of size 1 to what it is given and puts the leaves that all
    examples share beside them.
    """
    leaves, treedef = jax.tree.flatten(inputs)
    is_none = lambda node: node is None
    axes = []
    if leaves:
        try:
            axes = jax.tree.broadcast(in_axes, inputs, is_leaf=is_none)
        except ValueError as error:
            raise ValueError(
                f"Model(in_axes=...) must be a prefix of the tree of inputs; got "
                f"{in_axes} for inputs of shapes {jax.tree.map(jnp.shape, inputs)}."
            ) from error
        axes = jax.tree.leaves(axes, is_leaf=is_none)
    if any(axis not in (0, None) for axis in axes):
        raise ValueError(f"Model(in_axes=...) may hold 0 and None only, got {in_axes}.")
    batched = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

    def rebuild(example):
        rows = iter(example)
        return treedef.unflatten(
            next(rows)[None] if axis == 0 else leaf
            for leaf, axis in zip(leaves, axes, strict=True)
        )

    return batched, rebuild


def input_count(inputs: Inputs, in_axes: Any) -> int | None:
    """N read off the inputs, None where they have no leaf with an axis of examples."""
    batched, _ = split_inputs(inputs, in_axes)
    counts = {jnp.shape(leaf)[:1] for leaf in batched}
    if len(counts) > 1 or () in counts:
        raise ValueError(
            "Every leaf of inputs must have the same leading axis of examples; got "
            f"shapes {[jnp.shape(leaf) for leaf in batched]}. Mark leaves that all "
            "examples share with None in Model(in_axes=...)."
        )
    return counts.pop()[0] if counts else None


def factor_weights(weights: ArrayLike, shape: tuple[int, ...], z: Any) -> Array:
    """Weights [N] or [N, factors...] as an array [N, factors...] for outputs z."""
    axes = [axis for axis in jax.typeof(z).sharding.spec if axis is not None]
    if axes:
        raise ValueError(
            f"The outputs are sharded over explicit axes of the mesh, {axes}: make it "
            "with axis_types=(jax.sharding.AxisType.Auto,), or under jax.set_mesh wrap "
            "the step in jax.sharding.auto_axes(step, out_sharding=PartitionSpec())."
        )
    weights = jnp.asarray(weights, z.dtype)
    if weights.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights(inputs) must have shape {shape[:1]} (one weight an example) or "
            f"{shape} (one a factor), got {weights.shape}."
        )
    missing = len(shape) - weights.ndim
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * missing), shape)


def check_targets(family: Family, z: Any, targets: ArrayLike, count: int) -> Array:
    """The labels as an array, after a look at their shape: z [N, ...], y [N, ...]."""
    if targets is None:
        raise ValueError("targets are needed here: pass the labels y [N, ...].")
    y = jnp.asarray(targets)
    tail = family.label_shape(z.shape[1:])
    given, expected = y.shape, (count, *(tail or ()))
    if tail is None:
        given = given[:1]
    if given != expected:
        named = expected if tail is not None else (count, "...")
        raise ValueError(
            f"targets must have shape {named} for outputs z of shape {z.shape} under "
            f"{family}, got {y.shape}."
        )
    return y


def check_support(family: Family, z: Any, y: Array) -> None:
    """Raise for impossible labels where their values are known: not under jit."""
    with jax.ensure_compile_time_eval():
        parameters = jnp.zeros(z.shape[1:], z.dtype)
        inside = jax.vmap(family.in_support, (None, 0))(parameters, y)
        if isinstance(inside, jax.core.Tracer) or bool(jnp.all(inside)):
            return
    raise ValueError(
        f"Some targets are impossible under {family} with outputs z of shape "
        f"{z.shape}: got values from {jnp.min(y)} to {jnp.max(y)}."
    )


def normaliser(weights: Array) -> Array:
    """Σ_n max_t w_nt for weights [N, factors...], or 1 where that is 0."""
    total = total_weight(weights)
    return jnp.where(total == 0, 1, total)


def total_weight(weights: Array) -> Array:
    """Σ_n max_t w_nt for weights [N, factors...]."""
    return jnp.sum(jnp.max(weights.reshape(weights.shape[0], -1), axis=1))


def example_keys(key: Key, count: int, first: ArrayLike = 0) -> Array:
    """One key an example, from its index alone: the same on any number of devices.

    Args:
        key: a key; keys that are already one an example are given back.
        count: of examples.
        first: the index of the first.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.ndim > (0 if typed else 1):
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def keys(
    family: Family, key: Key | None, z: Any, count: int, first: ArrayLike = 0
) -> Key | None:
    """One key an example of outputs z [N, ...], or None where none is needed.

    Those of a fixed key, where none was given and the family's divergence needs draws.
    """
    if key is None:
        if not family.drawn(jax.ShapeDtypeStruct(z.shape[1:], z.dtype)):
            return None
        key = jax.random.PRNGKey(0)
    return example_keys(key, count, first)


def factor_keys(family: Family, z: Array, weights: Array) -> Key | None:
    """The keys of all factors, [N, factors...], as of examples without a given key."""
    each = keys(family, None, z, z.shape[0])
    of_one = lambda z, weights, key: Example(weights, None, key).factor_keys(family, z)
    return jax.vmap(of_one)(z, weights, each)


def check_every(name: str, every: int) -> None:
    """Raise unless `every`, the argument of that name, is a k for `thinned`."""
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{name} uses one example in so many, an integer >= 1, got {every!r}. "
            "Under optax.inject_hyperparams name it in static_args."
        )


def thinned(
    inputs: Inputs,
    targets: ArrayLike | None,
    in_axes: Any,
    every: int,
    first: ArrayLike = 0,
) -> tuple[Inputs, Any]:
    """Every k-th example of inputs and targets, from `first` on.

    N // k examples, and at least one; where k does not divide N they wrap around.
    """
    count = input_count(inputs, in_axes)
    if count is None:
        raise ValueError(
            "No leaf of the inputs has an axis of examples, of which a part could be "
            "taken: use the whole batch."
        )
    if targets is not None and jnp.shape(targets)[:1] != (count,):
        raise ValueError(
            f"targets must have a leading axis of {count} examples, as the inputs do, "
            f"got shape {jnp.shape(targets)}."
        )
    if every == 1:
        return inputs, targets
    number = max(1, count // every)

    def part(leaf):
        leaf = jnp.asarray(leaf)
        if number * every != count:
            rows = (first + every * jnp.arange(number)) % count
            return jnp.take(leaf, rows, axis=0)
        # Examples of a device stay on it.
        apart = leaf.reshape((number, every, *leaf.shape[1:]))
        return jax.lax.dynamic_index_in_dim(apart, first % every, 1, keepdims=False)

    batched, _ = split_inputs(inputs, in_axes)
    mine = {id(leaf) for leaf in batched}
    cut = lambda leaf: part(leaf) if id(leaf) in mine else leaf
    return jax.tree.map(cut, inputs), None if targets is None else part(targets)
