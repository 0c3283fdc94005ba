"""A batch of examples: its axis N, its random keys, and what the model gives for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from natgrad.families.base import Family
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params


class Batch(NamedTuple):
    """A batch, and the parameters at which something is computed from it.

    Attributes:
        params: θ.
        inputs: the inputs; every leaf has a leading axis of examples, but for those
            that `Model.in_axes` marks with None.
        targets: the labels, [N, ...]; None where they are not needed.
        key: a random key for what is drawn; None where nothing is.
    """

    params: Params
    inputs: Inputs
    targets: Array | None = None
    key: Key | None = None


class Example(NamedTuple):
    """What a fold over examples knows of one example besides its output z.

    Attributes:
        weights: one weight a factor, [factors...].
        target: the label y, or None.
        key: a random key, or None where the family draws nothing.
    """

    weights: Float[Array, "*factors"]
    target: Shaped[Array, "..."] | None
    key: Key | None

    def factor_keys(self, family: Family, z: Array) -> Array | None:
        """A key for each factor; None where the family draws nothing.

        Args:
            family: of the law.
            z: the output of the example, [factors..., parameters...].

        Returns:
            Keys [factors...], raw ones with their own axis behind.
        """
        if self.key is None or not family.drawn(z):
            return None
        return jax.random.split(self.key, self.weights.shape)


_UNTRACEABLE = (
    "natgrad: Model's apply must be traceable by JAX: no Python `if` or `while` on "
    "values of arrays (use jnp.where or jax.lax.cond), and no NumPy, float() or "
    ".item() on them (use jax.numpy)."
)


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """A context that adds a line to JAX's error about a function it cannot trace."""
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        if _UNTRACEABLE not in getattr(error, "__notes__", ()):
            error.add_note(_UNTRACEABLE)
        raise


def check_specification(apply: Any, family: Any, chunk_size: int | None) -> None:
    """Raise a ValueError for what no model can be made of.

    Args:
        apply: the model's first argument.
        family: its second.
        chunk_size: as of `Model`.
    """
    if not callable(apply):
        raise ValueError(
            "Model's first argument must be a function (params, inputs) -> z, got "
            f"{apply!r}."
        )
    if not isinstance(family, Family):
        raise ValueError(
            "Model's second argument must be a natgrad Family such as "
            f"natgrad.families.Categorical(), got {family!r}."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}.")


def check_outputs(z: Any, count: int | None, family: Family) -> Float[Array, "N ..."]:
    """What `Model.apply` gave, after a look at its shape.

    Args:
        z: what it gave.
        count: N, or None where the inputs do not tell.
        family: of the law.

    Raises:
        ValueError: it is not one real floating array [N, factors..., parameters...].
    """
    if not hasattr(z, "dtype") or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            "apply(params, inputs) must return one real floating array z [N, ...], "
            f"got {jax.tree.map(jnp.result_type, z)}. Complex z = log ψ are for "
            "natgrad.families.Unnormalized()."
        )
    lowest = 1 + (family.parameter_ndim or 0)
    if z.ndim < lowest:
        raise ValueError(
            f"apply(params, inputs) must return z with a leading axis of examples "
            f"and at least {lowest} axes for {family}, got shape {z.shape}."
        )
    if count is not None and z.shape[0] != count:
        raise ValueError(
            f"apply(params, inputs) gave {z.shape[0]} rows for {count} examples: "
            f"z has shape {z.shape}. One row an example is expected."
        )
    return z


def split_inputs(
    inputs: Inputs, in_axes: Any
) -> tuple[list[Array], Callable[[list[Array]], Inputs]]:
    """The leaves with an axis of examples, apart from those that all examples share.

    Args:
        inputs: of a batch, a tree of arrays.
        in_axes: 0, None, or a prefix of the tree made of these, as `Model.in_axes`.

    Returns:
        (batched, rebuild): the leaves [N, ...] whose axis is 0, and a function from one
        example's leaves to inputs of a batch of one: it adds an axis of size 1 to each
        and puts the shared leaves beside them.

    Raises:
        ValueError: as `split_batch`.
    """
    batched, rebuild = split_batch(inputs, in_axes)
    return batched, lambda example: rebuild([row[None] for row in example])


def split_batch(
    inputs: Inputs, in_axes: Any
) -> tuple[list[Array], Callable[[list[Array]], Inputs]]:
    """As `split_inputs`, but `rebuild` takes leaves [n, ...] of any n examples.

    Args:
        inputs: as of `split_inputs`.
        in_axes: as of `split_inputs`.

    Raises:
        ValueError: `in_axes` is no prefix of the inputs, or holds something else.
    """
    leaves, treedef = jax.tree.flatten(inputs)

    def is_none(node):
        return node is None

    axes = []
    if leaves:
        try:
            axes = jax.tree.broadcast(in_axes, inputs, is_leaf=is_none)
        except ValueError as error:
            raise ValueError(
                f"Model(in_axes=...) must be a prefix of the tree of inputs; got "
                f"{in_axes} for inputs of shapes {jax.tree.map(jnp.shape, inputs)}."
                f"{_entries(in_axes)}"
            ) from error
        axes = jax.tree.leaves(axes, is_leaf=is_none)
        if len(axes) != len(leaves):  # an input may be None too, and is no leaf then
            with_none = jax.tree.leaves(inputs, is_leaf=is_none)
            pairs = zip(axes, with_none, strict=True)
            axes = [axis for axis, leaf in pairs if leaf is not None]
    if any(axis not in (0, None) for axis in axes):
        raise ValueError(f"Model(in_axes=...) may hold 0 and None only, got {in_axes}.")
    batched = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

    def rebuild(chunk):
        rows = iter(chunk)
        return treedef.unflatten(
            next(rows) if axis == 0 else leaf
            for leaf, axis in zip(leaves, axes, strict=True)
        )

    return batched, rebuild


def _entries(in_axes: Any) -> str:
    if not isinstance(in_axes, Mapping):
        return ""
    names = ", ".join(map(str, in_axes))
    return f" Pass inputs as a dictionary with the entries {names}."


def input_count(inputs: Inputs, in_axes: Any) -> int | None:
    """N read off the inputs, None where they have no leaf with an axis of examples.

    Args:
        inputs: of a batch, a tree of arrays.
        in_axes: as `Model.in_axes`.

    Raises:
        ValueError: the leaves have axes of different lengths, or N is 0.
    """
    batched, _ = split_inputs(inputs, in_axes)
    counts = {jnp.shape(leaf)[:1] for leaf in batched}
    if len(counts) > 1 or () in counts:
        shapes = list(dict.fromkeys(jnp.shape(leaf) for leaf in batched))
        listed = " A list is a tree of its items: pass an array." * (() in counts)
        raise ValueError(
            "Every leaf of inputs must have the same leading axis of examples; got "
            f"shapes {shapes}.{listed} Mark leaves that all "
            "examples share with None in Model(in_axes=...). Sets of different lengths "
            "(points inside and on an edge) are one set with an array that tells their "
            "kinds apart, as in docs/faq.md."
        )
    if counts == {(0,)}:
        raise ValueError(
            "The batch is empty: a mean over 0 examples does not exist. Got inputs of "
            f"shapes {jax.tree.map(jnp.shape, inputs)}."
        )
    return counts.pop()[0] if counts else None


def example_keys(key: Key, count: int, first: ArrayLike = 0) -> Array:
    """One key an example, from its index alone: the same on any number of devices.

    Args:
        key: a key; keys that are already one an example are given back.
        count: N.
        first: the index of the first example.

    Returns:
        Keys [N], raw ones with their own axis behind.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.ndim > (0 if typed else 1):
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def keys(
    family: Family, key: Key | None, z: Any, count: int, first: ArrayLike = 0
) -> Array | None:
    """One key an example, or None where none is needed.

    Args:
        family: of the law.
        key: a key; where it is None and the family's divergence needs draws, a fixed
            one takes its place.
        z: outputs [N, ...], or their `jax.ShapeDtypeStruct`; values do not count.
        count: N.
        first: the index of the first example.

    Returns:
        Keys [N], raw ones with their own axis behind.
    """
    if key is None:
        if not family.drawn(jax.ShapeDtypeStruct(z.shape[1:], z.dtype)):
            return None
        key = jax.random.PRNGKey(0)
    return example_keys(key, count, first)


def factor_keys(
    family: Family, z: Float[Array, "N ..."], weights: Float[Array, " N *factors"]
) -> Array | None:
    """The keys of all factors, those of examples for which no key was given.

    Args:
        family: of the law.
        z: outputs [N, factors..., parameters...].
        weights: one a factor.

    Returns:
        Keys [N, factors...], raw ones with their own axis behind; None where the
        family draws nothing.
    """

    def of_one(z, weights, key):
        return Example(weights, None, key).factor_keys(family, z)

    return jax.vmap(of_one)(z, weights, keys(family, None, z, z.shape[0]))
