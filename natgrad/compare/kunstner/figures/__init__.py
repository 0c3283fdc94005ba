"""The pictures of the experiments, drawn like a paper's, without a display."""

from natgrad.compare.kunstner.figures.adam import adam
from natgrad.compare.kunstner.figures.grids import grids
from natgrad.compare.kunstner.figures.misspecification import misspecification
from natgrad.compare.kunstner.figures.optimisation import optimisation
from natgrad.compare.kunstner.figures.starting_points import starting_points
from natgrad.compare.kunstner.figures.style import save
from natgrad.compare.kunstner.figures.vector_field import vector_field

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
