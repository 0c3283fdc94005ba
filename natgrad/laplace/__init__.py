"""The Laplace approximation: a normal posterior over the parameters of a trained model.

    N(θ, (N F + Δ)⁻¹),     Δ the precision of the prior N(0, Δ⁻¹)

with any metric F at θ, exact or factored: samples, the law of outputs and of labels at
new inputs, the evidence of prior, noise and model, priors by layer that maximise it.
"""

from natgrad.laplace.posterior import Posterior, fit_prior
from natgrad.laplace.predictive import Outputs

__all__ = ["Outputs", "Posterior", "fit_prior"]
