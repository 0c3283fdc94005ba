"""Write far_parameters.npz: divergences, entropies and densities by mpmath.

    python tests/oracles/far_parameters.py [law …]

writes the numbers of all laws, or those of the named ones anew. It evaluates textbook
formulas by mpmath, at digits enough that what cancels does not matter, at exactly the
floating-point numbers that the tests pass to the library: parameters on logarithmic
grids over the range of single and of double precision, pairs of them in both
directions, and near pairs; then, as the last rows, the points of points.py. No JAX,
nothing of natgrad. It takes a few minutes.

An exponential family is known by A, ∇A, ∇²A, T and h; then KL(z ‖ z2) is
A(z2) − A(z) − ⟨∇A(z), z2 − z⟩, with the gradients ∇²A(z)(z − z2) and ∇A(z2) − ∇A(z).
Another one by its divergence, differentiated by differences.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import mpmath as mp
import numpy as np
from laws_of_counts import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    NegativeBinomial,
    Poisson,
)
from laws_of_location import (
    Cauchy,
    Laplace,
    Logistic,
    NormalMean,
    NormalMeanLogScale,
    StudentT,
    student,
)
from laws_of_positive import (
    Beta,
    Dirichlet,
    Gamma,
    InverseGamma,
    Rate,
    Weibull,
)
from laws_of_vectors import (
    InverseGaussian,
    LogNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
    VonMises,
)
from points import SPECIAL

DIGITS = 700
PAIRS = 70
NEAR = (1e-1, 1e-4)
# Near an edge, in units of the scores' deviations: what single precision tells apart.
SEPARATIONS = (1e-2, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8)
EXPONENTIAL = {
    "bernoulli": Bernoulli,
    "binomial": Binomial,
    "categorical": Categorical,
    "poisson": Poisson,
    "geometric": Geometric,
    "negative_binomial": NegativeBinomial,
    "exponential": Rate,
    "weibull": Weibull,
    "gamma": Gamma,
    "inverse_gamma": InverseGamma,
    "beta": Beta,
    "dirichlet": Dirichlet,
    "normal": Normal,
    "log_normal": LogNormal,
    "inverse_gaussian": InverseGaussian,
    "von_mises": VonMises,
    "multivariate_normal": MultivariateNormal,
    "multivariate_normal_diag": MultivariateNormalDiag,
}
OTHERS = {
    "normal_mean": NormalMean,
    "normal_mean_log_scale": NormalMeanLogScale,
    "laplace": Laplace,
    "cauchy": Cauchy,
    "logistic": Logistic,
    "student_t_half": student(0.5),
    "student_t": StudentT,
    "student_t_4": student(4),
    "student_t_1000": student(1000),
}
FILE = pathlib.Path(__file__).with_name("far_parameters.npz")


class Known(NamedTuple):
    """What mpmath says of one law at one precision, all in double precision."""

    z: np.ndarray  # [P, d]
    y: np.ndarray  # [P, L, labels]
    log_prob: np.ndarray  # [P, L]
    score: np.ndarray  # [P, L, d]
    fisher: np.ndarray  # [P, d, d]
    mean: np.ndarray  # [P, d] or empty
    entropy: np.ndarray  # [P] or empty
    entropy_slope: np.ndarray  # [P, d] or empty
    first: np.ndarray  # [M, d]
    second: np.ndarray  # [M, d]
    kl: np.ndarray  # [M]
    slope: np.ndarray  # [M, 2, d], in both arguments
    scale: np.ndarray  # [M, 2, d], the roots of the Fisher information's diagonals
    special: np.ndarray  # (), how many of the last points are those of points.py


def number(x):
    """The nearest double; infinite where it overflows."""
    try:
        return float(x)
    except OverflowError:
        return float(mp.sign(x)) * np.inf


numbers = np.vectorize(number, otypes=[float])


def exact(z):
    return [mp.mpf(float(entry)) for entry in z]


def slopes(f: Callable, z: list) -> list:
    """The gradient of f by central differences."""
    out = []
    for i, entry in enumerate(z):
        step = mp.mpf(10) ** -40 * (abs(entry) if entry else 1)
        at = lambda move, i=i: f([e + move * (j == i) for j, e in enumerate(z)])
        out.append((at(step) - at(-step)) / (2 * step))
    return out


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), mp.mpf(0))


def deviations(fisher):
    """The scores' standard deviations."""
    return [mp.sqrt(row[i]) for i, row in enumerate(fisher)]


def near(z, size, kind):
    """A point at this relative distance, or at this distance in logarithms."""
    signs = np.where(np.arange(z.size) % 2, -1.0, 1.0)
    return (z.astype(float) * (1 + size * signs)).astype(kind)


def pairs(points, kind, rng, law):
    """A choice of ordered pairs of points, and near ones of each point."""
    far = list(itertools.permutations(range(len(points)), 2))
    chosen = rng.permutation(len(far))[:PAIRS]
    out = [(points[far[k][0]], points[far[k][1]]) for k in chosen]
    for z in points:
        for size in NEAR:
            other = near(z, size, kind)
            if law.valid(other) and not np.array_equal(other, z):
                out.append((z, other))
    return out


def beside(z, law, rng):
    """Points at these separations of one at an edge."""
    with mp.workdps(60):
        spread = numbers(deviations(law.fisher(exact(z)))) + 1e-300
    reach = np.where(z == 0, 1 / spread, np.minimum(1 / spread, np.abs(z)))
    for size in SEPARATIONS:
        step = size * rng.choice([-1.0, 1.0], z.shape) * reach
        other = (z.astype(float) + step).astype(z.dtype)
        if not np.array_equal(other, z):
            yield z, other


def of_exponential(law, points, chosen):
    memory = {}

    def known(z):
        if z.tobytes() not in memory:
            e = exact(z)
            memory[z.tobytes()] = e, law.normalizer(e), law.mean(e), law.fisher(e)
        return memory[z.tobytes()]

    kls, gradients, scales = [], [], []
    for z, z2 in chosen:
        (a, value, mean, fisher), (b, value2, mean2, fisher2) = (
            known(z),
            known(z2),
        )
        step = [y - x for x, y in zip(a, b, strict=True)]
        kls.append(value2 - value - dot(mean, step))
        first = [-dot(row, step) for row in fisher]
        gradients.append([first, [y - x for x, y in zip(mean, mean2, strict=True)]])
        scales.append([deviations(fisher), deviations(fisher2)])
    rows = [known(z) for z in points]
    ys = [[law.round(y) for y in law.labels(e)] for e, *_ in rows]
    log_probs, scores = [], []
    for (e, value, mean, _), labels in zip(rows, ys, strict=True):
        statistics = [law.statistics([mp.mpf(float(x)) for x in y]) for y in labels]
        bases = [law.base([mp.mpf(float(x)) for x in y]) for y in labels]
        log_probs.append(
            [dot(e, t) - value + h for t, h in zip(statistics, bases, strict=True)]
        )
        scores.append(
            [[x - m for x, m in zip(t, mean, strict=True)] for t in statistics]
        )
    entropies = [v - dot(e, m) - law.expected_base(e) for e, v, m, _ in rows]
    entropy_slopes = [
        [-dot(row, e) - s for row, s in zip(f, law.base_slope(e), strict=True)]
        for e, _, _, f in rows
    ]
    return {
        "y": ys,
        "log_prob": log_probs,
        "score": scores,
        "fisher": [f for *_, f in rows],
        "mean": [m for _, _, m, _ in rows],
        "entropy": entropies,
        "entropy_slope": entropy_slopes,
        "kl": kls,
        "slope": gradients,
        "scale": scales,
    }


def of_other(law, points, chosen):
    kls, gradients, scales = [], [], []
    for z, z2 in chosen:
        a, b = exact(z), exact(z2)
        value, slope = law.divergence(a, b)
        kls.append(value)
        gradients.append(slope)
        scales.append([deviations(law.fisher(a)), deviations(law.fisher(b))])
    rows = [exact(z) for z in points]
    ys = [[law.round(y) for y in law.labels(e)] for e in rows]
    take = lambda f: [
        [f(e, mp.mpf(float(y[0]))) for y in labels]
        for e, labels in zip(rows, ys, strict=True)
    ]
    return {
        "y": ys,
        "log_prob": take(law.log_density),
        "score": take(lambda e, y: slopes(lambda e: law.log_density(e, y), e)),
        "fisher": [law.fisher(e) for e in rows],
        "mean": [],
        "entropy": [],
        "entropy_slope": [],
        "kl": kls,
        "slope": gradients,
        "scale": scales,
    }


def known(name, kind) -> Known:
    """All of one law at the grid of one precision."""
    law = (EXPONENTIAL | OTHERS)[name](kind)
    rng = np.random.default_rng(3)
    points = [np.array(z, kind) for z in law.points]
    special = [np.array(z, kind) for z in SPECIAL[kind].get(name, [])]
    chosen = pairs(points, kind, rng, law)
    if kind == "float32":
        chosen += [pair for z in special for pair in beside(z, law, rng)]
    else:
        chosen += itertools.permutations(special[:3], 2)
    points += special
    of = of_exponential if name in EXPONENTIAL else of_other
    values = {key: numbers(value) for key, value in of(law, points, chosen).items()}
    first, second = (np.array(side, float) for side in zip(*chosen, strict=True))
    return Known(
        z=np.array(points, float),
        first=first,
        second=second,
        special=np.array(len(special)),
        **values,
    )


def main():
    arrays = dict(np.load(FILE)) if sys.argv[1:] else {}
    with mp.workdps(DIGITS):
        for name in sys.argv[1:] or EXPONENTIAL | OTHERS:
            for kind in ("float32", "float64"):
                for field, value in known(name, kind)._asdict().items():
                    arrays[f"{name}/{kind}/{field}"] = value
            print(name, flush=True)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
