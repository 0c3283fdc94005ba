"""IVON on a small network, beside Adam: 200 images of digits, judged by 1,597 others.

The law is that of a posterior at a tenth of its temperature (ess = 10 N): at N a
diagonal Gaussian of 3,600 weights is far too wide.

    python examples/13_variational_network.py

network on 200 digits:  held-out loss   accuracy   calibration error
  Adam                         0.207      0.935           0.006
  IVON, mean                   0.189      0.939           0.008
  IVON, 64 draws               0.198      0.939           0.024
picture in figures/13_variational_network.png
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from natgrad import inference
from natgrad.families import Categorical

plt.switch_backend("Agg")

FIGURE = Path("figures") / "13_variational_network.png"
STEPS = 1000
INK, COLOURS = "#333333", ("#ce5c00", "#4e9a06", "#3465a4")


def digits():
    """((images, labels) of 200 examples, the same of the rest), float32."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    return (x[:200], y[:200]), (x[200:], y[200:])


def initial_params(key):
    keys, sizes = jax.random.split(key, 2), (64, 48, 10)
    return [
        {
            "w": jax.random.normal(k, (n, m), jnp.float32) / np.float32(np.sqrt(n)),
            "b": jnp.zeros(m, jnp.float32),
        }
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, x):
    first, second = params
    return jnp.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]


def network():
    """{optimizer: probabilities of the held-out images}, and their labels."""
    (x, y), (x_held, y_held) = digits()

    def loss(params):
        log_prob = jax.vmap(Categorical().log_prob)(logits(params, x), y)
        return -jnp.mean(log_prob)

    ivon = inference.ivon(
        optax.cosine_decay_schedule(0.3, STEPS),
        ess=10 * len(y),  # a tenth of the posterior's temperature
        weight_decay=1e-3,
        initial_hessian=0.1,
        b2=0.9999,
    )
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def step_ivon(carry, key):
        params, state = carry
        weights = inference.draw_weights(key, params, state)
        grads = jax.grad(loss)(weights)
        updates, state = ivon.update(grads, state, params, weights=weights)
        return (optax.apply_updates(params, updates), state), None

    def step_adam(carry, key):
        del key
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = initial_params(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), STEPS)
    run = lambda tx, step: jax.jit(
        lambda p: jax.lax.scan(step, (p, tx.init(p)), keys)[0]
    )(params)
    (mean, state), (point, _) = run(ivon, step_ivon), run(adam, step_adam)

    @jax.jit
    def averaged(key):
        one = lambda key: jax.nn.softmax(
            logits(inference.draw_weights(key, mean, state), x_held)
        )
        return jnp.mean(jax.vmap(one)(jax.random.split(key, 64)), axis=0)

    laws = {
        "Adam": jax.nn.softmax(logits(point, x_held)),
        "IVON, mean": jax.nn.softmax(logits(mean, x_held)),
        "IVON, 64 draws": averaged(jax.random.key(2)),
    }
    print("network on 200 digits:  held-out loss   accuracy   calibration error")
    results = {}
    for name, law in laws.items():
        law = np.asarray(law, float)
        right = law.argmax(1) == np.asarray(y_held)
        nll = -np.mean(np.log(law[np.arange(len(right)), np.asarray(y_held)]))
        bins = calibration(law.max(1), right)
        error = sum(n * abs(c - a) for c, a, n in bins) / len(right)
        print(f"  {name:16} {nll:17.3f} {right.mean():10.3f} {error:15.3f}")
        results[name] = {"nll": nll, "accuracy": right.mean(), "error": error}
        results[name]["bins"] = bins
    return results


def calibration(confidence, right):
    """[(mean confidence, accuracy, number)] of ten bins of equal numbers."""
    parts = np.array_split(np.argsort(confidence), 10)
    return [(confidence[i].mean(), right[i].mean(), len(i)) for i in parts]


def draw(net, path):
    figure, axis = plt.subplots(figsize=(5.5, 4.4), constrained_layout=True)
    axis.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    for (name, result), colour in zip(net.items(), COLOURS, strict=True):
        confidence, accuracy, _ = np.array(result["bins"]).T
        label = f"{name}: loss {result['nll']:.3f}"
        axis.plot(confidence, accuracy, "o-", color=colour, label=label, ms=4)
    axis.set(xlabel="confidence", ylabel="accuracy on held-out digits")
    axis.set_title("A network on 200 digits")
    axis.set(xlim=(0.45, 1.01), ylim=(0.45, 1.01))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"picture in {path}")


def main(figure=FIGURE):
    """Train, judge, draw."""
    net = network()
    draw(net, Path(figure))
    return net


if __name__ == "__main__":
    main(*sys.argv[1:])
