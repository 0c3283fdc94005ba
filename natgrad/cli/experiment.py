"""A comparison from settings: data, model, and the parameters at which to compare."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natgrad import __version__
from natgrad.cli import data, models
from natgrad.cli.data import Dataset
from natgrad.compare.figures import Budget
from natgrad.compare.reference import Reference
from natgrad.compare.runs import DEFAULT, contender
from natgrad.compare.setup import ComparisonSetup
from natgrad.compare.training import optimizer_step
from natgrad.layers import NotCapturedError
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.tree import Layout
from natgrad.typing import Array, Key, Params

# Of Adam, which leads from initial parameters to those compared at.
APPROACH_RATE = 0.01

# Above so many parameters matrices [P, P] take too much memory and time: what needs
# them does not race, and is compared only if asked for by name or small enough.
MAX_PARAMETERS = 4096
_LARGE_MODEL_BYTES = 1e9


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a person chooses; everything else follows.

    Options of the same names say what each is, and these they do not set:

    Attributes:
        repeats: timed runs of each approximation.
        charts: random coordinates in which invariance is tested; each compiles every
            approximation once more.
        leave_out: leave out optimizers that do not fit the model, instead of refusing?
    """

    data: str = "digits"
    model: str = "mlp"
    hidden: tuple[int, ...] = (16,)
    examples: int | None = None
    damping: float = 1e-3
    at_step: int = 20
    approximations: tuple[str, ...] | None = None
    reference: str | None = None
    repeats: int = 3
    charts: int = 0
    optimizers: tuple[str, ...] = DEFAULT
    leave_out: bool = True
    steps: int = 30
    batch_size: int = 256
    rates: int = 6
    repeat: int = 0
    along: tuple[int, ...] = ()
    seed: int = 0


# Small enough for a look or a test.
QUICK = Settings(
    hidden=(4,), examples=200, repeats=1, steps=10, batch_size=64, rates=3, at_step=10
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings made concrete, names resolved."""

    settings: Settings
    dataset: Dataset
    model: Model
    initial: Params  # where the race starts
    params: Params  # where approximations are compared
    setup: ComparisonSetup

    @classmethod
    def of(cls, settings: Settings) -> Experiment:
        """Check the settings, load the data and prepare the parameters.

        Raises:
            ValueError: for unknown names and impossible settings.
        """
        dataset = data.load(settings.data, seed=settings.seed, limit=settings.examples)
        model, initial = models.build(
            settings.model, dataset, settings.hidden, settings.seed
        )
        budget = Budget(repeats=settings.repeats, charts=settings.charts)
        if Layout.of(initial).size > MAX_PARAMETERS:
            budget = dataclasses.replace(budget, memory=_LARGE_MODEL_BYTES)
        setup = ComparisonSetup(
            model,
            settings.approximations,
            reference=settings.reference,
            damping=settings.damping,
            budget=budget,
        )
        settings = dataclasses.replace(
            settings,
            approximations=setup.names,
            optimizers=tuple(_racers(settings, model, initial)),
        )
        params = approach(model, initial, *dataset.train, steps=settings.at_step)
        return cls(settings, dataset, model, initial, params, setup)

    def initial_from(self, seed: int) -> Params:
        """Initial parameters from another seed."""
        settings = self.settings
        return models.build(settings.model, self.dataset, settings.hidden, seed)[1]

    @property
    def subject(self) -> str:
        """What is compared on what, for titles."""
        return f"{self.settings.model} on {self.settings.data}"

    @property
    def key(self) -> Key:
        """Of what is random in measuring."""
        return jax.random.PRNGKey(self.settings.seed)

    def reference(self) -> Reference:
        """The exact Fisher over all training data, at `params`."""
        return Reference.at(self.setup, self.params, *self.dataset.train, self.key)

    def describe(self) -> dict[str, Any]:
        """What was compared, as plain Python values."""
        data, inputs = self.dataset, self.dataset.train[0]
        return {
            "settings": dataclasses.asdict(self.settings),
            "data": {
                "name": data.name,
                "features": data.features,
                "outputs": data.outputs,
                "train_examples": inputs.shape[0],
                "test_examples": data.test[0].shape[0],
                "score": data.score_name,
            },
            "parameters": Layout.of(self.initial).size,
            "dtype": str(inputs.dtype),
        }


def approach(
    model: Model, params: Params, inputs: Array, targets: Array, *, steps: int
) -> Params:
    """`params` after some full-batch steps of Adam: on the way, not at a special point.

    At initial parameters the predictions are nearly uniform and approximations look
    alike; at the end of training the gradient is gone.
    """
    optimizer = optax.with_extra_args_support(optax.adam(APPROACH_RATE))

    def step(carry, _):
        params, state = carry
        batch = (inputs, targets)
        return optimizer_step(model, optimizer, params, state, batch), None

    advance = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))
    (params, _), _ = advance((params, optimizer.init(params)))
    return params


def surroundings() -> dict[str, Any]:
    """Versions and the machine, as far as figures and times depend on them."""
    packages = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")
    versions = {"natgrad": __version__, "python": platform.python_version()}
    device, count = jax.devices()[0], jax.device_count()
    return {
        "versions": versions | {p: importlib.metadata.version(p) for p in packages},
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": count,
        },
        "machine": {"system": platform.system(), "architecture": platform.machine()},
        "x64": bool(jnp.result_type(float) == jnp.float64),
    }


def _racers(settings: Settings, model: Model, params: Params) -> Iterator[str]:
    """The optimizers that fit the model; a ValueError where one that must does not."""
    for name in dict.fromkeys(settings.optimizers):
        make = contender(name, model, settings.damping).make
        reason = _does_not_fit(make(1.0), params)
        if not reason:
            yield name
        elif not settings.leave_out:
            raise ValueError(f"{name} {reason} Name others with --optimizers.")


def _does_not_fit(optimizer: optax.GradientTransformation, params: Params) -> str:
    """Why an optimizer cannot train this model; empty if it can."""
    try:
        state = jax.eval_shape(optimizer.init, params)
    except NotCapturedError as error:
        return f"cannot read this model: {error}"
    except DoesNotFitError as error:
        return f"does not fit. {error} Use a smaller --hidden."
    largest = max((leaf.size for leaf in jax.tree.leaves(state)), default=0)
    if largest > MAX_PARAMETERS**2:
        return (
            f"keeps a matrix of {largest} numbers for this model of "
            f"{Layout.of(params).size} parameters; at most {MAX_PARAMETERS}² here. "
            "Use a smaller --hidden."
        )
    return ""
