"""Which curvature predicts what leaving a training example out does?

A small network on scikit-learn's digits is trained N + 1 times: on all examples, and
without each of them (at once, by `vmap`). The change of each query's loss is the truth.
Beside it the first-order predictions of `natgrad.attribution`: the metagradient, and
influence functions under the Hessian of the loss, the exact Fisher information, EKFAC,
K-FAC, a diagonal, and none. The figure is Spearman's correlation over the training
examples, averaged over the queries; the table has its median over seeds.

Influence functions take λ = η, the weight decay that the training has, and other
multiples of it; `costs` has time and scratch memory of influence from layers' rows,
beside gradients that are written out example by example, of a larger network.

    python -m benchmarks.attribution --seeds 5 --output results
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import natgrad as ng
from benchmarks.data import digits
from benchmarks.report import table, write
from benchmarks.timing import compiled, environment, interleaved, positive
from natgrad.attribution import (
    influence,
    metagradient,
    rank_correlation,
    retrained,
    training,
)
from natgrad.compare.plots.style import COLOURS, panels, plain

TRAINING, QUERIES, HIDDEN = 200, 20, 16
QUERIES_OF_COSTS = 64
STEPS, RATE, MOMENTUM, DECAY = 200, 0.3, 0.9, 1e-2
DAMPINGS = (0.1, 1.0, 10.0)
CURVATURES = {
    "exact F": ng.curvature.Dense,
    "EKFAC": ng.curvature.EKFAC,
    "K-FAC": ng.curvature.KFAC,
    "diagonal": ng.curvature.LayerDiagonal,
}
DRAWN = ("metagradient", "exact F", "EKFAC", "K-FAC", "diagonal", "none")
FACTORED = ng.kronecker.FactoredTikhonov()


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--training", type=positive, default=TRAINING)
    parser.add_argument("--steps", type=positive, default=STEPS)
    parser.add_argument("--width", type=positive, default=256, help="of `costs`")
    parser.add_argument("--examples", type=positive, default=512, help="of `costs`")
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"environment": environment()}
    with jax.enable_x64(True):
        scores = jax.jit(lambda seed_data: predictions(options.steps, *seed_data))
        runs = [
            scores(problem(seed, options.training)) for seed in range(options.seeds)
        ]
    found["seeds"] = [
        {name: float(rho) for name, rho in correlations(run).items()} for run in runs
    ]
    found["losses"] = [
        {name: float(run[name]) for name in ("train loss", "query loss", "gradient")}
        for run in runs
    ]
    print(found["seeds"], found["losses"], sep="\n", flush=True)
    found["costs"] = costs(options.width, options.examples)
    text = page(found)
    print(text)
    write(options.output, "attribution", found, text, {"digits": picture(runs[0])})
    return found


def problem(seed: int, count: int):
    """(start, training data, queries): digits of 4×4 pixels, ten classes."""
    found = load_digits()
    pixels = found.images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    pixels = pixels - pixels.mean(axis=0)
    order = np.random.default_rng(seed).permutation(len(pixels))[: count + QUERIES]
    x, y = jnp.asarray(pixels[order]), jnp.asarray(found.target[order])
    keys = jax.random.split(jax.random.PRNGKey(seed))
    start = {
        "u": jax.random.normal(keys[0], (16, HIDDEN)) / 2,
        "b": jnp.zeros(HIDDEN),
        "v": jax.random.normal(keys[1], (HIDDEN, 10)) / jnp.sqrt(HIDDEN),
        "c": jnp.zeros(10),
    }
    return start, (x[:count], y[:count]), (x[count:], y[count:])


def apply(params, x):
    return jnp.tanh(x @ params["u"] + params["b"]) @ params["v"] + params["c"]


model = ng.Model(apply, ng.families.Categorical())


def optimizer(_):
    decay = optax.add_decayed_weights(DECAY)  # a loss with ½ η |θ|²
    return optax.chain(decay, optax.sgd(RATE, momentum=MOMENTUM))


def predictions(steps: int, start, train, query) -> dict[str, jax.Array]:
    """[Q, N] by name, the truth under "actual"; and what the training came to."""
    trained = training(optimizer, model, start, train, steps)
    everyone = jnp.ones(len(train[0]))
    layout = ng.tree.Layout.of(start)

    def measure(params):
        return -model.log_prob(params, *query)

    def whole(vector):
        return model.loss(layout.unravel(vector), *train)

    params = trained(everyone)
    theta = layout.ravel(params)
    found = {
        "train loss": whole(theta),
        "query loss": jnp.mean(measure(params)),
        "gradient": optax.tree.norm(jax.grad(whole)(theta) + DECAY * theta),
        "actual": retrained(trained, measure, 1 - jnp.diag(everyone)),
        "metagradient": metagradient(trained, measure, everyone),
    }
    metrics = {"Hessian": ng.metrics.DenseMetric(layout, jax.hessian(whole)(theta))}
    for name, curvature in CURVATURES.items():
        metrics[name] = curvature(model).at(params, train[0])
    for name, metric in metrics.items():
        for times in DAMPINGS:
            label = name + (f", λ = {times:g} η" if times != 1 else "")
            arguments = (metric, model, params, train, query, times * DECAY)
            found[label] = influence(*arguments)
            if name == "K-FAC":
                found[f"{label}, factored"] = influence(*arguments, FACTORED)
    ones = ng.metrics.DiagonalMetric(layout, jnp.ones(layout.size))
    found["none"] = influence(ones, model, params, train, query)
    return found


def correlations(run: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean over queries of the rank correlation with the truth, by name."""
    actual = run["actual"]
    return {
        name: jnp.mean(rank_correlation(scores, actual))
        for name, scores in run.items()
        if scores.shape == actual.shape and name != "actual"
    }


def costs(width: int, examples: int) -> dict[str, Any]:
    """CPU seconds and scratch bytes of K-FAC and EKFAC influence, rows or gradients."""
    data = digits()
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    sizes = (x.shape[1], width, width, 10)
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(jax.random.PRNGKey(0), len(pairs))
    params = [
        {"w": jax.random.normal(key, pair) / pair[0] ** 0.5, "b": jnp.zeros(pair[1])}
        for key, pair in zip(keys, pairs, strict=True)
    ]

    def deep(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    model = ng.Model(deep, ng.families.Categorical())
    last = examples + QUERIES_OF_COSTS
    train, query = (x[:examples], y[:examples]), (x[examples:last], y[examples:last])
    tasks: dict[str, Any] = {}
    memory = {}
    for name, curvature, solver in (
        ("K-FAC, factored", ng.curvature.KFAC, FACTORED),
        ("K-FAC", ng.curvature.KFAC, ng.kronecker.Eigenbasis()),
        ("EKFAC", ng.curvature.EKFAC, None),
    ):
        metric = jax.jit(curvature(model).at)(params, train[0])
        for way, function in (("rows", influence), ("gradients", written_out)):
            label = f"{name}: {way}"
            scores: Callable = (
                lambda metric, params, train, query, f=function, s=solver: f(
                    metric, model, params, train, query, 1e-2, s
                )
            )
            arguments = (metric, params, train, query)
            analysis = jax.jit(scores).lower(*arguments).compile().memory_analysis()
            memory[label] = analysis.temp_size_in_bytes
            tasks[label] = compiled(scores, *arguments)
    timings = interleaved(tasks, 3)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "train": len(train[0]),
        "query": len(query[0]),
        "tasks": {
            name: {"temporary_bytes": memory[name], **timing.summary()}
            for name, timing in timings.items()
        },
    }


def written_out(metric, model, params, train, query, damping, solver):
    """The same scores from gradients [Q, P] and [N, P]."""

    def gradient(x, y):
        return jax.grad(model.loss)(params, x[None], y[None])

    (of_train, of_query) = (jax.vmap(gradient)(*data) for data in (train, query))
    solve = solver or type(metric).solve
    solved = jax.vmap(lambda v: solve(metric, v, damping))(of_query)
    ravel = ng.tree.Layout.of(params).ravel
    return jnp.matmul(ravel(solved, 1), ravel(of_train, 1).T) / len(train[0])


def page(found: dict[str, Any]) -> str:
    """The tables."""
    names = list(found["seeds"][0])
    values = {name: [run[name] for run in found["seeds"]] for name in names}
    rows = [
        (name, float(np.median(v)), float(min(v)), float(max(v)))
        for name, v in sorted(values.items(), key=lambda item: -np.median(item[1]))
    ]
    costs = found["costs"]
    losses = found["losses"]
    medians = {
        name: float(np.median([run[name] for run in losses])) for name in losses[0]
    }
    spent = [
        (name, task["cpu_seconds"], task["temporary_bytes"] / 1e6)
        for name, task in costs["tasks"].items()
    ]
    return "\n".join(
        [
            f"# {__doc__.splitlines()[0]}",
            "",
            f"Rank correlation with leaving one out, {len(losses)} seeds. Medians "
            f"after training: loss {medians['train loss']:.3f} nats, of the queries "
            f"{medians['query loss']:.3f}, norm of the gradient "
            f"{medians['gradient']:.2g}.",
            "",
            table(("prediction", "median", "lowest", "highest"), rows),
            "",
            f"At λ = η, {'; '.join(ahead(values))}.",
            "",
            f"Cost of {costs['query']} × {costs['train']} scores, "
            f"{costs['parameters']} parameters, float32, F given:",
            "",
            table(("from", "CPU seconds", "temporary MB"), spent),
        ]
    )


def ahead(values: dict[str, list[float]]) -> list[str]:
    """In how many seeds each prediction is better than the next."""
    counted = []
    for better, worse in itertools.pairwise(DRAWN):
        pairs = list(zip(values[better], values[worse], strict=True))
        wins = sum(one > other for one, other in pairs)
        counted.append(f"{better} is ahead of {worse} in {wins} of {len(pairs)} seeds")
    return counted


@plain
def picture(run: dict[str, jax.Array]) -> Any:
    """Predicted against actual, a panel a prediction, and what a perfect one shows."""
    actual = np.asarray(run["actual"])
    rhos = correlations(run)
    figure, axes = panels(
        "Leaving one training example out: change of each query's loss, in nats",
        (2, 3),
        (12, 7.4),
    )
    for axis, name in zip(axes.flat, DRAWN, strict=True):
        predicted = np.asarray(run[name])
        axis.plot(predicted.ravel(), actual.ravel(), ".", color=COLOURS[0], alpha=0.25)
        axis.axline((0, 0), slope=1, color=COLOURS[1], linewidth=1)
        axis.set(title=f"{name}: rank correlation {float(rhos[name]):.2f}")
    for axis in axes[-1]:
        axis.set_xlabel("predicted")
    for axis in axes[:, 0]:
        axis.set_ylabel("retrained without it")
    return figure


if __name__ == "__main__":
    main()
