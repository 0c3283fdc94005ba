"""Options of the commands that compare, and the settings they make."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

from natgrad.cli.data import SOURCES
from natgrad.cli.experiment import QUICK, Experiment, Settings
from natgrad.cli.files import check_directory
from natgrad.cli.models import MODELS
from natgrad.cli.shared import UsageError, add_output, numerics
from natgrad.compare.contenders import BASELINES
from natgrad.compare.extras import require
from natgrad.curvature import CURVATURES

_OWN = """\
Your own data: an .npz file with `inputs` [N, ...] and `targets`: whole numbers [N] are
classes, others are numbers to predict, [N] or [N, K]. It is never unpickled.
Your own model: module:function, called as function(key, inputs, outputs) with some
inputs and the number of outputs C; it returns (apply, params), where apply(params,
inputs) gives [N, C], or (natgrad.Model, params).
"""

_MEASURED = """\
The figures are taken after a few steps of Adam (--at-step): at initial parameters
predictions are nearly uniform and approximations look alike. Losses and divergences
are means over examples, in nats.
"""


def command(
    commands: argparse._SubParsersAction, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """A command's parser, with the options of data, model and output."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"{_MEASURED}\n{_OWN}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="NAME",
        help=f"one of {', '.join(SOURCES)}, or an .npz file (default: digits)",
    )
    add(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}, or module:function (default: mlp)",
    )
    add(
        "--hidden",
        type=int,
        nargs="+",
        metavar="WIDTH",
        help="widths of the mlp's hidden layers (default: 16)",
    )
    add("--examples", type=int, metavar="N", help="rows of the data (default: all)")
    add("--damping", type=float, help="λ added to every Fisher (default: 0.001)")
    add("--seed", type=int, help="of split, weights, batches and draws (default: 0)")
    add_output(parser, f"natgrad-{name}")
    add("--x64", action="store_true", help="compute in float64")
    add("--quick", action="store_true", help="a small model and few steps: a look")
    return parser


def add_fidelity(parser: argparse.ArgumentParser) -> None:
    """Options of what is compared, and where."""
    add = parser.add_argument
    add(
        "--at-step",
        type=int,
        metavar="STEP",
        help="steps of Adam before comparing (default: 20)",
    )
    add(
        "--approximations",
        nargs="+",
        metavar="NAME",
        help=f"some of {', '.join(CURVATURES)} (default: all that fit)",
    )
    add(
        "--reference",
        metavar="NAME",
        help="what counts as exact (default: dense, or matrix_free for large models)",
    )


def add_race(parser: argparse.ArgumentParser, optimizers: tuple[str, ...]) -> None:
    """Options of the training runs."""
    add = parser.add_argument
    add(
        "--optimizers",
        nargs="+",
        metavar="NAME",
        help=f"who races: approximations, {', '.join(BASELINES)} "
        f"(default: what fits of {' '.join(optimizers)})",
    )
    add("--steps", type=int, help="of each training run (default: 30)")
    add("--batch-size", type=int, metavar="N", help="examples a step (default: 256)")
    add("--rates", type=int, help="learning rates for each optimizer (default: 6)")


def start(
    arguments: argparse.Namespace,
    run: Callable[[Experiment], int],
    defaults: dict | None = None,
) -> int:
    """Check everything, prepare the experiment and run; the exit code.

    Args:
        arguments: of the command line.
        run: what to do with the experiment.
        defaults: settings of this command that differ from `Settings`.

    Raises:
        UsageError: for names, numbers and files that make no sense.
        MissingExtra: where rich, matplotlib or scikit-learn is not installed.
    """
    for module in ("rich", "matplotlib"):
        require(module)
    check_directory(arguments.output)
    with numerics(x64=arguments.x64):
        try:
            experiment = Experiment.of(_settings(arguments, defaults or {}))
            return run(experiment)
        except ValueError as error:
            raise UsageError(str(error)) from error


def _settings(arguments: argparse.Namespace, defaults: dict) -> Settings:
    """The defaults, or those of --quick, with what was given on the command line."""
    given = {
        field.name: getattr(arguments, field.name, None)
        for field in dataclasses.fields(Settings)
    }
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    if "optimizers" in given:
        given["leave_out"] = False
    base = QUICK if arguments.quick else Settings()
    return dataclasses.replace(base, **{**defaults, **given})
