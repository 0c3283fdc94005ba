"""Families p(y | z): the laws that a model's outputs parametrise.

Soft labels. For an exponential family −⟨η, T(y)⟩ + A(η) is a cross-entropy for every
T(y) in the closure of the domain of means, not only for labels that the law can draw:
grey pixels under `Bernoulli`, class probabilities under `Categorical`, fractional
counts. `log_prob` is defined there too, with the base measure h(y) continued by gamma
functions; h does not depend on η, so gradients and scores are those of the
cross-entropy. The Fisher information of `Exact` and `Sampled` labels stays that of the
law p(y | z): it does not read the data's labels. `Empirical` takes the outer products
of the scores at the soft labels.
"""

from natgrad.families.base import ExponentialFamily, Family
from natgrad.families.bernoulli import Bernoulli
from natgrad.families.beta import Beta
from natgrad.families.binomial import Binomial
from natgrad.families.categorical import Categorical
from natgrad.families.cauchy import Cauchy
from natgrad.families.custom import from_log_prob
from natgrad.families.custom_distribution import from_distribution
from natgrad.families.custom_exponential import exponential_family
from natgrad.families.dirichlet import Dirichlet
from natgrad.families.exponential import Exponential
from natgrad.families.gamma import Gamma
from natgrad.families.geometric import Geometric
from natgrad.families.inverse_gamma import InverseGamma
from natgrad.families.inverse_gaussian import InverseGaussian
from natgrad.families.laplace import Laplace
from natgrad.families.log_normal import LogNormal
from natgrad.families.logistic import Logistic
from natgrad.families.multivariate_normal import MultivariateNormal
from natgrad.families.multivariate_normal_diag import MultivariateNormalDiag
from natgrad.families.negative_binomial import NegativeBinomial
from natgrad.families.normal import Normal
from natgrad.families.normal_mean import NormalMean
from natgrad.families.normal_mean_log_scale import NormalMeanLogScale
from natgrad.families.poisson import Poisson
from natgrad.families.product import Product
from natgrad.families.student_t import StudentT
from natgrad.families.transformed import Transformed
from natgrad.families.unnormalized import Unnormalized
from natgrad.families.von_mises import VonMises
from natgrad.families.weibull import Weibull

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Dirichlet",
    "Exponential",
    "ExponentialFamily",
    "Family",
    "Gamma",
    "Geometric",
    "InverseGamma",
    "InverseGaussian",
    "Laplace",
    "LogNormal",
    "Logistic",
    "MultivariateNormal",
    "MultivariateNormalDiag",
    "NegativeBinomial",
    "Normal",
    "NormalMean",
    "NormalMeanLogScale",
    "Poisson",
    "Product",
    "StudentT",
    "Transformed",
    "Unnormalized",
    "VonMises",
    "Weibull",
    "exponential_family",
    "from_distribution",
    "from_log_prob",
]
