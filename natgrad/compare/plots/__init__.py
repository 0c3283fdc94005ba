"""Pictures of a comparison, a run and a race, drawn without a display.

Each function gives a matplotlib figure; `save(figure, file)` writes it as PNG. They
raise `MissingExtra` where matplotlib is not installed.
"""

from natgrad.compare.plots.of_comparison import blocks, fidelity, quadratic, spectra
from natgrad.compare.plots.of_runs import along, bands, training
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
