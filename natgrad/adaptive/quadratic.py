"""Learning rate and momentum from the quadratic model of the loss.

    M(d) = ⟨g, d⟩ + ½ ⟨d, (F + (λ + η) I) d⟩

is minimised over d = α u + μ d₀, u the direction that comes in, d₀ the update before:
two equations in two unknowns. F is the exact Fisher information of the batch, whatever
u was made of, and its quadratic forms need no backward pass,

    ⟨v, F w⟩ = (1/N) Σ_n ⟨J_n v, F_{z_n} J_n w⟩.

Cost: one forward derivative a vector. Source: Martens & Grosse (2015), Optimizing
neural networks with Kronecker-factored approximate curvature, sections 6.4 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.curvature.labels import Exact, Labels
from natgrad.damping import Damping, as_damping
from natgrad.model import Model
from natgrad.solvers import HIGHEST
from natgrad.transform import MISSING
from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Inputs, Params

EXACT = Exact()
Forms = Callable[[Sequence[Params]], Array]


class QuadraticModelState(NamedTuple):
    """State of `scale_by_quadratic_model`.

    Attributes:
        count: steps so far, which a damping schedule sees.
        update: d of the last step that moved, like the parameters.
        coefficients: (α, μ) of the last step, [2]; α is negative where the direction
            points uphill.
        predicted_decrease: −M(d) in nats, damping included.
    """

    count: Array
    update: Params
    coefficients: Array
    predicted_decrease: Array


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
    _check_labels(labels)
    dtype = Layout.of(params).dtype
    outputs, examples, total = model.whole(params, inputs)
    z, pushforward = jax.linearize(outputs, params)

    def forms(vectors):
        images = [pushforward(_like(v, params)) for v in vectors]
        products = [labels.products(model, z, examples, total, u) for u in images]
        rows = [
            [jnp.vdot(u, w, precision=HIGHEST) / total for w in products]
            for u in images
        ]
        return jnp.stack([jnp.stack(row) for row in rows]).astype(dtype)

    return forms


def scale_by_quadratic_model(
    model: Model,
    *,
    damping: ArrayLike | Damping = 0.0,
    weight_decay: ArrayLike = 0.0,
    labels: Labels = EXACT,
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
    """
    rule = as_damping(damping)
    _check_labels(labels)

    def init(params):
        dtype = Layout.of(params).dtype
        return QuadraticModelState(
            count=jnp.zeros((), jnp.int32),
            update=jax.tree.map(jnp.zeros_like, params),
            coefficients=jnp.zeros(2, dtype),
            predicted_decrease=jnp.zeros((), dtype),
        )

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
        here = part(model, model_params)
        strength = (rule(state.count) if damping is None else damping) + weight_decay
        forms = fisher_forms(here, params, inputs, labels)
        coefficients, value = minimum(forms, strength, grad, (updates, state.update))
        usable = jnp.isfinite(value) & (value < 0)
        coefficients = jnp.where(usable, coefficients, 0)
        alpha, mu = coefficients
        moved = jax.tree.map(
            lambda u, d: jnp.where(
                usable, alpha.astype(d.dtype) * u + mu.astype(d.dtype) * d, 0
            ),
            _like(updates, params),
            state.update,
        )
        return moved, QuadraticModelState(
            count=state.count + 1,
            update=tree.where(usable, moved, state.update),
            coefficients=coefficients,
            predicted_decrease=jnp.where(usable, -value, 0),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def minimum(
    forms: Forms, strength: ArrayLike, gradient: Params, vectors: Sequence[Params]
) -> tuple[Array, Array]:
    """(α, μ), [2], and M there, for d = α u + μ d₀ and F + strength · I.

    Without a second direction (d₀ = 0, or parallel to u) μ is 0; without a first the
    model is not minimised, and M is 0.
    """
    metric = forms(vectors)
    gram = jnp.stack([jnp.stack([tree.inner(a, b) for b in vectors]) for a in vectors])
    matrix = metric + jnp.asarray(strength, metric.dtype) * gram.astype(metric.dtype)
    slopes = jnp.stack([tree.inner(gradient, v) for v in vectors]).astype(metric.dtype)
    # Both directions scaled to length 1, so that rounding shows in the correlation.
    squares = jnp.diagonal(matrix)
    present = squares > 0
    root = jnp.sqrt(jnp.where(present, squares, 1))
    first, second = jnp.where(present, slopes / root, slopes)
    correlation = matrix[0, 1] / (root[0] * root[1])
    rest = 1 - correlation**2
    both = present[0] & present[1] & (rest > 8 * jnp.finfo(matrix.dtype).eps)
    safe = jnp.where(both, rest, 1)
    along = jnp.where(both, (first - correlation * second) / safe, first)
    across = jnp.where(both, (second - correlation * first) / safe, 0)
    solved = -jnp.stack([jnp.where(present[0], along, 0), across]) / root
    bad = ~jnp.isfinite(jnp.sum(slopes) + jnp.sum(matrix))
    value = jnp.vdot(slopes, solved, precision=HIGHEST) / 2
    return solved, jnp.where(bad, jnp.nan, value)


def check_batch(name: str, params: Params | None, inputs: Inputs) -> None:
    """Raise where parameters or inputs are missing."""
    if params is None or inputs is MISSING:
        raise ValueError(
            f"{name} evaluates the model on the batch at the parameters: call "
            "update(gradient, state, params, inputs=x)."
        )


def part(model: Model, model_params: Params | None) -> Model:
    """The model of the parameters seen here, the others held at model_params."""
    return model if model_params is None else model.fixing(model_params)


def _check_labels(labels: Labels) -> None:
    if labels.needs_targets or labels.needs_key:
        raise ValueError(
            "The quadratic model uses the Fisher information itself, over labels that "
            f"need neither targets nor a key such as Exact(); got {labels}."
        )


def _like(vector: Params, params: Params) -> Params:
    return jax.tree.map(lambda v, p: v.astype(p.dtype), vector, params)
