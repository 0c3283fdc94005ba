"""The protocol of curvatures: statistics from a batch, a metric from statistics.

    Curvature --estimate--> statistics --metric--> Metric --solve(gradient, λ)--> step

`estimate` is what a moving average runs over (K-FAC averages factors, not matrices),
`metric` is what is solved. A curvature is a specification, a frozen dataclass; arrays
are in what `with_previous` makes of it for one estimate.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from natgrad.curvature.labels import Exact, Labels
from natgrad.metrics.base import Metric
from natgrad.model import DoesNotFitError, Model
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Curvature(abc.ABC):
    """An approximation of the Fisher information of `model`, averaged over `labels`.

    Attributes:
        model: whose Fisher information.
        labels: over which labels: `Exact()`, `Sampled(n)`, `Empirical()`, `Centred()`.
        requires_batch: does the metric need the current batch, beside the statistics?
            If so, averaging statistics does not average the metric.
        keeps_all_of_f: does the metric of one batch have every entry of F?
    """

    model: Model
    labels: Labels = Exact()  # noqa: RUF009 (frozen, without state)

    requires_batch: ClassVar[bool] = False
    keeps_all_of_f: ClassVar[bool] = False

    def __post_init__(self):
        if not isinstance(self.model, Model):
            raise ValueError(
                f"{type(self).__name__} is the curvature of a natgrad.Model(apply, "
                f"family), got {self.model!r}. Optimizers take the learning rate first "
                "and the model second: natural_gradient(0.1, model). Under "
                "optax.inject_hyperparams, which takes functions for schedules, name "
                "curvature= in static_args."
            )

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
        """(loss, gradient) of one batch, with the parts of it on all devices."""
        return jax.value_and_grad(self.model.loss)(params, inputs, targets)

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
