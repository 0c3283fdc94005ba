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
Forms = Callable[[Sequence[Params]], Array]


def fisher_forms(
    model: Model, params: Params, inputs: Inputs, labels: Labels = EXACT
) -> Forms:
    """(v_1 … v_K) -> the matrix ⟨v_i, F v_j⟩, [K, K], the outputs linearised once.

    Args:
        model: whose Fisher information.
        params: θ.
        inputs: a batch.
        labels: labels that need neither targets nor a key: `Exact()`, `Centred()`.
    """
    return grouped_forms(model, params, inputs, labels, one_group(params))


def grouped_forms(
    model: Model, params: Params, inputs: Inputs, labels: Labels, groups: Groups
) -> Forms:
    """(v_1 … v_T) -> ⟨v_ib, F v_jc⟩ of the parts in groups b and c, [G·T, G·T].

    Group by group, and within a group vector by vector.
    """
    check_labels(labels)
    dtype = Layout.of(params).dtype
    outputs, examples, total = model.whole(params, inputs)
    leaves, structure = jax.tree.flatten(params)

    def linearised(group):
        def of(*mine):
            known = dict(zip(group, mine, strict=True))
            whole = [known.get(i, leaf) for i, leaf in enumerate(leaves)]
            return outputs(jax.tree.unflatten(structure, whole))

        return jax.linearize(of, *(leaves[i] for i in group))

    # The forward passes are the same, and one is left when they are compiled.
    linear = [linearised(group) for group in groups]
    z = linear[0][0]

    def forms(vectors):
        cast = lambda leaf, p: leaf.astype(p.dtype)
        flat = [jax.tree.leaves(jax.tree.map(cast, v, params)) for v in vectors]
        images = [
            push(*(v[i] for i in group))
            for (_, push), group in zip(linear, groups, strict=True)
            for v in flat
        ]
        products = [labels.products(model, z, examples, total, u) for u in images]
        rows = lambda found: jnp.stack([image.reshape(-1) for image in found])
        gram = jnp.matmul(rows(images), rows(products).T, precision=HIGHEST)
        return (gram / total).astype(dtype)

    return forms


def grouped_inner(a: Params, b: Params, groups: Groups) -> Array:
    """⟨a_b, b_b⟩ for each group, [G]."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    part = lambda leaves, group: [leaves[i] for i in group]
    return jnp.stack([tree.inner(part(a, g), part(b, g)) for g in groups])


def one_group(params: Params) -> Groups:
    """All leaves together."""
    return (tuple(range(len(jax.tree.leaves(params)))),)


def grouped(labels: Any, params: Params) -> Groups:
    """The leaves of equal labels together.

    Args:
        labels: a tree of labels like the parameters, or a prefix of it; None for one
            group.
        params: the parameters.
    """
    if labels is None:
        return one_group(params)
    try:
        each = jax.tree.leaves(jax.tree.broadcast(labels, params))
    except ValueError as error:
        raise ValueError(
            "groups must be a tree of labels like the parameters, or a prefix of it; "
            f"got {labels} for parameters of shapes {jax.tree.map(jnp.shape, params)}."
        ) from error
    found: dict[Any, list[int]] = {}
    for i, label in enumerate(each):
        found.setdefault(label, []).append(i)
    return tuple(map(tuple, found.values()))


def of_successive_blocks(metric: BlockwiseMetric, most: int) -> Groups:
    """The leaves of successive blocks, divided evenly, and with the last the others.

    A leaf that several blocks read belongs to the first.
    """
    free = set(range(len(metric.layout.shapes)))
    found = []
    for block in metric.blocks:
        mine = free.intersection(block.leaves)
        free -= mine
        found += [mine] if mine else []
    groups = [set().union(*some) for some in _divided(found, most)] or [set()]
    groups[-1] |= free
    return tuple(tuple(sorted(group)) for group in groups)


def merged(groups: Groups, most: int) -> tuple[Groups, tuple[int, ...]]:
    """Successive groups together, so that `most` are left, and where each one went."""
    found = _divided(groups, most)
    where = tuple(i for i, some in enumerate(found) for _ in some)
    return tuple(tuple(sorted(itertools.chain(*some))) for some in found), where


def _divided(found: Sequence, most: int) -> list[Sequence]:
    """Successive members together in `most` parts, or fewer, of nearly equal number."""
    count = min(most, len(found))
    edges = [b * len(found) // count for b in range(count + 1)] if count else []
    return [found[a:b] for a, b in itertools.pairwise(edges)]


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
