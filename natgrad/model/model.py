"""Model = apply + family: what turns parameters and inputs into a likelihood.

    z_n = apply(θ, x_n),     log p(y_n | θ, x_n) = Σ_t log p(y_nt | z_nt)
    loss(θ) = −(1/N) Σ_n log p(y_n | θ, x_n)                             (nats)

Factors of one example sum, examples average. With weights w_nt (a mask is a weight of
0 or 1) the loss is

    loss(θ) = −Σ_n Σ_t w_nt log p(y_nt | z_nt) / Σ_n max_t w_nt

so that a weight of 0 removes its factor, an example all of whose factors are masked
does not count, and scaling all weights changes nothing. So do those of F and of `kl`.

z_n may depend on all that apply is given: a dropout key that the examples share, their
places in the batch, each other. The Fisher information is that of the joint law:

    F = (1/N) Σ_n J_nᵀ F_{z_n} J_n,     J_n = ∂z_n/∂θ, the other examples included
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.eager import call
from natgrad.families.base import Family
from natgrad.families.unnormalized import Unnormalized, as_columns
from natgrad.model import batch, placeholders
from natgrad.model import targets as labels
from natgrad.model import weights as weighting
from natgrad.typing import Apply, Array, ArrayLike, Inputs, Key, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A statistical model p(y | θ, x).

    Attributes:
        apply: apply(params, inputs) -> z [N, ...], one row an example, like flax's.
        family: the law p(y | z).
        example_inputs: inputs of any batch size, for what must know shapes early.
        weights: weights(inputs) -> [N] or [N, factors...], not negative; None for 1. A
            factor of weight 0 never counts, whatever its label and its output hold.
        in_axes: 0, None, or a prefix of the tree `inputs` made of these, as for
            `jax.vmap`: None marks what all examples share (batch statistics, keys).
        chunk_size: examples whose per-example gradients are alive at once; None
            chooses it so that they take about 2^24 numbers, score columns too.
    """

    apply: Apply
    family: Family
    example_inputs: Inputs = None
    _: dataclasses.KW_ONLY
    weights: Callable[[Inputs], Array] | None = None
    in_axes: Any = 0
    chunk_size: int | None = None

    def __post_init__(self):
        batch.check_specification(self.apply, self.family, self.chunk_size)

    def outputs(self, params: Params, inputs: Inputs) -> Float[Array, "N ..."]:
        """z in at least float32; arguments and errors are those of `raw_outputs`."""
        z = self.raw_outputs(params, inputs)
        return z.astype(tree.working_dtype(z))

    def apply_real(self, params: Params, inputs: Inputs) -> Array:
        """`apply` in real numbers: complex parameters as `tree.Pair`, z as columns."""
        with batch.traceable():
            z = call(self.apply, tree.join_complex(params), inputs)
        return as_columns(z) if isinstance(self.family, Unnormalized) else z

    def raw_outputs(self, params: Params, inputs: Inputs) -> Float[Array, "N ..."]:
        """z [N, factors..., parameters...] as apply gives it; [1, ...] without inputs.

        Args:
            params: θ.
            inputs: of a batch.

        Raises:
            ValueError: for an empty batch, and outputs of a wrong shape or type.
        """
        count = batch.input_count(inputs, self.in_axes)
        return batch.check_outputs(self.apply_real(params, inputs), count, self.family)

    def log_prob(
        self, params: Params, inputs: Inputs, targets: ArrayLike
    ) -> Float[Array, " N"]:
        """Σ_t w_nt log p(y_nt | z_nt) for each example, [N], in nats.

        Arguments and errors are those of `loss`, but weights may all be 0.
        """
        return self._log_probs(*self._batch(params, inputs, targets))

    def loss(
        self, params: Params, inputs: Inputs, targets: ArrayLike
    ) -> Float[Array, ""]:
        """The mean negative log-likelihood, in nats an example.

        Args:
            params: θ.
            inputs: of a batch.
            targets: its labels, [N, ...] as the family has them.

        Raises:
            ValueError: for labels of a wrong shape; where they are known (else NaN, or
                0) for impossible ones, weights that are negative or all 0, and outputs
                outside of the family's domain.
        """
        z, weights, y = self._batch(params, inputs, targets)
        weighting.check_some_count(weights)
        return -jnp.sum(self._log_probs(z, weights, y)) / self._total(weights)

    def kl(self, params: Params, other: Params, inputs: Inputs) -> Float[Array, ""]:
        """The mean over examples of KL(p(· | params, x) ‖ p(· | other, x)), in nats.

        Args:
            params: θ of the first law, under which the expectation is, or fixed draws.
            other: θ of the second.
            inputs: of a batch.
        """
        return self.kl_from(params, inputs)[0](other)

    def kl_from(
        self, params: Params, inputs: Inputs
    ) -> tuple[Callable[[Params], Array], ArrayLike]:
        """(other -> `kl`, `labels_per_example`), from one pass at the first law."""
        z = self.outputs(params, inputs)
        weights = self._weights(inputs, z, z.shape[0])
        keys = batch.factor_keys(self.family, z, weights)
        divergence = jax.vmap(self.factor_sum(self.family.kl_under))

        def kl(other):
            z2 = self.outputs(other, inputs)
            return jnp.sum(divergence(weights, keys, z, z2)) / self._total(weights)

        return kl, self._labels_per_example(weights)

    def labels_per_example(self, params: Params, inputs: Inputs) -> ArrayLike:
        """Σ_nt w_nt / Σ_n max_t w_nt: a sequence has a label a position, say."""
        z = jax.eval_shape(self.outputs, params, inputs)
        return self._labels_per_example(self._weights(inputs, z, z.shape[0]))

    def _labels_per_example(self, weights) -> ArrayLike:
        if self.weights is None:
            return math.prod(weights.shape[1:])
        return jnp.sum(weights) / self._total(weights)

    def sample(self, key: Key, params: Params, inputs: Inputs) -> Array:
        """Labels y_n ~ p(· | θ, x_n), [N, ...].

        Args:
            key: example n draws with fold_in(key, n).
            params: θ.
            inputs: of a batch.
        """
        z = self.outputs(params, inputs)
        return jax.vmap(self.family.sample)(batch.example_keys(key, z.shape[0]), z)

    def with_frozen(self, model_params: Params) -> Model:
        """This model as a function of a part of its parameters, the rest held fixed.

        Args:
            model_params: all of them; the part has `optax.MaskedNode` for the others.
        """
        whole = tree.join_complex(model_params)

        def apply(part, inputs):
            filled = placeholders.fill_placeholders(part, whole)
            return call(self.apply, filled, inputs)

        return dataclasses.replace(self, apply=apply)

    def whole(
        self,
        params: Params,
        inputs: Inputs,
        targets: ArrayLike | None = None,
        key: Key | None = None,
    ) -> tuple[Callable[[Params], Array], batch.Example, Float[Array, ""]]:
        """A batch as a function of the parameters, and what its examples are.

        Args:
            params: θ.
            inputs: of a batch.
            targets: its labels, [N, ...], or None.
            key: a random key, for what draws.

        Returns:
            θ -> z [N, ...]; the examples, arrays [N, ...]; and Σ_n max_t w_nt.
        """
        examples, total = self.examples(params, inputs, targets, key)
        count = examples.weights.shape[0]

        def outputs(params):
            z = self.outputs(params, inputs)
            return jnp.broadcast_to(z, (count, *z.shape[1:]))

        if targets is not None:
            examples = jax.vmap(self.labelled)(outputs(params), examples)
        return outputs, examples, total

    def examples(
        self,
        params: Params,
        inputs: Inputs,
        targets: ArrayLike | None = None,
        key: Key | None = None,
    ) -> tuple[batch.Example, Float[Array, ""]]:
        """What is known of the examples but their outputs; see `labelled` for labels.

        Arguments and results are those of `whole`; shapes do for the parameters.
        """
        z = jax.eval_shape(self.outputs, params, inputs)
        count = self._count(inputs, z, targets)
        weights = self._weights(inputs, z, count)
        target = None if targets is None else self._targets(z, targets, weights)
        keys = batch.keys(self.family, key, z, count)
        return batch.Example(weights, target, keys), self._total(weights)

    def labelled(self, z: Array, example: batch.Example) -> batch.Example:
        """The example, an impossible label of it valid at weight 0, else weighted NaN.

        Args:
            z: the output of the example.
            example: with a target or without.
        """
        if example.target is None:
            return example
        return labels.safe_example(self.family, z, example, self.weights is not None)

    def factor_sum(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """(weights, *arrays of one example) -> Σ_t w_t function(arrays_t), shape ()."""
        each = partial(self.at_each_factor, function)
        return lambda weights, *arrays: jnp.sum(weights * each(weights, *arrays))

    def at_each_factor(
        self, function: Callable[..., Any], weights: Array, *arrays: Array | None
    ) -> Any:
        """function(*arrays) of each factor; at weight 0 what is not finite is 0.

        Args:
            function: of one factor's arrays; gives a tree, here of [factors..., ...].
            weights: of one example, [factors...].
            arrays: [factors..., ...].
        """
        if self.weights is not None:
            return weighting.at_each_factor(function, weights, *arrays)
        for _ in range(weights.ndim):
            function = jax.vmap(function)
        return function(*arrays)

    def _log_probs(self, z: Array, weights: Array, y: Array) -> Array:
        examples = jax.vmap(self.labelled)(z, batch.Example(weights, y, None))
        log_prob = jax.vmap(self.factor_sum(self.family.log_prob))
        log_probs = log_prob(examples.weights, z, examples.target)
        labels.check_parameters(self.family, z, log_probs)
        return log_probs

    def _batch(self, params, inputs, targets):
        z = self.outputs(params, inputs)
        weights = self._weights(inputs, z, self._count(inputs, z, targets))
        rows = jnp.broadcast_to(z, (weights.shape[0], *z.shape[1:]))
        return rows, weights, self._targets(z, targets, weights)

    def _weights(self, inputs, z, count) -> Array:
        """[N, factors...], ones where the model has no weights."""
        ndim = self.family.parameter_ndim
        shape = (count, *(() if ndim is None else z.shape[1 : z.ndim - ndim]))
        tree.check_sharding("The outputs are", z)
        if self.weights is None:
            return jnp.ones(shape, z.dtype)
        return weighting.factor_weights(call(self.weights, inputs), shape, z)

    def _total(self, weights) -> Array:
        """Σ_n max_t w_nt; N without weights, lest XLA adds up as many ones."""
        if self.weights is None:
            return jnp.asarray(weights.shape[0], weights.dtype)
        return weighting.normaliser(weights)

    def _targets(self, z, targets, weights) -> Array:
        y = labels.check_targets(self.family, z, targets, weights.shape[0])
        masked = None if self.weights is None else weights
        labels.check_support(self.family, z, y, masked)
        return y

    def _count(self, inputs, z, targets) -> int:
        """N; one row of outputs without inputs serves any number of targets."""
        one_row = batch.input_count(inputs, self.in_axes) is None and z.shape[0] == 1
        return jnp.shape(targets)[0] if one_row and targets is not None else z.shape[0]
