"""Other checks of `devices`, each a function of the mesh."""

from __future__ import annotations

import collections
import functools
import re

import jax
import numpy as np
import optax
from device_steps import COMPILED, EVERYWHERE, KINDS, STEPS, WAVE, model, problem
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import natgrad as ng
from natgrad import curvature as of
from natgrad import tree
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.solvers.base import CachedSolver
from natgrad.transforms.distributed_inverse import DistributedInverse


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

    Rows are 32 of 16 examples, fewer than the parameters: Gram solves with theirs. On
    four of the devices: Gram's program grows with them.
    """
    mesh = jax.make_mesh(
        (4,), ("data",), devices=mesh.devices.flat[:4], axis_types=(AxisType.Auto,)
    )
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
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    split = put((x, y), PartitionSpec(mesh.axis_names))
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
        if devices is not None:
            carry = put(carry, EVERYWHERE)
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
