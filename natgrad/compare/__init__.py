"""How far is an approximation of the Fisher information from the exact one?

`compare` measures any curvature against any other at given parameters; what it asks of
them is `Curvature.estimate` and the `Metric` of that. The `natgrad compare` command
adds data, models, a race of optimizers, tables and plots; what those need comes with
`pip install natgrad[report]` and is imported when used.

    fidelity -> Comparison      training -> Race      tables, report, plots show them
"""

from natgrad.compare.along import Trace, along
from natgrad.compare.comparison import Comparison, Row
from natgrad.compare.effort import Budget
from natgrad.compare.fidelity import compare
from natgrad.compare.figures import Figures
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.reference import Reference
from natgrad.compare.repetition import Repeated, repeated
from natgrad.compare.standings import Entry, Race, Run
from natgrad.compare.training import race

__all__ = [
    "Budget",
    "Comparison",
    "Entry",
    "Figures",
    "Misspecification",
    "Race",
    "Reference",
    "Repeated",
    "Row",
    "Run",
    "Trace",
    "along",
    "compare",
    "race",
    "repeated",
]
