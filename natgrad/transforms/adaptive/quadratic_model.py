"""Learning rates and momenta from the quadratic model of the loss.

    M(d) = ⟨g, d⟩ + ½ ⟨d, (F + (λ + η) I) d⟩

is minimised over d = α u + μ d₀, u the direction that comes in, d₀ the update before:
two equations in two unknowns. With the parameters in G groups, such as layers, each
group has an α and a μ of its own, 2 G equations in 2 G unknowns: F couples the groups,
which an approximation of it without blocks off the diagonal knows nothing of.

F is the exact Fisher information of the batch, or of every k-th example of it, whatever
u was made of. Cost: one forward derivative an unknown.

Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
approximate curvature, sections 6.4 and 7, for one group; Tselepidis, Kohler & Orvieto
(2020), Two-level K-FAC preconditioning for deep learning, for a solve with one unknown
a layer; Vinyals & Povey (2012), Krylov subspace descent for deep learning, for steps
from the minimum over a subspace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.curvature.labels import Labels
from natgrad.model import Model, placeholders
from natgrad.model.batch import check_stride, subsample
from natgrad.solvers.dense import direct_solution
from natgrad.solvers.spectral import HIGHEST
from natgrad.transforms.adaptive.fisher_forms import (
    EXACT,
    Forms,
    Groups,
    check_batch,
    check_labels,
    grouped,
    grouped_forms,
    grouped_inner,
    part,
)
from natgrad.transforms.damping import Damping, as_damping
from natgrad.transforms.validation import MISSING, transformation
from natgrad.typing import Array, ArrayLike, Params

# The largest count is followed by one so many lower, as parts of a batch take turns.
TURNS = 2**30


class QuadraticModelState(NamedTuple):
    """State of `scale_by_quadratic_model`.

    Attributes:
        count: steps so far, which a damping schedule sees.
        update: d of the last step that moved, like the parameters.
        coefficients: (α, μ) of each group in the last step, [G, 2]; α is negative where
            the direction points uphill.
        predicted_decrease: −M(d) in nats, damping included.
    """

    count: Array
    update: Params
    coefficients: Array
    predicted_decrease: Array


class Minimum(NamedTuple):
    """The step d where M is least.

    Attributes:
        usable: is it downhill, and finite?
        step: d in the dtypes of the parameters; 0 where not usable.
        coefficients: (α, μ) of each group, [G, 2].
        decrease: −M(d), in nats.
        undamped: −M(d) without λ.
    """

    usable: Array
    step: Params
    coefficients: Array
    decrease: Array
    undamped: Array


def scale_by_quadratic_model(
    model: Model,
    *,
    damping: ArrayLike | Damping = 0.0,
    weight_decay: ArrayLike = 0.0,
    labels: Labels = EXACT,
    sub_batch: int = 1,
    groups: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the direction u by the minimum of M over α u + μ d₀.

    Comes in place of `optax.scale_by_learning_rate`: the result is the whole update,
    downhill whichever way u points. `update` takes

        tx.update(direction, state, params, inputs=x, grad=gradient)

    and `damping=` instead of the rule's λ (`levenberg_marquardt` passes both `grad` and
    `damping`). A direction that is 0 or not finite gives the update 0.

    Args:
        model: the statistical model.
        damping: λ >= 0, or a schedule of it.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        labels: whose F, as for `fisher_forms`.
        sub_batch: k: F is that of every k-th example of the batch.
        groups: labels of the parameters, a tree like them or a prefix of it, such as
            {"encoder": 0, "decoder": 1}: α and μ for each label. None for one group.
    """
    rule = as_damping(damping)
    check_labels(labels)
    check_stride("scale_by_quadratic_model(sub_batch=...)", sub_batch)

    def init(params):
        some = jax.tree.leaves(params)
        return no_step_yet(params, len(grouped(groups, params)) if some else 0)

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        grad=None,
        damping=None,
        model_params=None,
        **extra_args,
    ):
        del extra_args
        check_batch("scale_by_quadratic_model", params, inputs)
        if grad is None:
            raise ValueError(
                "scale_by_quadratic_model needs the gradient beside the direction: "
                "call update(direction, state, params, inputs=x, grad=gradient)."
            )
        grad = placeholders.masked_like(grad, params)
        strength = rule(state.count) if damping is None else damping
        seen, _ = subsample(inputs, None, model.in_axes, sub_batch, state.count)
        these = grouped(groups, params)
        forms = grouped_forms(part(model, model_params), params, seen, labels, these)
        found = minimum(
            forms, strength, weight_decay, grad, updates, state.update, these
        )
        return found.step, advance(state, found, found.usable, jnp.array(True))

    return transformation(init, update)


def no_step_yet(params: Params, groups: int) -> QuadraticModelState:
    """The state before the first step."""
    tree.check_params(params)
    dtype = tree.working_dtype(params)
    return QuadraticModelState(
        count=jnp.zeros((), jnp.int32),
        update=jax.tree.map(jnp.zeros_like, params),
        coefficients=jnp.zeros((groups, 2), dtype),
        predicted_decrease=jnp.zeros((), dtype),
    )


def advance(
    state: QuadraticModelState, found: Minimum, taken: Array, counted: Array
) -> QuadraticModelState:
    """The state after a step that is taken or not, and counts or leaves no trace."""
    either = lambda new, old: jnp.where(counted, new, old)
    return QuadraticModelState(
        count=tree.increment(state.count, counted, TURNS),
        update=tree.where(taken, found.step, state.update),
        coefficients=either(found.coefficients, state.coefficients),
        predicted_decrease=either(found.decrease, state.predicted_decrease),
    )


def minimum(
    forms: Forms,
    damping: ArrayLike,
    weight_decay: ArrayLike,
    gradient: Params,
    direction: Params,
    before: Params,
    groups: Groups,
) -> Minimum:
    """M at its minimum over d = α u + μ d₀ of each group.

    Where the equations are singular (d₀ = 0, or parallel to u) the coefficients are
    those of least norm, each direction scaled to M's curvature 1. Without any u the
    model is not minimised, and M is 0.

    Args:
        forms: F's, of the same groups.
        damping: λ.
        weight_decay: η.
        gradient: g.
        direction: u.
        before: d₀.
        groups: the leaves of each group.
    """
    metric = forms((direction, before))
    dtype, count = metric.dtype, len(groups)
    inner = lambda a, b: grouped_inner(a, b, groups).astype(dtype)
    mixed = inner(direction, before)
    squares = jnp.stack(
        [inner(direction, direction), mixed, mixed, inner(before, before)], -1
    ).reshape(count, 2, 2)
    gram = jax.scipy.linalg.block_diag(*squares)
    slopes = jnp.stack([inner(gradient, v) for v in (direction, before)], -1)
    slopes = slopes.reshape(-1)
    shared = metric + jnp.asarray(weight_decay, dtype) * gram
    matrix = shared + jnp.asarray(damping, dtype) * gram
    # All directions scaled to length 1, so that rounding shows in the correlations.
    diagonal = jnp.diagonal(matrix)
    present = diagonal > 0
    root = jnp.sqrt(jnp.where(present, diagonal, 1))
    finite = jnp.isfinite(jnp.sum(slopes) + jnp.sum(matrix))
    scaled = matrix / (root[:, None] * root[None])
    scaled = jnp.where(finite, scaled, jnp.eye(len(root), dtype=dtype))
    towards = jnp.where(present & finite, slopes / root, 0)
    solved = -direct_solution(scaled, towards, 0).value / root
    slope = jnp.vdot(slopes, solved, precision=HIGHEST)
    curved = lambda m: jnp.vdot(solved, jnp.matmul(m, solved, precision=HIGHEST))
    decrease, undamped = (-slope - curved(m) / 2 for m in (matrix, shared))
    usable = finite & (decrease > 0) & (jnp.sum(squares[:, 0, 0]) > 0)
    solved, decrease, undamped = (
        jnp.where(usable, value, 0) for value in (solved, decrease, undamped)
    )
    solved = solved.reshape(count, 2)
    step = _combined(usable, solved, direction, before, groups)
    return Minimum(usable, step, solved, decrease, undamped)


def _combined(usable, coefficients, direction, before, groups: Groups) -> Params:
    """α u + μ d₀ of each group in the dtypes of d₀, or 0."""
    us, structure = jax.tree.flatten(direction)
    ds, out = jax.tree.leaves(before), list(us)
    for group, (alpha, mu) in zip(groups, coefficients, strict=True):
        for i in group:
            u, d = us[i].astype(ds[i].dtype), ds[i]
            moved = alpha.astype(d.dtype) * u + mu.astype(d.dtype) * d
            out[i] = jnp.where(usable, moved, 0)
    return jax.tree.unflatten(structure, out)
