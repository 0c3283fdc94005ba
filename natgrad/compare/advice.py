"""Which optimizer for which model: a table, read from above, the first line that holds.

    few parameters, or few columns that determine F         spring
    K-FAC takes the model, of at least 32 examples          kfac_adaptive
    K-FAC takes the model                                   kfac
    few columns                                             spring
    one label an example, at most 4,096 examples            gram
    F has products                                          matrix_free
    else                                                    diagonal_fisher

for P parameters and M = K·N score columns of N examples.

- Few parameters: P <= 512, for which `spring` averages F over batches, and an exact
  step takes 2·10⁹ multiplications at most, some tens of milliseconds on one core.
- Few columns: one or two an example and M <= 2,048, solved in sample space, whose
  factorisation takes as long, whatever P is. They determine F where the loss is least
  squares, F's effective dimension at most M/5.
- Beyond 512 parameters `spring` has F of one batch, and its momentum in the solve keeps
  about 1/η of those before, three. K-FAC averages over twenty, and ends lower where
  labels are noisy. `spring` ends lower where models fit every label.
- `natural_gradient` is `spring` without momentum: nowhere much better, on equations,
  whose small eigenvalues take many steps, far above.
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
from natgrad.curvature.automatic import AVERAGED

CHEAP = 2e9
FEW_OUTPUTS, SAMPLES, SAMPLED = 2, 2048, 4096
DETERMINED, COVERED, LARGE = 1 / 5, 0.85, 32
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
    small = layers.parameters <= AVERAGED and costs.exact <= CHEAP
    few = costs.columns <= FEW_OUTPUTS and samples <= SAMPLES and costs.space == "Gram"
    captured = not layers.obstacle and layers.covered >= COVERED
    determined = (
        batch.least_squares and curvature.effective_dimension <= DETERMINED * samples
    )
    if small or (few and (determined or not captured)):
        return _exact(layers, costs)
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
    return _last_resort(why, batch, curvature)


def _exact(layers: LayersSeen, costs: Costs) -> Advice:
    size = f"{count(layers.parameters, 'parameter')} and"
    size += f" {count(costs.columns, 'score column')} an example"
    reason = f"with {size} an exact step is cheap ({_dearer(costs)} the arithmetic of a"
    reason += " gradient), and what one batch does not show is kept from those before"
    return Advice("spring", (MODEL,), reason)


def _last_resort(why: str, batch: BatchFigures, curvature: CurvatureFigures) -> Advice:
    if batch.labels == 1 and batch.examples <= SAMPLED:
        return Advice(
            "gram",
            (MODEL,),
            f"{why}, and with one score column an example F takes "
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
