"""The rows of the table of `test_optax_contract`: all transformations here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from contract import LAMBDA, MODEL, X, Y

import natgrad as ng

RATE, POISSON = 0.1, ng.families.Poisson()


class Row(NamedTuple):
    """A transformation: make(**arguments(model)), and the extra arguments it needs.

    `static` are the arguments that `optax.inject_hyperparams` must leave alone.
    """

    make: Callable[..., optax.GradientTransformation]
    arguments: Callable[[ng.Model], dict[str, Any]]
    needs: tuple[str, ...] = ("inputs",)
    static: tuple[str, ...] = ()

    def tx(self, model=MODEL):
        return self.make(**self.arguments(model))

    def injected(self, **scheduled):
        """With hyperparameters in its state, those with a schedule by that."""
        arguments = self.arguments(MODEL)
        arguments |= {k: v for k, v in scheduled.items() if k in arguments}
        return optax.inject_hyperparams(self.make, self.static)(**arguments)


def dense(model, damping=LAMBDA):
    return ng.scale_by_curvature(ng.curvature.Dense(model), damping=damping)


RATED = lambda model: {"learning_rate": RATE, "model": model, "damping": LAMBDA}
# The trust region is that of the others.
STRAIGHT = lambda model: RATED(model) | {"trust_region": None}
OF_FAMILY = lambda model: {"learning_rate": RATE, "family": POISSON}
OF_GRADIENTS = lambda model: {"learning_rate": RATE}
OF_DENSE = lambda model: {"curvature": ng.curvature.Dense(model), "damping": LAMBDA}
SEARCH = "inputs", "targets", "value", "value_fn"
ROWS = {
    "natural_gradient": Row(ng.natural_gradient, RATED),
    "kfac": Row(ng.kfac, RATED),
    "ekfac": Row(ng.ekfac, STRAIGHT),
    "diagonal_fisher": Row(ng.diagonal_fisher, STRAIGHT),
    "empirical_fisher": Row(ng.empirical_fisher, RATED, ("inputs", "targets")),
    "gram": Row(ng.gram, RATED),
    "gram_blocks": Row(ng.gram_blocks, STRAIGHT),
    "spring": Row(ng.spring, RATED),
    "march": Row(ng.march, RATED),
    "matrix_free": Row(ng.matrix_free, STRAIGHT),
    "kfac_adaptive": Row(ng.kfac_adaptive, lambda model: {"model": model}, SEARCH),
    "levenberg_marquardt": Row(
        ng.levenberg_marquardt,
        lambda model: {
            "inner": optax.chain(dense(model), optax.scale(-1.0)),
            "model": model,
        },
        SEARCH,
        static=("halvings",),
    ),
    "soap": Row(ng.soap, OF_GRADIENTS, (), static=("max_dimension",)),
    "kl_shampoo": Row(ng.kl_shampoo, OF_GRADIENTS, (), static=("max_dimension",)),
    "mirror_descent": Row(ng.mirror_descent, OF_FAMILY, ()),
    "dual_mirror_descent": Row(ng.dual_mirror_descent, OF_FAMILY, ()),
    "ivon": Row(
        ng.inference.ivon,
        lambda model: {"learning_rate": RATE, "ess": 100.0},
        ("weights",),
    ),
    "scale_by_curvature": Row(ng.scale_by_curvature, OF_DENSE),
    "scale_by_spring": Row(ng.scale_by_spring, OF_DENSE),
    "scale_by_march": Row(ng.scale_by_march, OF_DENSE),
    "scale_by_factored_curvature": Row(
        ng.scale_by_factored_curvature,
        lambda model: {"curvature": ng.curvature.KFAC(model)},
        static=("groups",),
    ),
    "scale_by_quadratic_model": Row(
        ng.scale_by_quadratic_model,
        lambda model: {"model": model, "damping": LAMBDA},
        ("inputs", "grad"),
        static=("sub_batch",),
    ),
    "scale_by_kl_trust_region": Row(
        ng.scale_by_kl_trust_region, lambda model: {"model": model, "radius": 1e-3}
    ),
    "geodesic_acceleration": Row(
        ng.geodesic_acceleration,
        lambda model: {"inner": dense(model), "model": model},
    ),
    "scale_by_dual": Row(ng.scale_by_dual, lambda model: {"family": POISSON}, ()),
    "scale_by_norm_constraint": Row(
        ng.scale_by_norm_constraint, lambda model: {"learning_rate": RATE}, ()
    ),
}
# Aliases of a curvature. `gram_blocks` solves as `gram` does, and the numbers by which
# `march` damps are its own.
ALIASED = (
    "natural_gradient",
    "gram",
    "spring",
    "matrix_free",
    "kfac",
    "ekfac",
    "diagonal_fisher",
    "empirical_fisher",
)
# Copies of the parameters in the state: what a partition spec of theirs is for.
COPIES = {"kfac_adaptive": 2, "ivon": 2, "soap": 2, "kl_shampoo": 1}
COPIES |= dict.fromkeys(["scale_by_spring", "levenberg_marquardt"], 1)
COPIES |= {"scale_by_march": 2}
# The radius of their trust region knows the last step.
COPIES |= dict.fromkeys(["natural_gradient", "kfac", "empirical_fisher", "gram"], 1)
COPIES |= {"spring": 2, "march": 3}
COPIES |= dict.fromkeys(["scale_by_factored_curvature", "scale_by_quadratic_model"], 1)
# They trace the model's layers when the state is made.
LAYERWISE = {"kfac", "ekfac", "kfac_adaptive", "scale_by_factored_curvature"}
# They need the batch in `update`, which lookahead passes no extra arguments to.
NOT_OBSERVED = dict.fromkeys(
    ["gram", "gram_blocks", "march", "matrix_free"], "keeps no matrix"
)
NOT_OBSERVED |= dict.fromkeys(
    [
        "kfac_adaptive",
        "levenberg_marquardt",
        "scale_by_factored_curvature",
        "geodesic_acceleration",
    ],
    r"call update\(gradient, state, params, inputs=x\)",
)
NOT_OBSERVED |= dict.fromkeys(
    ["scale_by_quadratic_model", "scale_by_kl_trust_region", "ivon"],
    "holds a curvature, so there is nothing",
)


def of_batch(params, names, model=MODEL):
    """The extra arguments with these names."""
    loss = lambda params, inputs=X, targets=Y, weights=None: model.loss(
        params, inputs, targets
    )
    known = {
        "inputs": lambda: X,
        "targets": lambda: Y,
        "value": lambda: loss(params),
        "value_fn": lambda: loss,
        "grad": lambda: jax.grad(loss)(params),
        "weights": lambda: jax.tree.map(lambda p: p + 0.1, params),
    }
    return {name: known[name]() for name in names}
