"""Fisher merging: one network from two that were trained apart, without their data.

    θ = (F_1 + F_2 + λ)⁻¹ (F_1 θ_1 + F_2 θ_2 + λ (θ_1 + θ_2)/2)

is the maximum of the product of two Laplace posteriors. With a number for each F it is
the plain mean, with diagonals a weighted mean of each parameter (Matena & Raffel 2022),
and `F_1 + F_2` of any metrics is a metric too, solved by conjugate gradients.

    python examples/21_fisher_merging.py

Two networks from one start, one of which saw even digits and one odd ones; loss in nats
and accuracy on held-out data of all ten:

    the first alone      1.666   0.526
    the second alone     1.993   0.528
    plain mean           0.405   0.868
    diagonal Fisher      0.424   0.861
    K-FAC                0.292   0.915
    exact Fisher         0.309   0.905

Source: Matena & Raffel (2022), Merging models with Fisher-weighted averaging.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import natgrad as ng

STEPS, DAMPING = 200, 1e-4


def apply(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def main():
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(keys[0], (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(keys[1], (32, 10)) / 6,
        "b2": jnp.zeros(10),
    }
    model = ng.Model(apply, ng.families.Categorical())
    tx = optax.adam(3e-3)

    @jax.jit
    def train(params, x, y):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(model.loss)(params, x, y), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0][0]

    start = train(params, x[:100], y[:100])  # what both have seen
    halves = [jnp.arange(1200)[y[:1200] % 2 == k] for k in (0, 1)]
    trained = [train(start, x[half], y[half]) for half in halves]
    middle = jax.tree.map(lambda a, b: (a + b) / 2, *trained)

    def merged(curvature):
        metrics = [
            curvature(model).at(params, x[half])
            for params, half in zip(trained, halves, strict=True)
        ]
        pulls = [m.mv(params) for m, params in zip(metrics, trained, strict=True)]
        right = jax.tree.map(lambda a, b, m: a + b + DAMPING * m, *pulls, middle)
        return (metrics[0] + metrics[1]).solve(right, DAMPING)

    networks = {
        "the first alone": trained[0],
        "the second alone": trained[1],
        "plain mean": middle,
        "diagonal Fisher": merged(ng.curvature.Diagonal),
        "K-FAC": merged(ng.curvature.KFAC),
        "exact Fisher": merged(ng.curvature.MatrixFree),
    }
    results = {}
    for name, network in networks.items():
        loss = float(model.loss(network, x[1200:], y[1200:]))
        hit = jnp.mean(jnp.argmax(apply(network, x[1200:]), -1) == y[1200:])
        results[name] = loss, float(hit)
        print(f"{name:<18}{loss:>8.3f}{float(hit):>8.3f}")
    return results


if __name__ == "__main__":
    main()
