"""Special functions and series against 30 digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import natgrad.families as nf
from natgrad.families.numerics import special


@pytest.fixture(autouse=True)
def thirty_digits():
    with mp.workdps(30):
        yield


def student_kl(nu, z, z2):
    """By the trapezoidal rule in u = asinh((y − m)/s)."""
    reach = 5 + 30 / nu
    scale, scale2 = mp.exp(z[1]), mp.exp(z2[1])
    kernel = lambda x: -(nu + 1) / mp.mpf(2) * mp.log1p(x**2 / nu)
    mass = total = mp.mpf(0)
    for k in range(-int(reach * 20), int(reach * 20) + 1):
        e = mp.sinh(mp.mpf(k) / 20)
        p = mp.exp(kernel(e)) * mp.cosh(mp.mpf(k) / 20)
        mass += p
        total += p * (kernel(e) - kernel((z[0] + e * scale - z2[0]) / scale2))
    return float(total / mass + z2[1] - z[1])


@pytest.mark.parametrize("nu", [0.7, 1, 4, 5, 40])
def test_the_divergence_of_student_laws_holds_for_all_degrees_of_freedom(nu, tolerance):
    z, z2 = np.array([0.3, 0.2]), np.array([-2.0, 1.1])
    actual = jax.jit(nf.StudentT(nu).kl)(jnp.asarray(z), jnp.asarray(z2))
    np.testing.assert_allclose(actual, student_kl(nu, z, z2), tolerance("oracle"))


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-4)])
def test_the_divergence_of_student_laws_with_the_heaviest_tails(dtype, rtol):
    """By the trapezoidal rule in u = asinh(ε/√ν), whose law falls off as cosh^−ν u."""
    nu, z, z2 = 0.1, np.array([0.3, 0.2]), np.array([3.0, 2.0])
    u = np.linspace(-450, 450, 200_001)
    p = np.cosh(u) ** -nu

    def expected(z):
        x = (z[0] - z2[0]) / np.exp(z[1]) / np.sqrt(nu) + np.sinh(u)
        ratio = np.log(np.hypot(np.exp(z2[1] - z[1]), x) / np.cosh(u))
        return nu * (z[1] - z2[1]) + (nu + 1) * np.sum(p * ratio) / np.sum(p)

    kl = jax.jit(jax.value_and_grad(nf.StudentT(nu).kl))
    value, slope = kl(jnp.asarray(z, dtype), jnp.asarray(z2, dtype))
    np.testing.assert_allclose(value, expected(z), rtol)
    steps = 1e-4 * np.eye(2)
    slopes = [(expected(z + d) - expected(z - d)) / 2e-4 for d in steps]
    np.testing.assert_allclose(slope, slopes, max(rtol, 1e-6))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_divergence_of_bits_is_accurate_to_rounding(dtype):
    """Near and far, likely and unlikely, on both sides of where two forms meet."""
    logits = [-40.0, -5.0, -0.3, 0.0, 2.0, 30.0]
    steps = [1e-3, 0.3, 0.999, 1.001, 4.0, 50.0]
    pairs = [(a, a + s * step) for a in logits for step in steps for s in (-1, 1)]
    pairs = np.array(pairs, dtype)
    actual = jax.jit(jax.vmap(nf.Bernoulli().kl))(*pairs.T)

    def exact(a, b):
        p, softplus = 1 / (1 + mp.exp(-a)), lambda t: mp.log1p(mp.exp(t))
        return p * (a - b) + softplus(b) - softplus(a)

    with mp.workdps(80):
        expected = [float(exact(*map(mp.mpf, pair))) for pair in pairs.tolist()]
    np.testing.assert_allclose(actual, expected, 16 * np.finfo(dtype).eps, atol=0)


def test_bits_that_are_certain_of_the_opposite_are_infinitely_far_apart():
    z, z2 = (
        np.array([0.0, 0.0, -800.0, 800.0, -3.0]),
        np.inf * np.array([1, -1, 1, -1, 1]),
    )
    assert (np.asarray(jax.vmap(nf.Bernoulli().kl)(z, z2)) == np.inf).all()


@pytest.mark.parametrize("ratio", [1e-3, 1.001, 1.5, 200])
@pytest.mark.parametrize("x", [0.01, 1.7, 9.9, 10.5, 300.0])
def test_the_divergence_of_log_gammas_excess_is_accurate_to_rounding(x, ratio):
    step = x * (ratio - 1)
    a, d = mp.mpf(x), mp.mpf(step)
    gap = mp.loggamma(a + d) - mp.loggamma(a) - mp.digamma(a) * d
    entropy = (a + d) * mp.log1p(d / a) - d
    points = jnp.array(x), jnp.array(x + step), jnp.array(step)
    actual = jax.jit(special.log_gamma_excess_gap)(*points)
    np.testing.assert_allclose(actual, float(gap - entropy), 1e-12)


def test_the_inverse_of_log_minus_digamma_is_accurate_over_ten_decades():
    x = 10.0 ** np.arange(-5, 6)
    s = [float(mp.log(mp.mpf(v)) - mp.digamma(mp.mpf(v))) for v in x]
    inverse = jax.jit(special.inverse_log_minus_digamma)
    # For large x the equation itself is log x - psi(x) = 1/(2x) in double precision.
    np.testing.assert_allclose(inverse(jnp.array(s)), x, 2e-9)
    np.testing.assert_allclose(inverse(jnp.array(s[:8])), x[:8], 1e-11)
