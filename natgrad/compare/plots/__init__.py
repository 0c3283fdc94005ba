"""Pictures of a comparison, a run and a race, drawn without a display.

Each function gives a matplotlib figure; `save(figure, file)` writes it.
"""

from natgrad.compare.plots.along import along
from natgrad.compare.plots.bands import bands
from natgrad.compare.plots.blocks import blocks
from natgrad.compare.plots.fidelity import fidelity
from natgrad.compare.plots.quadratic import quadratic
from natgrad.compare.plots.spectra import spectra
from natgrad.compare.plots.style import save
from natgrad.compare.plots.training import training

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
