"""Every family everywhere, against numbers of mpmath that are stored (see `laws`).

Pairs of parameters on logarithmic grids over the range of each precision, in both
directions and near to each other; ordinary points; and in single precision points near
the boundaries of the domains, with laws that can just be told apart.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import EXPONENTIAL, LAWS, QUICK, known, parameters

import natgrad.families as nf

# The tests of a case share its program: all are slow, or none.
EVERY = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(n, k, marks=pytest.mark.slow if n not in QUICK else ())
        for n in LAWS
        for k in ("float32", "float64")
    ],
    scope="module",
)
RTOL = {"float32": 1e-4, "float64": 1e-9}


@functools.cache
def computed(name, kind):
    """What the family says of them, by one compiled program."""
    family, exact = LAWS[name].family, known(name, kind)
    pairs = [parameters(name, exact[side], kind) for side in ("first", "second")]
    labels = exact["y"] if family.label_ndim else exact["y"][..., 0]
    points = parameters(name, exact["z"], kind), jnp.asarray(labels, kind)

    def of_point(z, ys):
        out = {
            "log_prob": jax.vmap(lambda y: family.log_prob(z, y))(ys),
            "score": jax.vmap(lambda y: family.score(z, y))(ys),
            "log_prob_slope": jax.vmap(lambda y: jax.grad(family.log_prob)(z, y))(ys),
            "fisher": family.fisher(z),
        }
        if name in EXPONENTIAL:
            out["mean"] = family.mean(z)
            entropy = jax.value_and_grad(family.entropy)(z)
            out |= zip(("entropy", "entropy_slope"), entropy, strict=True)
        return out

    def program(z, ys, first, second):
        kl = jax.vmap(jax.value_and_grad(family.kl, (0, 1)))(first, second)
        value, slopes = kl
        return jax.vmap(of_point)(z, ys) | {"kl": value, "slope": jnp.stack(slopes, 1)}

    out = jax.device_get(jax.jit(program)(*points, *pairs))
    like = lambda key: exact[key.replace("log_prob_slope", "score")].shape
    return {key: np.reshape(value, like(key)) for key, value in out.items()}


def deviations(fisher):
    """The scores' standard deviations [P, d]."""
    return np.sqrt(np.abs(np.einsum("pii->pi", fisher)))


def disagreement(actual, exact, scale, slack, kind, *, divergence=False):
    """Errors in units of the scale, beyond the slack; none where both are infinite.

    Where the scale or the slack overflows nothing is promised.
    """
    tiny = 1e4 * np.finfo(kind).tiny
    actual = actual.astype(float)
    error = np.maximum(np.abs(actual - exact) - slack, 0) / (scale + tiny)
    error = np.where(np.isfinite(actual), error, np.inf)
    overflowed = np.isinf(exact)
    same = actual == exact if divergence else ~np.isfinite(actual)
    large = np.abs(actual) > 0.9 * float(np.finfo(kind).max)
    error = np.where(overflowed, np.where(same | large, 0, np.inf), error)
    return np.where(np.isinf(scale) | np.isinf(slack), 0, error)


def assert_small(errors, rtol, *labels):
    bad = np.argwhere(~(errors <= rtol))
    at = tuple(bad[0]) if len(bad) else ()
    told = [f"{np.asarray(part)[at[0]]}" for part in labels] if len(bad) else []
    assert not len(bad), f"{len(bad)} of {errors.size}; first {at}: {told}"


# A tail of 1/√y, whose integral in single precision has a thousand terms.
LOOSE = {("student_t_half", "float32"): 1e-3}


# Entries (pair, side, coordinate) of gradients in single precision that are not held:
# parts of them overflow at scales of 1e±30 although they do not.
NOT_HELD = {
    ("logistic", "float32"): [(48, 0, 1)],
    ("inverse_gaussian", "float32"): [(64, 0, 0)],
    ("multivariate_normal", "float32"): [(i, 0, 3) for i in (0, 11, 19, 28, 40)],
}


@EVERY
@np.errstate(all="ignore")
def test_divergences_of_far_and_near_laws_and_their_gradients(name, kind):
    exact, out = known(name, kind), computed(name, kind)
    labels = exact["first"], exact["second"], out["kl"], exact["kl"]
    assert np.all(out["kl"] >= 0)
    rtol = RTOL[kind]
    error = disagreement(
        out["kl"], exact["kl"], np.abs(exact["kl"]), 0.0, kind, divergence=True
    )
    assert_small(error, rtol, *labels)
    # A gradient is at most √(2 KL) standard deviations of the score nearby. Far away it
    # answers for the rounding of the parameters, and where KL overflows for nothing.
    spread = exact["scale"]
    finite = np.isfinite(spread).all(axis=(1, 2)) & np.isfinite(exact["kl"])
    size = np.sqrt(np.minimum(1, exact["kl"]))[:, None, None]
    sides = np.abs(np.stack([exact["first"], exact["second"]], 1))
    apart = np.abs(exact["second"] - exact["first"]) > 0.05 * sides[:, 0]
    rounding = (
        8
        * np.finfo(kind).eps
        * spread
        * np.sum(spread * sides.sum(1, keepdims=True), axis=2, keepdims=True)
    )
    slack = np.where(apart.any(1)[:, None, None], rounding, 0.0)
    # The integrals of two laws are known to 1e-16 of the larger side's scores.
    slack = slack + 1e-16 * spread.max(axis=1, keepdims=True)
    # A slope whose parts are as large as a large divergence has their rounding.
    slack = slack + 8 * np.finfo(kind).eps * spread * exact["kl"][:, None, None]
    scale = np.abs(exact["slope"]) + spread * size
    error = disagreement(out["slope"], exact["slope"], scale, slack, kind)
    rtol = LOOSE.get((name, kind), rtol)
    error = np.where(finite[:, None, None], error, 0)
    for entry in NOT_HELD.get((name, kind), ()):
        error[entry] = 0
    assert_small(error, rtol, *labels[:2])


@EVERY
@np.errstate(all="ignore")
def test_densities_and_moments_of_far_laws(name, kind):
    exact, out = known(name, kind), computed(name, kind)
    eps, rtol = np.finfo(kind).eps, RTOL[kind]
    z, fisher = exact["z"], exact["fisher"]
    spread = deviations(fisher)
    finite = np.isfinite(spread).all(1)
    check = lambda key, values, scale, slack: assert_small(
        disagreement(out[key], values, scale, slack, kind)[finite], rtol, z[finite]
    )
    check("fisher", fisher, np.abs(fisher) + spread[:, :, None] * spread[:, None], 0.0)
    # What the rounding of parameters and labels moves.
    blur = 8 * eps * np.sum(spread * np.abs(z), axis=1)
    log_prob, score = exact["log_prob"], exact["score"]
    roots = 1 + np.sqrt(np.abs(log_prob))
    check("log_prob", log_prob, 1 + np.abs(log_prob), blur[:, None] * roots)
    scale = np.abs(score) + spread[:, None]
    slack = blur[:, None, None] * scale + 4 * eps
    check("score", score, scale, slack)
    check("log_prob_slope", score, scale, slack)
    if name in EXPONENTIAL:
        mean, entropy = exact["mean"], exact["entropy"]
        check("mean", mean, np.abs(mean) + spread, 0.0)
        check("entropy", entropy, 1 + np.abs(entropy), 0.0)
        slope = exact["entropy_slope"]
        unit = np.maximum(1e-4 * np.abs(z), np.minimum(np.abs(z), 1) + 1e-300)
        slack = 64 * eps * (1 + np.abs(entropy))[:, None] / unit
        check("entropy_slope", slope, np.abs(slope) + spread, slack)


def test_logits_of_minus_infinity_are_classes_that_never_come():
    """0 · (−∞) is 0 in the divergence, which is infinite where only q is 0."""
    family = nf.Categorical()
    inf = np.inf
    z = jnp.array([[0.0, 1.0, -inf], [0.0, 1.0, -inf], [0.0, 1.0, 2.0]])
    z2 = jnp.array([[0.5, 0.0, -inf], [0.5, 0.0, 1.0], [0.5, 0.0, -inf]])
    kl, (slope, slope2) = jax.jit(jax.vmap(jax.value_and_grad(family.kl, (0, 1))))(
        z, z2
    )
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (z, z2))
    with np.errstate(all="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0)
    exact = terms.sum(1)
    np.testing.assert_allclose(kl, exact, 1e-12)
    assert kl[2] == inf
    np.testing.assert_allclose(slope2[:2], (q - p)[:2], 1e-12, 1e-15)
    ratio = np.where(p > 0, np.log(np.where(p > 0, p, 1) / np.where(q > 0, q, 1)), 0)
    np.testing.assert_allclose(
        slope[:2], (p * (ratio - exact[:, None]))[:2], 1e-12, 1e-15
    )
