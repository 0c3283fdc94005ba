"""Metrics: positive semi-definite operators on parameter space."""

from natgrad.metrics.base import (
    BlockDiagonalMetric,
    DenseMetric,
    DiagonalMetric,
    Metric,
)
from natgrad.metrics.blockwise import BlockwiseMetric

__all__ = [
    "BlockDiagonalMetric",
    "BlockwiseMetric",
    "DenseMetric",
    "DiagonalMetric",
    "Metric",
]
