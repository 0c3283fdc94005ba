"""Models for a comparison: a linear map, a multilayer perceptron, or a person's own.

The first two are plain JAX, with parameters {"layer0": {"weight": [I, O], "bias": [O]},
"layer1": …}; weights start as N(0, 1/I), biases at 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.cli.data import Dataset
from natgrad.curvature import choose
from natgrad.model import Model
from natgrad.typing import Array, Key, Params

# Parameters: beyond, a comparison takes hours.
_MOST = 10_000_000

# Which labels each fits.
MODELS = {"mlp": "classes, numbers", "logistic": "classes", "linear": "numbers"}


def build(
    name: str, dataset: Dataset, hidden: Sequence[int], seed: int
) -> tuple[Model, Params]:
    """The model called `name` for a data set, and initial parameters.

    Args:
        name: in `MODELS`; or module:function of a key, some inputs and the number of
            outputs.
        dataset: what it is for.
        hidden: widths of the hidden layers, where it has them.
        seed: of the initial weights.

    Raises:
        ValueError: for an unknown name, or one that does not fit the data's labels.
    """
    key = jax.random.PRNGKey(seed)
    if ":" in name:
        return _own(name, dataset, key)
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
            "weight": jax.random.normal(keys[index], shape, dtype) / shape[0] ** 0.5,
            "bias": jnp.zeros(shape[1], dtype),
        }
        for index, shape in enumerate(itertools.pairwise(sizes))
    }


def apply(params: Params, inputs: Array) -> Array:
    """z [N, C]: affine layers with tanh between them."""
    z = inputs.reshape(len(inputs), -1)
    for index in range(len(params)):
        layer = params[f"layer{index}"]
        z = (jnp.tanh(z) if index else z) @ layer["weight"] + layer["bias"][None]
    return z


def _own(name: str, dataset: Dataset, key: Key) -> tuple[Model, Params]:
    """The model that function(key, inputs, outputs) makes, and its parameters."""
    function, inputs = _found(name), dataset.train[0]
    with _blaming(f"--model {name}: it failed"):
        made = function(key, inputs, dataset.outputs)
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(
            f"{name} must return (apply, params) or (natgrad.Model, params), got "
            f"{type(made).__name__}."
        )
    model, params = made
    if not isinstance(model, Model):
        model = Model(model, dataset.family)
    if model.example_inputs is None:
        model = dataclasses.replace(model, example_inputs=inputs[:1])
    if not jax.tree.leaves(params):
        raise ValueError(f"{name} returned no parameters: {params!r}.")
    with _blaming(f"--model {name}: apply failed"):
        z = jax.eval_shape(model.outputs, params, inputs)
    wanted = (len(inputs), dataset.outputs)
    if model.family == dataset.family and z.shape != wanted:
        raise ValueError(
            f"--model {name}: apply(params, inputs) must give z [N, C] = "
            f"{list(wanted)} for {dataset.name}, got {list(z.shape)}."
        )
    return model, params


def _found(name: str) -> Any:
    """The function called "module:function", also from the working directory."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"--model {name}: expected module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    what = f"--model {name}: cannot import it"
    with _blaming(what):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not error.name or error.name not in module_name:
                raise
            module = None
    if module is None:
        where = f"{os.getcwd()} or on Python's path"
        raise ValueError(f"{what}: there is no such module in {where}.")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"--model {name}: {module_name} has no function {function_name!r}."
        )
    return function


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Say what was raised, and where in the person's own code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = traceback.extract_tb(error.__traceback__)
        where = f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""
        reason = f"{type(error).__name__}: {error}{where}".rstrip(".")
        raise ValueError(f"{what}: {reason}.") from error
