"""Elastic weight consolidation: learn a second task without forgetting the first.

    loss_B(θ) + ½ (θ − θ_A)ᵀ F_A (θ − θ_A)                (Kirkpatrick et al. 2017)

F_A is the Fisher information of the first task at θ_A, *per example*: the mean of
squares. The square of a batch's mean gradient is not it, though it is often taken for
it: at the end of training that mean is nearly zero, and nothing is held.

Digits, then the same digits with their pixels shuffled; accuracy on held-out data:

                                first task   second task
    nothing held                     0.539         0.901
    square of the mean gradient      0.549         0.901
    diagonal Fisher                  0.921         0.700
    K-FAC                            0.928         0.883
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import natgrad as ng

x, y = map(jnp.asarray, load_digits(return_X_y=True))
tasks = x / 16, x[:, np.random.default_rng(0).permutation(64)] / 16
data = [(x[:1200], y[:1200]) for x in tasks]
k1, k2 = jax.random.split(jax.random.key(0))
w1, w2 = jax.random.normal(k1, (64, 64)) / 8, jax.random.normal(k2, (64, 10)) / 8
start = {"w1": w1, "b1": jnp.zeros(64), "w2": w2, "b2": jnp.zeros(10)}
model = ng.Model(
    lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"],
    ng.families.Categorical(),
)


def train(task, params, product=optax.tree.zeros_like):
    def hold(gradient, p):  # with that of 300/2 (θ − θ_A)ᵀ F_A (θ − θ_A)
        return optax.tree.add_scale(gradient, 300, product(optax.tree.sub(p, params)))

    tx = optax.chain(optax.stateless(hold), optax.adam(3e-3))
    trained = ng.attribution.training(lambda _: tx, model, params, data[task], 300)
    return trained(jnp.ones(1200))


first = train(0, start)
squares = jax.tree.map(jnp.square, jax.grad(model.loss)(first, *data[0]))
results = {}
for name, product in {
    "nothing held": optax.tree.zeros_like,
    "square of the mean gradient": lambda v: optax.tree.mul(squares, v),
    "diagonal Fisher": ng.curvature.Diagonal(model).at(first, data[0][0]).mv,
    "K-FAC": ng.curvature.KFAC(model).at(first, data[0][0]).mv,
}.items():
    second = train(1, first, product)
    hits = [model.outputs(second, x[1200:]).argmax(1) == y[1200:] for x in tasks]
    results[name] = [float(jnp.mean(hit)) for hit in hits]
    print(f"{name:<28}{results[name][0]:>10.3f}{results[name][1]:>14.3f}")
