"""The `natgrad` command: its commands, and what becomes of their errors.

typer makes an instance of a command's dataclass of what was typed; `run` of that
instance does the work, outside of typer, and returns the exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from natgrad import __version__
from natgrad.cli.commands import Compare, Devices, Doctor, Race, Spectrum
from natgrad.cli.options import EPILOG, ModelCommand
from natgrad.cli.parsing import Command
from natgrad.cli.report import Report
from natgrad.cli.shared import FAILED, INTERRUPTED, USAGE, UsageError
from natgrad.compare.extras import MissingExtra


def _completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(help="whose script to print")
    ],
) -> int:
    """Print what makes a shell complete names and options.

    In bash: eval "$(natgrad completion bash)"
    """
    os.environ["_NATGRAD_COMPLETE"] = f"source_{shell}"
    try:
        return _application().main([], prog_name="natgrad", standalone_mode=False)
    finally:
        del os.environ["_NATGRAD_COMPLETE"]


def _kunstner() -> None:
    """Moved to `python -m benchmarks.kunstner`."""
    raise UsageError(
        "the experiments of Kunstner, Hennig & Balles (2019) are no part of the "
        "package any more; in natgrad's repository: python -m benchmarks.kunstner"
    )


COMMANDS = {
    "compare": Compare,
    "race": Race,
    "spectrum": Spectrum,
    "report": Report,
    "doctor": Doctor,
    "devices": Devices,
    "completion": _completion,
}


def run(typed: Sequence[str]) -> int:
    """Run the command with the words typed after `natgrad`.

    Returns:
        The exit code: 0, 1 where something failed, 2 where it was asked wrongly, 130
        after Ctrl-C.
    """
    names = (*COMMANDS, "kunstner")
    name = next((f" {word}" for word in typed if word in names), "")
    try:
        how = {"prog_name": "natgrad", "standalone_mode": False}
        command = _application().main(list(typed), **how)
        return command if isinstance(command, int) else command.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(name, "interrupted, wrote nothing", INTERRUPTED)
    except typer.TyperException as error:
        return _fail(name, f"error: {error.format_message()}", error.exit_code)
    except (UsageError, MissingExtra, OSError) as error:
        code = USAGE if isinstance(error, UsageError) else FAILED
        return _fail(name, f"error: {error}", code)


def _fail(name: str, message: str, code: int) -> int:
    print(f"natgrad{name}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _application() -> Any:
    """The command of typer."""
    app = typer.Typer(
        help="Differentiable natural-gradient optimizers for JAX.",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    app.callback()(_natgrad)
    for name, command in COMMANDS.items():
        on_model = isinstance(command, type) and issubclass(command, ModelCommand)
        epilog = EPILOG if on_model else None
        app.command(name, cls=Command, epilog=epilog)(command)
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("kunstner", hidden=True, context_settings=anything)(_kunstner)
    return typer.main.get_command(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"natgrad {__version__}")
        raise typer.Exit()


_VERSION = typer.Option(
    "--version",
    help="Show the version and exit.",
    callback=_show_version,
    is_eager=True,
)


def _natgrad(version: Annotated[bool, _VERSION] = False) -> None:
    """Nothing is done before the command."""
