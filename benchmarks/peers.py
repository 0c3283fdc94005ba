"""kfac-jax in a race: an environment of its own, a process in it, a runner that asks.

kfac-jax 0.0.8 does not run on JAX 0.9.2 or newer. It therefore has an environment with
JAX 0.9.1, which this makes with `python -m venv` and pip where it is not there yet
(0.7 GB), and runs in a process of its own, `benchmarks/peer_worker.py`, which takes
turns with ours: the same parameters, batches and losses. CPU seconds are those of its
process. What it takes to compile is the CPU time of its first step, that step included;
what memory it takes is not known.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.optimizers import PEERS
from benchmarks.racing import Losses
from benchmarks.training import Pick, Problem

WORKER = Path(__file__).parent / "peer_worker.py"
ENVIRONMENT = Path(tempfile.gettempdir()) / "natgrad-peers"
JAX = "0.9.1"
REQUIREMENTS = ("kfac-jax==0.0.8",)


class Remote:
    """An optimizer in the worker's process, on the problem that the worker was given.

    Attributes:
        setting, compile_cpu, temporary: as those of `benchmarks.racing.Runner`.
    """

    temporary = None

    def __init__(self, worker: Worker, name: str, problem: Problem):
        self.worker, self.name, self.problem = worker, name, problem
        self.setting, self.compile_cpu = PEERS[name][0], 0.0

    def start(self, seed: int) -> Losses:
        """Back to the parameters of this seed; their losses."""
        file, arrays = self.worker.folder / "params.npz", {}
        for i, layer in enumerate(self.problem.initial(seed)):
            arrays |= {f"{k}{i}": np.asarray(layer[k]) for k in ("w", "b")}
        np.savez(file, **arrays)
        asked = {"do": "start", "name": self.name, "setting": self.setting[0]}
        return self.worker.ask(asked | {"params": str(file)})["losses"]

    def turn(self, picks: list[Pick]) -> tuple[float, float, Losses]:
        """A step for each batch: wall seconds, CPU seconds, losses after them."""
        asked = {"do": "turn", "name": self.name, "picks": [p.tolist() for p in picks]}
        answer = self.worker.ask(asked)
        self.compile_cpu = self.compile_cpu or answer["compile"]
        return answer["wall"], answer["cpu"], answer["losses"]


class Worker:
    """`peer_worker.py` under another Python; questions and answers are JSON.

    Attributes:
        folder: where files for it lie.
    """

    def __init__(self, python: Path, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [python, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def give(self, problem: Problem, linear: int, evaluated: int) -> None:
        """A dense network with tanh units, but for the last layer and `linear`."""
        (hx, hy), file = problem.held, self.folder / "data.npz"
        arrays = {"x": problem.x, "y": problem.y, "hx": hx, "hy": hy}
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(file, **arrays, linear=linear, evaluated=evaluated)
        self.ask({"do": "problem", "data": str(file)})

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            RuntimeError: where the worker ended; its last words are on standard error.
        """
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The peers' process ended while it was asked {question}."
            )
        return json.loads(answer)


@contextlib.contextmanager
def opened(environment: Path, wanted: set[str]) -> Iterator[Worker | None]:
    """A worker; None where nothing is wanted, or where it cannot be installed."""
    try:
        python = prepared(environment) if wanted else None
    except SystemExit as refused:
        print(refused, flush=True)
        python = None
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(python, Path(folder))
        with contextlib.closing(worker):
            yield worker


def prepared(folder: Path) -> Path:
    """The environment's Python, made with the peers where it lacks them.

    Raises:
        SystemExit: where pip cannot install them, with pip's last lines.
    """
    python = folder / (
        "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    )
    probe = [
        python,
        "-c",
        f"import jax, kfac_jax; assert jax.__version__ == {JAX!r}",
    ]
    if python.exists() and not subprocess.run(probe, capture_output=True).returncode:
        return python
    print(f"Installing kfac-jax into {folder} ...", flush=True)
    extra = "[cuda12]" if jax.default_backend() == "gpu" else ""
    wanted = [f"jax{extra}=={JAX}", *REQUIREMENTS]
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", *wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise SystemExit(
                f"The peers could not be installed into {folder}: {' '.join(wanted)} "
                f"need a package index. Give an environment that has them with "
                f"--environment; the race goes on without.\n{said}"
            )
    return python
