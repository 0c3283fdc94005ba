"""Every family against 30-digit sums of its textbook density: no JAX in the oracle.

CASES is the table that the other tests of families read; a new family is a new line.
A law's log density is written in its textbook parameters, its scores are differences of
that at 30 digits, and the label is summed or integrated by the trapezoidal rule in a
variable in which the density falls off fast at both ends.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import natgrad.families as nf

mp.mp.dps = 30
loggamma = functools.cache(mp.loggamma)


@dataclasses.dataclass(frozen=True)
class Case:
    family: nf.Family
    make: Callable  # random generator -> z
    log_density: Callable  # (z, y), in mpmath numbers
    grid: Callable  # z -> labels and their measures
    extremes: tuple = ()

    @property
    def points(self):
        generator = np.random.default_rng(7)
        drawn = [self.make(generator) for _ in range(3)]
        return [np.asarray(z, float) for z in (*drawn, *self.extremes)]


def counts(mean):
    return lambda z: [
        (k, 1) for k in range(int(mean(z) + 40 * math.sqrt(mean(z)) + 60))
    ]


def line(centre_and_scale, reach, step=0.05):
    """y = c + s sinh(u): the law is of width s about c."""

    def grid(z):
        centre, scale = centre_and_scale(z)
        us = [
            step * mp.mpf(k) for k in range(-int(reach / step), int(reach / step) + 1)
        ]
        return [(centre + scale * mp.sinh(u), step * scale * mp.cosh(u)) for u in us]

    return grid


def half_line(mean_and_shape):
    """y = m exp(u/√a) for large shapes a, y = m exp(u − e^−u)/a for small ones."""

    def grid(z):
        mean, shape = mean_and_shape(z)
        if shape > 30:
            us = [mp.mpf(k) / 10 for k in range(-130, 131)]
            ys = [mean * mp.exp(u / mp.sqrt(shape)) for u in us]
            return [(y, y / mp.sqrt(shape) / 10) for y in ys]
        us = [mp.mpf(k) / 25 for k in range(-240, 140)]
        ys = [mean / min(shape, 1) * mp.exp(u - mp.exp(-u)) for u in us]
        return [
            (y, y * (1 + mp.exp(-u)) / 25) for y, u in zip(ys, us, strict=True) if y > 0
        ]

    return grid


def normal_log_density(mean, scale, y):
    return -(((y - mean) / scale) ** 2) / 2 - mp.log(scale) - mp.log(2 * mp.pi) / 2


def gamma_log_density(a, b, y):
    return a * mp.log(b) - loggamma(a) + (a - 1) * mp.log(y) - b * y


def student_log_density(nu, location, scale, y):
    constant = loggamma((nu + 1) / mp.mpf(2)) - loggamma(nu / mp.mpf(2))
    square = ((y - location) / scale) ** 2 / nu
    return (
        constant
        - mp.log(nu * mp.pi) / 2
        - mp.log(scale)
        - (nu + 1) / mp.mpf(2) * mp.log1p(square)
    )


def log_softmax(z, c):
    return z[c] - mp.log(sum(mp.exp(logit) for logit in z))


def natural_normal(z):
    return -z[0] / (2 * z[1]), mp.sqrt(-1 / (2 * z[1]))


def pair(first, second):
    """A maker of z with two entries, each (centre, spread)."""
    return lambda r: [m + s * r.uniform(-1, 1) for m, s in (first, second)]


CASES = {
    "bernoulli": Case(
        nf.Bernoulli(),
        lambda r: r.normal(),
        lambda z, y: -mp.log1p(mp.exp(-z if y == 1 else z)),
        lambda z: [(0, 1), (1, 1)],
        (25.0, -25.0),
    ),
    "categorical": Case(
        nf.Categorical(num_classes=4),
        lambda r: np.log(r.dirichlet(np.ones(4))),
        lambda z, y: log_softmax(z, y),
        lambda z: [(c, 1) for c in range(4)],
        (np.log([1e-9, 1e-3, 1 - 1e-3 - 2e-9, 1e-9]), [20.0, -5.0, 0.0, -20.0]),
    ),
    "normal_mean": Case(
        nf.NormalMean(0.7),
        lambda r: r.normal(),
        lambda z, y: normal_log_density(z, mp.mpf(0.7), y),
        line(lambda z: (z, mp.mpf(0.7)), 4),
        (1e4,),
    ),
    "normal_mean_log_scale": Case(
        nf.NormalMeanLogScale(),
        pair((0, 1), (0, 1)),
        lambda z, y: normal_log_density(z[0], mp.exp(z[1]), y),
        line(lambda z: (z[0], mp.exp(z[1])), 4),
        ([50.0, -6.0], [-3.0, 6.0]),
    ),
    "poisson": Case(
        nf.Poisson(),
        lambda r: r.normal(),
        lambda z, y: y * z - mp.exp(z) - loggamma(y + 1),
        counts(lambda z: math.exp(z)),
        (-10.0, 5.0),
    ),
    "exponential": Case(
        nf.Exponential(),
        lambda r: -math.exp(r.normal()),
        lambda z, y: mp.log(-z) + z * y,
        half_line(lambda z: (-1 / z, 1)),
        (-1e-4, -1e4),
    ),
    "normal": Case(
        nf.Normal(),
        pair((0.5, 1), (-1.2, 0.9)),
        lambda z, y: normal_log_density(*natural_normal(z), y),
        line(natural_normal, 4),
        ([300.0, -50.0], [0.0, -1e-3]),
    ),
    "gamma": Case(
        nf.Gamma(),
        pair((1.2, 1.9), (-1.2, 0.9)),
        lambda z, y: gamma_log_density(z[0] + 1, -z[1], y),
        half_line(lambda z: (-(z[0] + 1) / z[1], z[0] + 1)),
        ([-0.99, -0.5], [9999.0, -3.0]),
    ),
    "student_t": Case(
        nf.StudentT(2.5),
        pair((0.5, 1), (0.2, 0.7)),
        lambda z, y: student_log_density(2.5, z[0], mp.exp(z[1]), y),
        line(lambda z: (z[0], mp.exp(z[1])), 17),
        ([20.0, 2.0], [0.0, -4.0]),
    ),
}
NAMES = list(CASES)
POINTS = [(name, i) for name in NAMES for i in range(3 + len(CASES[name].extremes))]


def exact(z):
    """z in mpmath numbers: one, or a list."""
    return mp.mpf(float(z)) if z.ndim == 0 else [mp.mpf(float(entry)) for entry in z]


def shifted(z, i, step):
    return [e + (step if j == i else 0) for j, e in enumerate(z)]


def log_density_and_score(case, z, y):
    step = mp.mpf(10) ** -10
    numbers = exact(z)
    if z.ndim == 0:
        f = lambda move: case.log_density(numbers + move, y)
        return f(0), [(f(step) - f(-step)) / (2 * step)]
    f = lambda i, move: case.log_density(shifted(numbers, i, move), y)
    return f(0, 0), [
        (f(i, step) - f(i, -step)) / (2 * step) for i in range(len(numbers))
    ]


def oracle_fisher(case, z):
    total = mp.zeros(max(z.size, 1))
    for y, measure in case.grid(exact(z)):
        log_p, score = log_density_and_score(case, z, y)
        score = mp.matrix(score)
        total += mp.exp(log_p) * measure * score * score.T
    return np.array(total.tolist(), float)


def oracle_kl(case, z, z2):
    numbers, numbers2 = exact(z), exact(z2)
    total = mp.mpf(0)
    for y, measure in case.grid(numbers):
        log_p = case.log_density(numbers, y)
        gap = log_p - case.log_density(numbers2, y)
        total += mp.exp(log_p) * measure * gap
    return float(total)


def matrix(case, f):
    """A Fisher information as a matrix, also for a scalar parameter."""
    size = math.isqrt(f.size)
    return np.asarray(f).reshape(size, size)


def assert_matrices_agree(actual, expected, rtol):
    """Entry by entry, relative to the geometric mean of the diagonal entries."""
    scale = np.sqrt(np.abs(np.diag(expected)))
    np.testing.assert_allclose(
        actual / np.outer(scale, scale), expected / np.outer(scale, scale), 0, rtol
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_itself_sums_to_one(name):
    case = CASES[name]
    for z in case.points:
        mass = sum(
            mp.exp(case.log_density(exact(z), y)) * measure
            for y, measure in case.grid(exact(z))
        )
        assert abs(mass - 1) < 1e-14


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_the_textbook_density(name, tolerance):
    case = CASES[name]
    log_prob = jax.jit(jax.vmap(case.family.log_prob))
    for z in case.points:
        grid = [y for y, _ in case.grid(exact(z)) if y == 0 or 1e-300 < abs(y) < 1e300]
        kind = int if isinstance(grid[0], int) else float
        ys = [kind(grid[i]) for i in np.linspace(0, len(grid) - 1, 7).astype(int)]
        expected = [
            float(case.log_density(exact(z), y if kind is int else mp.mpf(y)))
            for y in ys
        ]
        actual = log_prob(jnp.broadcast_to(z, (len(ys), *z.shape)), jnp.array(ys))
        np.testing.assert_allclose(actual, expected, tolerance("oracle"), 1e-9)


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_the_fisher_information_is_the_expected_score_product(name, point, tolerance):
    case = CASES[name]
    z = case.points[point]
    actual = matrix(case, jax.jit(case.family.fisher)(jnp.asarray(z)))
    assert_matrices_agree(actual, oracle_fisher(case, z), tolerance("oracle"))


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_kl_is_the_expected_log_ratio(name, point, tolerance):
    case = CASES[name]
    z = case.points[point]
    other = case.points[(point + 1) % 3]
    # From an extreme point: to one that is near in the units of the Fisher information.
    if point >= 3:
        deviations = np.sqrt(np.diag(oracle_fisher(case, z))).reshape(z.shape)
        other = z + 0.03 / deviations
    actual = jax.jit(case.family.kl)(jnp.asarray(z), jnp.asarray(other))
    np.testing.assert_allclose(actual, oracle_kl(case, z, other), tolerance("oracle"))
