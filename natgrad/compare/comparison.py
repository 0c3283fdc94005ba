"""The record of a comparison: rows of figures, and where they were taken.

What the figures are stands in `natgrad.compare.figures`, `path`, `invariance` and
`misspecification`, which measure them.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from natgrad.compare import columns, tables
from natgrad.compare.extras import require
from natgrad.compare.figures import Figures, Spectrum
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.path import Point
from natgrad.compare.timing import Cost

# Characters a line of plain text.
_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Row:
    """One approximation A measured against the reference F.

    The figures of all parameters and those at the full step can be read off the row
    itself: `row.relative_error`, `row.actual_kl`.

    Attributes:
        name: as given, or in the registry.
        whole: figures of all parameters.
        blocks: figures of each block.
        full: predictions and what happens at step size η.
        path: the same at some multiples of η.
        spectrum: eigenvalues of A.
        invariance_defect: see `natgrad.compare.invariance`; NaN where no layer can be
            recombined, and so for the step.
        invariance_error: its standard error, 0 where it is exact.
        step_invariance_defect: of the damped step.
        residual: |(A + λI) d/η − g| / |g|, how well the solver solved.
        fallback: did the solver's first choice of algorithm fail?
        statistics_bytes: what a moving average keeps.
        cost: of estimating A and solving for the step.
        agrees: is A the reference to rounding, √ε of the dtype?
        uses_targets: is A made of the data's own labels? Then it is not a Fisher
            information, however small its error is here.
        uses_key: is A made of random labels? Then the figures are those of one draw.
    """

    name: str
    whole: Figures
    blocks: tuple[Figures, ...]
    full: Point
    path: tuple[Point, ...]
    spectrum: Spectrum
    invariance_defect: float
    invariance_error: float
    step_invariance_defect: float
    residual: float
    fallback: bool
    statistics_bytes: int
    cost: Cost
    agrees: bool
    uses_targets: bool
    uses_key: bool

    def __getattr__(self, name: str) -> Any:
        """A figure of all parameters, or of the full step."""
        if name in _OF_WHOLE:
            return getattr(self.whole, name)
        if name in _OF_FULL:
            return getattr(self.full, name)
        raise AttributeError(f"a row has no figure called {name!r}")

    def figures(self) -> dict[str, float]:
        """Every figure of all parameters and of the full step: name -> number."""
        own = ("invariance_defect", "step_invariance_defect", "residual")
        return {
            **{name: getattr(self.whole, name) for name in _OF_WHOLE},
            **{name: getattr(self.full, name) for name in _OF_FULL},
            **{name: getattr(self, name) for name in own},
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {
            "name": self.name,
            **self.figures(),
            "standard_errors": dict(self.whole.standard_errors),
            "invariance_error": self.invariance_error,
            "fallback": self.fallback,
            "statistics_bytes": self.statistics_bytes,
            "cost": dataclasses.asdict(self.cost),
            "agrees": self.agrees,
            "uses_targets": self.uses_targets,
            "uses_key": self.uses_key,
            "blocks": [dataclasses.asdict(block) for block in self.blocks],
            "path": [dataclasses.asdict(point) for point in self.path],
            "spectrum": dataclasses.asdict(self.spectrum),
        }


_NOT_FIGURES = {"name", "parameters", "standard_errors", "step_size"}
_names = lambda cls: tuple(
    field.name for field in dataclasses.fields(cls) if field.name not in _NOT_FIGURES
)
_OF_WHOLE, _OF_FULL = _names(Figures), _names(Point)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows of figures, and where they were taken.

    Attributes:
        rows: one an approximation.
        reference: the name of what they are measured against.
        damping: λ.
        step_size: η.
        loss: L(θ), nats an example.
        gradient_norm: |g|.
        reference_norm: ‖F‖_F.
        parameters: P.
        examples: N.
        dtype: of the figures.
        formed: were matrices [P, P] formed? Otherwise figures are estimates from
            products; see `natgrad.compare.figures`.
        spectrum: eigenvalues of F.
        misspecification: could the labels have come from the model?
        skipped: (name, reason) of approximations that were not asked for by name and
            do not fit.
    """

    rows: tuple[Row, ...]
    reference: str
    damping: float
    step_size: float
    loss: float
    gradient_norm: float
    reference_norm: float
    parameters: int
    examples: int
    dtype: str
    formed: bool
    spectrum: Spectrum
    misspecification: Misspecification
    skipped: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return self.table()

    def __rich__(self) -> Any:
        """The tables and their legends, for `rich.print`."""
        group = require("rich.console").Group
        verdict = require("rich.text").Text(f"Labels: {self.misspecification.verdict}.")
        parts = [tables.rich(table, self.rows) for table in columns.FIGURES]
        blocks = tables.rich(columns.BLOCKS, self.by_block())
        return group(*parts, blocks, verdict)

    def table(self) -> str:
        """The figures as plain text."""
        parts = [tables.plain(table, self.rows) for table in columns.FIGURES]
        parts.append(tables.plain(columns.BLOCKS, self.by_block()))
        notes = [f"left out: {name}: {reason}" for name, reason in self.skipped]
        verdict = f"labels: {self.misspecification.verdict}"
        lines = [textwrap.fill(line, _WIDTH) for line in (verdict, *notes)]
        return "\n\n".join([*parts, "\n".join(lines)])

    def by_block(self) -> list[columns.BlockRow]:
        """One line a block and approximation, block by block."""
        pairs = [
            columns.BlockRow(row.name, figures)
            for row in self.rows
            for figures in row.blocks
        ]
        order = {figures.name: i for i, figures in enumerate(self.rows[0].blocks)}
        return sorted(pairs, key=lambda pair: order[pair.figures.name])

    def records(self) -> list[dict[str, Any]]:
        """One flat dict an approximation and part; block "" is all parameters."""
        found = []
        for row in self.rows:
            shared = {"approximation": row.name, "reference": self.reference}
            whole = {"block": "", "parameters": self.parameters, **row.figures()}
            costs = dataclasses.asdict(row.cost)
            kept = {"statistics_bytes": row.statistics_bytes}
            found.append({**shared, **whole, **costs, **kept})
            for block in row.blocks:
                figures = {name: getattr(block, name) for name in _OF_WHOLE}
                place = {"block": block.name, "parameters": block.parameters}
                found.append({**shared, **place, **figures})
        return found

    def to_pandas(self) -> Any:
        """`records` as a pandas DataFrame.

        Raises:
            MissingExtra: where pandas is not installed.
        """
        return require("pandas").DataFrame.from_records(self.records())

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        record = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        verdict = self.misspecification
        return {
            **record,
            "rows": [row.to_dict() for row in self.rows],
            "spectrum": dataclasses.asdict(self.spectrum),
            "misspecification": {
                **dataclasses.asdict(verdict),
                "verdict": verdict.verdict,
            },
            "skipped": [list(pair) for pair in self.skipped],
        }
