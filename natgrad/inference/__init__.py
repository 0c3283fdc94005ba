"""Natural-gradient variational inference: the Bayesian learning rule.

    rule = LearningRule(MultivariateNormal(), LinearPredictors(log_likelihood))
    result = fit(rule, prior, prior, Linear(x, y), steps=50)
    result.state.natural, result.state.elbo, result.state.cycle

for any exponential family and any log-likelihood, and `ivon` for neural networks.
"""

from natgrad.inference.draws import BonnetPrice, Sampling, ScoreFunction
from natgrad.inference.dual import value_and_dual_gradient
from natgrad.inference.evidence import LearningRule, elbo
from natgrad.inference.expectations import ClosedForm, Expectation
from natgrad.inference.fitting import Fit, fit, fit_batches
from natgrad.inference.learning_rule import InferenceState, init, step
from natgrad.inference.online_newton import IvonState, draw_weights, ivon
from natgrad.inference.predictors import (
    ClosedPredictors,
    Linear,
    LinearPredictors,
    predictor_law,
)
from natgrad.inference.quadrature import Quadrature

__all__ = [
    "BonnetPrice",
    "ClosedForm",
    "ClosedPredictors",
    "Expectation",
    "Fit",
    "InferenceState",
    "IvonState",
    "LearningRule",
    "Linear",
    "LinearPredictors",
    "Quadrature",
    "Sampling",
    "ScoreFunction",
    "draw_weights",
    "elbo",
    "fit",
    "fit_batches",
    "init",
    "ivon",
    "predictor_law",
    "step",
    "value_and_dual_gradient",
]
