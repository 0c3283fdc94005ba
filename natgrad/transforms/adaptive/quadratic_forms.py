"""Quadratic forms of the exact Fisher information, from forward derivatives alone.

    ⟨v, F w⟩ = (1/N) Σ_n ⟨J_n v, F_{z_n} J_n w⟩

One forward derivative a vector; no backward pass. The parameters can be divided into
groups, and each vector with them: the derivative along the part of a vector that lies
in one group passes through the layers from there on only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.curvature.labels import Exact, Labels
from natgrad.metrics.blockwise import BlockwiseMetric
from natgrad.model import Model
from natgrad.solvers.spectral import HIGHEST
from natgrad.transforms.validation import MISSING
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params

EXACT = Exact()
# The indices, in leaf order, of the leaves of each group.
Groups = tuple[tuple[int, ...], ...]
Forms = Callable[[Sequence[Params]], Float[Array, "K K"]]


def fisher_forms(
    model: Model, params: Params, inputs: Inputs, labels: Labels = EXACT
) -> Forms:
    """Quadratic forms of the Fisher information F, the outputs linearised once.

    Args:
        model: whose Fisher information.
        params: θ.
        inputs: a batch.
        labels: labels that need neither targets nor a key: `Exact()`, `Centred()`.

    Returns:
        (v_1 … v_K) -> the matrix ⟨v_i, F v_j⟩, [K, K], the mean over the batch in nats;
        each v_i is shaped like the parameters.

    Raises:
        ValueError: for labels that need targets or a key.
    """
    return grouped_forms(model, params, inputs, labels, one_group(params))


def grouped_forms(
    model: Model, params: Params, inputs: Inputs, labels: Labels, groups: Groups
) -> Forms:
    """Quadratic forms of F between the parts of vectors that lie in groups.

    Args:
        model: whose Fisher information.
        params: θ.
        inputs: a batch.
        labels: labels that need neither targets nor a key.
        groups: the leaves of each of G groups.

    Returns:
        (v_1 … v_T) -> ⟨v_ib, F v_jc⟩ of the parts in groups b and c, [G·T, G·T]: group
        by group, and within a group vector by vector.

    Raises:
        ValueError: for labels that need targets or a key.
    """
    check_labels(labels)
    dtype = Layout.of(params).dtype
    outputs, examples, total = model.whole(params, inputs)
    leaves, structure = jax.tree.flatten(params)

    def linearize(group):
        def outputs_of_group(*group_leaves):
            by_index = dict(zip(group, group_leaves, strict=True))
            all_leaves = [by_index.get(i, leaf) for i, leaf in enumerate(leaves)]
            return outputs(jax.tree.unflatten(structure, all_leaves))

        return jax.linearize(outputs_of_group, *(leaves[i] for i in group))

    # The forward passes are the same, and one is left when they are compiled.
    linearized = [linearize(group) for group in groups]
    z = linearized[0][0]

    def forms(vectors):
        flat = [jax.tree.leaves(cast_like(v, params)) for v in vectors]
        images = [
            push(*(v[i] for i in group))
            for (_, push), group in zip(linearized, groups, strict=True)
            for v in flat
        ]
        products = [labels.products(model, z, examples, total, u) for u in images]
        gram = jnp.matmul(_rows(images), _rows(products).T, precision=HIGHEST)
        return (gram / total).astype(dtype)

    return forms


def _rows(images: Sequence[Array]) -> Array:
    """Arrays of one shape as the rows of a matrix."""
    return jnp.stack([image.reshape(-1) for image in images])


def grouped_inner(a: Params, b: Params, groups: Groups) -> Float[Array, " G"]:
    """⟨a_b, b_b⟩ of the parts of a and b in each group, [G]."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return jnp.stack(
        [tree.inner([a[i] for i in group], [b[i] for i in group]) for group in groups]
    )


def cast_like(values: Params, params: Params) -> Params:
    """The values in the dtypes of the parameters."""
    return jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), values, params)


def one_group(params: Params) -> Groups:
    """All leaves together."""
    return (tuple(range(len(jax.tree.leaves(params)))),)


def grouped(labels: Any, params: Params) -> Groups:
    """The leaves of equal labels together.

    Args:
        labels: a tree of labels like the parameters, or a prefix of it; None for one
            group.
        params: the parameters.

    Returns:
        The indices of the leaves of each group, in the order of their first leaves.

    Raises:
        ValueError: where the labels are no prefix of the parameters' tree.
    """
    if labels is None:
        return one_group(params)
    try:
        leaf_labels = jax.tree.leaves(jax.tree.broadcast(labels, params))
    except ValueError as error:
        raise ValueError(
            "groups must be a tree of labels like the parameters, or a prefix of it; "
            f"got {labels} for parameters of shapes {jax.tree.map(jnp.shape, params)}."
        ) from error
    members: dict[Any, list[int]] = {}
    for i, label in enumerate(leaf_labels):
        members.setdefault(label, []).append(i)
    return tuple(map(tuple, members.values()))


def of_successive_blocks(metric: BlockwiseMetric, most: int) -> Groups:
    """The leaves of successive blocks, divided evenly, and with the last the others.

    A leaf that several blocks read belongs to the first.

    Args:
        metric: whose blocks.
        most: how many groups at most.

    Returns:
        The indices of the leaves of each group, ascending.
    """
    unassigned = set(range(len(metric.layout.shapes)))
    leaves_of_blocks = []
    for block in metric.blocks:
        leaves = unassigned.intersection(block.leaves)
        unassigned -= leaves
        leaves_of_blocks += [leaves] if leaves else []
    parts = _divided(leaves_of_blocks, most)
    groups = [set().union(*blocks) for blocks in parts] or [set()]
    groups[-1] |= unassigned
    return tuple(tuple(sorted(group)) for group in groups)


def merged(groups: Groups, most: int) -> tuple[Groups, tuple[int, ...]]:
    """Successive groups together, so that `most` are left.

    Args:
        groups: the leaves of each group.
        most: how many groups at most.

    Returns:
        (the leaves of each merged group, for each old group the index of its new one).
    """
    parts = _divided(groups, most)
    where = tuple(i for i, old_groups in enumerate(parts) for _ in old_groups)
    leaves = (itertools.chain(*old_groups) for old_groups in parts)
    return tuple(tuple(sorted(group)) for group in leaves), where


def _divided(items: Sequence, most: int) -> list[Sequence]:
    """Successive members together in `most` parts, or fewer, of nearly equal number."""
    count = min(most, len(items))
    edges = [b * len(items) // count for b in range(count + 1)] if count else []
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def check_labels(labels: Labels) -> None:
    """Raise unless the labels need neither targets nor a key."""
    if labels.needs_targets or labels.needs_key:
        raise ValueError(
            "The quadratic model uses the Fisher information itself, over labels that "
            f"need neither targets nor a key such as Exact(); got {labels}."
        )


def check_batch(name: str, params: Params | None, inputs: Inputs) -> None:
    """Raise where parameters or inputs are missing."""
    if params is None or inputs is MISSING:
        raise ValueError(
            f"{name} evaluates the model on the batch at the parameters: call "
            "update(gradient, state, params, inputs=x)."
        )


def part(model: Model, model_params: Params | None) -> Model:
    """The model of the parameters seen here, the others held at model_params."""
    return model if model_params is None else model.with_frozen(model_params)
