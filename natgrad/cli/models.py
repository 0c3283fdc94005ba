"""Models for a comparison: a linear map, a multilayer perceptron, or a person's own.

The first two are plain JAX, with parameters {"layer0": {"weight": [I, O], "bias": [O]},
"layer1": …}; weights start as N(0, 1/I), biases at 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad.cli import user_model
from natgrad.cli.data import Dataset
from natgrad.curvature import choose
from natgrad.model import Model
from natgrad.typing import Array, Key, Params

# Parameters: beyond, a comparison takes hours.
_MOST = 10_000_000

# Which labels each fits.
MODELS = {
    "mlp": ("classes", "numbers"),
    "logistic": ("classes",),
    "linear": ("numbers",),
}


def build(
    name: str, dataset: Dataset, *, hidden: Sequence[int], key: Key
) -> tuple[Model, Params]:
    """The model called `name` for a data set, and initial parameters.

    Args:
        name: in `MODELS`, or module:function; see `natgrad.cli.user_model`.
        dataset: what it is for.
        hidden: widths of the hidden layers, where it has them.
        key: of the initial weights.

    Raises:
        ValueError: for an unknown name, or one that does not fit the data's labels.
    """
    if ":" in name:
        return user_model.build(name, dataset, key)
    kind = "classes" if dataset.classes else "numbers"
    if kind not in choose(MODELS, name, "model"):
        fitting = [other for other, kinds in MODELS.items() if kind in kinds]
        raise ValueError(
            f"The model {name!r} does not fit {dataset.name}, whose labels are {kind}. "
            f"Use {' or '.join(fitting)}."
        )
    widths = tuple(hidden) if name == "mlp" else ()
    if any(width < 1 for width in widths):
        raise ValueError(f"Hidden layers need at least 1 unit each, got {widths}.")
    sizes = (dataset.features, *widths, dataset.outputs)
    count = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    if count > _MOST:
        raise ValueError(
            f"--hidden {' '.join(map(str, widths))} makes {count:,} parameters; this "
            f"command takes at most {_MOST:,}, which is minutes for each approximation."
        )
    inputs = dataset.train[0]
    model = Model(apply, dataset.family, example_inputs=inputs[:1])
    return model, initial(sizes, key, inputs.dtype)


def initial(sizes: Sequence[int], key: Key, dtype: jnp.dtype) -> Params:
    """Random weights and zero biases of a perceptron with layers of these sizes."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer{index}": {
            "weight": jax.random.normal(key, (fan_in, fan_out), dtype) / fan_in**0.5,
            "bias": jnp.zeros(fan_out, dtype),
        }
        for index, (key, fan_in, fan_out) in enumerate(
            zip(keys, sizes[:-1], sizes[1:], strict=True)
        )
    }


def apply(params: Params, inputs: Array) -> Array:
    """z [N, C]: affine layers with tanh between them."""
    z = inputs.reshape(len(inputs), -1)
    for index in range(len(params)):
        layer = params[f"layer{index}"]
        z = (jnp.tanh(z) if index else z) @ layer["weight"] + layer["bias"][None]
    return z
