"""Steps that look after themselves: damping, length and momentum from a model of them.

Pieces that optax's `chain` puts together with any curvature. They judge a step d by the
quadratic model of the loss at the parameters,

    M(d) = ⟨g, d⟩ + ½ ⟨d, F d⟩,

F the exact Fisher information of the batch, in which ⟨d, F d⟩ takes one forward
derivative of the outputs and no backward pass.
"""

from natgrad.transforms.adaptive.damping_by_ratio import LevenbergMarquardtState
from natgrad.transforms.adaptive.damping_rules import (
    LossFloor,
    Nielsen,
    Rule,
    Thresholds,
)
from natgrad.transforms.adaptive.damping_search import Trials
from natgrad.transforms.adaptive.factored_curvature import scale_by_factored_curvature
from natgrad.transforms.adaptive.geodesic import (
    GeodesicAccelerationState,
    geodesic_acceleration,
)
from natgrad.transforms.adaptive.group_weights import (
    balance_gradients,
    balance_traces,
)
from natgrad.transforms.adaptive.learning_rates import (
    QuadraticModelState,
    scale_by_quadratic_model,
)
from natgrad.transforms.adaptive.marquardt import levenberg_marquardt
from natgrad.transforms.adaptive.proposals import FactoredState
from natgrad.transforms.adaptive.quadratic_forms import fisher_forms
from natgrad.transforms.adaptive.trust_region import (
    KLTrustRegionState,
    scale_by_kl_trust_region,
)

__all__ = [
    "FactoredState",
    "GeodesicAccelerationState",
    "KLTrustRegionState",
    "LevenbergMarquardtState",
    "LossFloor",
    "Nielsen",
    "QuadraticModelState",
    "Rule",
    "Thresholds",
    "Trials",
    "balance_gradients",
    "balance_traces",
    "fisher_forms",
    "geodesic_acceleration",
    "levenberg_marquardt",
    "scale_by_factored_curvature",
    "scale_by_kl_trust_region",
    "scale_by_quadratic_model",
]
