"""The layers of the library, and the exceptions that its rules allow, with reasons."""

from __future__ import annotations

# From the ground up: a module imports from its own line and from those before it.
LAYERS = (
    {"_version", "typing"},
    {"tree"},
    {"families"},
    {"geometry"},
    {"batch", "model"},
    {"layers"},
    {"krylov"},
    {"solvers", "inplace", "inverse", "damping"}
    | {"metric", "blockwise", "eigenbasis", "kronecker", "scaling"},
    {"spread"},
    {"pieces", "jacobian", "sample_space"},
    {"curvature"},
    {"state", "refresh", "upkeep", "arguments", "transform", "spring"},
    {"adaptive"},
    {"optimizers", "mirror"},
    {"inference"},
    {"compare"},
    {"__init__", "__main__"},
)

# Where a name is allowed, and why. A line that is no longer needed fails too.
STOP_GRADIENT = {
    "natgrad.solvers": "factorises a constant inside lax.custom_linear_solve, which "
    "gives the derivative of the solution",
    "natgrad.kronecker": "the same, by eigenbases of constant factors",
    "natgrad.sample_space": "the same, by Gram matrices of constant rows",
    "natgrad.families.base": "weights p(y | z)/p(y | stop(z)) of sampled labels: value "
    "1, derivative that of the expectation",
    "natgrad.curvature.labels": "the same weights, and labels are data",
    "natgrad.curvature.matrix_free": "a preconditioner does not change the solution",
    "natgrad.curvature.constant": "is there to stop derivatives, by name",
    "natgrad.inference.draws": "score-function weights and their baseline",
    "natgrad.model": "stand-in labels of masked factors, whose weight is 0",
}
OPTAX = {
    "natgrad.transform": "is the optax code of the library",
    "natgrad.spring": "puts a momentum around it",
    "natgrad.adaptive": "adapts its damping and the length of its steps",
    "natgrad.optimizers": "chains it with a learning rate",
    "natgrad.mirror": "mirror descent is an optimizer of optax",
    "natgrad.inference.ivon": "is an optimizer of optax",
    "natgrad.tree": "fills in the MaskedNodes that optax.masked leaves behind",
    "natgrad.compare": "trains with SGD and Adam beside the natural gradient",
}
# Imports inside functions, for optional extras: (module, what it imports) -> why.
LATE_IMPORTS: dict[tuple[str, str], str] = {}
# Packages whose functions may import what only the `report` extra installs.
LATE_IMPORTERS = ("natgrad.compare", "natgrad.__main__")

MAX_LINES = 300
