"""A statistical model: a function of parameters and inputs, and a family of laws."""

from natgrad.model.errors import DoesNotFitError
from natgrad.model.least_squares import LeastSquares, least_squares
from natgrad.model.model import Model

__all__ = ["DoesNotFitError", "LeastSquares", "Model", "least_squares"]
