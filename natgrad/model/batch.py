"""A batch of examples: what its inputs, weights and labels must look like.

Everything here is about shapes, except where values of labels and weights are known:
under jit they are not, and what is impossible there makes NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import Family
from natgrad.model import weights as weighting
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


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Adds a line to JAX's own error about a function that it cannot trace."""
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        error.add_note(
            "natgrad: Model's apply must be traceable by JAX: no Python `if` or "
            "`while` on values of arrays (use jnp.where or jax.lax.cond), and no "
            "NumPy, float() or .item() on them (use jax.numpy)."
        )
        raise


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
        if len(axes) != len(leaves):  # an input may be None too, and is no leaf then
            given = jax.tree.leaves(inputs, is_leaf=is_none)
            pairs = zip(axes, given, strict=True)
            axes = [axis for axis, leaf in pairs if leaf is not None]
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
            "examples share with None in Model(in_axes=...). Sets of different lengths "
            "(points inside and on an edge) are one set with an array that tells their "
            "kinds apart, as in docs/faq.md."
        )
    return counts.pop()[0] if counts else None


def check_targets(family: Family, z: Any, targets: ArrayLike, count: int) -> Array:
    """The labels as an array, after a look at their shape: z [N, ...], y [N, ...]."""
    if targets is None:
        raise ValueError("targets are needed here: pass the labels y [N, ...].")
    with jax.ensure_compile_time_eval():  # values known now stay known under jit
        y = jnp.asarray(targets)
    shapes = [(count, *shape) for shape in family.label_shapes(z.shape[1:])]
    if y.shape in shapes or (not shapes and y.shape[:1] == (count,)):
        return y
    named = " or ".join(map(str, shapes or [(count, "...")]))
    raise ValueError(
        f"targets must have shape {named} for outputs z of shape {z.shape} under "
        f"{family}, got {y.shape}.{_cure(y.shape, z.shape, shapes)}"
    )


def _cure(given: tuple, z_shape: tuple, shapes: list[tuple]) -> str:
    """What to do about an axis of size 1 too many, if it is that."""
    first = lambda name, ndim: f"{name}[{', '.join([':'] * (ndim - 1))}, 0]"
    if given[-1:] == (1,) and given[:-1] in shapes:
        return f" Pass {first('y', len(given))}."
    if z_shape[-1:] == (1,) and (*given, 1) in shapes:
        return f" Let apply return {first('z', len(z_shape))}, or pass y[..., None]."
    return ""


def check_support(family: Family, z: Any, y: Array, weights: Array | None) -> None:
    """Raise for impossible labels where values are known: not under jit.

    With weights, a label of weight 0 may be anything.
    """
    with jax.ensure_compile_time_eval():
        parameters = jnp.zeros(z.shape[1:], z.dtype)
        inside = jax.vmap(family.in_support, (None, 0))(parameters, y)
        if weights is not None:
            inside = jnp.all(inside.reshape((*weights.shape, -1)), axis=-1)
            inside = inside | (weights == 0)
        if isinstance(inside, jax.core.Tracer) or bool(jnp.all(inside)):
            return
    labels, bad = np.asarray(y), np.argwhere(~np.asarray(inside)).tolist()
    named = [f"targets{place} = {labels[tuple(place)]}" for place in bad[:3]]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise ValueError(
        f"Some targets are impossible under {family} with outputs z of shape "
        f"{z.shape}: {', '.join(named)}{more}. If such labels mark examples to ignore, "
        "give these weight 0: Model(apply, family, weights=lambda inputs: "
        'inputs["mask"]) with inputs {"x": x, "mask": y >= 0}; labels of weight 0 may '
        "be anything."
    )


def safe_example(family: Family, z: Array, example: Example, masked: bool) -> Example:
    """The example with labels that cannot do harm unseen.

    A label outside the support cannot raise under jit, so it turns the weight of its
    factor, hence the loss, its gradient and the empirical Fisher, into NaN. Where the
    weight is 0 the label is replaced by 0, and what that gives has weight 0.

    Args:
        family: of the law.
        z: the output of one example.
        example: with a target.
        masked: whether weights can be 0.
    """
    y, weights = example.target, example.weights
    inside = family.in_support(z, y)
    inside = jnp.all(inside.reshape((*weights.shape, -1)), axis=-1)
    if masked:
        out = (weights == 0) & ~inside
        y = jnp.where(weighting.trailing(out, y), jnp.zeros_like(y), y)
        inside = inside | out
    return example._replace(target=y, weights=weighting.nan_unless(inside, weights))


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


def check_stride(name: str, every: int) -> None:
    """Raise unless `every`, the argument of that name, is a k for `subsample`."""
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{name} uses one example in so many, an integer >= 1, got {every!r}. "
            "Under optax.inject_hyperparams name it in static_args."
        )


def subsample(
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
            "taken: use the whole batch (sub_batch=1), or pass the data in inputs with "
            "an axis of examples, 0 in Model(in_axes=...)."
        )
    if targets is not None and jnp.shape(targets)[:1] != (count,):
        raise ValueError(
            f"targets must have a leading axis of {count} examples, as the inputs do, "
            f"got shape {jnp.shape(targets)}."
        )
    if every == 1:
        return inputs, targets
    number, first = max(1, count // every), first % count

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
