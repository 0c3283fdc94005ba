"""How far is an approximation of the Fisher information from the exact one?

`compare` measures any curvature against any other at given parameters; what it asks of
them is `Curvature.estimate` and the `Metric` of that. `along` does so at steps of a
run, `race` trains with optimizers built from curvatures, `plots` draws the results, and
their `verdict()` says in words what they mean. What pictures and `rich.print` need
comes with `pip install natgrad[report]` and is imported when used.

    setup -> reference -> trace      contenders -> training      plots
"""

from natgrad.compare.comparison import Comparison, Verdict
from natgrad.compare.figures import Budget, Figures
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.reference import Reference
from natgrad.compare.row import Row
from natgrad.compare.runs import Entry, Race, Repeated, Run
from natgrad.compare.setup import ComparisonSetup
from natgrad.compare.trace import Trace, along, compare, comparisons_along
from natgrad.compare.training import RaceSettings, race, repeated

__all__ = [
    "Budget",
    "Comparison",
    "ComparisonSetup",
    "Entry",
    "Figures",
    "Misspecification",
    "Race",
    "RaceSettings",
    "Reference",
    "Repeated",
    "Row",
    "Run",
    "Trace",
    "Verdict",
    "along",
    "compare",
    "comparisons_along",
    "race",
    "repeated",
]
