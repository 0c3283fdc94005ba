"""The exact Fisher in whichever space its damped inverse is cheapest, chosen by size.

    P <= 512                        parameter space: `Dense`, which can be averaged
    else M <= P and M <= 8192       sample space: `Gram`,               M² P + M³/3
         and it takes few numbers
    else P <= 4096                  parameter space, of this batch:     M P² + P³/3
    else                            matrix-free: at most 250 iterations of conjugate
                                    gradients, to 1e-5, 2 gradients each

for P parameters, N examples, K score columns each and M = K·N. Sample space takes M²
numbers, and M P where `Gram` must write its rows out; few are 2^24, or N P where that
is more, which is what the examples' gradients would take. All are the same matrix, so
the choice changes time and memory and nothing else. It is made from shapes, when the
step is traced. Whoever wants another names that curvature.

`GramOfTheBatch` is sample space whatever the sizes, with the exact F where it takes few
columns and otherwise an estimate of it, from one random mixture of them an example.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, final

import jax

from natgrad.curvature.base import Curvature
from natgrad.curvature.delegate import Delegate
from natgrad.curvature.dense import Dense
from natgrad.curvature.gathered import as_batch
from natgrad.curvature.gram import Gram
from natgrad.curvature.matrix_free import MatrixFree, MatrixFreeStatistics
from natgrad.curvature.sketched import Sketched
from natgrad.curvature.visits import ELEMENTS
from natgrad.metrics.base import Metric
from natgrad.solvers.conjugate_gradients import RelativeResidual
from natgrad.tree import Layout, raw_key
from natgrad.typing import Array, Inputs, Key, Params, Statistics

# P up to which F is kept as an averaged matrix, and up to which it is formed at all.
AVERAGED, FORMED = 512, 4096
# M up to which an M×M matrix is factorised.
SAMPLES = 8192
# M up to which exact labels cost a few times what sampled ones do.
FEW_SAMPLES = 512
# Of conjugate gradients; whether they got there stands in the state's health.
STOP = RelativeResidual(1e-5, 250)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Automatic(Delegate):
    """The exact Fisher, in the space that suits the sizes."""

    def specialize(self, params: Params) -> Curvature:
        """`Dense` for few parameters, else a choice for each batch."""
        few = Layout.of(params).size <= AVERAGED
        return (Dense if few else OfTheBatch)(self.model, self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchChoice(Curvature):
    """Another curvature, which one the batch at hand decides."""

    requires_batch: ClassVar[bool] = True
    keeps_all_of_f: ClassVar[bool] = True

    def init(self, params: Params) -> MatrixFreeStatistics:
        """A key."""
        Layout.of(params)
        return MatrixFreeStatistics((), jax.random.PRNGKey(0))

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> MatrixFreeStatistics:
        """The key that labels are drawn with; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        del params, inputs
        key = jax.random.PRNGKey(0) if key is None else key
        return MatrixFreeStatistics((), raw_key(key))

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """That of the chosen curvature."""
        statistics, inputs, targets = as_batch(statistics, inputs, targets)
        chosen = self.choice(params, inputs, targets)
        if isinstance(chosen, MatrixFree):
            return chosen.metric(statistics, params, inputs, targets)
        return chosen.at(params, inputs, targets, statistics.key)

    @abc.abstractmethod
    def choice(
        self, params: Params, inputs: Inputs, targets: Array | None = None
    ) -> Curvature:
        """Which curvature suits these shapes."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class OfTheBatch(BatchChoice):
    """Sample space, parameter space or matrix-free, for the batch at hand."""

    def choice(
        self, params: Params, inputs: Inputs, targets: Array | None = None
    ) -> Curvature:
        """Which curvature suits these shapes."""
        size = Layout.of(params).size
        gram = Gram(self.model, self.labels)
        columns, count = self.columns(params, inputs, targets)
        samples = columns * count
        if samples <= min(size, SAMPLES):
            rows = size if gram.writes_out(params, inputs) else 0
            if samples * (samples + rows) <= max(ELEMENTS, count * size):
                return gram
        if size <= FORMED:
            return Dense(self.model, self.labels)
        return MatrixFree(self.model, self.labels, STOP)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GramOfTheBatch(BatchChoice):
    """`Gram` with `Exact` labels where these have few columns, else `Sketched(1)`.

    Few are M = K N <= 512. One random mixture of an example's columns leaves most of
    what F knows to λ; for a few times its cost exact ones are the natural gradient of
    the batch.

    Attributes:
        labels: the exact ones, whose columns are counted.
    """

    @property
    def is_exact(self) -> bool:
        """Not known before the batch."""
        return False

    def choice(
        self, params: Params, inputs: Inputs, targets: Array | None = None
    ) -> Gram:
        """With which labels, for these shapes."""
        columns, count = self.columns(params, inputs, targets)
        few = columns * count <= FEW_SAMPLES
        return Gram(self.model, self.labels if few else Sketched(1))
