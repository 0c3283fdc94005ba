"""Points besides the far ones: ordinary parameters, and such near a boundary.

Ordinary points, in double precision, are where the laws of every family are tested
(their first three are pairwise of moderate divergence); points at the edge, in single
precision, are where it loses what the mean no longer tells.
"""

from __future__ import annotations

import numpy as np


def logits(*ps):
    return [[float(np.log(p) - np.log1p(-p))] for p in ps]


def scales(*rows):
    """(location, scale) -> (m, ρ)."""
    return [[m, float(np.log(s))] for m, s in rows]


def normals(*rows):
    """(mean, scale) -> η."""
    return [[m / s**2, -0.5 / s**2] for m, s in rows]


def polar(*rows):
    """(direction, concentration) -> η."""
    return [[k * float(np.cos(m)), k * float(np.sin(m))] for m, k in rows]


FAILURES = [[float(np.log1p(-p))] for p in (0.31, 0.8, 1e-6, 1 - 1e-6)]
LOCATIONS = scales((0.4, 0.7), (-1.0, 3.0), (0.9, 1.2), (50.0, 1e-3))
TWO_VECTORS = [
    [1.04, -1.9, -0.51, 0.63, -0.82],
    [8.5, 1.4, -1.4, -0.42, -0.28],
    [0.5, 0.3, -0.7, 0.2, -0.4],
]

ORDINARY = {
    "bernoulli": [[0.3], [-1.2], [2.0], [25.0], [-25.0]],
    "binomial": logits(0.31, 0.8, 0.5, 1e-9, 1 - 1e-9),
    "categorical": np.log(
        [[0.2, 0.3, 0.5], [0.7, 0.1, 0.2], [0.1, 0.6, 0.3], [1e-9, 1e-3, 0.998999999]]
    ).tolist(),
    "poisson": [[0.4], [-1.1], [1.3], [-10.0], [5.0]],
    "geometric": FAILURES,
    "negative_binomial": FAILURES,
    "exponential": [[-0.6], [-3.0], [-1.2], [-1e-4], [-1e4]],
    "weibull": [[-2.4], [-0.15], [-1.0], [-125000.0], [-8e-6]],
    "gamma": [[1.3, -0.7], [-0.4, -1.9], [2.7, -1.2], [-0.99, -0.5], [9999.0, -3.0]],
    "inverse_gamma": [
        [-3.3, -0.7],
        [-1.8, -3.0],
        [-4.7, -1.2],
        [-1.02, -0.5],
        [-10001.0, -3.0],
    ],
    "beta": [[1.3, -0.3], [0.2, 4.0], [0.7, 0.5], [-0.98, -0.95], [99999.0, 299.0]],
    "dirichlet": [
        [1.3, -0.3, 3.0],
        [-0.7, 0.5, -0.1],
        [0.4, 0.2, 0.9],
        [-0.99, -0.98, -0.994],
        [999999.0, 29.0, 99999.0],
    ],
    "normal": [[0.5, -1.2], [1.1, -0.4], [-0.3, -1.9], [300.0, -50.0], [0.0, -1e-3]],
    "log_normal": normals((0.4, 0.7), (-1.0, 1.5), (0.8, 1.0), (3.0, 0.02)),
    "inverse_gaussian": [
        [-0.207, -0.35],
        [-7.8, -1.25],
        [-0.5, -0.9],
        [-1.25e-4, -5e-4],
        [-12500.0, -50000.0],
    ],
    "von_mises": polar((0.6, 0.4), (-2.0, 3.0), (0.4, 1.0), (1.2, 30.0), (0.9, 1e-4)),
    "multivariate_normal": TWO_VECTORS,
    "multivariate_normal_diag": [
        [0.31, -1.25, -0.38, -0.62],
        [1.1, 0.1, -0.9, -0.25],
        [-0.4, 0.6, -0.7, -1.4],
        [3000.0, 0.1, -50.0, -0.25],
    ],
    "normal_mean": [[0.3], [-0.9], [1.1], [1e4]],
    "normal_mean_log_scale": [*LOCATIONS, [-3.0, 6.0]],
    "laplace": LOCATIONS,
    "logistic": LOCATIONS,
    "cauchy": LOCATIONS,
    "student_t_half": LOCATIONS,
    "student_t": LOCATIONS,
    "student_t_4": LOCATIONS,
    "student_t_1000": LOCATIONS,
}
EDGES = {
    "bernoulli": [[-100.0], [-40.0], [-20.0], [-0.8], [20.0], [40.0], [80.0]],
    "binomial": [[-100.0], [-20.0], [0.8], [20.0], [80.0]],
    "poisson": [[-30.0], [0.7], [15.0]],
    "geometric": [[-60.0], [-1e-6], [-1e-3], [-0.4]],
    "negative_binomial": [[-60.0], [-1e-6], [-1e-3], [-0.4]],
    "exponential": [[-1e7], [-1.0], [-1e-7]],
    "weibull": [[-1e-6], [-1.0], [-1e6]],
    "gamma": [[-0.999, -2.0], [-0.9, -1e3], [1.3, -0.7], [1e4, -3.0], [1e7, -3.0]],
    "inverse_gamma": [[-1.001, -2.0], [-3.3, -0.7], [-10001.0, -3.0], [-1e7, -3.0]],
    "beta": [[-0.999, -0.99], [1e6, 3e5], [1e6, -0.5], [29.0, -0.99], [1.3, -0.3]],
    "dirichlet": [[-0.999, -0.998, -0.9995], [1e6, 3e5, 2e6], [1e6, -0.9, 3.0]],
    "normal": [[10.0, -0.5], [1e4, -0.5], [3.0, -1e6], [0.0, -1e-6]],
    "log_normal": [*normals((0.4, 0.7), (-1.0, 1.5)), [7500.0, -1250.0]],
    "inverse_gaussian": [[-1e-6, -1e-3], [-1e5, -2e5], [-0.2, -0.35]],
    "von_mises": [
        *([1e-4, 0.0], [0.0, 0.9], [20.0, 0.0], [1e6, 0.0]),
        *([0.0, -1e5], [300.0, 400.0]),
    ],
    "multivariate_normal": [[3.0, -2.0, -0.5, 0.3, -0.4], *TWO_VECTORS[:2]],
    "multivariate_normal_diag": [[10.0, 1.0, -0.5, -3.0], [3000.0, 0.1, -50.0, -0.25]],
}
SPECIAL = {"float32": EDGES, "float64": ORDINARY}
