"""What a certificate says: measured numbers, and where each was expected."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Check(NamedTuple):
    """One number.

    Attributes:
        name: what was measured.
        value: what came out.
        low: the least admissible value.
        high: the greatest.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value lies within its bounds; NaN does not."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        mark = "ok  " if self.passed else "FAIL"
        bounds = f"≤ {self.high:.3g}"
        if self.low not in (0, float("-inf")):
            bounds = f"in [{self.low:.3g}, {self.high:.3g}]"
        return f"{mark} {self.name}: {self.value:.3g}, expected {bounds}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a certificate; prints as one line a check.

    Attributes:
        title: what was certified.
        checks: the numbers.
    """

    title: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def raise_if_failed(self) -> Report:
        """Raises if a check failed.

        Returns:
            The report itself.

        Raises:
            ValueError: checks failed; the message names them.
        """
        failed = [str(check) for check in self.checks if not check.passed]
        if failed:
            raise ValueError("\n".join([f"{self.title}: certificate failed.", *failed]))
        return self

    def __getitem__(self, name: str) -> Check:
        """The check of this name."""
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {check}" for check in self.checks)])
