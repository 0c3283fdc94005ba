"""Options of the commands that compare, and the settings they make.

A command is a dataclass: typer reads an option from each field, and what was typed
becomes an instance, which `run` carries out. The docstring is what --help says.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from natgrad.cli.data import FEWEST, SOURCES, Dataset
from natgrad.cli.experiment import QUICK, Experiment, Settings
from natgrad.cli.models import MODELS
from natgrad.cli.parsing import defaults_from_file
from natgrad.cli.session import Session
from natgrad.cli.shared import UsageError, check_directory, numerics
from natgrad.compare.contenders import BASELINES, DEFAULT
from natgrad.compare.extras import require
from natgrad.curvature import CURVATURES


def option(
    metavar: str, help: str, names: Iterable[str] = (), *, lowest: float | None = None
) -> Any:
    """An option of typer.

    Args:
        metavar: what stands for its value in the help.
        help: what it is for.
        names: what a shell may complete.
        lowest: the smallest number that is allowed.
    """
    complete: Callable[[], list[str]] | None = (lambda: list(names)) if names else None
    return typer.Option(metavar=metavar, help=help, autocompletion=complete, min=lowest)


def racers(default: tuple[str, ...]) -> Any:
    """The option of who races, by `default` what fits of these names."""
    baselines, usual = ", ".join(BASELINES), " ".join(default)
    words = f"approximations, {baselines} (default: what fits of {usual})"
    return option("NAME...", f"who races: {words}", (*CURVATURES, *BASELINES))


def _folder(text: str | Path) -> Path:
    if not str(text):
        raise UsageError("--output is empty; expected a folder, such as . for this one")
    return Path(text)


Output = Annotated[
    Path, typer.Option(metavar="DIR", help="where files go", parser=_folder)
]

EPILOG = """\
The figures are taken after a few steps of Adam (--at-step): at initial parameters
predictions are nearly uniform and approximations look alike. Losses and divergences
are means over examples, in nats.

Your own data: an .npz file with `inputs` [N, ...] and `targets`: whole numbers [N] are
classes, others are numbers to predict, [N] or [N, K]. It is never unpickled.

Your own model: module:function, called as function(key, inputs, outputs) with some
inputs and the number of outputs C; it returns (apply, params), where apply(params,
inputs) gives [N, C], or (natgrad.Model, params).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model on which data; options that were not typed are None."""

    data: Annotated[
        str | None,
        option(
            "NAME", f"{', '.join(SOURCES)}, or an .npz file (default: digits)", SOURCES
        ),
    ] = None
    model: Annotated[
        str | None,
        option(
            "NAME", f"{', '.join(MODELS)}, or module:function (default: mlp)", MODELS
        ),
    ] = None
    hidden: Annotated[
        list[int] | None,
        option("WIDTH...", "widths of the mlp's hidden layers (default: 16)"),
    ] = None
    examples: Annotated[
        int | None, option("N", "rows of the data (default: all)", lowest=FEWEST)
    ] = None
    damping: Annotated[
        float | None, option("λ", "added to every Fisher (default: 0.001)", lowest=0)
    ] = None
    seed: Annotated[
        int | None,
        option("N", "of split, weights, batches and draws (default: 0)", lowest=0),
    ] = None
    x64: Annotated[bool, typer.Option("--x64", help="compute in float64")] = False
    quick: Annotated[
        bool, typer.Option("--quick", help="a small model and few steps: a look")
    ] = False
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="a TOML file of these options, such as hidden = [16, 8]; what is "
            "typed goes first",
            callback=defaults_from_file,
            is_eager=True,
        ),
    ] = None

    def run(self) -> int:
        """Carry out what was typed, in the precision that was asked for.

        Returns:
            The exit code.

        Raises:
            UsageError: for names, numbers and files that make no sense.
            MissingExtra: where rich, matplotlib or scikit-learn is not installed.
        """
        with numerics(x64=self.x64):
            try:
                return self.carry_out()
            except ValueError as error:
                raise UsageError(str(error)) from error

    def carry_out(self) -> int:
        """What the command does; the exit code."""
        raise NotImplementedError

    def defaults(self) -> Mapping[str, Any]:
        """Settings of this command that differ from `Settings`."""
        return {}

    def settings(self) -> Settings:
        """The defaults, or those of --quick, with what was typed."""
        typed = {
            field.name: tuple(value) if isinstance(value, list) else value
            for field in dataclasses.fields(Settings)
            if (value := getattr(self, field.name, None)) is not None
        }
        if "optimizers" in typed:
            typed["leave_out"] = False
        base = QUICK if self.quick else Settings()
        return dataclasses.replace(base, **{**self.defaults(), **typed})

    def check_counts(self, dataset: Dataset) -> None:
        """Raise a UsageError where more was typed than the data has."""
        train, test = len(dataset.train[0]), len(dataset.test[0])
        for name, most in {"examples": train + test, "batch_size": train}.items():
            typed = getattr(self, name, None)
            if typed is not None and typed > most:
                raise UsageError(
                    f"--{name.replace('_', '-')} {typed} is more than there is: "
                    f"{dataset.name} has {train + test} examples, {train} of them to "
                    "train with"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    """Options of every command that compares."""

    output: Output = Path("natgrad")

    session: ClassVar[type[Session]]

    def carry_out(self) -> int:
        """Check everything, prepare the experiment and run the session.

        Raises:
            OSError: where the output cannot be written.
        """
        for module in ("rich", "matplotlib"):
            require(module)
        check_directory(self.output)
        experiment = Experiment.of(self.settings())
        self.check_counts(experiment.dataset)
        return self.session(experiment, self.output).run()


AtStep = Annotated[
    int | None,
    option("STEP", "steps of Adam before measuring (default: 20)", lowest=0),
]
BatchSize = Annotated[
    int | None, option("N", "examples a step (default: 256)", lowest=1)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FidelityOptions:
    """Options of what is compared, and where."""

    at_step: AtStep = None
    approximations: Annotated[
        list[str] | None,
        option(
            "NAME...",
            f"some of {', '.join(CURVATURES)} (default: all that fit)",
            CURVATURES,
        ),
    ] = None
    reference: Annotated[
        str | None,
        option(
            "NAME",
            "what counts as exact (default: dense, or matrix_free for large models)",
            CURVATURES,
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaceOptions:
    """Options of the training runs."""

    optimizers: Annotated[list[str] | None, racers(DEFAULT)] = None
    steps: Annotated[
        int | None, option("N", "of each training run (default: 30)", lowest=1)
    ] = None
    batch_size: BatchSize = None
    rates: Annotated[
        int | None,
        option("N", "learning rates for each optimizer (default: 6)", lowest=1),
    ] = None
