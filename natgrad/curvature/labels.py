"""Over which labels y the score outer products s sᵀ are averaged.

Each answer is a set of score columns s_k with weights w_k, in output space, for ONE
example, such that

    Exact       Σ_k w_k s_k s_kᵀ = E_y[s sᵀ] = F_z      y ~ p(· | z), all of it
    Sampled     E[Σ_k w_k s_k s_kᵀ] = F_z               y_k ~ p(· | z), k = 1 … n
    Empirical   Σ_k w_k s_k s_kᵀ = s(y_n) s(y_n)ᵀ       the data's own label
    Centred     w s = ω_n, less the mean over n          the example itself

`Empirical` is not the Fisher: it agrees with it only at the true parameters of a well
specified model with population data (Kunstner, Hennig & Balles 2019, section 3).

The same outer products have two more faces, which curvatures use that never form
columns: `product`, v -> Σ_k w_k s_k ⟨s_k, v⟩, and `divergence`, a divergence between
two outputs whose Hessian they are. For `Exact` these come from the family's Fisher
information and from its KL divergence, so three definitions of the Fisher stand beside
each other and share no code (but for laws that must be drawn: they share the draws).

Factor weights. With factor weights w_t the Fisher is Σ_t w_t F_{z_t}.
"""

from __future__ import annotations

import abc
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.arguments import check_count
from natgrad.curvature.columns import (
    BatchColumns,
    Columns,
    FactorColumns,
    ScoreColumns,
    score,
    share_of_largest,
    weighted_columns,
)
from natgrad.families.base import Family
from natgrad.families.expectations import fewest_columns
from natgrad.model import Model
from natgrad.model.batch import Batch, Example
from natgrad.model.weights import trailing, zero_where_lost
from natgrad.tree import working_dtype
from natgrad.typing import Array, Key


class Labels(abc.ABC):
    """Which labels; a frozen dataclass. All methods are for ONE example."""

    @abc.abstractmethod
    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """The score columns at output z."""

    def each(self, model: Model, z: Array, example: Example) -> Columns:
        """The same columns, for whoever takes a few at a time."""
        return self.columns(model, z, example)

    def product(self, model: Model, z: Array, example: Example, v: Array) -> Array:
        """Σ_k w_k s_k ⟨s_k, v⟩, shaped like z."""
        scores, weights = self.columns(model, z, example)
        inner = jnp.tensordot(scores, v, axes=z.ndim, precision="highest")
        return jnp.tensordot(weights * inner, scores, axes=1, precision="highest")

    def divergence(self, model: Model, z: Array, example: Example, z2: Array) -> Array:
        """A divergence of z2 from z whose Hessian in z2 is Σ_k w_k s_k s_kᵀ, shape ().

        Here ½ Σ_k w_k ⟨s_k, z2 − z⟩², the KL divergence between normal laws of unit
        variance whose means are the columns' coordinates √w_k ⟨s_k, ·⟩.
        """
        scores, weights = self.columns(model, z, example)
        inner = jnp.tensordot(scores, z2 - z, axes=z.ndim, precision="highest")
        return 0.5 * jnp.sum(weights * inner**2)

    def products(
        self, model: Model, z: Array, examples: Example, total: Array, v: Array
    ) -> Array:
        """`product` of every example of a batch: z, v [N, ...]."""
        del total
        return jax.vmap(lambda z, e, v: self.product(model, z, e, v))(z, examples, v)

    def mean_divergence(
        self, model: Model, z: Array, examples: Example, total: Array, z2: Array
    ) -> Array:
        """The sum of `divergence` over a batch, divided by Σ_n ω_n = `total`."""
        of = jax.vmap(lambda z, e, z2: self.divergence(model, z, e, z2))
        return jnp.sum(of(z, examples, z2)) / total

    def of_batch(
        self, model: Model, z: Array, given: Batch
    ) -> tuple[BatchColumns, Array]:
        """The score columns of a whole batch, and Σ_n ω_n, shape ().

        Args:
            model: the model.
            z: its outputs on the batch, [N, ...].
            given: the batch.
        """
        targets = given.targets if self.needs_targets else None
        batch = given._replace(targets=targets)
        _, examples, total = model.whole(*batch)
        wide = z.astype(working_dtype(z))
        columns = jax.vmap(lambda z, e: self.each(model, z, e))(wide, examples)
        return BatchColumns(model, wide, columns), total

    def count(self, model: Model, z: Array, examples: Example) -> int:
        """K, from the shapes of a batch's outputs z [N, ...] and of its examples."""

        def of_first(z, examples):
            first = jax.tree.map(lambda leaf: leaf[0], examples)
            return self.each(model, z[0].astype(working_dtype(z)), first)

        return jax.eval_shape(of_first, z, examples).weights.shape[0]

    @property
    def centred(self) -> bool:
        """Are the columns taken less their mean over the batch?"""
        return False

    @property
    def needs_targets(self) -> bool:
        """Must `targets` be given?"""
        return False

    @property
    def needs_key(self) -> bool:
        """Must a random key be given?"""
        return False

    def check(self, targets: Any, key: Key | None) -> None:
        """Raise a ValueError where targets or key are needed and missing."""
        if self.needs_targets and targets is None:
            raise ValueError(f"{self} labels are the data's own: pass targets=y.")
        if self.needs_key and key is None:
            raise ValueError(f"{self} labels are drawn at random: pass key=.")


def check_labels(labels: Any) -> None:
    """Raise a ValueError where something else is given for labels."""
    if not isinstance(labels, Labels):
        raise ValueError(
            "labels= says over which labels scores are averaged: an instance such as "
            f"natgrad.curvature.Exact() or Sampled(1), got {labels!r}."
        )


@dataclasses.dataclass(frozen=True)
class Exact(Labels):
    """The whole predictive law: the Fisher information itself.

    Columns are the family's (`Family.columns`); where these are more than the
    coordinates of one factor they are replaced by as many columns with the same outer
    product.

    A law of one's own that has neither a divergence nor finitely many known labels
    (`Family.drawn`) is averaged over draws, fresh ones for each example and each key:
    F is then an estimate, whose error falls as one over the square root of the number
    of examples times `monte_carlo_samples`. Optimizers with a key in their state give
    a new one at every step. Without a key the draws are those of one fixed key
    and the example's index, the same at every call.
    """

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """√p_c-weighted scores of every class, or of a quadrature's nodes.

        Independent factors give separate columns, since E[s_t s_uᵀ] = 0 for t ≠ u.
        """
        each = self.each(model, z, example)
        all_of_them = jnp.arange(each.weights.shape[0])
        scores = jax.vmap(lambda k: score(model, each, k, z))(all_of_them)
        return ScoreColumns(scores, each.weights)

    def each(self, model: Model, z: Array, example: Example) -> FactorColumns:
        """Nodes, or as many columns as coordinates, of each factor."""
        family, weights = model.family, example.weights.reshape(-1)
        factors = z.reshape((weights.size, *z.shape[example.weights.ndim :]))
        labels = scores = None
        if _few_nodes(family, factors):
            if model.weights is not None:
                factors = zero_where_lost(
                    lambda z: family.score_nodes(z)[1], weights, factors
                )
            labels, w = jax.vmap(family.score_nodes)(factors)
        else:
            keys = example.factor_keys(family, z)
            if keys is not None:
                keys = keys.reshape((weights.size, *keys.shape[example.weights.ndim :]))
            columns = partial(_factor_columns, family)
            scores, w = model.at_each_factor(columns, weights, keys, factors)
        w = (weights[:, None] * w).reshape(-1)
        return FactorColumns(factors, labels, scores, w)

    def product(self, model: Model, z: Array, example: Example, v: Array) -> Array:
        """w_t F_{z_t} v_t by the family's own Fisher information, or by draws."""
        if model.family.drawn(z):
            return super().product(model, z, example, v)
        weights, product = example.weights, model.family.fisher_product
        return trailing(weights, z) * model.at_each_factor(product, weights, z, v)

    def divergence(self, model: Model, z: Array, example: Example, z2: Array) -> Array:
        """Σ_t w_t KL(p(· | z_t) ‖ p(· | z2_t)), by the same draws as `columns`."""
        keys = example.factor_keys(model.family, z)
        return model.factor_sum(model.family.kl_under)(example.weights, keys, z, z2)


@dataclasses.dataclass(frozen=True)
class Sampled(Labels):
    """n labels drawn from the model for each example: unbiased for the Fisher.

    The derivative with respect to the parameters is unbiased too. Labels held fixed
    would lose the term by which the law of the labels moves (the Amari-Chentsov
    tensor), so each column carries p(y | z)/p(y | stop(z)), whose value is 1 (the
    score-function factor of Foerster et al. 2018, DiCE).

    Attributes:
        n: labels an example.
    """

    n: int = 1

    def __post_init__(self):
        check_count("Sampled: n", self.n)

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """One column a draw; the factors of an example share it."""
        family, weights = model.family, example.weights
        fixed = jax.lax.stop_gradient(z)
        assert example.key is not None  # `check` has asked for it
        one = self.n == 1
        keys = example.key[None] if one else jax.random.split(example.key, self.n)
        ys = jax.vmap(lambda key: family.sample(key, fixed))(keys)
        ys = jax.lax.stop_gradient(ys)
        log_prob = model.factor_sum(family.log_prob)
        counted = (weights != 0).astype(weights.dtype)
        log_probs = jax.vmap(lambda y: log_prob(counted, z, y))(ys)
        ones = _ratio_to_itself(log_probs)
        scores = jax.vmap(lambda y: _scores(model, z, y, weights))(ys)
        scores, whole = weighted_columns(model, scores, weights)
        return ScoreColumns(scores, whole * ones / self.n)

    @property
    def needs_key(self) -> bool:
        """Yes."""
        return True


# e^{log p − log p₀} at p₀ = p: 1, with the derivatives in p alone. A constant would not
# have the axes of p, under vmap and on devices.
_ratio_to_itself = jax.custom_jvp(lambda p: jnp.where(jnp.isnan(p), p, 1))
_ratio_to_itself.defjvps(lambda d, one, _: one * d)


@dataclasses.dataclass(frozen=True)
class Empirical(Labels):
    """The data's own labels: the empirical Fisher, which is not the Fisher."""

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """One column, the score of the example's label over all its factors."""
        assert example.target is not None  # `check` has asked for it
        scores = _scores(model, z, example.target, example.weights)
        whole, share = share_of_largest(example.weights)
        if example.weights.ndim:
            scores = trailing(share, z) * scores
        return ScoreColumns(scores[None], whole[None])

    @property
    def needs_targets(self) -> bool:
        """Yes."""
        return True


def _few_nodes(family: Family, factors: Array) -> bool:
    """Are the columns of a factor the scores of nodes, no more than its coordinates?"""
    if not family.has_score_nodes(factors[0]):
        return False
    count = jax.eval_shape(jax.vmap(family.score_nodes), factors)[1].shape[1]
    return count <= factors[0].size


def _factor_columns(family: Family, key: Key | None, z: Array) -> ScoreColumns:
    """The columns of one factor: at most as many as it has coordinates."""
    return ScoreColumns(*fewest_columns(*family.columns(key, z)))


def _scores(model: Model, z: Array, y: Array, weights: Array) -> Array:
    """The score of each factor, shaped like z."""
    return model.at_each_factor(model.family.score, weights, z, y)
