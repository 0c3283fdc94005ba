"""A second table of families, with oracles in mpmath and SciPy.

An exponential family is known here by its log-normaliser A alone, in its natural
parameters at 120 digits: the mean, the Fisher information and the divergence are
differences of A. Another family is known by its divergence. The Fisher information has
a second oracle, the closed form in the textbook's source coordinates; SciPy has the
densities and the entropies.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import mpmath as mp
import numpy as np
from law_oracles import (
    cauchy_kl,
    dirichlet_normalizer,
    full_fisher,
    full_natural,
    full_normalizer,
    gamma_normalizer,
    laplace_kl,
    location_scale,
    logistic_kl,
    normal_normalizer,
    pair,
    von_mises_fisher,
)
from scipy import stats
from scipy.special import polygamma

import natgrad.families as nf

trigamma = functools.partial(polygamma, 1)


@dataclasses.dataclass(frozen=True)
class Law:
    family: nf.Family
    sources: tuple  # points in source coordinates
    to_z: Callable  # source [S] -> z, in jax.numpy
    fisher: Callable  # source -> matrix in source coordinates, by NumPy
    scipy: Callable  # source -> frozen distribution
    # z -> A(z) for an exponential family, (z, z2) -> KL for another, in mpmath
    oracle: Callable
    vague: tuple = ()  # points where only float32 promises are tested, as z

    @property
    def exponential(self):
        return isinstance(self.family, nf.ExponentialFamily)

    @property
    def extremes(self):
        """The points where single precision is tested, [M, ...]."""
        vague = np.array(self.vague, float)
        if not self.sources:
            return vague
        shape = self.points.shape[1:]
        return np.concatenate([self.points, vague.reshape((-1, *shape))])

    @property
    def points(self):
        """The sources as z, [M, ...]."""
        sources = [jnp.asarray(source, float) for source in self.sources]
        return np.stack([np.asarray(self.to_z(source)) for source in sources])


def scalar(f):
    """A map of a source with one entry to a scalar z."""
    return lambda s: f(s[0])


def scale_pair(source):
    return jnp.stack([source[0], jnp.log(source[1])])


def two(*values):
    return tuple(np.array(value, float) for value in values)


LAWS = {
    "binomial": Law(
        nf.Binomial(7),
        two([0.31], [0.8], [1e-9], [1 - 1e-9]),
        scalar(lambda p: jnp.log(p) - jnp.log1p(-p)),
        lambda s: np.array([[7 / (s[0] * (1 - s[0]))]]),
        lambda s: stats.binom(7, s[0]),
        lambda z: 7 * mp.log1p(mp.exp(z[0])),
        (-100.0, -20.0, 20.0, 80.0),
    ),
    "geometric": Law(
        nf.Geometric(),
        two([0.31], [0.8], [1e-6], [1 - 1e-6]),
        scalar(lambda p: jnp.log1p(-p)),
        lambda s: np.array([[1 / (s[0] ** 2 * (1 - s[0]))]]),
        lambda s: stats.geom(s[0], loc=-1),
        lambda z: -mp.log1p(-mp.exp(z[0])),
        (-60.0, -1e-6, -1e-3),
    ),
    "negative_binomial": Law(
        nf.NegativeBinomial(2.5),
        two([0.31], [0.8], [1e-6], [1 - 1e-6]),
        scalar(lambda p: jnp.log1p(-p)),
        lambda s: np.array([[2.5 / (s[0] ** 2 * (1 - s[0]))]]),
        lambda s: stats.nbinom(2.5, s[0]),
        lambda z: -mp.mpf(2.5) * mp.log1p(-mp.exp(z[0])),
        (-60.0, -1e-6, -1e-3),
    ),
    "weibull": Law(
        nf.Weibull(1.7),
        two([0.6], [3.0], [1e-3], [1e3]),
        scalar(lambda s: -(s**-1.7)),
        lambda s: np.array([[1.7**2 / s[0] ** 2]]),
        lambda s: stats.weibull_min(1.7, scale=s[0]),
        lambda z: -mp.log(-z[0]),
        (-1e-6, -1e6),
    ),
    "inverse_gamma": Law(
        nf.InverseGamma(),
        two([2.3, 0.7], [0.8, 3.0], [0.02, 0.5], [1e4, 3.0]),
        pair(lambda a, b: (-a - 1, -b)),
        lambda s: np.array(
            [[trigamma(s[0]), -1 / s[1]], [-1 / s[1], s[0] / s[1] ** 2]]
        ),
        lambda s: stats.invgamma(s[0], scale=s[1]),
        lambda z: gamma_normalizer(-z[0] - 1, -z[1]),
        ([-1.001, -2.0], [-1e7, -3.0]),
    ),
    "log_normal": Law(
        nf.LogNormal(),
        two([0.4, 0.7], [-1.0, 1.5], [3.0, 0.02]),
        pair(lambda m, s: (m / s**2, -0.5 / s**2)),
        lambda s: np.diag([1 / s[1] ** 2, 2 / s[1] ** 2]),
        lambda s: stats.lognorm(s[1], scale=np.exp(s[0])),
        normal_normalizer,
    ),
    "inverse_gaussian": Law(
        nf.InverseGaussian(),
        two([1.3, 0.7], [0.4, 2.5], [2.0, 1e-3], [2.0, 1e5]),
        pair(lambda m, l: (-l / (2 * m**2), -l / 2)),
        lambda s: np.diag([s[1] / s[0] ** 3, 0.5 / s[1] ** 2]),
        lambda s: stats.invgauss(s[0] / s[1], scale=s[1]),
        lambda z: -2 * mp.sqrt(z[0] * z[1]) - mp.log(-2 * z[1]) / 2,
        ([-1e-6, -1e-3], [-1e5, -2e5]),
    ),
    "beta": Law(
        nf.Beta(),
        two([2.3, 0.7], [1.2, 5.0], [0.02, 0.05], [1e5, 300.0], [30.0, 0.01]),
        pair(lambda a, b: (a - 1, b - 1)),
        lambda s: np.diag(trigamma(s)) - trigamma(s.sum()),
        lambda s: stats.beta(s[0], s[1]),
        dirichlet_normalizer,
        ([-0.999, -0.99], [1e6, 3e5], [1e6, -0.5]),
    ),
    "dirichlet": Law(
        nf.Dirichlet(),
        two([2.3, 0.7, 4.0], [0.3, 1.5, 0.9], [1e-2, 2e-2, 6e-3], [1e6, 30.0, 1e5]),
        lambda s: s - 1,
        lambda s: np.diag(trigamma(s)) - trigamma(s.sum()),
        stats.dirichlet,
        dirichlet_normalizer,
        ([-0.999, -0.998, -0.9995], [1e6, 3e5, 2e6], [1e6, -0.9, 3.0]),
    ),
    "multivariate_normal": Law(
        nf.MultivariateNormal(),
        two([0.4, -1.0, 1.3, 0.5, 0.8], [3.0, 0.2, 0.4, -0.3, 2.0]),
        full_natural,
        full_fisher,
        lambda s: stats.multivariate_normal(s[:2], s[np.array([[2, 3], [3, 4]])]),
        full_normalizer,
        ([3.0, -2.0, -0.5, 0.3, -0.4],),
    ),
    "multivariate_normal_diag": Law(
        nf.MultivariateNormalDiag(),
        two([0.4, -1.0, 1.3, 0.8], [30.0, 0.2, 0.01, 2.0]),
        lambda s: jnp.concatenate([s[:2] / s[2:], -0.5 / s[2:]]),
        lambda s: np.diag(np.concatenate([1 / s[2:], 0.5 / s[2:] ** 2])),
        lambda s: stats.multivariate_normal(s[:2], np.diag(s[2:])),
        lambda z: normal_normalizer(z[::2]) + normal_normalizer(z[1::2]),
        ([10.0, 1.0, -0.5, -3.0],),
    ),
    "von_mises": Law(
        nf.VonMises(),
        two([0.6, 0.4], [-2.0, 3.0], [1.2, 30.0], [0.9, 1e-4], [0.0, 1e4]),
        pair(lambda m, k: (k * jnp.cos(m), k * jnp.sin(m))),
        lambda s: von_mises_fisher(s[1]),
        lambda s: stats.vonmises(s[1], loc=s[0]),
        lambda z: mp.log(2 * mp.pi * mp.besseli(0, mp.sqrt(z[0] ** 2 + z[1] ** 2))),
        ([1e-4, 0.0], [0.0, 0.9], [20.0, 0.0], [1e6, 0.0], [0.0, -1e5], [300.0, 400.0]),
    ),
    "laplace": Law(
        nf.Laplace(),
        two([0.4, 0.7], [-1.0, 3.0], [50.0, 1e-3]),
        scale_pair,
        location_scale((1, 1)),
        lambda s: stats.laplace(s[0], s[1]),
        laplace_kl,
    ),
    "logistic": Law(
        nf.Logistic(),
        two([0.4, 0.7], [-1.0, 3.0], [50.0, 1e-3]),
        scale_pair,
        location_scale((1 / 3, (3 + np.pi**2) / 9)),
        lambda s: stats.logistic(s[0], s[1]),
        logistic_kl,
    ),
    "cauchy": Law(
        nf.Cauchy(),
        two([0.4, 0.7], [-1.0, 3.0], [50.0, 1e-3]),
        scale_pair,
        location_scale((0.5, 0.5)),
        lambda s: stats.cauchy(s[0], s[1]),
        cauchy_kl,
    ),
}
NAMES = list(LAWS)
EXPONENTIAL = [name for name in NAMES if LAWS[name].exponential]


# Families whose laws `test_families` tests: here for single precision alone.
_NONE = ((), None, None, None)
BOUNDARIES = LAWS | {
    "bernoulli": Law(
        nf.Bernoulli(),
        *_NONE,
        lambda z: mp.log1p(mp.exp(z[0])),
        (-100.0, -40.0, -20.0, -0.8, 20.0, 40.0, 80.0),
    ),
    "poisson": Law(nf.Poisson(), *_NONE, lambda z: mp.exp(z[0]), (-30.0, 0.7, 15.0)),
    "exponential": Law(
        nf.Exponential(), *_NONE, lambda z: -mp.log(-z[0]), (-1e7, -1.0, -1e-7)
    ),
    "normal": Law(
        nf.Normal(),
        *_NONE,
        normal_normalizer,
        ([10.0, -0.5], [1e4, -0.5], [3.0, -1e6], [0.0, -1e-6]),
    ),
    "gamma": Law(
        nf.Gamma(),
        *_NONE,
        lambda z: gamma_normalizer(z[0] + 1, -z[1]),
        ([-0.999, -2.0], [-0.9, -1e3], [1.3, -0.7], [1e4, -3.0], [1e7, -3.0]),
    ),
}
