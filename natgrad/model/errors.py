"""Errors that callers tell apart from other ValueErrors."""


class DoesNotFitError(ValueError):
    """Something needs more memory than there is, or than it may have."""
