"""Steps on many devices beside the same steps on one; a program that prints JSON.

    python devices.py CHECK...           on the 8 devices that XLA_FLAGS makes of a CPU
    python devices.py I PORT CHECK...    process I of two, with 2 devices each

A check is mode:case:dtype, see MODES and CASES. It reports

    difference  of the parameters after three steps, over their largest change
    compiled    how many programs were compiled by the first step, and after it
    moved       leaves of the state whose sharding is not what it was
    calls       how often the compiled step communicates, by kind
    square      whether a device ever holds an N×N matrix
"""

from __future__ import annotations

import collections
import functools
import json
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hybrid_sharding import hybrid
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import natgrad as ng
from natgrad import curvature as of
from natgrad import tree
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov
from natgrad.solvers.base import CachedSolver
from natgrad.transforms.distributed_inverse import DistributedInverse

N, STEPS, RATE = 32, 3, 0.3
EVERYWHERE = PartitionSpec()
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def apply(params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def convolve(params, x):
    """The same parameters, the first weight as a kernel over the 5 inputs."""
    signal = jax.lax.conv_general_dilated(
        x[..., None],
        params["w1"][:, None],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    hidden = jnp.sum(jnp.tanh(signal + params["b1"][None, None]), axis=1)
    return hidden @ params["w2"] + params["b2"][None]


def log_psi(params, x):
    """A wave function of the same parameters, complex [N]."""
    z = apply(params, x)
    return jax.lax.complex(z[:, 0], z[:, 1])


WAVE = ng.Model(log_psi, ng.families.Unnormalized())


def problem(dtype):
    """(params, x, y), as numpy arrays."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    params = {"w1": normal(5, 6), "b1": normal(6), "w2": normal(6, 3), "b2": normal(3)}
    return params, normal(N, 5), rng.integers(0, 3, N)


class Case(NamedTuple):
    """(model, axis) -> a curvature, the solver of its transformation, the network."""

    curvature: Callable
    solver: object = None
    apply: Callable = apply


def model(dtype="float32", apply=apply):
    """The model, which takes the gradients of two examples at a time where it can."""
    example, family = np.zeros((1, 5), dtype), ng.families.Categorical()
    return ng.Model(apply, family, example_inputs=example, chunk_size=2)


def sampled_kfac(model, **axis):
    return of.KFAC(model, of.Sampled(1), **axis)


CASES = {
    "kfac": Case(sampled_kfac, FactoredTikhonov()),
    "convolution": Case(sampled_kfac, None, convolve),
    "empirical_kfac": Case(
        lambda model, **axis: of.KFAC(model, of.Empirical(), **axis), Eigenbasis()
    ),
    "ekfac": Case(
        lambda model, **axis: of.EKFAC(model, of.Sampled(1), period=2, **axis)
    ),
    "layer_diagonal": Case(of.LayerDiagonal),
    "sampled": Case(lambda model, **axis: of.Dense(model, of.Sampled(2), **axis)),
    "gram": Case(lambda model, **axis: of.Gram(model, of.Sampled(1), **axis)),
    "chunked_gram": Case(
        lambda model, **axis: of.Gram(model, of.Sampled(1), chunk_size=16, **axis),
        None,
        convolve,
    ),
    "gram_blocks": Case(
        lambda model, **axis: of.GramBlocks(model, of.Sampled(1), **axis)
    ),
    "chunked_gram_blocks": Case(
        lambda model, **axis: of.GramBlocks(
            model, of.Sampled(1), chunk_size=16, **axis
        ),
        None,
        convolve,
    ),
    "chunked_matrix_free": Case(lambda model: of.MatrixFree(model, chunk_size=16)),
    "matrix_free": Case(of.MatrixFree),
}


def transformed(curvature, solver):
    return ng.scale_by_curvature(
        curvature,
        damping=0.01,
        decay=0.0 if curvature.requires_batch else 0.9,
        solver=solver,
        refresh=ng.Refresh(inverses=1 if solver is None else 2),
    )


def whole_step(model, tx):
    """The step as it is written for one device, for the whole batch."""

    def step(params, state, x, y):
        grads = jax.grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x, targets=y)
        updates = jax.tree.map(lambda u: -RATE * u, updates)
        return optax.apply_updates(params, updates), state

    return step


def device_step(curvature, tx):
    """The step of one device inside shard_map, for its part of the batch."""

    def step(params, state, x, y):
        draw = jax.random.split(state.key)[1]  # as `update` does
        here = curvature.with_previous(state.statistics)
        _, grads, statistics = here.value_and_grad(params, x, y, draw)
        batch = {"inputs": x} if curvature.requires_batch else {}
        updates, state = tx.update(grads, state, params, statistics=statistics, **batch)
        updates = jax.tree.map(lambda u: -RATE * u, updates)
        return optax.apply_updates(params, updates), state

    return step


def sharded(case, model, mesh, solver):
    """The whole batch's step under jit."""
    del mesh
    tx = transformed(case.curvature(model), solver)
    return tx, whole_step(model, tx)


def mapped(case, model, mesh, solver, check_vma=True):
    """The device's step inside shard_map."""
    curvature = case.curvature(model, axis_name=mesh.axis_names)
    tx = transformed(curvature, solver)
    batch = PartitionSpec(mesh.axis_names)
    step = jax.shard_map(
        device_step(curvature, tx),
        mesh=mesh,
        in_specs=(EVERYWHERE, EVERYWHERE, batch, batch),
        out_specs=EVERYWHERE,
        check_vma=check_vma,
    )
    return tx, step


# name -> (the step, are the inverses spread?)
MODES = {
    "jit": (sharded, False),
    "jit_spread": (sharded, True),
    "shard_map": (mapped, False),
    "shard_map_spread": (mapped, True),
    "unchecked_spread": (functools.partial(mapped, check_vma=False), True),
}


@functools.cache
def on_one_device(name, dtype):
    """What the parameters are after three steps on one device."""
    params, x, y = problem(dtype)
    case = CASES[name]
    tx, step = sharded(case, model(dtype, case.apply), None, case.solver)
    step, state = jax.jit(step), tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state, x, y)
    return params


COMPILED = [0]


def count_compilations(event, duration, **metadata):
    del duration, metadata
    COMPILED[0] += event.endswith("backend_compile_duration")


def check(mesh, mode, name, dtype):
    """The report on one mode of one case."""
    make, spread = MODES[mode]
    start, x, y = problem(dtype)
    case = CASES[name]
    solver = (
        DistributedInverse(case.solver, mesh, mesh.axis_names)
        if spread
        else case.solver
    )
    tx, step = make(case, model(dtype, case.apply), mesh, solver)

    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    params, state = put((start, tx.init(start)), EVERYWHERE)
    x, y = put((x, y), PartitionSpec(mesh.axis_names))
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
    program = jax.jit(step)
    before = COMPILED[0]
    text = program.lower(params, state, x, y).compile().as_text()
    params, state = program(params, state, x, y)
    first = COMPILED[0] - before
    for _ in range(STEPS - 1):
        params, state = program(params, state, x, y)
    later = COMPILED[0] - before - first

    expected = on_one_device(name, dtype)
    gap = lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b)))
    gaps = jax.tree.map(gap, params, expected)
    changes = jax.tree.map(gap, expected, start)
    after = [leaf.sharding for leaf in jax.tree.leaves(state)]
    return {
        "difference": max(gaps.values()) / max(changes.values()),
        "compiled": (first, later),
        "moved": sum(a != b for a, b in zip(shardings, after, strict=True)),
        "calls": collections.Counter(re.findall(rf" ({KINDS})(?:-start)?\(", text)),
        "square": f"[{N},{N}]" in text,
    }


def draws(mesh):
    """Are the labels drawn for a sharded batch those of one device, bit for bit?"""
    params, x, _ = problem("float32")
    sample = jax.jit(lambda x: model().sample(jax.random.key(3), params, x))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    return bool(np.array_equal(sample(x), sample(split)))


def over(mesh):
    """Statistics of sharded batches beside those of one device; how much is compiled.

    `difference` is the largest of EKFAC's diagonals and factors, over the largest.
    """
    params, x, y = problem("float64")
    curvature = of.EKFAC(model("float64"))
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    data = [(x, y), (x[::-1], y), (2 * x, y)]
    expected = curvature.over(params, data).statistics
    data, compiled = jax.device_put(data, split), []

    def batches():
        for batch in data:
            compiled.append(COMPILED[0])
            yield batch

    found = curvature.over(params, batches).statistics
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    gaps = [np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs]
    return {"difference": max(gaps), "compiled": np.diff(compiled).tolist()}


class Recorder(CachedSolver):
    """Another inverse, and which of its pieces were made, as often as they were."""

    def __init__(self, solver):
        self.solver, self.made = solver, []

    def factorize(self, metric, damping, which):
        for i in which:
            jax.debug.callback(lambda i=i: self.made.append(i))
        return self.solver.factorize(metric, damping, which)

    def num_blocks(self, metric):
        return self.solver.num_blocks(metric)

    def solve(self, *arguments):
        return self.solver.solve(*arguments)


def shares(mesh):
    """How often each piece is factorised on all devices together, and derivatives.

    `derivative` is the largest difference of those of a solve, with respect to factors
    and gradient, from one device's, over the largest.
    """
    params, x, _ = problem("float64")
    curvature = of.KFAC(model("float64"))
    statistics = jax.jit(curvature.estimate)(params, x)

    def solved(solver, statistics, v):
        metric = curvature.metric(statistics, params)
        return tree.inner(v, solver(metric, v, 0.1))

    recorder = Recorder(FactoredTikhonov())
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(solved, solver), (0, 1)))
        for solver in (DistributedInverse(recorder, mesh), FactoredTikhonov())
    )
    found, expected = (
        jax.tree.leaves(f(statistics, params)) for f in (found, expected)
    )
    jax.effects_barrier()
    gaps = [np.max(np.abs(a - b)) for a, b in zip(found, expected, strict=True)]
    return {
        "made": sorted(collections.Counter(recorder.made).items()),
        "derivative": max(gaps) / max(np.max(np.abs(b)) for b in expected),
    }


def wave_function(mesh):
    """Solves with complex amplitudes inside shard_map beside those of one device.

    Rows are 32 of 16 examples, fewer than the parameters: Gram solves with theirs.
    """
    params, x, _ = problem("float64")
    x = x[:16]
    batch = PartitionSpec(mesh.axis_names)

    def solve(curvature, params, x):
        return curvature.at(params, x).solve(params, 0.1)

    def gap(kind):
        spread = functools.partial(
            solve, kind(WAVE, of.Centred(), axis_name=mesh.axis_names)
        )
        specs = {"in_specs": (EVERYWHERE, batch), "out_specs": EVERYWHERE}
        found = jax.jit(jax.shard_map(spread, mesh=mesh, **specs))(params, x)
        expected = jax.jit(functools.partial(solve, kind(WAVE, of.Centred())))(
            params, x
        )
        return max(np.max(np.abs(found[k] - expected[k])) for k in expected)

    return {kind.__name__: gap(kind) for kind in (of.Gram, of.Dense)}


def gradient_only(mesh):
    """Steps of SOAP and KL-Shampoo on sharded batches beside those on one device.

    Factors of the shorter axes alone, whose gradients have full rank: in a null space
    rounding chooses the basis, and so the steps.
    """
    start, x, y = problem("float64")
    loss = model("float64").loss
    split = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    devices, report = ng.spread.Devices(mesh, mesh.axis_names), {}

    def trained(make, data, devices):
        every = ng.Refresh(inverses=2)
        tx = make(0.1, refresh=every, max_dimension=5, devices=devices)

        @jax.jit
        def step(params, state, x, y):
            grads = jax.grad(loss)(params, x, y)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        carry = start, tx.init(start)
        text = step.lower(*carry, *data).compile().as_text()
        for _ in range(STEPS):
            carry = step(*carry, *data)
        return carry[0], re.findall(rf" ({KINDS})(?:-start)?\(", text)

    for make in (ng.soap, ng.kl_shampoo):
        expected, _ = trained(make, (x, y), None)
        found, calls = trained(make, split, devices)
        gaps = [np.max(np.abs(found[k] - expected[k])) for k in expected]
        changes = [np.max(np.abs(start[k] - expected[k])) for k in expected]
        report[make.__name__] = {
            "difference": max(gaps) / max(changes),
            "calls": collections.Counter(calls),
        }
    return report


def main(arguments):
    jax.config.update("jax_enable_x64", True)
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    if arguments[0].isdigit():
        process, port, *arguments = arguments
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, int(process))
        shape, names = (2, 2), ("host", "device")
    else:
        shape, names = (8,), ("data",)
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    report = {name: check(mesh, *name.split(":")) for name in arguments if ":" in name}
    for function in (draws, shares, over, gradient_only, wave_function, hybrid):
        if function.__name__ in arguments:
            report[function.__name__] = function(mesh)
    print(json.dumps(report | {"devices": jax.device_count()}, default=float))


if __name__ == "__main__":
    main(sys.argv[1:])
