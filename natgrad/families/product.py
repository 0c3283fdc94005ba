"""Products of independent families: one law whose parameters and labels are blocks.

    ng.families.Product((ng.families.Normal(), ng.families.Bernoulli()), (2, 3))

reads a last axis of z of length 2 + 3, a normal law's η and three logits, and is a law
of labels of length 1 + 3. Log-probabilities, divergences, A and the entropy are sums
over the blocks, mean and score are joined, the Fisher information is block-diagonal.
A product of exponential families is an exponential family.

Missing blocks. A label whose entries in a block are NaN has that block unobserved: it
adds nothing to the log-probability and its score is 0, as if it were summed out. The
nodes are the blocks' own, each with the other blocks missing; so their number is the
sum of the blocks' and not the product, and their weights sum to the number of blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import ExponentialFamily, Family
from natgrad.families.blocks import (
    columns_of_scalars,
    each_factor,
    present_labels,
    widened,
)
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Product(Family):
    """Independent blocks, joined in the last axis of z and of y.

    Attributes:
        families: one for each block.
        sizes: how many entries of z's last axis belong to each block. A family of
            scalar parameters has that many labels, one of vectors reads them as one
            law. A `Categorical` block has a class index, not probabilities.
    """

    families: tuple[Family, ...]
    sizes: tuple[int, ...]

    parameter_ndim = 1
    label_ndim = 1

    def __new__(cls, families: tuple[Family, ...] = (), sizes: tuple[int, ...] = ()):
        """A product of exponential families is an `ExponentialProduct`."""
        del sizes
        exponential = [isinstance(f, ExponentialFamily) for f in families]
        if cls is Product and exponential and all(exponential):
            return object.__new__(ExponentialProduct)
        return object.__new__(cls)

    def __post_init__(self):
        families, sizes = tuple(self.families), tuple(self.sizes)
        object.__setattr__(self, "families", families)
        object.__setattr__(self, "sizes", sizes)
        integers = all(isinstance(size, int) and size > 0 for size in sizes)
        if not families or len(families) != len(sizes) or not integers:
            raise ValueError(
                f"Product: {len(families)} families and sizes {sizes}; expected a "
                "family and a positive integer for each block, such as "
                "Product((Normal(), Poisson()), (2, 1))."
            )
        for family, size in zip(families, sizes, strict=True):
            if not isinstance(family, Family) or family.label_shape((size,)) is None:
                raise ValueError(
                    f"Product: a block is {family!r}, whose labels' shape is not known "
                    f"from {size} parameters; expected a family with a label_shape."
                )

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ over blocks that are not missing, shape ()."""
        y = jnp.asarray(y, z.dtype)
        total = jnp.zeros((), z.dtype)
        for family, z_block, y_block in self._blocks(z, y):
            present, label = present_labels(family, z_block, y_block)
            each = each_factor(family, family.log_prob, z_block, label)
            total = total + jnp.sum(jnp.where(present, each, 0.0))
        return total

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ over blocks, shape ()."""
        pairs = zip(self.families, self._split(z), self._split(z2), strict=True)
        return _total(family.kl(a, b) for family, a, b in pairs)

    def kl_under(self, key: Key | None, z: Array, z2: Array) -> Array:
        """Σ over blocks, each under a key of its own, shape ()."""
        keys = self._keys(key)
        parts = zip(self.families, keys, self._split(z), self._split(z2), strict=True)
        return _total(family.kl_under(key, a, b) for family, key, a, b in parts)

    def score(self, z: Array, y: Array) -> Array:
        """The blocks' scores, 0 where a block is missing; shaped like z."""
        y = jnp.asarray(y, z.dtype)
        scores = []
        for family, z_block, y_block in self._blocks(z, y):
            present, label = present_labels(family, z_block, y_block)
            score = family.score(z_block, label)
            scores.append(jnp.where(widened(present, z_block), score, 0.0))
        return jnp.concatenate(scores, axis=-1)

    def fisher(self, z: Array) -> Array:
        """The blocks' Fisher informations on the diagonal, of shape z.shape * 2."""
        return jax.jacfwd(lambda v: self.fisher_product(z, v))(z)

    def fisher_product(self, z: Array, v: Array) -> Array:
        """The blocks' products, joined."""
        pairs = zip(self.families, self._split(z), self._split(v), strict=True)
        products = [family.fisher_product(a, b) for family, a, b in pairs]
        return jnp.concatenate(products, axis=-1)

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The blocks' nodes, each with the other blocks missing."""
        labels, weights = [], []
        offsets = np.cumsum([0, *self._label_sizes()])
        blocks = zip(self.families, self._split(z), offsets[:-1], strict=True)
        for family, z_block, offset in blocks:
            if family.parameter_ndim == 0:
                ys, ws = jax.vmap(family.score_nodes)(z_block)  # [size, K], [size, K]
                entries = np.repeat(np.arange(ys.shape[0]), ys.shape[1])
                places = offset + entries[:, None]
                ys, ws = ys.reshape(-1, 1), ws.reshape(-1)
            else:
                ys, ws = family.score_nodes(z_block)
                ys = ys.reshape(ws.shape[0], -1)
                places = np.broadcast_to(offset + np.arange(ys.shape[1]), ys.shape)
            missing = jnp.full((ws.shape[0], offsets[-1]), jnp.nan, z.dtype)
            rows = np.arange(ws.shape[0])[:, None]
            labels.append(missing.at[rows, places].set(ys.astype(z.dtype)))
            weights.append(ws)
        return jnp.concatenate(labels), jnp.concatenate(weights)

    def columns(self, key: Key | None, z: Array) -> tuple[Array, Array]:
        """The blocks' columns, 0 in the other blocks."""
        scores, weights = [], []
        offsets = np.cumsum([0, *self.sizes])
        parts = zip(
            self.families, self._keys(key), self._split(z), offsets[:-1], strict=True
        )
        for family, key, z_block, offset in parts:
            scalars, of_block = family.parameter_ndim == 0, family.columns
            s, w = (columns_of_scalars(of_block) if scalars else of_block)(key, z_block)
            after = z.size - offset - z_block.size
            scores.append(jnp.pad(s, ((0, 0), (offset, after))))
            weights.append(w)
        return jnp.concatenate(scores), jnp.concatenate(weights)

    def fisher_root_product(self, z: Array, v: Array) -> Array:
        """The blocks' products, joined."""
        blocks = zip(self.families, self._split(z), self._split(v), strict=True)
        products = [
            each_factor(family, family.fisher_root_product, z_block, v_block)
            for family, z_block, v_block in blocks
        ]
        return jnp.concatenate(products, axis=-1)

    def has_fisher_root(self, z: Array) -> bool:
        """Whether every block has."""
        return all(f.has_fisher_root(part) for f, part in self._first_factors(z))

    def has_score_nodes(self, z: Array) -> bool:
        """Whether every block has."""
        return all(f.has_score_nodes(part) for f, part in self._first_factors(z))

    def drawn(self, z: Array) -> bool:
        """Whether any block is."""
        return any(
            family.drawn(jax.ShapeDtypeStruct((size,), z.dtype))
            for family, size in zip(self.families, self.sizes, strict=True)
        )

    def sample(self, key: Key, z: Array) -> Array:
        """A draw of each block, joined; integers come as floats."""
        keys = jax.random.split(key, len(self.families))
        blocks = zip(self.families, keys, self._split(z), strict=True)
        draws = [
            family.sample(key, z_block).reshape((*z.shape[:-1], -1)).astype(z.dtype)
            for family, key, z_block in blocks
        ]
        return jnp.concatenate(draws, axis=-1)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether every block that is not missing is in its support."""
        y = jnp.asarray(y, z.dtype)
        good = jnp.ones(z.shape[:-1], bool)
        for family, z_block, y_block in self._blocks(z, y):
            present, label = present_labels(family, z_block, y_block)
            fits = family.in_support(z_block, label) | ~present
            good = good & (jnp.all(fits, axis=-1) if fits.ndim == z.ndim else fits)
        return good

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...]:
        """z_shape[:-1] and the number of entries of a label."""
        return (*z_shape[:-1], sum(self._label_sizes()))

    @property
    def provenance(self) -> dict[str, str]:
        """The blocks' own, each in front of its name."""
        parts = [family.provenance for family in self.families]
        names = [type(family).__name__ for family in self.families]
        return {
            key: "; ".join(f"{n}: {p[key]}" for n, p in zip(names, parts, strict=True))
            for key in parts[0]
        }

    def _keys(self, key: Key | None) -> list[Key | None]:
        count = len(self.families)
        return [None] * count if key is None else list(jax.random.split(key, count))

    def _label_sizes(self) -> list[int]:
        pairs = zip(self.families, self.sizes, strict=True)
        return [
            int(np.prod(f.label_shape((size,)) or (), dtype=int)) for f, size in pairs
        ]

    def _first_factors(self, z: Array) -> Iterator[tuple[Family, Array]]:
        """Each block's family, and the parameters of its first factor."""
        for family, part in zip(self.families, self._split(z), strict=True):
            yield family, part[0] if family.parameter_ndim == 0 else part

    def _split(self, z: Array) -> list[Array]:
        if z.ndim == 0 or z.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"Product: z has shape {z.shape}; expected a last axis of length "
                f"{sum(self.sizes)}, the sum of sizes={self.sizes}."
            )
        return jnp.split(z, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)

    def _blocks(self, z: Array, y: Array) -> list[tuple[Family, Array, Array]]:
        """(family, parameters, labels), the labels in the family's own shape."""
        cuts = np.cumsum(self._label_sizes())[:-1].tolist()
        parts = zip(self.families, self._split(z), jnp.split(y, cuts, -1), strict=True)
        return [
            (family, z_block, y_block.reshape(family.label_shape(z_block.shape)))
            for family, z_block, y_block in parts
        ]

    def _joined(self, name: str, x: Array) -> Array:
        blocks = zip(self.families, self._split(x), strict=True)
        return jnp.concatenate([getattr(f, name)(part) for f, part in blocks], axis=-1)


@dataclasses.dataclass(frozen=True)
class ExponentialProduct(Product, ExponentialFamily):
    """A product of exponential families; made by `Product`."""

    families: tuple[ExponentialFamily, ...]

    fisher = ExponentialFamily.fisher  # pyright: ignore[reportAssignmentType]
    fisher_product = ExponentialFamily.fisher_product  # pyright: ignore[reportAssignmentType]

    def log_normalizer(self, eta: Array) -> Array:
        """Σ over blocks, shape ()."""
        blocks = zip(self.families, self._split(eta), strict=True)
        return _total(family.log_normalizer(part) for family, part in blocks)

    def sufficient_statistics(self, y: Array) -> Array:
        """The blocks' statistics, joined."""
        parts = self._labels(jnp.asarray(y))
        return jnp.concatenate([f.sufficient_statistics(part) for f, part in parts], -1)

    def log_base_measure(self, y: Array) -> Array:
        """Σ over blocks, shape ()."""
        labels = self._labels(jnp.asarray(y))
        return _total(f.log_base_measure(part) for f, part in labels)

    def expected_log_base_measure(self, eta: Array) -> Array:
        """Σ over blocks, shape ()."""
        blocks = zip(self.families, self._split(eta), strict=True)
        return _total(family.expected_log_base_measure(part) for family, part in blocks)

    def mean(self, eta: Array) -> Array:
        """The blocks' means, joined."""
        return self._joined("mean", eta)

    def natural(self, mu: Array) -> Array:
        """The blocks' natural parameters, joined."""
        return self._joined("natural", mu)

    def entropy(self, eta: Array) -> Array:
        """Σ over blocks, shape ()."""
        blocks = zip(self.families, self._split(eta), strict=True)
        return _total(family.entropy(part) for family, part in blocks)

    def _labels(self, y: Array) -> list[tuple[ExponentialFamily, Array]]:
        z = jnp.zeros((*y.shape[:-1], sum(self.sizes)))
        labels = [part for _, _, part in self._blocks(z, y)]
        return list(zip(self.families, labels, strict=True))


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)
