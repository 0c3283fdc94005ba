"""What does a first try wait for: the first step, and steps outside of jit?

One training step (gradient, update, new parameters) of each optimizer as it comes.
Compiled: CPU seconds of all threads to trace it, to lower it to StableHLO, to compile
it; the first step is `init`, these three, and the step itself; then the milliseconds of
a step, the median of later ones. Outside of jit: the CPU seconds of the first `update`
with `optax.apply_updates`, and the milliseconds of later ones, without the gradient.
Caches of JAX are cleared before each first one; the later ones take turns. kfac-jax
(`benchmarks.peers`: a process and a JAX of its own; the first step is all that its
`init` and first `step` take) has no step outside of jit and is for the dense networks.
Set no XLA_FLAGS: they change what is compiled.

    python -m benchmarks.first_step --models classifier
    python -m benchmarks.first_step --output benchmarks/results
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import natgrad as ng
from benchmarks import peers
from benchmarks.problems import MODELS
from benchmarks.report import RESULTS, table, write
from benchmarks.timing import environment, positive
from benchmarks.training import Problem

# name -> model -> optimizer, each with its defaults
OPTIMIZERS = {
    "adam": lambda _: optax.with_extra_args_support(optax.adam(1e-3)),
    "muon": lambda _: optax.with_extra_args_support(optax.contrib.muon(1e-3)),
    "kfac": lambda model: ng.kfac(model=model),
    "gram": lambda model: ng.gram(model=model),
    "natural_gradient": lambda model: ng.natural_gradient(model=model),
    "kfac_adaptive": ng.kfac_adaptive,
}
PEER = "kfac_jax"
# The networks with tanh units but for the last layer, which kfac-jax's process knows.
DENSE = ("autoencoder 256", "autoencoder 1000", "classifier")
COLUMNS = {  # heads of the table -> figures
    "trace": "trace",
    "lower": "lower",
    "compile": "compile",
    "first step": "first",
    "ms a step": "step_ms",
    "first step outside of jit": "eager_first",
    "ms a step outside of jit": "eager_ms",
    "StableHLO": "operations",
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    names = [*OPTIMIZERS, PEER]
    parser.add_argument("--against", nargs="*", choices=names, default=names)
    parser.add_argument("--rounds", type=positive, default=21, help="later steps")
    parser.add_argument("--environment", type=Path, default=peers.ENVIRONMENT)
    parser.add_argument("--output", type=Path, help=f"a folder, such as {RESULTS}")
    options = parser.parse_args(argv)
    ours = [name for name in dict.fromkeys(("adam", *options.against)) if name != PEER]
    report = {"environment": environment(), "models": {}}
    compiled(OPTIMIZERS["adam"], *MODELS[options.models[0]]())  # starts XLA
    dense = {*DENSE} & {*options.models}
    wanted = {PEER} & {*options.against} if dense else set()
    with peers.opened(options.environment, wanted) as worker:
        for name in options.models:
            makers = {one: OPTIMIZERS[one] for one in ours}
            remote = worker if name in dense else None
            found = measured(makers, MODELS[name](), options.rounds, remote)
            report["models"][name] = found
            print(section(name, found), flush=True)
    text = "# " + __doc__.split("\n\n    python")[0]
    sections = [section(*item) for item in report["models"].items()]
    write(options.output, "first_step", report, "\n".join([text, *sections]))
    return report


def measured(
    makers: dict[str, Callable], problem: tuple, rounds: int, worker: Any = None
) -> dict[str, dict[str, float]]:
    """name of an optimizer -> its figures, in CPU seconds and wall milliseconds.

    Args:
        makers: name -> (model -> optimizer).
        problem: model, parameters, inputs, labels.
        rounds: how many later steps are timed.
        worker: of `benchmarks.peers`, for kfac-jax.
    """
    found, tasks = {}, {}
    for name, make in makers.items():
        first, tasks[name, "step_ms"] = compiled(make, *problem)
        outside, tasks[name, "eager_ms"] = eager(make, *problem)
        found[name] = first | outside
    if worker is not None:
        found[PEER], tasks[PEER, "step_ms"] = peer(worker, *problem)
    taken = {key: [] for key in tasks}
    for _ in range(1 + rounds):  # the first fills the caches again
        for key, task in tasks.items():
            taken[key].append(task())
    for (name, kind), seconds in taken.items():
        found[name][kind] = 1e3 * float(np.median(seconds[1:]))
    return found


def compiled(make, model, params, x, y) -> tuple[dict[str, float], Callable]:
    """Figures of a first compiled step, and a task that takes a further one.

    Args:
        make: model -> optimizer.
        model: of the problem.
        params: of the model.
        x: inputs.
        y: labels.
    """
    jax.clear_caches()
    transformation = make(model)

    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        given = {"inputs": x, "targets": y, "value": value, "value_fn": model.loss}
        updates, state = transformation.update(gradient, state, params, **given)
        return optax.apply_updates(params, updates), state

    clock = [time.process_time()]
    state = transformation.init(params)
    clock.append(time.process_time())
    traced = jax.jit(step).trace(params, state, x, y)
    clock.append(time.process_time())
    lowered = traced.lower()
    clock.append(time.process_time())
    program = lowered.compile()
    clock.append(time.process_time())
    carry = jax.block_until_ready(program(params, state, x, y))
    seconds = (after - before for before, after in itertools.pairwise(clock))
    _, tracing, lowering, compiling = seconds
    figures = {
        "trace": tracing,
        "lower": lowering,
        "compile": compiling,
        "first": time.process_time() - clock[0],
        "operations": lowered.as_text().count("stablehlo."),
    }

    def task():
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(program(*carry, x, y))
        return time.perf_counter() - start

    return figures, task


def eager(make, model, params, x, y) -> tuple[dict[str, float], Callable]:
    """The same outside of jit, as in a notebook; the gradient is given."""
    jax.clear_caches()
    transformation = make(model)
    differentiate = jax.jit(jax.value_and_grad(model.loss))
    cpu = time.process_time()
    carry = params, transformation.init(params)
    before = time.process_time() - cpu

    def task(clock=time.perf_counter):
        nonlocal carry
        params, state = carry
        value, gradient = jax.block_until_ready(differentiate(params, x, y))
        given = {"inputs": x, "targets": y, "value": value, "value_fn": model.loss}
        start = clock()
        updates, state = transformation.update(gradient, state, params, **given)
        carry = jax.block_until_ready((optax.apply_updates(params, updates), state))
        return clock() - start

    return {"eager_first": before + task(time.process_time)}, task


def peer(worker, model, params, x, y) -> tuple[dict[str, float], Callable]:
    """kfac-jax's first step, and a task that takes a further one in its process."""
    batch = np.arange(len(y))
    problem = Problem(
        model, lambda _: params, x, y, None, model.loss, (), "", held=(x, y)
    )
    worker.give(problem, linear=-1, evaluated=1)
    remote = peers.Remote(worker, PEER, problem)
    remote.start(0)
    remote.turn([batch])
    return {"first": remote.compile_cpu}, lambda: remote.turn([batch])[0]


def section(name: str, found: dict[str, dict[str, float]]) -> str:
    """A table of one model, and what its figures are over Adam's."""
    rows = [
        (optimizer, *(figures.get(key) for key in COLUMNS.values()))
        for optimizer, figures in found.items()
    ]
    over = ("first", "step_ms", "eager_first", "eager_ms")
    heads = [head for head, key in COLUMNS.items() if key in over]
    ratios = [
        (
            optimizer,
            *(figures[k] / found["adam"][k] if k in figures else None for k in over),
        )
        for optimizer, figures in found.items()
    ]
    tables = table(("optimizer", *COLUMNS), rows), table(("over Adam", *heads), ratios)
    return f"\n## {name}\n\n" + "\n\n".join(tables)


if __name__ == "__main__":
    main()
