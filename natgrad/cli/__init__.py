"""The `natgrad` command, for the terminal: nothing in the library imports it.

`main` has the list of commands, one a module: a dataclass of options, which typer fills
in, and the session that it starts. An experiment is data, a model and settings.
"""
