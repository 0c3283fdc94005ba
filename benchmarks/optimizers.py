"""The optimizers of a race, and the grid each is tuned over.

Every grid has five settings, but for `kfac_adaptive`, which runs as it comes. Where an
optimizer has a learning rate that is what is tuned, and the rest is its default.

    adam, adamw (weight decay 0.01), soap, kl_shampoo,
    schedule_free (AdamW), sophia (no weight decay), muon           learning rate
    lbfgs    the largest step of optax's zoom line search, at most ten evaluations
    kfac, ekfac, gram                                               learning rate
    natural_gradient, stochastic_reconfiguration                    rate and damping
    kfac_jax             learning rate; momentum 0.9, λ = 0.001, inverses every 5
    kfac_jax_adaptive    λ at the start; rate, momentum and λ adapted

The last two are kfac-jax's, which `benchmarks.peers` runs in a process of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from optax import contrib

import natgrad as ng
from natgrad.curvature import Centred, Dense

ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
NATURAL_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


class Entry(NamedTuple):
    """An optimizer.

    Attributes:
        grid: settings, each a tuple of numbers.
        make: (model, *setting) -> optax's.
        rows: is the gradient given as rows too, where layers are wide?
        evaluated: (optax's state, parameters) -> the parameters whose loss counts.
    """

    grid: tuple[tuple[float, ...], ...]
    make: Callable[..., optax.GradientTransformation]
    rows: bool = False
    evaluated: Callable[[Any, Any], Any] = lambda _, params: params


def rates(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


def pairs(rates: tuple[float, ...], dampings: tuple[float, ...]):
    return tuple(itertools.product(rates, dampings))


def lbfgs(model: ng.Model, largest: Any):
    del model
    search = optax.scale_by_zoom_linesearch(10, max_learning_rate=largest)
    return optax.lbfgs(linesearch=search)


def stochastic_reconfiguration(model: ng.Model, rate: Any, damping: Any):
    return optax.chain(
        ng.scale_by_curvature(Dense(model, Centred()), damping=damping),
        optax.scale_by_learning_rate(rate),
    )


def natural_gradient(model: ng.Model, rate: Any, damping: Any):
    return ng.natural_gradient(rate, model, damping=damping)


def sophia(_: ng.Model, rate: Any):
    return contrib.sophia(rate, weight_decay=0.0)


OPTIMIZERS = {
    "adam": Entry(rates(*ADAM_RATES), lambda _, rate: optax.adam(rate)),
    "adamw": Entry(
        rates(*ADAM_RATES), lambda _, rate: optax.adamw(rate, weight_decay=1e-2)
    ),
    "schedule_free": Entry(
        rates(*ADAM_RATES),
        lambda _, rate: contrib.schedule_free_adamw(rate),
        evaluated=contrib.schedule_free_eval_params,
    ),
    "muon": Entry(rates(*ADAM_RATES), lambda _, rate: contrib.muon(rate)),
    "sophia": Entry(rates(*ADAM_RATES), sophia),
    "soap": Entry(rates(*ADAM_RATES), lambda _, rate: ng.soap(rate)),
    "kl_shampoo": Entry(rates(*ADAM_RATES), lambda _, rate: ng.kl_shampoo(rate)),
    "lbfgs": Entry(rates(0.03, 0.3, 1.0, 3.0, 10.0), lbfgs),
    "kfac": Entry(
        rates(*NATURAL_RATES), lambda model, rate: ng.kfac(rate, model), rows=True
    ),
    "ekfac": Entry(rates(*NATURAL_RATES), lambda model, rate: ng.ekfac(rate, model)),
    "kfac_adaptive": Entry(((),), lambda model: ng.kfac_adaptive(model), rows=True),
    "natural_gradient": Entry(
        (*pairs((0.3, 1.0), (1e-3, 1e-5)), (0.1, 1e-3)), natural_gradient
    ),
    "gram": Entry(rates(*NATURAL_RATES), lambda model, rate: ng.gram(rate, model)),
    "stochastic_reconfiguration": Entry(
        (*pairs((0.1, 0.3), (4e-3, 1e-2)), (0.03, 1e-2)), stochastic_reconfiguration
    ),
}
PEERS = {
    "kfac_jax": rates(*NATURAL_RATES),
    "kfac_jax_adaptive": rates(0.015, 0.15, 1.5, 15.0, 150.0),
}
# Of this library, with a model's Fisher information.
OURS = (
    "kfac",
    "ekfac",
    "kfac_adaptive",
    "natural_gradient",
    "gram",
    "stochastic_reconfiguration",
)
