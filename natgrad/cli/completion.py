"""`natgrad completion`: what makes bash complete commands, options and names.

eval "$(natgrad completion bash)"
"""

from __future__ import annotations

import argparse

from natgrad.cli.data import SOURCES
from natgrad.cli.models import MODELS
from natgrad.compare.contenders import BASELINES
from natgrad.curvature import CURVATURES

# (command or "", option) -> names that may follow; files are offered beside them.
_NAMES = {
    ("", "--data"): tuple(SOURCES),
    ("", "--model"): tuple(MODELS),
    ("", "--approximations"): tuple(CURVATURES),
    ("", "--reference"): tuple(CURVATURES),
    ("", "--optimizers"): (*CURVATURES, *BASELINES),
}


def register(commands: argparse._SubParsersAction) -> None:
    """Add `completion` to the commands of a parser."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete names and options",
        description='Tab-completion for bash: eval "$(natgrad completion bash)"',
    )
    parser.add_argument("shell", choices=["bash"], help="whose script to print")
    parser.set_defaults(run=lambda _: _print(commands.choices))


def _print(parsers: dict[str, argparse.ArgumentParser]) -> int:
    print(script(parsers))
    return 0


def script(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """A bash function that completes what these parsers read."""
    cases = []
    for name, parser in parsers.items():
        options = [
            text
            for action in parser._actions
            for text in action.option_strings
            if text.startswith("--")
        ]
        choices = [
            choice
            for action in parser._actions
            if not action.option_strings
            for choice in action.choices or ()
        ]
        for option in options:
            names = _NAMES.get((name, option), _NAMES.get(("", option)))
            if names:
                cases.append(f"    {name},{option}) words='{' '.join(names)}' ;;")
        cases.append(f"    {name},*) words='{' '.join([*options, *choices])}' ;;")
    body = "\n".join(cases)
    return f"""\
_natgrad() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} option= words= i
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(parsers)} --help --version' -- "$word"))
    return
  fi
  if [ "${{word#-}}" = "$word" ]; then
    for ((i = COMP_CWORD - 1; i > 1; i--)); do
      case ${{COMP_WORDS[i]}} in --*) option=${{COMP_WORDS[i]}}; break ;; esac
    done
  fi
  case $command,$option in
{body}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _natgrad natgrad"""
