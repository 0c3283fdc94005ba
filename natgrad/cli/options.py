"""Options of the commands that compare, and the settings they make.

A command is a dataclass with a field for each of its options: typer reads them, and
what was typed becomes an instance, which `run` carries out. The docstring is what
--help says.
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


def _flag(name: str, help: str) -> Any:
    return typer.Option(f"--{name}", help=help)


def _folder(text: str | Path) -> Path:
    if not str(text):
        raise UsageError("--output is empty; expected a folder, such as . for this one")
    return Path(text)


_CONFIG = typer.Option(
    metavar="FILE",
    help="a TOML file of these options, such as hidden = [16, 8]; what is typed goes "
    "first",
    callback=defaults_from_file,
    is_eager=True,
)
_SOURCES, _MODELS = ", ".join(SOURCES), ", ".join(MODELS)
_FORMS = f"some of {', '.join(CURVATURES)} (default: all that fit)"
_EXACT = "what counts as exact (default: dense, or matrix_free for large models)"
_REPEAT = "run each optimizer from N more seeds at its best rate (default: 0)"
_ALONG = "also compare after these steps of a run of Adam (default: none)"

# name -> (type, option); what was not typed is None, a flag False.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "data": (
        str,
        option("NAME", f"{_SOURCES}, or an .npz file (default: digits)", SOURCES),
    ),
    "model": (
        str,
        option("NAME", f"{_MODELS}, or module:function (default: mlp)", MODELS),
    ),
    "hidden": (
        list[int],
        option("WIDTH...", "widths of the mlp's hidden layers (default: 16)"),
    ),
    "examples": (int, option("N", "rows of the data (default: all)", lowest=FEWEST)),
    "damping": (float, option("λ", "added to every Fisher (default: 0.001)", lowest=0)),
    "seed": (
        int,
        option("N", "of split, weights, batches and draws (default: 0)", lowest=0),
    ),
    "x64": (bool, _flag("x64", "compute in float64")),
    "quick": (bool, _flag("quick", "a small model and few steps: a look")),
    "config": (str, _CONFIG),
    "output": (
        Path,
        typer.Option(metavar="DIR", help="where files go", parser=_folder),
    ),
    "at_step": (
        int,
        option("STEP", "steps of Adam before measuring (default: 20)", lowest=0),
    ),
    "approximations": (list[str], option("NAME...", _FORMS, CURVATURES)),
    "reference": (str, option("NAME", _EXACT, CURVATURES)),
    "optimizers": (list[str], racers(DEFAULT)),
    "steps": (int, option("N", "of each training run (default: 30)", lowest=1)),
    "batch_size": (int, option("N", "examples a step (default: 256)", lowest=1)),
    "rates": (
        int,
        option("N", "learning rates for each optimizer (default: 6)", lowest=1),
    ),
    "full": (bool, _flag("full", "all figures, in four tables")),
    "repeat": (int, option("N", _REPEAT, lowest=0)),
    "along": (list[int], option("STEP...", _ALONG, lowest=0)),
}
OF_MODEL = ("data", "model", "hidden", "examples", "damping", "seed", "x64", "quick")
OF_MODEL += ("config",)
OF_FIDELITY = ("at_step", "approximations", "reference")
OF_RACE = ("optimizers", "steps", "batch_size", "rates")


def takes(*names: str, **defaults: Any) -> Callable[[type], type]:
    """Make a command of a class: a dataclass with these options.

    Args:
        names: in `OPTIONS`, in the order in which --help lists them.
        defaults: of options; another option of typer in place of that of the table.
    """

    def decorate(cls: type) -> type:
        cls.__annotations__ = {}
        for name in names:
            kind, how = OPTIONS[name]
            default = defaults.get(name, False if kind is bool else None)
            if isinstance(default, type(how)):
                how, default = default, None
            kind = kind | None if default is None else kind
            cls.__annotations__[name] = Annotated[kind, how]
            setattr(cls, name, default)
        return dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    return decorate


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


class ModelCommand:
    """A command on a model and data."""

    x64: bool
    quick: bool

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


class ComparingCommand(ModelCommand):
    """A command that compares, and writes files."""

    output: Path

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
