"""Data attribution: what leaving a training example out adds to a loss, in nats.

`influence` (first order, under any curvature), `metagradient` (first order, through the
training) and `retrained` (the truth) have one sign and one unit: the change of the loss
when an example's weight in (1/N) Σ_n w_n ℓ_n goes from 1 to 0; the 1/N stays. Above 0
the example helps.
"""

from natgrad.attribution.influence_functions import influence
from natgrad.attribution.retraining import (
    metagradient,
    rank_correlation,
    retrained,
    training,
)

__all__ = ["influence", "metagradient", "rank_correlation", "retrained", "training"]
