"""Pictures of a comparison, a run and a race, drawn without a display.

Each function gives a matplotlib figure; `save(figure, file)` writes it.
"""

from natgrad.compare.plots.of_blocks import blocks
from natgrad.compare.plots.of_comparison import fidelity
from natgrad.compare.plots.of_paths import quadratic
from natgrad.compare.plots.of_race import training
from natgrad.compare.plots.of_repetitions import bands
from natgrad.compare.plots.of_spectra import spectra
from natgrad.compare.plots.of_trace import along
from natgrad.compare.plots.style import save

__all__ = [
    "along",
    "bands",
    "blocks",
    "fidelity",
    "quadratic",
    "save",
    "spectra",
    "training",
]
