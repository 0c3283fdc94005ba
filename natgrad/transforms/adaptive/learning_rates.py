"""Learning rates and momenta from the quadratic model of the loss.

    M(d) = ⟨g, d⟩ + ½ ⟨d, (F + Λ + η I) d⟩,     Λ = λI, or diagonal by layer,

is minimised over d = α u + μ d₀, u the direction that comes in, d₀ the update before;
each group of parameters, such as a layer, can have an α and a μ of its own.

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
from jaxtyping import Bool, Float, Int

from natgrad import tree
from natgrad.arguments import check_weight_decay
from natgrad.curvature.labels import Labels
from natgrad.curvature.matrix_free import MatrixFree
from natgrad.curvature.sub_batch import check_stride, subsample
from natgrad.eager import call
from natgrad.model import Model, placeholders
from natgrad.solvers.damping import (
    DampingLike,
    OfMetric,
    damping_of_step,
    resolve_damping,
)
from natgrad.transforms.adaptive.quadratic_forms import (
    EXACT,
    check_batch,
    check_labels,
    grouped,
    grouped_forms,
    part,
)
from natgrad.transforms.adaptive.quadratic_model import Minimum, QuadraticModel
from natgrad.transforms.damping import Damping, as_damping
from natgrad.transforms.validation import MISSING, transformation
from natgrad.tree import Layout, of_pairs
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

    count: Int[Array, ""]
    update: Params
    coefficients: Float[Array, "G 2"]
    predicted_decrease: Float[Array, ""]


def scale_by_quadratic_model(
    model: Model,
    *,
    damping: DampingLike | Damping = 0.0,
    weight_decay: ArrayLike = 0.0,
    labels: Labels = EXACT,
    sub_batch: int = 1,
    groups: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the direction u by the minimum of M over α u + μ d₀.

    Comes in place of `optax.scale_by_learning_rate`: the result is the whole update,
    downhill whichever way u points. `update` takes

        tx.update(direction, state, params, inputs=x, grad=gradient)

    and `damping=` instead of the rule's λ, or to multiply what is by layer
    (`levenberg_marquardt` passes both `grad` and `damping`). A direction that is 0 or
    not finite gives the update 0.

    Args:
        model: the statistical model.
        damping: λ >= 0, or a schedule of it; by layer too, as that of the
            `scale_by_curvature` before it. F is all one block for `Relative`.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        labels: whose F, as for `fisher_forms`.
        sub_batch: k: F is that of every k-th example of the batch.
        groups: labels of the parameters, a tree like them or a prefix of it, such as
            {"encoder": 0, "decoder": 1}: α and μ for each label. None for one group.

    Returns:
        The transformation; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, and in `update` where `grad=`, `inputs=`
            or `params` is missing or the damping does not fit the parameters.
    """
    rule = as_damping(damping)
    check_weight_decay(weight_decay)
    check_labels(labels)
    check_stride("scale_by_quadratic_model(sub_batch=...)", sub_batch)

    def init(params):
        count = len(grouped(groups, params)) if jax.tree.leaves(params) else 0
        return no_step_yet(params, count)

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
        sampled = inputs
        if sub_batch > 1:
            sampled, _ = subsample(inputs, None, model.in_axes, sub_batch, state.count)
        leaves = grouped(groups, params)
        restricted = part(model, model_params)
        forms = grouped_forms(restricted, params, sampled, labels, leaves)
        own = damping_of_step(call(rule, state.count), damping, Layout.of(params))
        if isinstance(own, OfMetric):
            metric = MatrixFree(restricted, labels).at(params, sampled)
            own = resolve_damping(own, metric)
        gradient = placeholders.masked_like(grad, params)
        quadratic = QuadraticModel(forms, leaves, gradient, own, weight_decay)
        minimum = quadratic.minimum(updates, state.update)
        return minimum.step, advance(state, minimum, minimum.usable, jnp.array(True))

    return transformation(*of_pairs(init, update))


def no_step_yet(params: Params, groups: int) -> QuadraticModelState:
    """The state before the first step of parameters in so many groups.

    Args:
        params: θ.
        groups: G.

    Returns:
        The state, its steps 0.

    Raises:
        ValueError: for parameters that are no floating arrays.
    """
    tree.check_params(params)
    dtype = tree.working_dtype(params)
    return QuadraticModelState(
        count=jnp.zeros((), jnp.int32),
        update=jax.tree.map(jnp.zeros_like, params),
        coefficients=jnp.zeros((groups, 2), dtype),
        predicted_decrease=jnp.zeros((), dtype),
    )


def advance(
    state: QuadraticModelState,
    minimum: Minimum,
    accepted: Bool[Array, ""],
    counted: Bool[Array, ""],
) -> QuadraticModelState:
    """The state after a step.

    Args:
        state: before it.
        minimum: the step, and what the model says of it.
        accepted: is it taken?
        counted: does it count, or leave no trace?

    Returns:
        The state.
    """

    def if_counted(new, old):
        return jnp.where(counted, new, old)

    return QuadraticModelState(
        count=tree.increment(state.count, counted, TURNS),
        update=tree.where(accepted, minimum.step, state.update),
        coefficients=if_counted(minimum.coefficients, state.coefficients),
        predicted_decrease=if_counted(minimum.decrease, state.predicted_decrease),
    )
