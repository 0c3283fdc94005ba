"""Random mixtures of the exact score columns: as cheap as drawn labels, steadier."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from natgrad.arguments import check_count
from natgrad.curvature.columns import Columns, ScoreColumns, weighted_columns
from natgrad.curvature.labels import Exact, Labels, Sampled
from natgrad.families.expectations import FEW_DRAWS
from natgrad.model import Model
from natgrad.model.batch import Example
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Sketched(Labels):
    """n sums of the exact columns under random signs: unbiased for the Fisher.

    With F_z = B Bᵀ a column is s = B r, every entry of r being 1 or −1 with equal
    chances, so that E[s sᵀ] = F_z; so is its derivative. Where z is one number, s sᵀ is
    F_z itself. A label that the model draws (`Sampled`) is right on average as well,
    but where a prediction is nearly certain it says nothing in most draws and very much
    in the others: for a chance of ε the squared score is 1 with probability ε, and here
    it is ε always.

    Laws of one's own whose Fisher information has to be drawn (`Family.drawn`) have no
    B: there it is `Sampled(n)`.

    Attributes:
        n: columns an example; no label is drawn for them.

    Source: Martens, Sutskever & Swersky (2012), Estimating the Hessian by
    back-propagating curvature.
    """

    n: int = 1

    def __post_init__(self):
        check_count("Sketched: n", self.n)

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """n columns over all factors of the example."""
        family, weights = model.family, example.weights
        if not family.has_fisher_root(_factor(z, weights)):
            return Sampled(self.n).columns(model, z, example)
        assert example.key is not None  # `check` has asked for it
        count = self.n * z.size
        signs = jax.random.rademacher(example.key, (max(count, FEW_DRAWS),), z.dtype)
        signs = jax.lax.optimization_barrier(signs)[:count].reshape(self.n, *z.shape)
        product = family.fisher_root_product
        scores = jax.vmap(lambda v: model.at_each_factor(product, weights, z, v))(signs)
        scores, whole = weighted_columns(model, scores, weights)
        return ScoreColumns(scores, jnp.broadcast_to(whole / self.n, (self.n,)))

    @property
    def needs_key(self) -> bool:
        """Yes."""
        return True


@dataclasses.dataclass(frozen=True)
class ExactIfFew(Labels):
    """`Exact` where an example has few score columns, else `Sketched(1)`.

    Exact columns cost a pull-back each: ten for ten classes, and thousands for the next
    word at each place of a sentence, or the pixels of an image.

    Attributes:
        most: columns an example that are few.
    """

    most: int = 32

    def __post_init__(self):
        check_count("ExactIfFew: most", self.most)

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """Those of the labels that are chosen by the shape of z."""
        return self._chosen(model, z, example).columns(model, z, example)

    def each(self, model: Model, z: Array, example: Example) -> Columns:
        """The same columns; see `Labels.each`."""
        return self._chosen(model, z, example).each(model, z, example)

    @property
    def needs_key(self) -> bool:
        """Yes, since a sketch may."""
        return True

    def _chosen(self, model: Model, z: Array, example: Example) -> Labels:
        exact = jax.eval_shape(functools.partial(Exact().each, model), z, example)
        few = exact.weights.shape[0] <= self.most
        return Exact() if few else Sketched(1)


def _factor(z: Array, weights: Array) -> Array:
    """The parameters of the first factor."""
    return z[(0,) * weights.ndim]
