"""`natgrad compare`, `race`, `spectrum`, `doctor`, `devices`: what each runs, writes.

`devices` solves (F + λI) x = v for a matrix F of known inverse, Q diag(λ_i) Qᵀ, and
measures |x − x*|/|x*|; and multiplies two matrices, which tells whether products of
float32 are rounded to fewer digits (TF32, bfloat16).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import typer

from natgrad import __version__
from natgrad.cli.options import (
    OF_FIDELITY,
    OF_MODEL,
    OF_RACE,
    ComparingCommand,
    ModelCommand,
    takes,
)
from natgrad.cli.session import Session
from natgrad.cli.shared import FAILED
from natgrad.compare import plots
from natgrad.compare.doctor import doctor
from natgrad.metrics.matrices import DenseMetric
from natgrad.tree import Layout

# Characters a line of the doctor's.
_WIDTH = 80
# Of the matrix of `devices`.
_SIZE, _CONDITION, _DAMPING = 200, 1e3, 1e-2
# Multiples of the rounding that is to be expected, from which something is wrong.
_TOLERANCE = 50.0


class FullCompareSession(Session):
    """Compare, race, and write."""

    command, file = "compare", "comparison.json"
    pictures: ClassVar = {
        "fidelity.png": Session.fidelity_figure,
        "training.png": Session.training_figure,
    }


class CompareSession(FullCompareSession):
    """The same with one table on the terminal."""

    def show(self) -> None:
        """The table and the verdict, once all is there."""
        if self.comparison is not None and self.race is not None:
            self.report.summary(self.comparison, self.race)
            self.report.verdict(self.verdict())


class RaceSession(Session):
    """Race, and write."""

    command, file, plan = "race", "race.json", (Session.train,)
    pictures: ClassVar = {"training.png": Session.training_figure}


class SpectrumSession(Session):
    """Measure, and write the eigenvalues."""

    command, file, plan = "spectrum", "spectrum.json", (Session.compare,)
    pictures: ClassVar = {
        "spectra.png": lambda self: self.comparison and plots.spectra(self.comparison)
    }


@takes(*OF_MODEL, "output", *OF_FIDELITY, *OF_RACE, "full", output="natgrad-compare")
class Compare(ComparingCommand):
    """Measure approximations of the Fisher against the exact one.

    Measure every approximation of the Fisher information against the exact one, then
    train with optimizers built from them.
    """

    full: bool

    @property
    def session(self) -> type[Session]:
        """Of one table, or of all."""
        return FullCompareSession if self.full else CompareSession


@takes(*OF_MODEL, "output", *OF_RACE, output="natgrad-race")
class Race(ComparingCommand):
    """Train with optimizers built from approximations.

    Train with each optimizer at as many learning rates, and compare the best runs by
    step and by second.
    """

    session = RaceSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is compared, so nothing leads to where."""
        return {"at_step": 0}


@takes(*OF_MODEL, "output", *OF_FIDELITY, output="natgrad-spectrum")
class Spectrum(ComparingCommand):
    """Eigenvalues of the Fisher information and its approximations.

    Eigenvalues of the exact Fisher, of its approximations, and of their ratio: which
    directions an approximation thinks too much or too little of.
    """

    session = SpectrumSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is raced, nothing is timed with care."""
        return {"charts": 0, "repeats": 1, "optimizers": ()}


@takes(*OF_MODEL, "at_step", "batch_size")
class Doctor(ModelCommand):
    """Which optimizer to use for a model, and why: five lines.

    Check a batch, read the layers, and measure gradient noise and curvature. Nothing
    is trained to the end and nothing is written.
    """

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is raced."""
        return {"optimizers": ()}

    def carry_out(self) -> int:
        """Print the five lines; the exit code."""
        experiment = self.experiment()
        settings, data = experiment.settings, experiment.dataset.train
        order = np.random.default_rng(settings.seed).permutation(len(data[0]))
        batch = (array[order[: settings.batch_size]] for array in data)
        where, how = (experiment.model, experiment.params), {"key": experiment.key}
        found = doctor(*where, *batch, damping=settings.damping, **how)
        for line in str(found).splitlines():
            print(textwrap.fill(line, _WIDTH, subsequent_indent="    "))
        return 0


@dataclasses.dataclass(frozen=True)
class Devices:
    """What JAX sees here, and a test of precision.

    Devices, precision settings, and the errors of a solve and of a product, in
    float32 and float64. Exit code 1 where an error is too large.
    """

    seed: Annotated[int, typer.Option(help="of the test's numbers")] = 0

    def run(self) -> int:
        """Print what was found; the exit code."""
        print(f"natgrad {__version__}, JAX {jax.__version__}, {jax.default_backend()}")
        for device in jax.devices():
            print(f"  {device.id}: {device.device_kind} ({device.platform})")
        precision = jax.config.values["jax_default_matmul_precision"] or "default"
        x64 = jax.config.values["jax_enable_x64"]
        print(f"x64: {'on' if x64 else 'off'}")
        print(f"default precision of products: {precision}")
        fine = True
        for dtype in ("float32", "float64"):
            with jax.enable_x64(dtype == "float64" or x64):
                error, product = solve_error(dtype, self.seed), _product_error(dtype)
            rounding = _TOLERANCE * float(np.finfo(dtype).eps)
            bound = rounding * _CONDITION**0.5
            verdict = "fine" if error <= bound else f"TOO LARGE: at most {bound:.1e}"
            print(f"{dtype}: solve off by {error:.1e} ({verdict})")
            note = ", rounded to fewer digits" * (product > rounding)
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


def _product_error(dtype: str) -> float:
    """|fl(AB) − AB|/(|A||B|), the largest entry, at the default precision."""
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(2, _SIZE, _SIZE)).astype(dtype).astype(float)
    found = jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    off = np.abs(np.asarray(found, float) - a @ b)
    return float(np.max(off / (np.abs(a) @ np.abs(b))))
