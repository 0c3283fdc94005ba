"""Which optimizer for which model: a table, read from above, the first line that holds.

    an exact step is within reach, and the batch            natural_gradient; gram with
    determines F                                            Exact labels beyond 2,000 P
    K-FAC takes the model, of at least 32 examples          kfac_adaptive
    K-FAC takes the model                                   kfac
    an exact step is within reach                           as in the first line
    one label an example, at most 4,096 examples            gram
    F has products                                          matrix_free
    else                                                    diagonal_fisher

for P parameters and M = K·N score columns of N examples.

- Within reach: P <= 2,000 and 2·10⁹ multiplications, some tens of milliseconds on one
  core; or one or two columns an example and M <= 2,048, whose factorisation takes as
  long, whatever P is.
- The batch determines F: its effective dimension is at most M/5 for least squares,
  where F does not depend on the outputs, and M/50 for other laws. Beyond, an exact step
  fits the noise of one batch, and K-FAC averages over many.
- K-FAC takes the model: it can be captured, and its layers hold at least 85 % of the
  parameters.
- 32 examples: no smaller batch was measured. The noise scale does not decide: where it
  was one to five times the batch, `kfac_adaptive` ended at most 1.2 times above `kfac`.

`python -m benchmarks.drop_in.doctor` compares the advice with what was measured.
"""

from __future__ import annotations

import dataclasses
import math

from natgrad.compare.batch_check import BatchFigures
from natgrad.compare.measurements import CurvatureFigures
from natgrad.compare.step_costs import Costs, LayersSeen

CHEAP, SMALL = 2e9, 2000
FEW_OUTPUTS, SAMPLES, SAMPLED = 2, 2048, 4096
COVERED, LEAST_SQUARES, OTHER_LAWS = 0.85, 1 / 5, 1 / 50
LARGE = 32
MODEL = ("model", "model")


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to use.

    Attributes:
        optimizer: its name in `natgrad`.
        arguments: (name, value as Python text) of its arguments, the model's first.
        reason: one sentence, without its full stop.
    """

    optimizer: str
    arguments: tuple[tuple[str, str], ...]
    reason: str

    @property
    def code(self) -> str:
        """The call, with natgrad imported as `ng` and the model called `model`."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments)
        return f"ng.{self.optimizer}({arguments})"


def advise(
    batch: BatchFigures, layers: LayersSeen, curvature: CurvatureFigures, costs: Costs
) -> Advice:
    """The first line of the table that holds.

    Args:
        batch: what is in the batch.
        layers: what K-FAC sees.
        curvature: of the loss.
        costs: of a step.
    """
    samples = costs.columns * batch.examples
    small = layers.parameters <= SMALL and costs.exact <= CHEAP
    reach = small or (costs.columns <= FEW_OUTPUTS and samples <= SAMPLES)
    captured = not layers.obstacle and layers.covered >= COVERED
    share = LEAST_SQUARES if batch.least_squares else OTHER_LAWS
    if reach and curvature.effective_dimension <= share * samples:
        directions = f"{two_digits(curvature.effective_dimension)} directions"
        return _exact(
            layers,
            costs,
            small,
            f"the batch has {samples:,} score columns for {directions} of F that count",
        )
    if captured:
        step = times(1 + costs.kfac / costs.gradient)
        reason = (
            f"{_share(layers)}, and a step does {step} the arithmetic of a gradient"
        )
        reason += f", an exact one {_dearer(costs)}"
        if batch.examples < LARGE:
            return Advice("kfac", (MODEL,), reason)
        reason += "; update takes targets=, value= and value_fn= besides inputs="
        return Advice("kfac_adaptive", (MODEL,), reason)
    why = (
        "K-FAC cannot take this model"
        if layers.obstacle
        else f"only {layers.covered:.0%} of the parameters are in layers of K-FAC"
    )
    if reach:
        return _exact(layers, costs, small, why)
    return _last_resort(why, batch, curvature)


def _exact(layers: LayersSeen, costs: Costs, small: bool, why: str) -> Advice:
    size = f"{count(layers.parameters, 'parameter')} and"
    size += f" {count(costs.columns, 'score column')} an example"
    reason = f"with {size} an exact step is cheap ({_dearer(costs)} the arithmetic of a"
    reason += f" gradient), and {why}"
    if small:
        return Advice("natural_gradient", (MODEL,), reason)
    return Advice("gram", (MODEL, ("labels", "ng.curvature.Exact()")), reason)


def _last_resort(why: str, batch: BatchFigures, curvature: CurvatureFigures) -> Advice:
    if batch.labels == 1 and batch.examples <= SAMPLED:
        return Advice(
            "gram",
            (MODEL,),
            f"{why}, and with one sampled label an example F takes "
            f"{batch.examples:,} equations in sample space",
        )
    if math.isfinite(curvature.trace):
        why += ", so F is applied as an operator and never kept"
        return Advice("matrix_free", (MODEL,), why)
    why += ", and F has no products, since apply has no forward derivative"
    return Advice("diagonal_fisher", (MODEL,), why)


def _share(layers: LayersSeen) -> str:
    size = count(layers.parameters, "parameter")
    return f"{layers.covered:.0%} of {size} are in {kinds(layers)}"


def _dearer(costs: Costs) -> str:
    return times(costs.exact / costs.gradient)


def two_digits(value: float) -> str:
    """A number with two digits and thousands apart."""
    digits = 1 - math.floor(math.log10(value)) if value >= 1 else 1
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def kinds(layers: LayersSeen) -> str:
    """The layers in words: "3 dense layers and 1 embedding layer"."""
    words = [count(number, f"{kind} layer") for kind, number, _ in layers.kinds]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def count(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def times(ratio: float) -> str:
    """A ratio in words: "3 times", with two digits at most."""
    if not math.isfinite(ratio):
        return "many times"
    if ratio < 9.5:
        return f"{ratio:.2g} times"
    digits = 1 - math.floor(math.log10(ratio))
    return f"{round(ratio, digits):,.0f} times"
