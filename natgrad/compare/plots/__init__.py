"""Pictures of a comparison and of a race, drawn without a display."""

from natgrad.compare.plots.fidelity import fidelity
from natgrad.compare.plots.style import save
from natgrad.compare.plots.training import training

__all__ = ["fidelity", "save", "training"]
