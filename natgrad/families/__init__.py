"""Families p(y | z): the laws that a model's outputs parametrise."""

from natgrad.families.base import ExponentialFamily, Family
from natgrad.families.bernoulli import Bernoulli
from natgrad.families.categorical import Categorical
from natgrad.families.custom import from_distribution, from_log_prob
from natgrad.families.exponential import Exponential
from natgrad.families.gamma import Gamma
from natgrad.families.normal import Normal
from natgrad.families.normal_mean import NormalMean
from natgrad.families.normal_mean_log_scale import NormalMeanLogScale
from natgrad.families.poisson import Poisson
from natgrad.families.student_t import StudentT
from natgrad.families.unnormalized import Unnormalized

__all__ = [
    "Bernoulli",
    "Categorical",
    "Exponential",
    "ExponentialFamily",
    "Family",
    "Gamma",
    "Normal",
    "NormalMean",
    "NormalMeanLogScale",
    "Poisson",
    "StudentT",
    "Unnormalized",
    "from_distribution",
    "from_log_prob",
]
