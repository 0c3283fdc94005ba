"""The layers of the library, and the exceptions that its rules allow, with reasons."""

from __future__ import annotations

# From the ground up: a module imports from its own line and from those before it.
LAYERS = (
    {"typing"},
    {"arguments"},
    {"tree"},
    {"control_flow"},
    {"eager"},
    {"families"},
    {"geometry"},
    {"model"},
    {"integrations"},
    {"layers"},
    {"solvers"},
    {"metrics"},
    {"curvature"},
    {"transforms"},
    {"optimizers"},
    {"inference"},
    {"attribution", "laplace", "variational"},
    {"compare"},
    {"_deprecated"},
    {"__init__"},
    {"cli", "__main__"},
)

# Where a name is allowed, and why. A line that is no longer needed fails too.
STOP_GRADIENT = {
    "natgrad.layers.interpreter": "asks the trace what a parameter reaches without "
    "its uses",
    "natgrad.solvers.dense": "factorises a constant inside lax.custom_linear_solve, "
    "which gives the derivative of the solution",
    "natgrad.solvers.matrix_functions": "decomposes a constant inside functions whose "
    "derivative is by divided differences",
    "natgrad.solvers.lanczos": "finds a vector of the largest eigenvalue, whose "
    "derivative does not change that of the eigenvalue",
    "natgrad.metrics.kronecker.factors": "solves inside lax.custom_linear_solve by "
    "eigenbases of constant factors",
    "natgrad.solvers.gram": "the same, by Gram matrices of constant rows",
    "natgrad.families.expectations": "weights p(y | z)/p(y | stop(z)) of draws: value "
    "1, derivative that of the expectation; and a pivot's size, which cancels",
    "natgrad.curvature.labels": "the same weights, and labels are data",
    "natgrad.families.categorical": "subtracts the largest logit, which cancels",
    "natgrad.families.numerics.remainders": "the largest exponent, likewise",
    "natgrad.transforms.adaptive.quadratic_model": "decomposes a constant inside "
    "lax.custom_linear_solve",
    "natgrad.curvature.matrix_free": "a preconditioner does not change the solution",
    "natgrad.curvature.constant": "is there to stop derivatives, by name",
    "natgrad.inference.draws": "score-function weights and their baseline",
    "natgrad.model.weights": "factors of weight 0 whose value is not finite",
}
OPTAX = {
    "natgrad._deprecated": "chains what `then=` gave",
    "natgrad.transforms": "makes a transformation of any curvature",
    "natgrad.optimizers": "chains it with a learning rate",
    "natgrad.inference.online_newton": "is an optimizer of optax",
    "natgrad.laplace.posterior": "fits priors by optimizers of optax",
    "natgrad.attribution.retraining": "trains with optimizers of optax",
    "natgrad.layers.muon": "says which axes of a weight optax's Muon takes for what",
    "natgrad.tree.layout": "sees what optax.masked leaves behind",
    "natgrad.compare": "trains with SGD and Adam beside the natural gradient",
    "natgrad.cli": "trains with Adam up to where it compares",
}
X64 = {
    "natgrad.solvers.spectral": "finds in float64 the eigenvalues that decide a solve",
    "natgrad.layers": "hands the setting on to a thread of its own",
    "natgrad.cli": "has a command-line option for it",
}
# Imports inside functions, for optional extras: (module, what it imports) -> why.
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("natgrad", "natgrad.compare.doctor"): "few programs ask for it, and all would "
    "wait for it when they import natgrad",
}
# Packages whose functions may import what only the `report` extra installs.
LATE_IMPORTERS = ("natgrad.cli", "natgrad.compare", "natgrad.__main__")

# The one module besides `layers` that works on jaxprs.
CONTROL_FLOW = "natgrad.control_flow"

MAX_LINES = 300
# At the root of the package.
MAX_ROOT_FILES = 6
# Of a function, from `def` to its end: code and comments of it and of the functions in
# it, but not its own docstring, which says as much as a reader needs.
MAX_LINES_OF_FUNCTION = 60
# Of a function; `self` and `cls` do not count, and * and ** count one each.
MAX_PARAMETERS = 8
# Functions that may be larger, and why. A line that is no longer needed fails too.
TOO_LARGE: dict[str, str] = {
    "natgrad.optimizers.exact.natural_gradient": "names each of its parts: a curvature "
    "and its solver, beside what all optimizers have",
}
# A package binds the name of one of its modules to a function: (package, name) -> why.
HIDDEN_MODULES: dict[tuple[str, str], str] = {}
