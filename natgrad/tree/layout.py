"""How a tree of parameters lies in a vector, and checks of such trees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from natgrad.typing import Array, Params

_Class = TypeVar("_Class", bound=type)


def working_dtype(*trees: Any) -> jnp.dtype:
    """The floating dtype statistics are kept in: at least float32.

    Args:
        trees: trees of arrays.

    Returns:
        float32 where the leaves are bfloat16, float16 or float32, float64 where one is.
    """
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter tree lies in a vector [P], in `ravel_pytree` order.

    Hashable, so it can be the static part of a metric.

    Attributes:
        treedef: the structure of the tree.
        shapes: of each leaf.
        dtypes: of each leaf.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        """The layout of a tree.

        Args:
            params: a tree of real floating arrays.

        Raises:
            ValueError: it has no leaves, or one is not a real floating array.
        """
        check_params(params)
        leaves, treedef = jax.tree.flatten(params)
        if not leaves:
            raise ValueError("params has no array leaves: there is nothing to solve.")
        return cls(
            treedef,
            tuple(jnp.shape(leaf) for leaf in leaves),
            tuple(jnp.result_type(leaf) for leaf in leaves),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of parameters in each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(self.sizes)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the vector: at least float32."""
        return jnp.result_type(jnp.float32, *self.dtypes)

    def ravel(self, tree: Params, lead: int = 0) -> Float[Array, "*lead P"]:
        """The leaves side by side in one vector.

        Args:
            tree: leaves [lead..., *shape], for the shape of each parameter.
            lead: how many leading axes every leaf has.

        Returns:
            [lead..., P], in the layout's dtype.

        Raises:
            ValueError: the tree is not shaped like the parameters.
        """
        flat = [
            jnp.reshape(leaf, (*jnp.shape(leaf)[:lead], -1))
            for leaf in self.leaves(tree, lead)
        ]
        return jnp.concatenate(flat, axis=-1)

    def leaves(self, tree: Params, lead: int = 0) -> list[Array]:
        """The leaves in the layout's dtype.

        Args:
            tree: leaves [lead..., *shape], for the shape of each parameter.
            lead: how many leading axes every leaf has.

        Raises:
            ValueError: the tree is not shaped like the parameters.
        """
        self.check(tree, lead=lead)
        return [jnp.asarray(leaf, self.dtype) for leaf in jax.tree.leaves(tree)]

    def split(self, vector: Float[Array, " P"]) -> Params:
        """A tree shaped like the parameters, in the vector's dtype.

        Args:
            vector: [P].

        Raises:
            ValueError: the vector has another shape.
        """
        if jnp.shape(vector) != (self.size,):
            raise ValueError(
                "The vector must have one entry for each parameter. Expected the shape "
                f"{(self.size,)}, got {jnp.shape(vector)}."
            )
        leaves, start = [], 0
        for shape, size in zip(self.shapes, self.sizes, strict=True):
            leaves.append(vector[start : start + size].reshape(shape))
            start += size
        return jax.tree.unflatten(self.treedef, leaves)

    def unravel(self, vector: Float[Array, " P"]) -> Params:
        """A tree shaped like the parameters, in their dtypes: undoes `ravel`.

        Args:
            vector: [P].

        Raises:
            ValueError: the vector has another shape.
        """
        leaves = jax.tree.leaves(self.split(vector))
        cast = [
            leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, cast)

    def positions(self, leaf: int) -> np.ndarray:
        """Where the entries of one leaf lie in the vector.

        Args:
            leaf: the number of the leaf, in leaf order.

        Returns:
            Indices [size of the leaf].
        """
        start = sum(self.sizes[:leaf])
        return np.arange(start, start + self.sizes[leaf])

    def check(self, tree: Any, name: str = "The tree", lead: int = 0) -> None:
        """Check the structure and the shapes of a tree.

        Args:
            tree: a tree of arrays.
            name: what the caller calls it, for the message.
            lead: how many leading axes every leaf has beside the parameter's.

        Raises:
            ValueError: it is not shaped like the parameters.
        """
        shapes = [jnp.shape(leaf)[lead:] for leaf in jax.tree.leaves(tree)]
        if jax.tree.structure(tree) != self.treedef or shapes != list(self.shapes):
            raise ValueError(
                f"{name} must be shaped like the parameters. Expected "
                f"{jax.tree.unflatten(self.treedef, self.shapes)}, got "
                f"{jax.tree.map(lambda leaf: jnp.shape(leaf)[lead:], tree)}."
            )


@dataclass_transform(frozen_default=True, eq_default=False)
def metric_pytree(*static: str) -> Callable[[_Class], _Class]:
    """A class decorator that makes a frozen dataclass and a pytree of a class.

    Args:
        static: names of the fields that are no arrays: hashable, fixed under jit.
    """

    def register(cls):
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        data = [name for name in names if name not in static]
        return jax.tree_util.register_dataclass(cls, data, list(static))

    return register


def paths(params: Params) -> list[str]:
    """The path of each leaf, such as 'dense_1/kernel', in leaf order.

    Args:
        params: a tree.
    """
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


def check_sharding(what: str, array: Array) -> None:
    """Check that an array is not sharded over explicit axes of a mesh.

    Args:
        what: the subject of the message, with its verb: "The outputs are".
        array: to look at.

    Raises:
        ValueError: it is.
    """
    sharding = jax.typeof(array).sharding
    axes = [axis for axis in sharding.spec if axis is not None]
    if axes:
        raise ValueError(
            f"{what} sharded over explicit axes of the mesh, {axes}: make it with "
            "axis_types=(jax.sharding.AxisType.Auto,), or under jax.set_mesh wrap "
            "the step in jax.sharding.auto_axes(step, out_sharding=PartitionSpec())."
        )


def check_params(params: Params) -> None:
    """Check what can be a parameter.

    Args:
        params: a tree of arrays.

    Raises:
        ValueError: a leaf is not a real floating array, or it is sharded over explicit
            axes of a mesh.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path) or "params"
            mend = (
                "Cast it to a floating dtype, or keep what is not trained out of "
                "params: it can travel in inputs (see Model.in_axes)."
            )
            if jnp.issubdtype(dtype, jnp.complexfloating):
                mend = (
                    "Curvatures take natgrad.tree.split_complex(params), and "
                    "natgrad.tree.join_complex undoes it; scale_by_curvature and what "
                    "is made of it take complex parameters as they are."
                )
            raise ValueError(
                f"Every parameter must be a real floating array, but {where} has "
                f"dtype {dtype}. {mend}"
            )
        if isinstance(leaf, jax.Array):
            where = jax.tree_util.keystr(path) or "params"
            check_sharding(f"The parameter {where} is", leaf)


def has_placeholders(params: Params) -> bool:
    """Is some part of `params` an `optax.MaskedNode`?

    Args:
        params: a tree of arrays and of placeholders.
    """
    nodes = jax.tree.leaves(params, is_leaf=is_placeholder)
    return any(is_placeholder(node) for node in nodes)


def is_placeholder(node: Any) -> bool:
    """Is this an `optax.MaskedNode`, which stands for what is not seen of a tree?"""
    return isinstance(node, optax.MaskedNode)


def check_kept(kept: Any, needed: Any) -> None:
    """Check that a part of an optimizer's state fits the parameters of this step.

    Args:
        kept: the part, a tree of arrays.
        needed: what `init` would make of it for these parameters.

    Raises:
        ValueError: the shapes differ.
    """
    shapes, expected = (jax.tree.map(jnp.shape, each) for each in (kept, needed))
    if shapes != expected:
        raise ValueError(
            "The optimizer's state was made for parameters of other shapes: it keeps "
            f"{shapes}, where these parameters need {expected}. Call init(params) "
            "again when the shapes of the parameters change."
        )
