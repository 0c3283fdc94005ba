"""Pruning: which weights can go? Those whose loss the Fisher says is small.

    loss increase of w_q = 0, all others held:            w_q² F_qq / 2
    loss increase of w_q = 0, all others free to follow:  w_q² / (2 [(F + λ)⁻¹]_qq)

The first is optimal brain damage (LeCun, Denker & Solla 1990), the second optimal brain
surgeon (Hassibi & Stork 1993); what follows moves to the quadratic model's minimum.

Digits, 64-16-10; held-out loss in nats when this share of the weights is 0:

                               0.3     0.5     0.7     0.8
    magnitude                  0.304   0.478   1.026   2.052
    damage                     0.294   0.319   0.806   1.440
    damage, others follow      0.294   0.305   0.568   1.129
    surgeon, others follow     0.297   0.317   0.506   1.050
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import natgrad as ng

x, y = map(jnp.asarray, load_digits(return_X_y=True))
x = x / 16
k1, k2 = jax.random.split(jax.random.key(0))
w1, w2 = jax.random.normal(k1, (64, 16)) / 8, jax.random.normal(k2, (16, 10)) / 4
start = {"w1": w1, "b1": jnp.zeros(16), "w2": w2, "b2": jnp.zeros(10)}
model = ng.Model(
    lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"],
    ng.families.Categorical(),
)
adamw = optax.adamw(3e-3, weight_decay=1e-2)
data = x[:1200], y[:1200]
train = ng.attribution.training(lambda _: adamw, model, start, data, 300)
params = train(jnp.ones(1200))
fisher = ng.curvature.Dense(model).at(params, data[0])
layout, f, theta = fisher.layout, fisher.dense(), fisher.layout.ravel(params)
damage = theta**2 * layout.ravel(fisher.diagonal())
surgeon = theta**2 / layout.ravel(fisher.inverse_diagonal(1e-4))
matrices = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.ndim > 1), params)
is_weight = layout.ravel(matrices) > 0
results = {}
for name, scores in {
    "magnitude": theta**2,
    "damage": damage,
    "damage, others follow": damage,
    "surgeon, others follow": surgeon,
}.items():
    results[name] = []
    for share in (0.3, 0.5, 0.7, 0.8):
        keep = (scores > jnp.quantile(scores[is_weight], share)) | ~is_weight
        pruned = keep * theta
        if "follow" in name:  # those that stay, by F + λ among themselves
            inside = jnp.outer(keep, keep) * f + 1e-4 * jnp.eye(len(f))
            pruned += jnp.linalg.solve(inside, keep * (f @ (~keep * theta)))
        loss = model.loss(layout.unravel(pruned), x[1200:], y[1200:])
        results[name].append(float(loss))
    print(f"{name:<24}" + "".join(f"{loss:8.3f}" for loss in results[name]))
