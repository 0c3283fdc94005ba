"""A check of `devices`: steps on many devices beside the same steps on one."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import natgrad as ng
from natgrad import curvature as of
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov
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
        draw = ng.tree.next_key(state.key)  # as `update` does
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
    """What the parameters are after three steps on one device, on all examples at once.

    Chunks change no result, and without them there is less to compile.
    """
    params, x, y = problem(dtype)
    case = CASES[name]
    curvature = case.curvature(model(dtype, case.apply))
    if getattr(curvature, "chunk_size", None) is not None:
        curvature = dataclasses.replace(curvature, chunk_size=None)
    tx = transformed(curvature, case.solver)
    step, state = jax.jit(whole_step(curvature.model, tx)), tx.init(params)
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
