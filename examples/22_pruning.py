"""Pruning: which weights can go? Those whose loss the Fisher says is small.

    loss increase of w_q = 0, all others held:            w_q² F_qq / 2
    loss increase of w_q = 0, all others free to follow:  w_q² / (2 [(F + λ)⁻¹]_qq)

The first is optimal brain damage, the second optimal brain surgeon; magnitude is the
first with F_qq = 1. Following is what helps most: what stays moves to where the
quadratic model of the loss is least, a solve with F and the mask on both sides.

    python examples/22_pruning.py

Digits, 64-16-10; held-out loss in nats when this share of the weights is 0:

                               0.3     0.5     0.7     0.8
    magnitude                  0.304   0.478   1.026   2.052
    damage                     0.294   0.319   0.806   1.440
    damage, others follow      0.294   0.305   0.568   1.129
    surgeon, others follow     0.297   0.317   0.506   1.050

Source: Hassibi & Stork (1993), Second order derivatives for network pruning: optimal
brain surgeon; LeCun, Denker & Solla (1990), Optimal brain damage.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import natgrad as ng

STEPS, DAMPING, SHARES = 300, 1e-4, (0.3, 0.5, 0.7, 0.8)


def apply(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def main():
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(keys[0], (64, 16)) / 8,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(keys[1], (16, 10)) / 4,
        "b2": jnp.zeros(10),
    }
    model = ng.Model(apply, ng.families.Categorical())
    tx = optax.adamw(3e-3, weight_decay=1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(model.loss)(params, x[:1200], y[:1200])
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0][0]

    params = train(params)
    exact = ng.curvature.Dense(model).at(params, x[:1200])
    square = jax.tree.map(jnp.square, params)
    damage = jax.tree.map(jnp.multiply, square, exact.diagonal())
    surgeon = jax.tree.map(jnp.divide, square, exact.inverse_diagonal(DAMPING))

    def follow(keep):
        """The weights that stay, where the quadratic model has its least loss."""
        mask = functools.partial(jax.tree.map, lambda k, v: jnp.where(k, v, 0), keep)
        gone = jax.tree.map(jnp.subtract, params, mask(params))
        move, _ = jax.scipy.sparse.linalg.cg(
            lambda v: optax.tree.add_scale(mask(exact.mv(mask(v))), DAMPING, v),
            mask(exact.mv(gone)),
            maxiter=300,
        )
        return mask(jax.tree.map(jnp.add, params, move))

    results = {}
    for name, scores, moves in (
        ("magnitude", square, False),
        ("damage", damage, False),
        ("damage, others follow", damage, True),
        ("surgeon, others follow", surgeon, True),
    ):
        weights = jnp.concatenate([scores[w].ravel() for w in ("w1", "w2")])
        results[name] = []
        for share in SHARES:
            limit = jnp.quantile(weights, share)
            keep = {k: (v > limit) | (k[0] == "b") for k, v in scores.items()}
            pruned = jax.tree.map(lambda k, v: jnp.where(k, v, 0), keep, params)
            pruned = follow(keep) if moves else pruned
            results[name].append(float(model.loss(pruned, x[1200:], y[1200:])))
        print(f"{name:<24}" + "".join(f"{loss:8.3f}" for loss in results[name]))
    return results


if __name__ == "__main__":
    main()
