"""K-FAC against Adam on the deep autoencoder 784-1000-500-250-30-250-500-1000-784.

Both are tuned over a grid of equal size (K-FAC: 3 learning rates × 2 dampings, all else
as `natgrad.kfac` comes; Adam: 6 learning rates), each setting for the same steps on the
same batches; the setting with the lowest last loss is shown. `natgrad.kfac_adaptive`
runs once, as it comes. The loss is that of the
whole training set, in nats an image, taken outside the clock. Compilation is not
counted.

Data: the 1,797 digits of scikit-learn, enlarged to 28×28; or any images [N, 784] or
[N, 28, 28], such as MNIST, as the array `x` of an .npz file. Pixels above half of the
range are 1, the others 0.

    python -m benchmarks.autoencoder --steps 80 --json autoencoder.json
    python -m benchmarks.autoencoder --hidden 200 100 50 20 --json small.json
    python -m benchmarks.autoencoder --data mnist.npz --batch 1000 --steps 500

Model: Hinton & Salakhutdinov (2006), Reducing the dimensionality of data with neural
networks; Martens & Grosse (2015), section 13. Tanh units, a linear code of 30.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng
from benchmarks.timing import environment

PIXELS, HIDDEN = 784, [1000, 500, 250, 30]
KFAC_GRID = list(itertools.product([0.1, 0.3, 1.0], [1e-3, 1e-2]))
ADAM_GRID = [(rate,) for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    parser.add_argument("--every", type=int, default=10, help="steps between losses")
    parser.add_argument("--settings", type=int, help="only so many of each grid")
    parser.add_argument("--data", type=Path, help="an .npz file with images `x`")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    images = jnp.asarray(digits() if options.data is None else stored(options.data))
    print(f"{len(images)} images, batch {options.batch}, {options.steps} steps")
    model = ng.Model(autoencoder, ng.families.Bernoulli(), example_inputs=images[:1])
    makers = {
        "kfac": (
            KFAC_GRID,
            lambda rate, damping: ng.kfac(rate, model, damping=damping),
        ),
        "adaptive": ([()], lambda: ng.kfac_adaptive(model)),
        "adam": (ADAM_GRID, lambda rate: with_inputs(optax.adam(rate))),
    }
    report = {"environment": environment(), "images": len(images), "runs": {}}
    for name, (grid, make) in makers.items():
        found = tuned(name, grid[: options.settings], make, model, images, options)
        report["runs"][name] = found
    show(report["runs"])
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def tuned(name, grid, make, model, images, options) -> list[dict[str, Any]]:
    """A run of each setting of the grid, best first."""

    def step(hyper, params, state, x):
        tx = make(*hyper)
        y = x.astype(jnp.int32)
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        more = {"targets": y, "value": value, "value_fn": model.loss}
        updates, state = tx.update(gradient, state, params, inputs=x, **more)
        return optax.apply_updates(params, updates), state

    params, order = initial(options.hidden), np.random.default_rng(0)
    batches = [
        images[order.choice(len(images), options.batch, replace=False)]
        for _ in range(options.steps)
    ]
    first = (tuple(map(jnp.float32, grid[0])), params)
    state = make(*first[0]).init(params)
    begun = time.perf_counter()
    program = jax.jit(step).lower(*first, state, batches[0]).compile()
    print(f"{name}: compiled in {time.perf_counter() - begun:.1f} s", flush=True)
    measured = jax.jit(lambda p, x: model.loss(p, x, x.astype(jnp.int32)))
    loss = lambda params: float(measured(params, images))
    runs = []
    for setting in grid:
        hyper = tuple(map(jnp.float32, setting))
        carry, wall, cpu = (params, make(*hyper).init(params)), 0.0, 0.0
        curve = [{"step": 0, "wall": 0.0, "cpu": 0.0, "loss": loss(params)}]
        for number, x in enumerate(batches, 1):
            start = time.perf_counter(), time.process_time()
            carry = jax.block_until_ready(program(hyper, *carry, x))
            wall += time.perf_counter() - start[0]
            cpu += time.process_time() - start[1]
            if number % options.every == 0 or number == len(batches):
                now = {"step": number, "wall": wall, "cpu": cpu}
                curve.append(now | {"loss": loss(carry[0])})
        runs.append({"setting": list(setting), "curve": curve})
        print(f"  {setting}: {curve[-1]['loss']:.2f} nats", flush=True)
    last = lambda run: run["curve"][-1]["loss"]
    return sorted(runs, key=lambda r: last(r) if np.isfinite(last(r)) else np.inf)


def show(runs: dict[str, list[dict[str, Any]]]) -> None:
    best = {name: found[0] for name, found in runs.items()}
    names = ", ".join(f"{name} {run['setting']}" for name, run in best.items())
    print(f"best settings: {names}")
    print("step" + "".join(f"{name + ': nats  (wall s, cpu s)':>34}" for name in best))
    for points in zip(*(run["curve"] for run in best.values()), strict=True):
        cells = (f"{p['loss']:.2f}  ({p['wall']:.1f}, {p['cpu']:.1f})" for p in points)
        print(f"{points[0]['step']:4}" + "".join(f"{cell:>34}" for cell in cells))
    for name, other in (("kfac", "adam"), ("adaptive", "adam"), ("adaptive", "kfac")):
        print(compared(name, best[name]["curve"], other, best[other]["curve"]))


def compared(name, curve, other, curve_of_other) -> str:
    """How long one takes to the last loss of the other."""
    goal = curve_of_other[-1]
    reached = next((p for p in curve if p["loss"] <= goal["loss"]), None)
    if reached is None:
        return f"{name} did not reach the last loss of {other}"
    return (
        f"{name} takes {reached['step']} of {goal['step']} steps to the last loss of "
        f"{other}, {reached['wall'] / goal['wall']:.2f} of its wall and "
        f"{reached['cpu'] / goal['cpu']:.2f} of its CPU time"
    )


def initial(hidden: list[int], seed: int = 0) -> list[dict[str, jax.Array]]:
    """Weights of variance 1/I, no biases."""
    sizes = [PIXELS, *hidden, *hidden[-2::-1], PIXELS]
    keys = jax.random.split(jax.random.PRNGKey(seed), len(sizes) - 1)
    return [
        {"w": jax.random.normal(key, (n, o)) / np.sqrt(n), "b": jnp.zeros(o)}
        for key, (n, o) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def autoencoder(params, x):
    """Logits of the pixels, [N, 784]."""
    code = len(params) // 2 - 1  # the layer whose output is the code
    for i, p in enumerate(params):
        x = x @ p["w"] + p["b"]
        x = x if i in (code, len(params) - 1) else jnp.tanh(x)
    return x


def with_inputs(tx):
    """An optax transformation that takes, and does not need, `inputs=`."""
    return optax.with_extra_args_support(tx)


def digits() -> np.ndarray:
    """Scikit-learn's digits [1797, 784], enlarged from 8×8 and thresholded."""
    from sklearn.datasets import load_digits

    small = load_digits().images.astype(np.float32) / 16
    large = jax.image.resize(small, (len(small), 28, 28), "linear")
    return np.asarray(large.reshape(-1, 784) > 0.5, np.float32)


def stored(path: Path) -> np.ndarray:
    """Images [N, 784] from an .npz file, thresholded at half of their range."""
    with np.load(path) as file:
        if "x" not in file:
            raise ValueError(f"{path} has no array 'x', only {sorted(file)}.")
        x = file["x"].astype(np.float32)
    x = x.reshape(len(x), -1)
    if x.shape[1] != PIXELS:
        raise ValueError(f"x must hold 784 pixels an image, got shape {x.shape}.")
    return np.asarray(x > (x.min() + x.max()) / 2, np.float32)


if __name__ == "__main__":
    main()
