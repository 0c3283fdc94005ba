"""Every optimizer as a program for CUDA, ROCm and TPU, lowered where there is none.

Nothing is compiled: what is held is what the programs consist of.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax_rows
import pytest
from lowering import operations, walks

import natgrad as ng

PLATFORMS = ("cuda", "rocm", "tpu")
SIZE, CLASSES = 6, 3
X, Y = jnp.ones((8, SIZE), jnp.float32), jnp.arange(8, dtype=jnp.int32) % CLASSES


def apply(params, x):
    """Three layers, with factors of equal and of near sizes."""
    for weight, bias in params["hidden"]:
        x = jnp.tanh(x @ weight + bias[None])
    return x @ params["last"]


def start():
    square, zeros = jnp.eye(SIZE, dtype=jnp.float32), jnp.zeros(SIZE, jnp.float32)
    return {"hidden": [(square, zeros)] * 2, "last": square[:, :CLASSES]}


MODEL = ng.Model(apply, ng.families.Categorical(), example_inputs=X[:1])


def of_curvature(curvature, **given):
    return lambda: ng.scale_by_curvature(curvature(MODEL), **given)


OTHERS = {
    "kfoc": of_curvature(
        ng.curvature.KFOC,
        solver=ng.kronecker.FactoredTikhonov(),
        refresh=ng.Refresh(inverses=2),
    ),
    "eigenbasis": of_curvature(
        ng.curvature.KFAC,
        solver=ng.kronecker.Eigenbasis(),
        refresh=ng.Refresh(inverses=4, staggered=True),
    ),
    "jacobi": of_curvature(
        functools.partial(
            ng.curvature.EKFAC, decomposition=ng.solvers.JacobiRotations()
        ),
        refresh=ng.Refresh(statistics=2),
    ),
    "newton_schulz": of_curvature(
        ng.curvature.KFAC,
        solver=ng.kronecker.FactoredTikhonov(rule=ng.solvers.NewtonSchulz()),
        refresh=ng.Refresh(statistics=2, inverses=4),
    ),
    "block_diagonal": of_curvature(ng.curvature.BlockDiagonal),
    "kl_hessian": of_curvature(ng.curvature.KLHessian),
    "cg": of_curvature(ng.curvature.Dense, solver=ng.solvers.cg),
}
OPTIMIZERS = {
    name: lambda row=row: row.tx(MODEL) for name, row in optax_rows.ROWS.items()
}
OPTIMIZERS |= OTHERS
# Loops over factorisations that are there for another reason than a CPU's.
TRIED = "dampings are tried one after the other, to hold one set of inverses for all"
WALKS = dict.fromkeys(["kfac_adaptive", "scale_by_factored_curvature"], TRIED)


def traced(transformation):
    """One training step, traced in JAX's own precision."""

    def step(params, state, x, y):
        def loss(params, inputs=x, targets=y):
            return MODEL.loss(params, inputs, targets)

        value, gradient = jax.value_and_grad(loss)(params)
        given = {"inputs": x, "targets": y, "value": value, "value_fn": loss}
        given |= {"grad": gradient, "weights": params}
        return transformation.update(gradient, state, params, **given)

    params = start()
    state = jax.eval_shape(transformation.init, params)
    return jax.jit(step).trace(params, state, X, Y)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_for_accelerators(name, single_precision):
    program = traced(OPTIMIZERS[name]())
    for platform in PLATFORMS:
        lowered = program.lower(lowering_platforms=(platform,))
        names = {found.name for found in operations(lowered)}
        host = ("lapack", "callback", "send", "recv", "feed")
        assert not [name for name in names if any(part in name for part in host)]
        assert "f64" not in str(lowered.compiler_ir("stablehlo"))
        assert bool(walks(lowered)) == (name in WALKS)


def test_every_factorisation_of_equal_factors_is_one_call(single_precision):
    """Six matrices, enlarged to one size, by one call of each kind, the fallback's too.

    Newton-Schulz factorises nothing else.
    """
    stack = f"tensor<6x{SIZE + 1}x{SIZE + 1}xf32>"
    for name, expected in (
        ("kfac", {"cusolver_potrf_ffi", "cusolver_syevd_ffi"}),
        ("newton_schulz", {"cusolver_syevd_ffi"}),
    ):
        lowered = traced(OPTIMIZERS[name]()).lower(lowering_platforms=("cuda",))
        found = [each for each in operations(lowered) if each.factorises]
        assert {each.name for each in found} == expected
        assert len(found) == len(expected)
        assert all(stack in each.types for each in found)


@pytest.mark.parametrize(
    ("name", "algorithm"), [("eigenbasis", 0), ("ekfac", 0), ("jacobi", 2)]
)
def test_eigenbases_are_found_by_the_algorithm_asked_for(
    name, algorithm, single_precision
):
    """cuSOLVER's default is 0, Jacobi's rotations are 2."""
    lowered = traced(OPTIMIZERS[name]()).lower(lowering_platforms=("cuda",))
    calls = [found.operation for found in operations(lowered) if found.factorises]
    chosen = [str(call.attributes["mhlo.backend_config"]) for call in calls]
    assert calls
    assert all(f"algorithm = {algorithm} :" in config for config in chosen)


def test_the_search_finds_what_it_looks_for(single_precision):
    """A walk on the CPU and none elsewhere; a callback; float64; loops in calls."""
    program = traced(OPTIMIZERS["kfac"]())
    assert walks(program.lower(lowering_platforms=("cpu",)))
    stack = jnp.stack([jnp.eye(3)] * 2)
    factorised = jax.jit(lambda m: jax.lax.map(jax.jit(jnp.linalg.cholesky), m))
    lowered = factorised.trace(stack).lower(lowering_platforms=("cuda",))
    assert walks(lowered) == ["cusolver_potrf_ffi"]

    def prints(x):
        jax.debug.callback(print, x)
        return x

    lowered = jax.jit(prints).lower(1.0)
    assert any("callback" in found.name for found in operations(lowered))
    with jax.enable_x64(True):
        assert "f64" in jax.jit(jnp.sin).lower(1.0).as_text()
