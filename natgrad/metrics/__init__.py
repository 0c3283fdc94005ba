"""Metrics: positive semi-definite operators on parameter space."""

from natgrad.metrics.base import Metric, ScaledMetric, SumMetric
from natgrad.metrics.blockwise import BlockwiseMetric
from natgrad.metrics.functions import Estimate
from natgrad.metrics.matrices import BlockDiagonalMetric, DenseMetric, DiagonalMetric

__all__ = [
    "BlockDiagonalMetric",
    "BlockwiseMetric",
    "DenseMetric",
    "DiagonalMetric",
    "Estimate",
    "Metric",
    "ScaledMetric",
    "SumMetric",
]
