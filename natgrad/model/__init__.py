"""A statistical model: a function of parameters and inputs, and a family of laws."""

from natgrad.model.errors import DoesNotFitError
from natgrad.model.model import Model
from natgrad.model.residual_model import LeastSquares, least_squares

__all__ = ["DoesNotFitError", "LeastSquares", "Model", "least_squares"]
