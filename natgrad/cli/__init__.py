"""The subcommands of `natgrad`, one a module.

Each has register(subparsers) -> None, whose parser sets `run`: arguments -> exit code.
"""
