"""The version of natgrad."""

__version__ = "0.1.0.dev0"
