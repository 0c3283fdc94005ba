"""Elastic weight consolidation: learn a second task without forgetting the first.

    loss_B(θ) + ½ (θ − θ_A)ᵀ F_A (θ − θ_A)

F_A is the Fisher information of the first task at θ_A, *per example*: the mean of
squares, here as a diagonal and with Kronecker factors. The square of a batch's mean
gradient is not it, though it is often taken for it: at the end of training that mean is
nearly zero, and nothing is held.

    python examples/20_elastic_weight_consolidation.py

Digits, then the same digits with their pixels shuffled; accuracy on held-out data:

                                first task   second task
    nothing held                     0.539         0.901
    square of the mean gradient      0.549         0.901
    diagonal Fisher                  0.921         0.700
    K-FAC                            0.928         0.883

Source: Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural
networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import natgrad as ng

STEPS, STRENGTH = 300, 300.0
SHUFFLE = np.random.default_rng(0).permutation(64)


def apply(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def train(loss, params):
    tx = optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS)[0][0])(
        params
    )


def main():
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    tasks, train_y, test_y = [x, x[:, SHUFFLE]], y[:1200], y[1200:]
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(keys[0], (64, 64)) / 8,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(keys[1], (64, 10)) / 8,
        "b2": jnp.zeros(10),
    }
    model = ng.Model(apply, ng.families.Categorical())
    first = train(lambda p: model.loss(p, x[:1200], train_y), params)

    mean_gradient = jax.grad(model.loss)(first, x[:1200], train_y)
    squared = jax.tree.map(jnp.square, mean_gradient)
    diagonal = ng.curvature.Diagonal(model).at(first, x[:1200])
    kfac = ng.curvature.KFAC(model).at(first, x[:1200])
    products = {
        "nothing held": None,
        "square of the mean gradient": lambda v: jax.tree.map(jnp.multiply, squared, v),
        "diagonal Fisher": diagonal.mv,
        "K-FAC": kfac.mv,
    }
    results = {}
    for name, product in products.items():

        def loss(p, product=product):
            value = model.loss(p, tasks[1][:1200], train_y)
            if product is None:
                return value
            away = jax.tree.map(jnp.subtract, p, first)
            return value + STRENGTH / 2 * optax.tree.vdot(away, product(away))

        second = train(loss, first)
        results[name] = tuple(
            float(jnp.mean(jnp.argmax(apply(second, t[1200:]), -1) == test_y))
            for t in tasks
        )
        print(f"{name:<28}{results[name][0]:>10.3f}{results[name][1]:>14.3f}")
    return results


if __name__ == "__main__":
    main()
