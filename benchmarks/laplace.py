"""Do Laplace posteriors make a network's predictions better, and where?

Small networks on scikit-learn's digits and breast cancer data, trained with a normal
prior of precision 1 (weight decay 1/N) to a maximum of the posterior. Held-out negative
log-likelihood, expected calibration error (15 bins) and accuracy of the network itself
and of its linearised posteriors by draws of the outputs: under four curvatures, with
precision 1, with one precision fitted by the evidence, and with one a layer. `in turns`
is the network, trained on with the precisions that K-FAC's evidence gives, and its
posterior; `no prior` the network trained without weight decay, and its posterior with
precision 1.

    python -m benchmarks.laplace --seeds 3 --output benchmarks/results
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import natgrad as ng
from benchmarks.report import table, write
from benchmarks.timing import environment, positive

DATA = {
    "digits": (datasets.load_digits, (64, 32, 10)),
    "breast cancer": (datasets.load_breast_cancer, (30, 10, 2)),
}
CURVATURES = {
    "K-FAC": ng.curvature.KFAC,
    "EKFAC": ng.curvature.EKFAC,
    "diagonal": ng.curvature.Diagonal,
}
FIGURES = ("NLL", "ECE", "accuracy")
STEPS, FIT, TURNS = 1000, 100, 4


def apply(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["last"]["w"] + params["last"]["b"]


model = ng.Model(apply, ng.families.Categorical())
loss_at = jax.jit(model.loss)


@jax.jit
def network(params, x):
    return jax.nn.softmax(model.outputs(params, x))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--data", nargs="+", choices=DATA, default=[*DATA])
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"environment": environment(), "runs": {}}
    for name in options.data:
        sizes = DATA[name][1]
        found["runs"][name] = []
        for seed in range(options.seeds):
            train, (x, y) = split(name, seed)
            laws, precisions = predictions(seed, sizes, *train, x)
            scores = {k: measured(np.asarray(p), y) for k, p in laws.items()}
            values = jax.tree.map(float, precisions)
            found["runs"][name].append({"scores": scores, "precisions": values})
            print(name, seed, flush=True)
    text = page(found)
    print(text)
    write(options.output, "laplace", found, text)
    return found


def split(name: str, seed: int):
    """Training data, a half, and held-out data, in units of the training data's."""
    x, y = DATA[name][0](return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    inner, outer = order[: len(x) // 2], order[len(x) // 2 :]
    scale = x[inner].std(axis=0) if name == "breast cancer" else 8.0
    x = ((x - x[inner].mean(axis=0)) / scale).astype(np.float32)
    return (x[inner], y[inner]), (x[outer], y[outer])


@jax.jit
def trained(params, precisions, x, y):
    """Near the minimum of N loss + ½ θᵀΔθ, by Adam with a falling rate."""
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    def objective(params):
        squares = sum(
            own * optax.tree.norm(params[name], squared=True)
            for name, own in precisions.items()
        )
        return model.loss(params, x, y) + squares / (2 * len(x))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0][0]


def start(seed: int, sizes: tuple[int, ...]):
    keys = jax.random.split(jax.random.key(seed), 2)
    layers = zip(("hidden", "last"), keys, sizes[:-1], sizes[1:], strict=True)
    return {
        name: {"w": jax.random.normal(k, (i, o)) / i**0.5, "b": jnp.zeros(o)}
        for name, k, i, o in layers
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def posterior(curvature, model, params, prior, x):
    metric = curvature(model).at(params, x)
    return ng.laplace.Posterior(model, params, metric, len(x), prior)


@jax.jit
def averaged(posterior, x):
    return posterior.outputs(x).probabilities(jax.random.key(0))


@jax.jit
def fitted(posterior, loss):
    return ng.laplace.fit_prior(posterior, loss, num_steps=FIT)[0]


def predictions(seed: int, sizes, x, y, x_new):
    """P(class) [N, K] of each way on the held-out inputs, and the fitted precisions."""
    layers = jax.tree.map(jnp.float32, {"hidden": 1, "last": 1})
    first = start(seed, sizes)
    params = trained(first, layers, x, y)
    loss = loss_at(params, x, y)
    laws, precisions = {"network": network(params, x_new)}, {}
    fixed = jax.tree.map(lambda _: optax.MaskedNode(), params["hidden"])
    part = {**params, "hidden": fixed}
    candidates = {n: (c, params, model) for n, c in CURVATURES.items()}
    last = model.with_frozen(params)
    candidates["last layer"] = (ng.curvature.KFAC, part, last)
    for name, (curvature, at, own) in candidates.items():
        plain = posterior(curvature, own, at, jnp.float32(1), x)
        ways = {"1": plain, "one fitted": fitted(plain, loss)}
        if own is model:
            by_layer = dataclasses.replace(plain, prior_precision=layers)
            ways["by layer"] = fitted(by_layer, loss)
        for label, law in ways.items():
            laws[f"{name}, {label}"] = averaged(law, x_new)
            precisions[f"{name}, {label}"] = law.prior_precision
    bare = trained(first, jax.tree.map(jnp.zeros_like, layers), x, y)
    laws["no prior: network"] = network(bare, x_new)
    law = posterior(ng.curvature.KFAC, model, bare, jnp.float32(1), x)
    laws["no prior: K-FAC, 1"] = averaged(law, x_new)
    for _ in range(TURNS):
        law = posterior(ng.curvature.KFAC, model, params, layers, x)
        layers = fitted(law, loss_at(params, x, y)).prior_precision
        params = trained(params, layers, x, y)
    law = posterior(ng.curvature.KFAC, model, params, layers, x)
    laws["in turns: network"] = network(params, x_new)
    laws["in turns: K-FAC, by layer"] = averaged(law, x_new)
    return laws, {**precisions, "in turns: K-FAC, by layer": layers}


def measured(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Of probabilities [N, K] and classes [N]: nats, and shares."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((15 * sure).astype(int), 14)
    gaps = np.bincount(bins, weights=right - sure, minlength=15)
    nll = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-30)).mean()
    ece = np.abs(gaps).sum() / len(y)
    return dict(zip(FIGURES, map(float, (nll, ece, right.mean())), strict=True))


def page(found: dict[str, Any]) -> str:
    """A table a data set: means over seeds."""
    lines = [f"# {__doc__.splitlines()[0]}", ""]
    for name, runs in found["runs"].items():
        rows = []
        for way in runs[0]["scores"]:
            means = (
                float(np.mean([run["scores"][way][figure] for run in runs]))
                for figure in FIGURES
            )
            better = sum(
                run["scores"][way]["NLL"] < run["scores"]["network"]["NLL"]
                for run in runs
            )
            given = [run["precisions"].get(way) for run in runs]
            rows.append((way, *means, better, typical(given)))
        heads = ("law", *FIGURES, "lower NLL than network", "precision, median")
        title = f"{name}, {'-'.join(map(str, DATA[name][1]))}, {len(runs)} seeds"
        lines += [f"## {title}", "", table(heads, rows), ""]
    return "\n".join(lines)


def typical(given: list[Any]) -> str | None:
    """Medians of fitted precisions over the seeds."""
    if given[0] is None:
        return None
    medians = jax.tree.map(lambda *own: float(np.median(own)), *given)
    return ", ".join(f"{value:.3g}" for value in jax.tree.leaves(medians))


if __name__ == "__main__":
    main()
