"""Wave functions: energies, their gradients, and motion in imaginary and real time.

For models of `natgrad.families.Unnormalized` and curvatures with
`natgrad.curvature.Centred` labels. Parameters may be complex.
"""

from natgrad.variational.blocking import mean_and_error
from natgrad.variational.dynamics import imaginary_time, real_time
from natgrad.variational.energy import energy_and_gradient, force

__all__ = [
    "energy_and_gradient",
    "force",
    "imaginary_time",
    "mean_and_error",
    "real_time",
]
