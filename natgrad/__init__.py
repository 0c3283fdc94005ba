"""natgrad: differentiable natural-gradient optimizers for JAX.

A model maps parameters θ and an input x to an output z, and a family turns z into a law
p(y | z). The Fisher information is the batch mean of

    F = Jᵀ E_y[s sᵀ] J,     J = ∂z/∂θ,     s = ∂ log p(y | z)/∂z

An approximation of F answers two independent questions: over which labels y (`Exact`,
`Sampled(n)`, `Sketched(n)`, `Empirical`, `Centred`), and in what form it is kept
(`KLHessian`, `Dense`, `BlockDiagonal`, `Diagonal`, `KFAC`, `EKFAC`, `KFOC`,
`LayerDiagonal`, `Gram`, `GramBlocks`, `MatrixFree`). Any answer to both is a curvature
(but K-FAC's kin need scores that are not centred),

    Curvature --estimate--> statistics --metric--> Metric --solve(gradient, λ)--> step

and `scale_by_curvature` turns any curvature into an optax transformation:

    model = natgrad.Model(net.apply, natgrad.families.Categorical())
    tx = natgrad.natural_gradient(0.1, model, damping=1e-3)
    updates, state = tx.update(grads, state, params, inputs=x)

Loss and F are means over the batch, in nats; damping adds λI to F.
`print(natgrad.doctor(model, params, x, y))` says which optimizer to use.
"""

from typing import TYPE_CHECKING, Any

# First: loaded from deep within other imports JAX takes half a second more.
import jax  # noqa: F401

from natgrad import (
    _deprecated,
    attribution,
    compare,
    curvature,
    families,
    geometry,
    inference,
    integrations,
    laplace,
    layers,
    metrics,
    solvers,
    transforms,
    tree,
    variational,
)
from natgrad.curvature import CURVATURES, load, save
from natgrad.integrations import from_equinox, from_linen, from_nnx
from natgrad.metrics import kronecker
from natgrad.model import Model, least_squares
from natgrad.optimizers import (
    diagonal_fisher,
    ekfac,
    empirical_fisher,
    gram,
    gram_blocks,
    kfac,
    kfac_adaptive,
    kl_shampoo,
    march,
    matrix_free,
    natural_gradient,
    soap,
    spring,
)
from natgrad.solvers import conjugate_gradients as krylov
from natgrad.solvers.damping import ByPath, Relative
from natgrad.solvers.damping_of_metric import ConditionNumber, ScaleInvariant
from natgrad.transforms import adaptive, damping, scaling
from natgrad.transforms import distributed_inverse as spread
from natgrad.transforms.adaptive import (
    geodesic_acceleration,
    levenberg_marquardt,
    scale_by_factored_curvature,
    scale_by_kl_trust_region,
    scale_by_quadratic_model,
)
from natgrad.transforms.health import check_health
from natgrad.transforms.inverse_cache import Refresh
from natgrad.transforms.march import ScoreVariance, StepVariance, scale_by_march
from natgrad.transforms.mirror_descent import (
    dual_mirror_descent,
    mirror_descent,
    scale_by_dual,
)
from natgrad.transforms.observation import observe
from natgrad.transforms.principal_range import PrincipalRange
from natgrad.transforms.renewal import WhenStale
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.spring import scale_by_norm_constraint, scale_by_spring
from natgrad.transforms.state import Health

__version__ = "0.1.0.dev0"

__all__ = [
    "CURVATURES",
    "ByPath",
    "ConditionNumber",
    "Health",
    "Model",
    "PrincipalRange",
    "Refresh",
    "Relative",
    "ScaleInvariant",
    "ScoreVariance",
    "StepVariance",
    "WhenStale",
    "__version__",
    "adaptive",
    "attribution",
    "check_health",
    "compare",
    "curvature",
    "damping",
    "diagonal_fisher",
    "doctor",
    "dual_mirror_descent",
    "ekfac",
    "empirical_fisher",
    "families",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "geodesic_acceleration",
    "geometry",
    "gram",
    "gram_blocks",
    "inference",
    "integrations",
    "kfac",
    "kfac_adaptive",
    "kl_shampoo",
    "kronecker",
    "krylov",
    "laplace",
    "layers",
    "least_squares",
    "levenberg_marquardt",
    "load",
    "march",
    "matrix_free",
    "metrics",
    "mirror_descent",
    "natural_gradient",
    "observe",
    "save",
    "scale_by_curvature",
    "scale_by_dual",
    "scale_by_factored_curvature",
    "scale_by_kl_trust_region",
    "scale_by_march",
    "scale_by_norm_constraint",
    "scale_by_quadratic_model",
    "scale_by_spring",
    "scaling",
    "soap",
    "solvers",
    "spread",
    "spring",
    "transforms",
    "tree",
    "variational",
]

if TYPE_CHECKING:
    from natgrad.compare.doctor import doctor


def __getattr__(name: str) -> Any:
    """`doctor`, imported when it is asked for."""
    if name == "doctor":
        from natgrad.compare.doctor import doctor

        return doctor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


_deprecated.install()
