"""`natgrad doctor`: five lines on a model and a batch; nothing is written."""

from __future__ import annotations

import dataclasses
import textwrap

import jax
import numpy as np

from natgrad.cli import data
from natgrad.cli.experiment import approach, build_model
from natgrad.cli.options import AtStep, BatchSize, ModelOptions
from natgrad.cli.shared import UsageError, numerics
from natgrad.compare.doctor import Diagnosis, doctor

_WIDTH = 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(ModelOptions):
    """Which optimizer to use for a model, and why: five lines.

    Check a batch, read the layers, and measure gradient noise and curvature. Nothing
    is trained to the end and nothing is written.
    """

    at_step: AtStep = None
    batch_size: BatchSize = None

    def run(self) -> int:
        """Print the five lines.

        Returns:
            The exit code.

        Raises:
            UsageError: for names, numbers and files that make no sense.
            MissingExtra: where scikit-learn is not installed.
        """
        with numerics(x64=self.x64):
            try:
                found = self._diagnosis()
            except ValueError as error:
                raise UsageError(str(error)) from error
        for line in str(found).splitlines():
            print(textwrap.fill(line, _WIDTH, subsequent_indent="    "))
        return 0

    def _diagnosis(self) -> Diagnosis:
        settings = self.settings()
        dataset = data.load(settings.data, seed=settings.seed, limit=settings.examples)
        self.check_counts(dataset)
        model, params = build_model(settings, dataset, settings.seed)
        params = approach(model, params, *dataset.train, steps=settings.at_step)
        order = np.random.default_rng(settings.seed).permutation(len(dataset.train[0]))
        inputs, targets = (
            array[order[: settings.batch_size]] for array in dataset.train
        )
        key = jax.random.PRNGKey(settings.seed)
        return doctor(model, params, inputs, targets, damping=settings.damping, key=key)
