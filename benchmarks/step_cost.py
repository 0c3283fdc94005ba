"""What does a K-FAC step cost, in Adam steps?

One training step (gradient, update, new parameters) of Adam, K-FAC and EKFAC, compiled
ahead of time, with statistics in every step and each layer's inverse every ten. What is
kept is renewed in one step of ten, so a period is run and divided by ten; the rounds of
all tasks are interleaved. And for each model the stages of K-FAC by themselves:

    gradient     loss and gradient
    statistics   loss, gradient and factors, less the gradient
    inverse      one refresh of all layers (divide by ten for its share of a step)
    apply        the kept inverse times a gradient

The operations of gradient, statistics and apply over those of the gradient alone are a
floor of K-FAC's step over Adam's where both are bound by arithmetic. Compile times are
CPU times.

See `benchmarks.timing` for how time is taken and which thread settings matter.

    python -m benchmarks.step_cost --models classifier --json step_cost.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng
from benchmarks.timing import compiled, environment, interleaved
from natgrad.curvature import KFAC, Sampled
from natgrad.kronecker import FactoredTikhonov

PERIOD, DAMPING = 10, 1e-2
ALIASES = {"kfac": ng.kfac, "ekfac": ng.ekfac}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--against", nargs="*", choices=ALIASES, default=list(ALIASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    report = {"environment": environment(), "models": {}}
    for name in options.models:
        problem = MODELS[name]()
        report["models"][name] = cost(*problem, options.against, options.rounds)
        show(name, report["models"][name])
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def cost(model, params, x, y, against, rounds: int) -> dict[str, Any]:
    """Seconds of every task, and the steps over Adam's."""
    optimizers = {"adam": optax.with_extra_args_support(optax.adam(1e-3))}
    for name in against:
        optimizers[name] = ALIASES[name](1e-3, model, damping=DAMPING)
    tasks, seconds = {}, {}
    for name, tx in optimizers.items():
        tasks[name] = training(tx, model, params, x, y)
        seconds[name] = tasks[name][1]
    parts, operations = stages(model, params, x, y)
    timings = interleaved({**tasks, **parts}, rounds)
    found = {name: timing.summary() for name, timing in timings.items()}
    for name in optimizers:
        found[name]["seconds"] /= PERIOD
        found[name]["fastest_seconds"] /= PERIOD
        found[name]["cpu_seconds"] /= PERIOD
    paired = lambda name: np.median(
        np.array(timings[name].cpu) / np.array(timings["adam"].cpu)
    )
    gradient = found["gradient"]["seconds"]
    found["statistics"] = {"seconds": found.pop("pass")["seconds"] - gradient}
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tasks": found,
        "over_adam": {
            n: found[n]["seconds"] / found["adam"]["seconds"] for n in seconds
        },
        "cpu_over_adam": {name: float(paired(name)) for name in seconds},
        "compile_over_adam": {n: seconds[n] / seconds["adam"] for n in seconds},
        "operations": operations,
        "operations_over_gradient": (operations["pass"] + operations["apply"])
        / operations["gradient"],
    }


def training(tx, model, params, x, y):
    """A task of PERIOD steps from a state that has left its first step behind."""

    def step(params, state, x, y):
        gradient = jax.grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, inputs=x)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    begun = time.process_time()
    program = jax.jit(step).lower(params, state, x, y).compile()
    seconds = time.process_time() - begun
    carry = [program(params, state, x, y)]

    def run():
        for _ in range(PERIOD):
            carry[0] = program(*carry[0], x, y)
        return carry[0]

    return run, seconds


def stages(model, params, x, y) -> tuple[dict[str, Any], dict[str, float]]:
    """The parts of a step as tasks of their own, and their operations."""
    curvature, solver = KFAC(model, Sampled(1)), FactoredTikhonov()
    key = jax.random.PRNGKey(0)
    shared = lambda p, x, y: curvature.value_and_grad(p, x, y, key)
    metric = jax.jit(curvature.at)(params, x, None, key)
    count = range(solver.pieces(metric))
    prepare = lambda metric: tuple(solver.prepare(metric, jnp.float32(DAMPING), count))
    kept = jax.jit(prepare)(metric)
    apply = lambda m, kept, v: solver.apply(m, kept, v, jnp.float32(DAMPING)).value
    programs = {
        "gradient": (jax.value_and_grad(model.loss), params, x, y),
        "pass": (shared, params, x, y),
        "inverse": (prepare, metric),
        "apply": (apply, metric, kept, params),
    }
    tasks, operations = {}, {}
    for name, (function, *args) in programs.items():
        tasks[name] = compiled(function, *args)
        operations[name] = flops(function, *args)
    return tasks, operations


def flops(function, *args) -> float:
    """Floating-point operations by XLA's count; loops and LAPACK are not in it."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def show(name: str, found: dict[str, Any]) -> None:
    over, cpu = found["over_adam"], found["cpu_over_adam"]
    print(f"{name}: {found['parameters']} parameters")
    for task in over:
        seconds = 1e3 * found["tasks"][task]["seconds"]
        print(
            f"  {task:6} {seconds:9.2f} ms a step  x{over[task]:.2f} of Adam, "
            f"x{cpu[task]:.2f} in CPU time, compile x"
            f"{found['compile_over_adam'][task]:.2f}"
        )
    parts = ("gradient", "statistics", "inverse", "apply")
    split = (f"{p} {1e3 * found['tasks'][p]['seconds']:.2f}" for p in parts)
    print("  stages (ms): " + ", ".join(split))
    print(
        "  operations of a step between refreshes over the gradient's: "
        f"x{found['operations_over_gradient']:.2f}",
        flush=True,
    )


# Models: (model, params, x, y) ------------------------------------------------------


def dense_layers(sizes, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), len(sizes))
    return [
        {"w": jax.random.normal(k, (n, o)) / np.sqrt(n), "b": jnp.zeros(o)}
        for k, n, o in zip(keys, sizes, sizes[1:], strict=False)
    ]


def dense_apply(params, x):
    for i, p in enumerate(params):
        x = x @ p["w"] + p["b"]
        x = jnp.tanh(x) if i < len(params) - 1 else x
    return x


def autoencoder(batch):
    """784-1000-500-250-30 and back, Bernoulli pixels."""
    half = [784, 1000, 500, 250, 30]
    x = jax.random.bernoulli(jax.random.PRNGKey(1), 0.3, (batch, 784))
    y, x = x.astype(jnp.int32), x.astype(jnp.float32)
    model = ng.Model(dense_apply, ng.families.Bernoulli(), example_inputs=x[:1])
    return model, dense_layers(half + half[-2::-1]), x, y


def classified(apply, params, x):
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=x[:1])
    return model, params, x, jnp.arange(x.shape[0]) % 10


def classifier(batch=256):
    """784-512-512-10."""
    x = jax.random.normal(jax.random.PRNGKey(1), (batch, 784))
    return classified(dense_apply, dense_layers([784, 512, 512, 10]), x)


def cnn(batch=64):
    """Two strided 3×3 convolutions of a 28×28 image, then a dense layer."""
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    params = {
        "conv": [
            0.3 * jax.random.normal(keys[0], (3, 3, 1, 16)),
            0.1 * jax.random.normal(keys[1], (3, 3, 16, 32)),
        ],
        "dense": dense_layers([7 * 7 * 32, 10]),
    }

    def apply(params, x):
        for w in params["conv"]:
            names = ("NHWC", "HWIO", "NHWC")
            x = jnp.tanh(
                jax.lax.conv_general_dilated(
                    x, w, (2, 2), "SAME", dimension_numbers=names
                )
            )
        return dense_apply(params["dense"], x.reshape(x.shape[0], -1))

    x = jax.random.normal(jax.random.PRNGKey(1), (batch, 28, 28, 1))
    return classified(apply, params, x)


def transformer(batch=32, length=32, width=64, depth=2):
    """Two layers of one-headed attention and an MLP, pooled."""

    def layer(seed):
        sizes = {"qkv": [width, 3 * width], "out": [width, width]}
        mlp = {"up": [width, 4 * width], "down": [4 * width, width]}
        return {
            name: dense_layers(pair, seed)[0] for name, pair in (sizes | mlp).items()
        }

    params = {
        "layers": [layer(i) for i in range(depth)],
        "head": dense_layers([width, 10]),
    }
    affine = lambda p, x: x @ p["w"] + p["b"]

    def apply(params, x):
        for p in params["layers"]:
            q, k, v = jnp.split(affine(p["qkv"], jax.nn.standardize(x)), 3, axis=-1)
            weights = jax.nn.softmax(q @ k.mT / np.sqrt(width))
            x = x + affine(p["out"], weights @ v)
            hidden = jax.nn.gelu(affine(p["up"], jax.nn.standardize(x)))
            x = x + affine(p["down"], hidden)
        return dense_apply(params["head"], jnp.mean(x, axis=1))

    x = jax.random.normal(jax.random.PRNGKey(1), (batch, length, width))
    return classified(apply, params, x)


MODELS = {
    "autoencoder 256": lambda: autoencoder(256),
    "autoencoder 1000": lambda: autoencoder(1000),
    "classifier": classifier,
    "cnn": cnn,
    "transformer": transformer,
}

if __name__ == "__main__":
    main()
