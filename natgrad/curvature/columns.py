"""Score columns of one example or of a batch, all at once or one at a time.

    Σ_k w_k s_k s_kᵀ,     s_k shaped like the output z

K columns are K times as large as z, which a law of thousands of classes cannot afford
for a batch; but each of them is known from its label alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from natgrad import tree
from natgrad.control_flow import traced_once
from natgrad.families.numerics.remainders import root
from natgrad.model import Model
from natgrad.model.weights import trailing
from natgrad.typing import Array, Inputs, Params


def law_of_outputs(model: Model) -> Model:
    """The law of the labels given the outputs: the model with apply(z, x) = z.

    Its parameters are z [N, ...], which need not be computed again for it.

    Args:
        model: the model.
    """
    return dataclasses.replace(model, apply=lambda z, _: z)


class ScoreColumns(NamedTuple):
    """Score columns of one example.

    Kept apart from their weights because √w has no derivative at w = 0.

    Attributes:
        scores: s_k, [K, *z.shape].
        weights: w_k, [K].
    """

    scores: Float[Array, "K ..."]
    weights: Float[Array, " K"]

    @property
    def scaled(self) -> Array:
        """S with S Sᵀ = Σ_k w_k s_k s_kᵀ, [K, *z.shape]."""
        return jnp.sqrt(trailing(self.weights, self.scores)) * self.scores


class FactorColumns(NamedTuple):
    """Score columns of one example by factor, each made when it is asked for.

    Column k = t L + l is column l of factor t, and 0 in the other factors.

    Attributes:
        z: parameters of each factor, [T, ...].
        labels: whose scores at z are the columns, [T, L, ...]; or None.
        scores: the columns, [T, L, ...], where they are not scores of labels; or None.
        weights: w_k, [T L].
    """

    z: Float[Array, "T ..."]
    labels: Shaped[Array, "T L ..."] | None
    scores: Float[Array, "T L ..."] | None
    weights: Float[Array, " K"]


Columns = ScoreColumns | FactorColumns


def score(model: Model, columns: Columns, k: Array | int, like: Array) -> Array:
    """Column k of one example, shaped like its output z.

    Args:
        model: the model.
        columns: of the example.
        k: which, shape ().
        like: z.
    """
    if isinstance(columns, ScoreColumns):
        return columns.scores[k]
    z, labels, scores, weights = columns
    factors = z.shape[0]
    each = weights.shape[0] // factors
    t, i = (0, k) if factors == 1 else (k // each, k % each)
    if scores is not None:
        of_factor = scores[t, i]
    else:
        assert labels is not None
        of_factor = model.family.score(z[t], labels[t, i])
    if factors > 1:
        own = jnp.arange(factors) == t
        of_factor = jnp.where(trailing(own, z), of_factor[None], 0)
    return of_factor.reshape(like.shape)


def weighted_columns(
    model: Model, scores: Array, weights: Array
) -> tuple[Array, Array]:
    """Columns over all factors with √(w_t/ω) in each, and ω, shape ().

    Args:
        model: the model.
        scores: [K, *z.shape].
        weights: w_t of ONE example, [factors...].
    """
    whole, share = jnp.ones((), weights.dtype), weights
    if model.weights is not None:  # a maximum of ones would take long to compile
        whole, share = share_of_largest(weights)
    if weights.ndim:
        scores = jnp.sqrt(trailing(share, scores[0]))[None] * scores
    return scores, whole


def share_of_largest(weights: Array) -> tuple[Array, Array]:
    """ω = max_t w_t, shape (), and w_t/ω (0 where ω is).

    Args:
        weights: w_t of one example, [factors...].
    """
    whole = jnp.max(weights)
    safe = jnp.where(whole == 0, 1, whole)
    return whole, weights / safe


@dataclasses.dataclass(frozen=True)
class BatchColumns:
    """The columns √w_nk s_nk of a whole batch, one k at a time.

    Attributes:
        model: the model.
        z: its outputs, [N, ...].
        columns: of every example; each array has a leading axis N.
    """

    model: Model
    z: Float[Array, "N ..."]
    columns: Columns

    @property
    def count(self) -> int:
        """K."""
        return self.columns.weights.shape[1]

    def roots(self, k: Array | int) -> Float[Array, " N"]:
        """√w_nk of all n, [N]."""
        return root(self.columns.weights[:, k])

    def column(self, k: Array | int) -> Float[Array, "N ..."]:
        """√w_nk s_nk of all n, [N, ...]."""

        def of_example(columns, z):
            return root(columns.weights[k]) * score(self.model, columns, k, z)

        return jax.vmap(of_example)(self.columns, self.z)


def summed_over(pull: Callable[[Any], Any], count: int) -> Any:
    """Σ_k pull(k), k < K; one is traced, whatever K is.

    Args:
        pull: k -> a tree of arrays.
        count: K.
    """
    if count == 1:
        return pull(0)

    def add(total, k):
        return jax.tree.map(jnp.add, total, pull(k)), None

    ks, pull = jnp.arange(count), traced_once(pull)
    zeros = tree.zeros_of(jax.eval_shape(pull, jax.ShapeDtypeStruct((), ks.dtype)))
    return jax.lax.scan(add, zeros, ks)[0]


def count_columns(
    model: Model, labels: Any, params: Params, inputs: Inputs, targets: Array | None
) -> tuple[int, int]:
    """(K, N) of a batch, from shapes: score columns an example, and examples.

    Args:
        model: the model.
        labels: the `Labels`, whose `count` is asked.
        params: θ.
        inputs: of the batch.
        targets: its labels, for `Empirical` ones.
    """
    used = targets if labels.needs_targets else None

    def shaped(params, inputs, targets):
        key = jax.random.PRNGKey(0)
        outputs, examples, _ = model.whole(params, inputs, targets, key)
        z = outputs(params)
        return jnp.zeros((labels.count(model, z, examples), z.shape[0]))

    return jax.eval_shape(shaped, params, inputs, used).shape
