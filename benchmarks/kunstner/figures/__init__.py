"""The pictures of the experiments, drawn like a paper's, without a display."""

from benchmarks.kunstner.figures.adam import adam
from benchmarks.kunstner.figures.grids import grids
from benchmarks.kunstner.figures.misspecification import misspecification
from benchmarks.kunstner.figures.optimisation import optimisation
from benchmarks.kunstner.figures.starting_points import starting_points
from benchmarks.kunstner.figures.style import save
from benchmarks.kunstner.figures.vector_field import vector_field

# Of the files that the command writes.
NAMES = (
    "vector_field",
    "misspecification_linear",
    "misspecification_logistic",
    "adam",
    "optimisation",
    "grids",
    "starting_points",
)

__all__ = [
    "NAMES",
    "adam",
    "grids",
    "misspecification",
    "optimisation",
    "save",
    "starting_points",
    "vector_field",
]
