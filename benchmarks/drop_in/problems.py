"""Fifteen small problems: data of scikit-learn or made up here, models in plain JAX.

    digits_mlp       64-128-128-10, tanh: which digit?
    digits_cnn       two convolutions and a dense layer
    transformer      next characters: two blocks of width 32, 32 positions an example
    diabetes         10-64-64-1, tanh: regression, standardised
    autoencoder      64-64-8-64-64, tanh: the digits' 64 pixels as bits
    logistic         breast cancer, standardised, from zero
    gru              the eight rows of a digit, one after the other
    residual_mlp     ten residual blocks of width 32
    unet             which pixels of a noisy digit are ink? 64 laws an example
    vit              a vision transformer on 16 patches of a digit
    poisson          counts, made up: 8-32-1, the logarithm of the rate
    heteroscedastic  `families.Normal`, made up: mean and variance of a curve, 1-16-16-2
    imbalanced       two classes, made up, one example in thirty of the second
    pinn             Poisson's equation of examples/08_pinn.py, in float32
    ill_scaled       digits_mlp with relu on raw pixels from 0 to 255

Losses are means over examples in nats. A figure of the card is taken from the loss less
`floor`, which no model can go below: 0 for labels that can be certain; ½ log 2π for
each number under `NormalMean`; for `poisson` the loss of the model that has a rate for
each example, its count; for `heteroscedastic`, whose loss has no bound, that of the law
that the data were drawn from less P/N nats, twice what P parameters gain on N examples
in expectation by fitting their noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from benchmarks import data, training
from benchmarks.drop_in import networks
from benchmarks.problems import dense_apply, dense_layers
from benchmarks.training import Problem

LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)
TRANSFORMER_WIDTH, CHARACTERS = 32, 50_000


class Small(NamedTuple):
    """A problem of the card.

    Attributes:
        problem: model, start, data; its batch is set where it is run.
        floor: what the loss of no model goes below, in nats.
    """

    problem: Problem
    floor: float = 0.0


def small(apply, family, start, x, y, about, floor=0.0, weights=None) -> Small:
    x = jax.tree.map(jnp.asarray, x)
    first = jax.tree.map(lambda leaf: leaf[:1], x)
    model = ng.Model(apply, family, example_inputs=first, weights=weights)
    problem = Problem(model, start, x, jnp.asarray(y), 32, model.loss, (), about)
    return Small(problem, floor)


def standardised(x):
    return ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-8)).astype(np.float32)


def digits():
    """Pixels [1797, 64] in [0, 1] and classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data.astype(np.float32) / 16, found.target.astype(np.int32)


def of_digits(apply, start, shape, scale=1.0) -> Small:
    x, y = digits()
    x = scale * x.reshape(-1, *shape)
    return small(apply, ng.families.Categorical(), start, x, y, "1,797 digits")


def digits_mlp() -> Small:
    start = lambda seed: dense_layers([64, 128, 128, 10], seed)
    return of_digits(dense_apply, start, (64,))


def digits_cnn() -> Small:
    return of_digits(networks.cnn, networks.cnn_params, (8, 8, 1))


def gru() -> Small:
    return of_digits(networks.gru, networks.gru_params, (8, 8))


def residual_mlp() -> Small:
    return of_digits(networks.residual, networks.residual_params, (64,))


def ill_scaled() -> Small:
    start = lambda seed: dense_layers([64, 128, 128, 10], seed)
    return of_digits(networks.relu_apply, start, (64,), scale=255.0)


def vit() -> Small:
    x, y = digits()
    patches = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
    family, start = ng.families.Categorical(), networks.vit_params
    return small(networks.vit, family, start, patches, y, "1,797 digits")


def transformer() -> Small:
    text = training.transformer(characters=CHARACTERS)
    start = lambda seed: training.language_layers(seed, TRANSFORMER_WIDTH)
    return Small(text._replace(initial=start))


def diabetes() -> Small:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    family = ng.families.NormalMean()
    start = lambda seed: dense_layers([10, 64, 64, 1], seed)
    x, y = standardised(x), standardised(y)[:, None]
    return small(dense_apply, family, start, x, y, "442 patients", LOG_ROOT_TAU)


def autoencoder() -> Small:
    x, _ = digits()
    bits = x > 0.5
    start = lambda seed: dense_layers([64, 64, 8, 64, 64], seed)
    x, y = bits.astype(np.float32), bits.astype(np.int32)
    return small(dense_apply, ng.families.Bernoulli(), start, x, y, "1,797 digits")


def logistic() -> Small:
    x, y = data.regression("breast cancer")
    x = standardised(x[:, :-1])
    start = lambda _: [{"w": jnp.zeros((30, 1)), "b": jnp.zeros(1)}]
    family, y = ng.families.Bernoulli(), y.astype(np.int32)[:, None]
    return small(dense_apply, family, start, x, y, "569 tumours")


def unet() -> Small:
    x, _ = digits()
    x = x.reshape(-1, 8, 8, 1)
    noisy = x + 0.3 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    ink = (x[..., 0] > 0.5).astype(np.int32)
    family, start = ng.families.Bernoulli(), networks.unet_params
    return small(networks.unet, family, start, noisy, ink, "1,797 noisy digits")


def poisson() -> Small:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1024, 8)).astype(np.float32)
    log_rate = 1 + 0.8 * np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] - 0.3 * x[:, 3]
    y = draw.poisson(np.exp(np.clip(log_rate, -3, 4))).astype(np.int32)
    start = lambda seed: dense_layers([8, 32, 1], seed)
    apply = lambda params, x: dense_apply(params, x)[:, 0]
    saturated = np.log(np.maximum(y, 1e-6).astype(np.float32))
    family = ng.families.Poisson()
    log_prob = jax.vmap(family.log_prob)(jnp.asarray(saturated), jnp.asarray(y))
    floor = -float(jnp.mean(log_prob))
    return small(apply, family, start, x, y, "1,024 counts, made up", floor)


def natural_pair(params, x):
    """(m/v, −1/(2v)) of a mean and a variance, the variance above 1e-4."""
    mean, spread = jnp.split(dense_apply(params, x), 2, axis=-1)
    variance = jax.nn.softplus(spread) + 1e-4
    return jnp.concatenate([mean / variance, -0.5 / variance], axis=-1)


def heteroscedastic() -> Small:
    draw, count = np.random.default_rng(0), 2048
    x = draw.uniform(-2, 2, size=(count, 1)).astype(np.float32)
    mean, deviation = np.sin(3 * x[:, 0]), 0.05 + 0.3 * np.abs(x[:, 0])
    noise = draw.normal(size=count)
    y = (mean + deviation * noise).astype(np.float32)
    start = lambda seed: dense_layers([1, 16, 16, 2], seed)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(start(0)))
    drawn = np.mean(np.log(deviation) + 0.5 * noise**2) + LOG_ROOT_TAU
    family, floor = ng.families.Normal(), float(drawn) - parameters / count
    return small(natural_pair, family, start, x, y, "2,048 points, made up", floor)


def imbalanced() -> Small:
    from sklearn.datasets import make_classification

    x, y = make_classification(
        2048, 20, n_informative=6, weights=[29 / 30], flip_y=0.0, random_state=0
    )
    start = lambda seed: dense_layers([20, 32, 32, 2], seed)
    family, x, y = ng.families.Categorical(), standardised(x), y.astype(np.int32)
    return small(dense_apply, family, start, x, y, "2,048 points, made up")


def pinn() -> Small:
    example = training.loaded("08_pinn")
    with jax.enable_x64(True):
        points = jax.tree.map(np.asarray, example.collocation())
    points |= {k: points[k].astype(np.float32) for k in ("x", "weight")}

    def start(seed):
        with jax.enable_x64(True):
            params = example.initial_params(jax.random.key(seed))
            return jax.tree.map(lambda p: p.astype(jnp.float32), params)

    family, y = ng.families.NormalMean(), np.zeros(len(points["x"]), np.float32)
    weights = lambda inputs: inputs["weight"]
    about = "900 interior and 116 boundary points"
    return small(
        example.residuals, family, start, points, y, about, LOG_ROOT_TAU, weights
    )


PROBLEMS: dict[str, Callable[[], Small]] = {
    "digits_mlp": digits_mlp,
    "digits_cnn": digits_cnn,
    "transformer": transformer,
    "diabetes": diabetes,
    "autoencoder": autoencoder,
    "logistic": logistic,
    "gru": gru,
    "residual_mlp": residual_mlp,
    "unet": unet,
    "vit": vit,
    "poisson": poisson,
    "heteroscedastic": heteroscedastic,
    "imbalanced": imbalanced,
    "pinn": pinn,
    "ill_scaled": ill_scaled,
}
