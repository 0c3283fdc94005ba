"""Every family far from the middle, against numbers of mpmath that are stored.

oracles/far_parameters.npz holds them, written by oracles/far_parameters.py: pairs of
parameters on logarithmic grids over the range of each precision, in both directions and
near to each other, and the exact value at exactly these floating-point numbers.
"""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad.families as nf

FAMILIES = {
    "bernoulli": nf.Bernoulli(),
    "binomial": nf.Binomial(7),
    "categorical": nf.Categorical(num_classes=3),
    "poisson": nf.Poisson(),
    "geometric": nf.Geometric(),
    "negative_binomial": nf.NegativeBinomial(2.5),
    "exponential": nf.Exponential(),
    "weibull": nf.Weibull(1.5),
    "gamma": nf.Gamma(),
    "inverse_gamma": nf.InverseGamma(),
    "beta": nf.Beta(),
    "dirichlet": nf.Dirichlet(),
    "normal": nf.Normal(),
    "log_normal": nf.LogNormal(),
    "inverse_gaussian": nf.InverseGaussian(),
    "von_mises": nf.VonMises(),
    "multivariate_normal": nf.MultivariateNormal(),
    "multivariate_normal_diag": nf.MultivariateNormalDiag(),
    "normal_mean": nf.NormalMean(0.5),
    "normal_mean_log_scale": nf.NormalMeanLogScale(),
    "laplace": nf.Laplace(),
    "cauchy": nf.Cauchy(),
    "logistic": nf.Logistic(),
    "student_t_half": nf.StudentT(0.5),
    "student_t": nf.StudentT(2.5),
    "student_t_4": nf.StudentT(4),
    "student_t_1000": nf.StudentT(1000),
}
EVERY = pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in FAMILIES for k in ("float32", "float64")]
)
RTOL = {"float32": 1e-4, "float64": 1e-9}


@functools.cache
def stored():
    path = pathlib.Path(__file__).parent / "oracles" / "far_parameters.npz"
    with np.load(path) as file:
        return dict(file)


@functools.cache
def expected(name, kind):
    """The stored numbers of one law, infinite where this precision overflows."""
    prefix = f"{name}/{kind}/"
    fields = {k[len(prefix) :]: v for k, v in stored().items() if k.startswith(prefix)}
    largest = float(np.finfo(kind).max)
    inputs = ("z", "y", "first", "second")
    for key in fields.keys() - set(inputs):
        value = fields[key]
        fields[key] = np.where(np.abs(value) > largest, np.inf * np.sign(value), value)
    return fields


@functools.cache
def computed(name, kind):
    """What the family says of them, by one compiled program."""
    family, known = FAMILIES[name], expected(name, kind)
    shape = lambda z: z if family.parameter_ndim else z[..., 0]
    label = lambda y: y if family.label_ndim else y[..., 0]
    of = {k: jnp.asarray(shape(known[k]), kind) for k in ("z", "first", "second")}
    ys = jnp.asarray(label(known["y"]), kind)

    def of_point(z, ys):
        out = {
            "log_prob": jax.vmap(lambda y: family.log_prob(z, y))(ys),
            "score": jax.vmap(lambda y: family.score(z, y))(ys),
            "log_prob_slope": jax.vmap(lambda y: jax.grad(family.log_prob)(z, y))(ys),
            "fisher": family.fisher(z),
        }
        if isinstance(family, nf.ExponentialFamily):
            out["mean"] = family.mean(z)
            entropy = jax.value_and_grad(family.entropy)(z)
            out |= zip(("entropy", "entropy_slope"), entropy, strict=True)
        return out

    def program(z, ys, first, second):
        kl = jax.vmap(jax.value_and_grad(family.kl, (0, 1)))(first, second)
        value, slopes = kl
        return jax.vmap(of_point)(z, ys) | {"kl": value, "slope": jnp.stack(slopes, 1)}

    out = jax.device_get(jax.jit(program)(of["z"], ys, of["first"], of["second"]))
    return {k: np.reshape(v, known[k.replace("log_prob_slope", "score")].shape) for k, v in out.items()}
