"""Which training example helped? Predictions against retraining without each.

Of two moons that overlap: the metagradient, and influence under five curvatures.

    python examples/19_data_attribution.py
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import make_moons

import natgrad as ng
from natgrad import attribution

TRAINING, QUERIES, STEPS, DECAY = 150, 20, 200, 1e-2


def apply(params, x):
    return jnp.tanh(x @ params["u"] + params["b"]) @ params["v"]


def optimizer(_):
    """SGD on the loss with ½ η |θ|²."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.3, momentum=0.9))


def main():
    x, y = make_moons(TRAINING + QUERIES, noise=0.3, random_state=0)
    train, query = (x[:TRAINING], y[:TRAINING]), (x[TRAINING:], y[TRAINING:])
    keys = jax.random.split(jax.random.key(0))
    start = {
        "u": jax.random.normal(keys[0], (2, 8)),
        "b": jnp.zeros(8),
        "v": jax.random.normal(keys[1], (8, 2)) / 3,
    }
    model = ng.Model(apply, ng.families.Categorical())
    trained = attribution.training(optimizer, model, start, train, STEPS)
    everyone = jnp.ones(TRAINING)
    params = trained(everyone)

    def measure(params):
        return -model.log_prob(params, *query)

    scores = {"metagradient": attribution.metagradient(trained, measure, everyone)}
    layout = ng.tree.Layout.of(params)
    metrics = {"none": ng.metrics.DiagonalMetric(layout, jnp.ones(layout.size))}
    for name in ("dense", "ekfac", "kfac", "layer_diagonal"):
        metrics[name] = ng.CURVATURES[name](model).at(params, train[0])
    for name, metric in metrics.items():
        scores[name] = attribution.influence(metric, model, params, train, query, DECAY)
    truth = attribution.retrained(trained, measure, 1 - jnp.diag(everyone))
    for name, each in scores.items():
        scores[name] = float(jnp.mean(attribution.rank_correlation(each, truth)))
        print(f"{name:15s} rank correlation with retraining {scores[name]:.3f}")
    return scores


if __name__ == "__main__":
    main()
