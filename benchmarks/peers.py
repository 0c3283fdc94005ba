"""K-FAC beside kfac-jax and Somax on dense networks, in one run.

kfac-jax 0.0.8 does not run on JAX 0.9.2 or newer. The peers therefore have an
environment of their own with JAX 0.9.1, which this makes with `python -m venv` and pip
where it is not there yet (1 GB), and run in a process of their own, which takes turns
with ours: the same parameters, batches and loss, `--every` steps each.

    adam                 learning rate 1e-3
    kfac every 5         learning rate 0.03, momentum 0.9, λ = 0.01, inverses every 5
    kfac                 the same rate and λ, else as in `benchmarks.optimizers`
    kfac_adaptive        as it comes
    kfac-jax             as kfac every 5, with the same bound on a step's length
    kfac-jax adaptive    learning rate, momentum and damping adapted, from λ = 15
    somax                Gauss-Newton for cross-entropy, 20 iterations of CG, λ = 0.01

Compile time is outside the clocks; of the peers it is not known. Nothing is tuned:
equal settings show what a step costs, the adaptive ones how far it gets. CPU seconds
are those of each one's process.

    python -m benchmarks.peers --problems autoencoder --steps 60 --output results
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import natgrad as ng
from benchmarks.convergence import section
from benchmarks.curves import figure
from benchmarks.optimizers import OPTIMIZERS, Entry
from benchmarks.racing import EVALUATED, Local, measure, raced
from benchmarks.report import write
from benchmarks.timing import environment
from benchmarks.training import PROBLEMS, Pick, Problem

WORKER = Path(__file__).parent / "peer_worker.py"
ENVIRONMENT = Path(tempfile.gettempdir()) / "natgrad-peers"
JAX = "0.9.1"
REQUIREMENTS = ("kfac-jax==0.0.8", "python-somax")
SETTING = ((0.03, 1e-2),)
CODES = {"autoencoder": 3, "curves": 5, "classifier": -1}
OURS = {
    "adam": Entry(((1e-3,),), OPTIMIZERS["adam"].make),
    "kfac every 5": Entry(
        SETTING,
        lambda model, rate, damping: ng.kfac(
            rate,
            model,
            damping=damping,
            refresh=ng.Refresh(1, 5),
            momentum=0.9,
        ),
    ),
    "kfac": Entry(SETTING, OPTIMIZERS["kfac"].make, rows=True),
    "kfac_adaptive": OPTIMIZERS["kfac_adaptive"],
}
PEERS = ("kfac-jax", "kfac-jax adaptive", "somax")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=CODES, default=["autoencoder"])
    parser.add_argument("--ours", nargs="+", choices=OURS, default=[*OURS])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[*PEERS])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps a turn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": environment(), "problems": {}}
    python = prepared(options.environment)
    text, figures = [f"# {__doc__.splitlines()[0]}", ""], {}
    with tempfile.TemporaryDirectory() as scratch, Worker(python) as worker:
        report["peers"] = worker.ask({"do": "versions"})
        versions = ", ".join(f"{k} {v}" for k, v in report["peers"].items() if v)
        text += [f"Peers run with {versions}.", ""]
        for name in options.problems:
            problem = PROBLEMS[name]()._replace(batch=options.batch)
            found = race(problem, CODES[name], worker, Path(scratch), options)
            report["problems"][name] = found
            figures[name] = figure(name, found)
            text += [section(name, found), ""]
            print(text[-2], flush=True)
            write(options.output, "peers", report, "\n".join(text), figures)
    return report


def race(problem: Problem, code: int, worker, scratch: Path, options):
    measured = measure(problem)
    names = ["adam", *(n for n in options.ours if n != "adam")]
    with jax.enable_x64(False):
        runners: dict[str, Any] = {
            name: Local(problem, OURS[name], measured) for name in names
        }
        entries = {
            name: {
                "setting": list(runner.setting),
                "compile_cpu_seconds": runner.compile_cpu,
                "compile_seconds": runner.compile_wall,
                "runs": [],
            }
            for name, runner in runners.items()
        }
        file = scratch / "data.npz"
        x, y = np.asarray(problem.x), np.asarray(problem.y)
        np.savez(file, x=x, y=y, code=code, evaluated=EVALUATED)
        worker.ask({"do": "problem", "data": str(file)})
        for name in options.peers:
            if name == "somax" and y.ndim > 1:
                print("somax has no preset for Bernoulli outputs: left out")
                continue
            runners[name] = Remote(worker, name, problem, scratch)
            entries[name] = {"setting": [], "compile_cpu_seconds": None, "runs": []}
        return raced(problem, runners, entries, options)


class Remote:
    """A peer, in the worker's process."""

    def __init__(self, worker, name: str, problem: Problem, scratch: Path):
        self.worker, self.name, self.problem = worker, name, problem
        self.scratch = scratch

    def start(self, seed: int) -> float:
        """Back to the parameters of this seed; their loss."""
        file, arrays = self.scratch / "params.npz", {}
        for i, layer in enumerate(self.problem.initial(seed)):
            arrays |= {f"{k}{i}": np.asarray(layer[k]) for k in ("w", "b")}
        np.savez(file, **arrays)
        asked = {"do": "start", "name": self.name, "params": str(file)}
        return self.worker.ask(asked)["loss"]

    def turn(self, picks: list[Pick]) -> tuple[float, float, float]:
        """A step for each batch: wall seconds, CPU seconds, loss after them."""
        asked = {"do": "turn", "name": self.name, "picks": [p.tolist() for p in picks]}
        answer = self.worker.ask(asked)
        return answer["wall"], answer["cpu"], answer["loss"]


class Worker:
    """`peer_worker.py` under another Python; questions and answers are JSON."""

    def __init__(self, python: Path):
        self.process = subprocess.Popen(
            [python, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

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
        f"import jax, kfac_jax, somax; assert jax.__version__ == {JAX!r}",
    ]
    if python.exists() and not subprocess.run(probe, capture_output=True).returncode:
        return python
    print(f"Installing kfac-jax and Somax into {folder} ...", flush=True)
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
                f"--environment, or leave this benchmark out.\n{said}"
            )
    return python


if __name__ == "__main__":
    main()
