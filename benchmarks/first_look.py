"""The README's picture: a race on digits, and how far each curvature is from F.

    python -m benchmarks.first_look docs/images/first_look.png

Left: the training loss of a 64-32-10 network on 1,797 digits, all of them at each step,
by Adam and by natural gradients; learning rates are the best of three each. Right: at
the parameters where Adam stands after ten steps, the damped step of each approximation
beside that of the exact Fisher information. About two minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import natgrad as ng
from natgrad.compare import compare

SIZES = (64, 32, 10)
STEPS = 60
DAMPING = 1e-2
RACERS = {
    "Adam": (lambda rate, _: optax.adam(rate), (0.01, 0.03, 0.1)),
    "ng.kfac": (lambda rate, model: ng.kfac(rate, model), (0.1, 0.3, 1.0)),
    "ng.natural_gradient": (
        lambda rate, model: ng.natural_gradient(
            rate,
            model,
            damping=DAMPING,
            curvature=lambda model: ng.curvature.Gram(model, ng.curvature.Sampled(1)),
        ),
        (0.3, 0.6, 1.0),
    ),
}
APPROXIMATIONS = ("kfac", "ekfac", "block_diagonal", "diagonal", "empirical")
COLOURS = ("#E69F00", "#0072B2", "#009E73")


def network(params, x):
    """Logits [N, 10] of images [N, 64]."""
    first, last = params
    return jnp.tanh(x @ first["w"] + first["b"]) @ last["w"] + last["b"]


def initial_params(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {"w": jax.random.normal(k, (i, o)) / jnp.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def train(model, tx, x, y, steps):
    """(losses [steps], the parameters after them)."""
    extended = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = extended.update(grads, state, params, inputs=x)
        return optax.apply_updates(params, updates), state, loss

    params = initial_params(jax.random.key(0))
    state, losses = extended.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses, params


def draw(races, comparison) -> Figure:
    """The race on the left, the comparison on the right."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for (name, losses), colour in zip(races.items(), COLOURS, strict=True):
        left.semilogy(losses, label=name, color=colour, linewidth=2)
    left.set(xlabel="step", ylabel="training loss, nats", title="A race on digits")
    left.legend(frameon=False)
    rows = sorted(comparison.rows, key=lambda row: row.step_cosine)
    cosines = [row.step_cosine for row in rows]
    names = [row.name.replace("_", " ") for row in rows]
    bars = right.barh(names, cosines, color=COLOURS[1])
    right.bar_label(bars, [f"{cosine:.2f}" for cosine in cosines], padding=3)
    right.set(
        xlim=(min(0.0, *cosines), 1.15),
        xlabel="cosine between its step and the exact one",
        title="How far from the exact Fisher?",
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(path: str) -> None:
    """Draw the picture into a PNG file."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(np.float32(images / 16)), jnp.asarray(labels)
    model = ng.Model(network, ng.families.Categorical(), example_inputs=x[:1])
    races = {}
    for name, (make, rates) in RACERS.items():
        runs = {rate: train(model, make(rate, model), x, y, STEPS)[0] for rate in rates}
        best = min(runs, key=lambda rate: np.nan_to_num(runs[rate][-1], nan=np.inf))
        races[f"{name}, η = {best:g}"] = runs[best]
        print(f"{name}: " + ", ".join(f"{r:g} -> {c[-1]:.4g}" for r, c in runs.items()))
    _, params = train(model, optax.adam(0.01), x, y, 10)
    comparison = compare(
        model, params, x, y, approximations=APPROXIMATIONS, damping=DAMPING
    )
    print(comparison)
    draw(races, comparison).savefig(Path(path), dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
