"""The optimizers of a race, and the grid each is tuned over.

Every grid has six settings, the most likely ones first, but for `kfac_adaptive`, which
runs as it comes. What is not in a grid is the optimizer's default: no momentum for
K-FAC and EKFAC, whose trust region bounds each step; 0.9 or so for Adam and Muon.

    adam, sgd (momentum 0.9), muon, sophia, soap, kl_shampoo    learning rate
    lbfgs      the largest step of optax's zoom line search, at most ten evaluations
    others     learning rate and damping
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from optax import contrib

import natgrad as ng
from natgrad.curvature import Centred, Dense

ADAM_RATES = (1e-3, 3e-4, 3e-3, 1e-4, 1e-2, 3e-2)


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


def kfac(model: ng.Model, rate: Any, damping: Any):
    return ng.kfac(rate, model, damping=damping)


def ekfac(model: ng.Model, rate: Any, damping: Any):
    return ng.ekfac(rate, model, damping=damping)


def stochastic_reconfiguration(model: ng.Model, rate: Any, damping: Any):
    return optax.chain(
        ng.scale_by_curvature(Dense(model, Centred()), damping=damping),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS = {
    "adam": Entry(rates(*ADAM_RATES), lambda _, rate: optax.adam(rate)),
    "sgd": Entry(
        rates(0.03, 0.01, 0.1, 3e-3, 0.3, 1e-3),
        lambda _, rate: optax.sgd(rate, momentum=0.9),
    ),
    "muon": Entry(
        rates(1e-2, 3e-3, 3e-2, 1e-3, 0.1, 3e-4), lambda _, rate: contrib.muon(rate)
    ),
    "sophia": Entry(
        rates(*ADAM_RATES), lambda _, rate: contrib.sophia(rate, weight_decay=0.0)
    ),
    "soap": Entry(rates(*ADAM_RATES), lambda _, rate: ng.soap(rate)),
    "kl_shampoo": Entry(rates(*ADAM_RATES), lambda _, rate: ng.kl_shampoo(rate)),
    "lbfgs": Entry(rates(1.0, 0.3, 3.0, 0.1, 0.03, 10.0), lbfgs),
    "kfac": Entry(pairs((0.1, 0.03, 0.3), (1e-2, 1e-3)), kfac, rows=True),
    "ekfac": Entry(pairs((0.1, 0.03, 0.3), (1e-2, 1e-3)), ekfac),
    "gram": Entry(
        pairs((0.3, 0.1, 1.0), (1e-2, 1e-1)),
        lambda model, rate, damping: ng.gram(rate, model, damping=damping),
    ),
    "natural_gradient": Entry(
        pairs((1.0, 0.3, 0.1), (1e-3, 1e-5)),
        lambda model, rate, damping: ng.natural_gradient(
            rate, model, damping=damping, trust_region=None
        ),
    ),
    "stochastic_reconfiguration": Entry(
        pairs((0.1, 0.3, 0.03), (4e-3, 1e-2)), stochastic_reconfiguration
    ),
    "kfac_adaptive": Entry(((),), lambda model: ng.kfac_adaptive(model), rows=True),
}
