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

from natgrad.cli.data import FEWEST, SOURCES
from natgrad.cli.experiment import QUICK, Experiment, Settings
from natgrad.cli.models import MODELS
from natgrad.cli.parsing import defaults_from_file
from natgrad.cli.session import Session
from natgrad.cli.shared import UsageError, check_directory, numerics
from natgrad.compare.extras import require
from natgrad.compare.runs import BASELINES
from natgrad.curvature import CURVATURES


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
_RACERS = f"approximations, {', '.join(BASELINES)} (default: what fits of {{}})"
_REPEAT = "run each optimizer from N more seeds at its best rate (default: {})"
_ALONG = "also compare after these steps of a run of Adam (default: none)"

# name -> type, what stands for a value, help, what a shell completes, and the least
# number allowed. What was not typed is None; {} stands for what that means.
_VALUES: dict[str, tuple] = {
    "data": (str, "NAME", f"{_SOURCES}, or an .npz file (default: {{}})", SOURCES),
    "model": (str, "NAME", f"{_MODELS}, or module:function (default: {{}})", MODELS),
    "hidden": (
        list[int],
        "WIDTH...",
        "widths of the mlp's hidden layers (default: {})",
    ),
    "examples": (int, "N", "rows of the data (default: all)", (), FEWEST),
    "damping": (float, "λ", "added to every Fisher (default: {})", (), 0),
    "seed": (int, "N", "of split, weights, batches and draws (default: {})", (), 0),
    "at_step": (int, "STEP", "steps of Adam before measuring (default: {})", (), 0),
    "approximations": (list[str], "NAME...", _FORMS, CURVATURES),
    "reference": (str, "NAME", _EXACT, CURVATURES),
    "optimizers": (
        list[str],
        "NAME...",
        f"who races: {_RACERS}",
        (*CURVATURES, *BASELINES),
    ),
    "steps": (int, "N", "of each training run (default: {})", (), 1),
    "batch_size": (int, "N", "examples a step (default: {})", (), 1),
    "rates": (int, "N", "learning rates for each optimizer (default: {})", (), 1),
    "repeat": (int, "N", _REPEAT, (), 0),
    "along": (list[int], "STEP...", _ALONG, (), 0),
}
# name -> (type, option of typer) of the others; a flag that was not typed is False.
_OTHERS: dict[str, tuple] = {
    "x64": (bool, typer.Option("--x64", help="compute in float64")),
    "quick": (
        bool,
        typer.Option("--quick", help="a small model and few steps: a look"),
    ),
    "full": (bool, typer.Option("--full", help="all figures, in four tables")),
    "config": (str, _CONFIG),
    "output": (
        Path,
        typer.Option(metavar="DIR", help="where files go", parser=_folder),
    ),
}
OF_MODEL = ("data", "model", "hidden", "examples", "damping", "seed", "x64", "quick")
OF_MODEL += ("config",)
OF_FIDELITY = ("at_step", "approximations", "reference")
OF_RACE = ("optimizers", "steps", "batch_size", "rates")


def takes(*names: str, output: str = "", **usual: Any) -> Callable[[type], type]:
    """Make a command of a class: a dataclass with these options.

    Args:
        names: of options, in the order in which --help lists them.
        output: the folder where its files go.
        usual: settings that the command changes, of which its help speaks.
    """
    settings = dataclasses.replace(Settings(), **usual)

    def decorate(cls: type) -> type:
        cls.__annotations__ = {}
        for name in names:
            if name in _OTHERS:
                kind, how = _OTHERS[name]
            else:
                kind, how = _option(*_VALUES[name], usual=getattr(settings, name))
            default = {bool: False, Path: Path(output)}.get(kind)
            kind = kind | None if default is None else kind
            cls.__annotations__[name] = Annotated[kind, how]
            setattr(cls, name, default)
        return dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    return decorate


def _option(
    kind: type,
    metavar: str,
    help: str,
    names: Iterable[str] = (),
    lowest: float | None = None,
    *,
    usual: Any,
) -> tuple[type, Any]:
    """A line of the table for typer."""
    words = " ".join(map(str, usual)) if isinstance(usual, tuple) else usual
    complete: Callable[[], list[str]] | None = (lambda: list(names)) if names else None
    how = {"metavar": metavar, "help": help.format(words), "min": lowest}
    return kind, typer.Option(autocompletion=complete, **how)


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

    def experiment(self) -> Experiment:
        """What was typed, or else the defaults or those of --quick, made concrete.

        Raises:
            ValueError: for what cannot be, as more examples than the data has.
        """
        typed: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value, list) else value
            for field in dataclasses.fields(Settings)
            if (value := getattr(self, field.name, None)) is not None
        }
        base = QUICK if self.quick else Settings()
        given = {**self.defaults(), "leave_out": "optimizers" not in typed, **typed}
        experiment = Experiment.of(dataclasses.replace(base, **given))
        data = experiment.dataset
        train, test = len(data.train[0]), len(data.test[0])
        for name, most in {"examples": train + test, "batch_size": train}.items():
            if typed.get(name, 0) > most:
                raise ValueError(
                    f"--{name.replace('_', '-')} {typed[name]} is more than there is: "
                    f"{data.name} has {train + test} examples, {train} of them to "
                    "train with"
                )
        return experiment


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
        return self.session(self.experiment(), self.output).run()
