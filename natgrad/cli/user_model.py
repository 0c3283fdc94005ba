"""A person's own model: module:function, called with a key, inputs and outputs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from typing import Any

import jax

from natgrad.cli.data import Dataset
from natgrad.model import Model
from natgrad.typing import Key, Params


def build(name: str, dataset: Dataset, key: Key) -> tuple[Model, Params]:
    """The model that function(key, inputs, outputs) makes, and its parameters.

    Args:
        name: "module:function"; modules are also looked for in the working directory.
        dataset: whose inputs and number of outputs the function is given.
        key: of the initial parameters.

    Raises:
        ValueError: saying what is wrong, in one line.
    """
    made = _called(name, _found(name), key, dataset)
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(
            f"{name} must return (apply, params) or (natgrad.Model, params), got "
            f"{type(made).__name__}."
        )
    model, params = made
    if not isinstance(model, Model):
        model = Model(model, dataset.family)
    if model.example_inputs is None:
        model = dataclasses.replace(model, example_inputs=dataset.train[0][:1])
    if not jax.tree.leaves(params):
        raise ValueError(f"{name} returned no parameters: {params!r}.")
    _check(name, model, params, dataset)
    return model, params


def _found(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"--model {name}: expected module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and error.name in module_name
        )
        where = f"there is no such module in {os.getcwd()} or on Python's path"
        reason = where if missing else _reason(error)
        raise ValueError(f"--model {name}: cannot import it: {reason}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"--model {name}: {module_name} has no function {function_name!r}."
        )
    return function


def _called(name: str, function: Any, key: Key, dataset: Dataset) -> Any:
    try:
        return function(key, dataset.train[0], dataset.outputs)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--model {name}: it failed: {_reason(error)}.") from error


def _check(name: str, model: Model, params: Params, dataset: Dataset) -> None:
    """Do the outputs have the data's shape?"""
    inputs, _ = dataset.train
    try:
        z = jax.eval_shape(model.outputs, params, inputs)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--model {name}: apply failed: {_reason(error)}.") from error
    wanted = (len(inputs), dataset.outputs)
    if model.family == dataset.family and z.shape != wanted:
        raise ValueError(
            f"--model {name}: apply(params, inputs) must give z [N, C] = "
            f"{list(wanted)} for {dataset.name}, got {list(z.shape)}."
        )


def _reason(error: BaseException) -> str:
    """What was raised, and where in the person's own code."""
    lines = traceback.extract_tb(error.__traceback__)
    where = f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {error}{where}".rstrip(".")
