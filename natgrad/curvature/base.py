"""The protocol of curvatures: statistics from a batch, a metric from statistics.

    Curvature --estimate--> statistics --metric--> Metric --solve(gradient, λ)--> step

`estimate` is what a moving average runs over (K-FAC averages factors, not matrices),
`metric` is what is solved. A curvature is a specification, a frozen dataclass; arrays
are in what `with_previous` makes of it for one estimate.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from natgrad.curvature.columns import count_columns
from natgrad.curvature.labels import Exact, Labels, check_labels
from natgrad.curvature.over import DataAverage, Progress, over_batches, programs
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.base import Metric
from natgrad.model import DoesNotFitError, Model
from natgrad.model.batch import Batch
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Curvature(abc.ABC):
    """An approximation of the Fisher information of `model`, averaged over `labels`.

    Attributes:
        model: whose Fisher information.
        labels: `Exact()`, `Sampled(n)`, `Sketched(n)`, `Empirical()` or `Centred()`.
        requires_batch: does the metric need the current batch, beside the statistics?
            If so, averaging statistics does not average the metric.
        keeps_all_of_f: does the metric of one batch have every entry of F?
        passes: how often `over` reads the data, at least 1.
    """

    model: Model
    labels: Labels = Exact()  # noqa: RUF009 (frozen, without state)

    requires_batch: ClassVar[bool] = False
    keeps_all_of_f: ClassVar[bool] = False
    passes: ClassVar[int] = 1

    def __post_init__(self):
        if not isinstance(self.model, Model):
            raise ValueError(
                f"{type(self).__name__} is the curvature of a natgrad.Model(apply, "
                f"family), got {self.model!r}. Optimizers take the learning rate first "
                "and the model second: natural_gradient(0.1, model). Under "
                "optax.inject_hyperparams, which takes functions for schedules, name "
                "curvature= in static_args."
            )
        check_labels(self.labels)

    @abc.abstractmethod
    def init(self, params: Params) -> Statistics:
        """Zero statistics: the structure, shapes and dtypes of `estimate`'s."""

    @abc.abstractmethod
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Statistics of one batch.

        Args:
            params: θ.
            inputs: a batch of inputs.
            targets: labels, where `labels` needs them.
            key: a random key, where `labels` needs one; `Exact` ones use it for
                laws that must be drawn.
        """

    @abc.abstractmethod
    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """The metric at θ that the statistics describe.

        Args:
            statistics: of one batch, or an average of several.
            params: θ.
            inputs: the current batch, for curvatures that hold no matrix, and for those
                that read the layers off the model (else off its example inputs).
            targets: its labels, for those with empirical labels.
        """

    @compiled_method
    def at(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Metric:
        """The metric of one batch: metric(estimate(...)), whose arguments it has."""
        statistics = self.estimate(params, inputs, targets, key)
        return self.metric(statistics, params, inputs, targets)

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) of one batch; arguments as of `estimate`.

        The loss, shape (), and its gradient are those of `Model.loss`, in nats. Here
        two passes, whose common forward pass XLA merges under one jit; curvatures that
        pull cotangents back share one forward pass and one `vjp`.
        """
        loss, gradient = self.loss_and_gradient(params, inputs, targets)
        return loss, gradient, self.estimate(params, inputs, targets, key)

    @property
    def is_exact(self) -> bool:
        """Is the metric of one batch its Fisher information, labels integrated out?"""
        return self.keeps_all_of_f and isinstance(self.labels, Exact)

    def columns(
        self, params: Params, inputs: Inputs, targets: Array | None = None
    ) -> tuple[int, int]:
        """(K, N): score columns an example of this batch, and examples."""
        return count_columns(self.model, self.labels, params, inputs, targets)

    def divergence(self, params: Params, other: Params, inputs: Inputs) -> Array:
        """The mean of KL(p(· | params, x) ‖ p(· | other, x)) in nats, shape ()."""
        return self.divergence_from(params, inputs)[0](other)

    def divergence_from(
        self, params: Params, inputs: Inputs
    ) -> tuple[Callable[[Params], Array], ArrayLike]:
        """(other -> `divergence`, labels an example), of the whole batch."""
        return self.model.kl_from(params, inputs)

    def loss_and_gradient(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params]:
        """(loss, gradient) of one batch, with the parts of it on all devices.

        The gradient of a complex leaf is ∂/∂x + i ∂/∂y, as optax has it.
        """
        loss, gradient = jax.value_and_grad(self.model.loss)(params, inputs, targets)
        return loss, jax.tree.map(jnp.conj, gradient)

    def specialize(self, params: Params) -> Curvature:
        """The curvature for parameters of these shapes: itself, unless it chooses."""
        del params
        return self

    def with_previous(self, statistics: Statistics) -> Curvature:
        """This curvature for a batch that continues from averaged statistics.

        Itself, where an estimate does not depend on what came before. Where it does
        (EKFAC measures in the eigenbasis that it holds), the result's `estimate` and
        `value_and_grad` read the given statistics.
        """
        del statistics
        return self

    def accumulate(
        self, statistics: Statistics, estimate: Statistics, weight: Array
    ) -> Statistics:
        """Averaged statistics with one more estimate: (1 − w) old + w new.

        Integers, such as keys, are those of the estimate.

        Args:
            statistics: the average so far; anything finite where w = 1.
            estimate: of one batch.
            weight: w in (0, 1].
        """

        def mix(old, new):
            if not jnp.issubdtype(old.dtype, jnp.floating):
                return new
            w = weight.astype(old.dtype)
            return (1 - w) * old + w * new

        return jax.tree.map(mix, statistics, estimate)

    def over(
        self,
        params: Params,
        batches: Iterable | Callable[[], Iterable],
        *,
        key: Key | None = None,
        start: Progress | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> DataAverage:
        """Statistics of a whole data set: those of all its batches as one.

        For `metric(average.statistics, params)`. A batch counts with its Σ_n ω_n, so
        batches may have any sizes and be padded with examples of weight 0. Batches of
        one shape share one program, as under `jax.jit`.

        Args:
            params: θ.
            batches: of pairs (inputs, targets), targets None where `labels` do not need
                them: a list, a data loader, or a function that returns an iterator.
                A generator will do where `passes` is 1: EKFAC reads the data twice,
                KFOC twice an iteration. For a progress bar wrap the iterable,
                `tqdm(loader)`.
            key: a random key, where `labels` needs one; batch b gets fold_in(key, b),
                and the data where they are kept (`requires_batch`) the key itself.
            start: what `callback` was given at some batch, to go on from there; the
                other arguments must be as they were, and the batches in their order.
            callback: called with the progress after each batch. The arrays in it are
                written over by the next one: save what is to be kept.

        Returns:
            The statistics, and Σ_n ω_n.

        Raises:
            ValueError: the data cannot be read again, a batch is no pair or gives
                numbers that are not finite, or there is nothing to average.
        """
        return over_batches(self, params, batches, key, start, callback)

    @functools.cached_property
    def programs_of_data(self) -> tuple[Callable, Callable]:
        """What `over` runs, kept with what is compiled of it."""
        return programs(self)

    def moments(self, given: Batch, found: Statistics | None = None) -> Statistics:
        """What is a mean over examples, of one batch: the estimate, unless it is none.

        Args:
            given: the batch.
            found: what `from_moments` gave in the pass before; None in the first.
        """
        del found
        return self.estimate(*given)

    def from_moments(
        self, params: Params, moments: Statistics, found: Statistics | None = None
    ) -> Statistics:
        """Statistics, as far as this pass gives them.

        Args:
            params: θ.
            moments: the mean of `moments` over the data.
            found: as of `moments`.
        """
        del params, found
        return moments

    def with_frozen(self, model_params: Params) -> Curvature:
        """This curvature for a part of the parameters: see `Model.with_frozen`."""
        return dataclasses.replace(self, model=self.model.with_frozen(model_params))


def require_memory(numbers: int, dtype: Any, what: str, instead: str) -> None:
    """Raise unless so many numbers of a dtype fit into the machine's memory.

    Args:
        numbers: how many.
        dtype: of what type.
        what: whose they are and what they hold, the beginning of a sentence.
        instead: what takes less.

    Raises:
        DoesNotFitError: they do not fit; before anything is allocated.
    """
    size, limit = numbers * jnp.dtype(dtype).itemsize, _memory()
    if limit is not None and size > limit:
        raise DoesNotFitError(
            f"{what}: {numbers:.2g} numbers of type {jnp.dtype(dtype)}, "
            f"{size / 1e9:.3g} GB, and there are {limit / 1e9:.3g} GB of memory. "
            f"Use {instead} instead."
        )


def _memory() -> int | None:
    """Bytes of all devices of this process; of the machine, where that is the CPU."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        limits = [
            (device.memory_stats() or {}).get("bytes_limit") for device in devices
        ]
        known = [limit for limit in limits if limit]
        return sum(known) if len(known) == len(limits) else None
    try:
        pages = os.sysconf("SC_PHYS_PAGES")  # -1 where it is not known
        return os.sysconf("SC_PAGE_SIZE") * pages if pages > 0 else None
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
