"""Metrics of Kronecker products, and their two inverses that can be kept.

`KroneckerMetric`, its exact inverse `Eigenbasis`, and the cheaper `FactoredTikhonov`.
"""

from natgrad.metrics.kronecker.factored_tikhonov import FactoredTikhonov
from natgrad.metrics.kronecker.metric import Eigenbasis, KroneckerMetric

__all__ = ["Eigenbasis", "FactoredTikhonov", "KroneckerMetric"]
