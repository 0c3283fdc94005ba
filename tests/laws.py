"""The one table of families that the tests read, and what mpmath says of each.

A new family is a line of LAWS, a class in `oracles` that gives its textbook formulas,
and a line of oracles/points.py; then run oracles/far_parameters.py. The numbers that
this stores are exact values at exactly the floating-point numbers stored with them.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad.families as nf


@dataclasses.dataclass(frozen=True)
class Law:
    family: nf.Family
    inside: list  # labels in the support
    outside: list  # labels out of it
    beyond: list | None = None  # of an exponential family: no law has these means


NAN, INF = np.nan, np.inf
COUNTS = [0, 7, 0.5], [-1, INF, NAN]
POSITIVE = [1e-9, 2], [0, -1, INF, NAN]
REAL = [0, -1.5], [INF, NAN]
VECTORS = [[0, -1.5]], [[0, INF], [NAN, 1]]
MOMENTS = [[1.0, 0.5], [1.0, 1.0]]
LAWS = {
    "bernoulli": Law(nf.Bernoulli(), [0, 1, 0.5], [-1, 2, NAN], [-0.1, 1.1]),
    "binomial": Law(nf.Binomial(7), [0, 7, 0.5], [-1, 8, NAN], [-0.1, 7.1]),
    "categorical": Law(
        nf.Categorical(num_classes=3),
        [0, 2],
        [-1, 3, 0.5, NAN],
        [[-0.1, 0.6, 0.5], [0.5, 0.7, -0.2]],
    ),
    "poisson": Law(nf.Poisson(), *COUNTS, [-0.1]),
    "geometric": Law(nf.Geometric(), *COUNTS, [-0.1]),
    "negative_binomial": Law(nf.NegativeBinomial(2.5), *COUNTS, [-0.1]),
    "exponential": Law(nf.Exponential(), [0, 2], [-1e-9, -1, INF, NAN], [-0.1]),
    "weibull": Law(nf.Weibull(1.5), *POSITIVE, [-0.1]),
    "gamma": Law(nf.Gamma(), *POSITIVE, [[0.7, 2.0], [0.0, -1.0], [0.0, 1.0]]),
    "inverse_gamma": Law(
        nf.InverseGamma(), *POSITIVE, [[-0.7, 2.0], [0.0, -1.0], [0.0, 1.0]]
    ),
    "beta": Law(nf.Beta(), [1e-9, 0.7], [0, 1, -0.2, NAN], [[-0.1, -0.1], [0.1, -9.0]]),
    "dirichlet": Law(
        nf.Dirichlet(),
        [[0.2, 0.3, 0.5], [1e-30, 0.5, 0.5]],
        [[0.2, 0.3, 0.6], [0, 0.5, 0.5]],
        [[-0.1, -0.1, -3.0], [0.1, -9.0, -9.0]],
    ),
    "normal": Law(nf.Normal(), *REAL, MOMENTS),
    "log_normal": Law(nf.LogNormal(), *POSITIVE, MOMENTS),
    "inverse_gaussian": Law(
        nf.InverseGaussian(), *POSITIVE, [[2.0, 0.4], [-1.0, 1.0], [2.0, 0.5]]
    ),
    "von_mises": Law(nf.VonMises(), [0, -9.5], [INF, NAN], [[1.0, 0.5], [1.0, 0.0]]),
    "multivariate_normal": Law(
        nf.MultivariateNormal(), *VECTORS, [[0.0, 0, 1, 2, 1], [2.0, 0, 1, 0, 1]]
    ),
    "multivariate_normal_diag": Law(
        nf.MultivariateNormalDiag(), *VECTORS, [[2.0, 0, 1, 1]]
    ),
    "normal_mean": Law(nf.NormalMean(0.5), *REAL),
    "normal_mean_log_scale": Law(nf.NormalMeanLogScale(), *REAL),
    "laplace": Law(nf.Laplace(), *REAL),
    "cauchy": Law(nf.Cauchy(), *REAL),
    "logistic": Law(nf.Logistic(), *REAL),
    "student_t_half": Law(nf.StudentT(0.5), *REAL),
    "student_t": Law(nf.StudentT(2.5), *REAL),
    "student_t_4": Law(nf.StudentT(4), *REAL),
    "student_t_1000": Law(nf.StudentT(1000), *REAL),
}
NAMES = list(LAWS)
EXPONENTIAL = [name for name in NAMES if LAWS[name].beyond is not None]
# These stand for all in the fast run: each law's program takes seconds to compile.
QUICK = {"binomial", "categorical", "exponential", "normal_mean_log_scale"}
INPUTS = {"z", "y", "first", "second", "special"}


@functools.cache
def stored():
    path = pathlib.Path(__file__).parent / "oracles" / "far_parameters.npz"
    with np.load(path) as file:
        return dict(file)


@functools.cache
def known(name, kind):
    """The stored numbers of one law, infinite where this precision overflows.

    The fields are those of `Known` in oracles/far_parameters.py.
    """
    prefix = f"{name}/{kind}/"
    fields = {k[len(prefix) :]: v for k, v in stored().items() if k.startswith(prefix)}
    largest = float(np.finfo(kind).max)
    for key in fields.keys() - INPUTS:
        value = fields[key]
        limit = np.copysign(np.inf, value)
        fields[key] = np.where(np.abs(value) > largest, limit, value)
    return fields


def parameters(name, z, kind="float64"):
    """Stored parameters [..., d] as the family reads them."""
    z = z if LAWS[name].family.parameter_ndim else z[..., 0]
    return jnp.asarray(z, kind)


def special(name, field, kind="float64"):
    """A stored field at the ordinary points (float64) or at the edges (float32)."""
    fields = known(name, kind)
    values = fields[field]
    return values[len(values) - int(fields["special"]) :]


def each(names):
    """A mark: the test is run with each of these laws, but for some in the slow run."""
    slow = set(names) - QUICK
    cases = [
        pytest.param(name, marks=pytest.mark.slow if name in slow else ())
        for name in names
    ]
    # By law: its tests share programs, and so go to one worker, one after the other.
    return pytest.mark.parametrize("name", cases, scope="module")


def ordinary(name, kind="float64"):
    """The ordinary points [M, ...]; the first three are of moderate divergence."""
    return parameters(name, special(name, "z"), kind)


def assert_matrices_agree(actual, expected, rtol):
    """Entry by entry, relative to the geometric mean of the diagonal entries."""
    scale = np.sqrt(np.abs(np.diag(expected)))
    unit = np.outer(scale, scale)
    np.testing.assert_allclose(actual / unit, expected / unit, 0, rtol)


def root_squared(family, z):
    """B Bᵀ, with B v linear in v."""
    root = jax.jacfwd(functools.partial(family.fisher_root_product, z))(z)
    root = root.reshape(z.size, z.size)
    return jnp.matmul(root, root.T, precision="highest")
