"""`natgrad devices`: what JAX sees here, how precise it is, and a test of the solver.

The test solves (F + λI) x = v for a matrix F of known inverse, Q diag(λ_i) Qᵀ, and
measures |x − x*|/|x*|; and multiplies two matrices, which tells whether products of
float32 are rounded to fewer digits (TF32, bfloat16).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer

from natgrad import __version__
from natgrad.cli.shared import FAILED
from natgrad.metrics.matrices import DenseMetric
from natgrad.tree import Layout

_SIZE = 200
_CONDITION = 1e3
_DAMPING = 1e-2
# Multiples of the rounding that is to be expected, from which something is wrong.
_TOLERANCE = 50.0


@dataclasses.dataclass(frozen=True)
class Devices:
    """What JAX sees here, and a test of precision.

    Devices, precision settings, and the errors of a solve and of a product, in
    float32 and float64. Exit code 1 where an error is too large.
    """

    seed: Annotated[int, typer.Option(help="of the test's numbers")] = 0

    def run(self) -> int:
        """Print what was found; the exit code."""
        devices = jax.devices()
        print(f"natgrad {__version__}, JAX {jax.__version__}, {jax.default_backend()}")
        for device in devices:
            print(f"  {device.id}: {device.device_kind} ({device.platform})")
        precision = jax.config.values["jax_default_matmul_precision"] or "default"
        x64 = jax.config.values["jax_enable_x64"]
        print(f"x64: {'on' if x64 else 'off'}")
        print(f"default precision of products: {precision}")
        fine = True
        for dtype in ("float32", "float64"):
            with jax.enable_x64(dtype == "float64" or x64):
                error, product = solve_error(dtype, self.seed), product_error(dtype)
            rounding = float(np.finfo(dtype).eps)
            bound = _TOLERANCE * rounding * _CONDITION**0.5
            verdict = "fine" if error <= bound else f"TOO LARGE: at most {bound:.1e}"
            print(f"{dtype}: solve off by {error:.1e} ({verdict})")
            note = (
                "" if product <= _TOLERANCE * rounding else ", rounded to fewer digits"
            )
            print(f"{dtype}: product off by {product:.1e}{note}")
            fine &= error <= bound
        return 0 if fine else FAILED


def solve_error(dtype: str, seed: int) -> float:
    """|x − x*|/|x*| for a matrix with eigenvalues from 1/1000 to 1."""
    draw = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(draw.normal(size=(_SIZE, _SIZE)))
    eigenvalues = np.geomspace(1 / _CONDITION, 1, _SIZE)
    vector = draw.normal(size=_SIZE)
    matrix = jnp.asarray((basis * eigenvalues) @ basis.T, dtype)
    exact = basis @ ((basis.T @ vector) / (eigenvalues + _DAMPING))
    v = jnp.asarray(vector, dtype)
    found = jax.jit(DenseMetric(Layout.of(v), matrix).solve)(v, _DAMPING)
    off = np.asarray(found, float) - exact
    return float(np.linalg.norm(off) / np.linalg.norm(exact))


def product_error(dtype: str) -> float:
    """|fl(AB) − AB|/(|A||B|), the largest entry, at the default precision."""
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(2, _SIZE, _SIZE)).astype(dtype).astype(float)
    found = jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    off = np.abs(np.asarray(found, float) - a @ b)
    return float(np.max(off / (np.abs(a) @ np.abs(b))))
