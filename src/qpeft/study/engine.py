"""Who runs the runs of a comparison or a study: processes of this machine, or a Ray cluster. Records are the same either way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qpeft.errors import MissingDependencyError, RunError
from qpeft.plugins import ALLOW


class Job(Protocol):
    """Work for a process of its own."""

    def command(self) -> list[str]:
        """The program and its arguments; paths are absolute, since a machine of a cluster works in a folder of its own."""
        ...


JobKind = TypeVar("JobKind", bound=Job)


@dataclass(frozen=True)
class RunSpec:
    """One run: its recipe file, its folder, the file in which runs share the base model's metrics, and whether a run before it has
    the same rows, so that warnings about them are not repeated."""

    recipe: Path
    folder: Path
    baseline: Path
    same_rows: bool = False

    def arguments(self) -> list[str]:
        """Arguments of `python -m qpeft.training`."""
        paths = [str(path.absolute()) for path in (self.recipe, self.folder, self.baseline)]
        return [*paths, "same-rows"] if self.same_rows else paths

    def command(self) -> list[str]:
        """The program that trains it."""
        return [sys.executable, "-m", "qpeft.training", *self.arguments()]


@dataclass(frozen=True)
class StudyPart:
    """One arm of a study on one task, tuned and run for every seed. Options are those of `qpeft study run`."""

    plan: Path
    task: str
    arm: str
    records: Path
    runs: Path
    seeds: int | None = None
    rerun: Path | None = None

    def command(self) -> list[str]:
        """`qpeft study run` of this part alone."""
        places = {"--records": self.records, "--runs": self.runs, "--rerun": self.rerun}
        command = [
            sys.executable,
            "-m",
            "qpeft.cli",
            "study",
            "run",
            str(self.plan.absolute()),
            "--task",
            self.task,
            "--arm",
            self.arm,
        ]
        for option, path in places.items():
            command += [option, str(path.absolute())] if path is not None else []
        return [*command, "--seeds", str(self.seeds)] if self.seeds is not None else command


class Engine(Protocol):
    """Runs jobs, each in a process of its own, so that peak memory is the run's own and one that dies leaves the others."""

    def run(self, jobs: Sequence[JobKind]) -> Iterator[tuple[JobKind, int]]:
        """Every job with the exit code of its process, negative for a signal, as it ends. KeyboardInterrupt stops all of them."""
        ...


class LocalEngine:
    """One process after another on this machine: forks of one that has imported and loaded what runs share, where that works."""

    def run(self, jobs: Sequence[JobKind]) -> Iterator[tuple[JobKind, int]]:
        """See `Engine.run`. SIGTERM ends the process that runs, too."""
        forks = sys.platform == "linux" and len(jobs) > 1 and all(isinstance(job, RunSpec) for job in jobs)
        with contextlib.closing(Prefork()) if forks else contextlib.nullcontext() as prefork:
            for job in jobs:
                code = prefork.run(job) if prefork is not None and isinstance(job, RunSpec) else None
                if code is None:
                    code = _run_to_its_end(job.command())
                if code in (128 + signal.SIGINT, -signal.SIGINT):
                    raise KeyboardInterrupt
                yield job, code


def _run_to_its_end(command: list[str]) -> int:
    """Run the program; its exit code. It does not outlive this process if that is ended by SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        return subprocess.run(command).returncode
    with subprocess.Popen(command) as process, _at_sigterm(process.terminate):
        return process.wait()


@contextlib.contextmanager
def _at_sigterm(stop: Callable[[], object]) -> Iterator[None]:
    """Stop what runs when this process is ended by SIGTERM; nothing outside the main thread, which alone can have a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        stop()
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Prefork:
    """The process that training/prefork.py describes. It starts with the first run."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.usable = True
        self._child: int | None = None  # of the run that goes on

    def run(self, job: RunSpec) -> int | None:
        """The exit code of a run, negative for a signal; None where it has not been started."""
        self._child = None
        try:
            with _at_sigterm(self._end_run):
                if self.usable and self.process is None:
                    self._start()
                return self._run(job) if self.usable else None
        except BaseException:  # as subprocess.run does: a moment to end by itself, then no more
            self._end_run()
            time.sleep(0.25)
            self._end_run(signal.SIGKILL)
            raise

    def _run(self, job: RunSpec) -> int | None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job.arguments()) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.usable = False
            return None
        said = self.replies.readline().split()
        if not said or said[0] != "pid":
            self.usable = False
            return None
        self._child = int(said[1])
        said = self.replies.readline().split()
        if not said:  # the process that forks died: nobody knows how the run ended
            self.usable = False
            self._end_run(signal.SIGKILL)
            return -signal.SIGKILL
        return int(said[1])

    def _end_run(self, number: int = signal.SIGTERM) -> None:
        """A signal to the run that goes on, or before there is one to the process that would fork it."""
        self.usable = False
        child = self._child or (self.process.pid if self.process is not None else None)
        with contextlib.suppress(ProcessLookupError):
            if child is not None:
                os.kill(child, number)

    def _start(self) -> None:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "qpeft.training.prefork", str(writer)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writer,), text=True)
        os.close(writer)
        self.replies = os.fdopen(reader)
        self.usable = self.replies.readline() == "ready\n"

    def close(self) -> None:
        """End the process."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.replies.close()


class RayEngine:
    """Processes on the machines of a Ray cluster, as many at once as it has room for.

    The comparison's folder has to be on a file system that all machines see, and qpeft installed on each. `ray.init` connects to
    the cluster that `RAY_ADDRESS` names, else it starts one on this machine.

    Args:
        cpus, gpus: what one run takes.
    """

    def __init__(self, *, cpus: float = 1.0, gpus: float = 0.0) -> None:
        self.cpus, self.gpus = cpus, gpus

    def run(self, jobs: Sequence[JobKind]) -> Iterator[tuple[JobKind, int]]:
        """See `Engine.run`."""
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError("ray", "ray", "--engine ray") from error
        mine = not ray.is_initialized()
        if mine:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(log_to_driver=True, include_dashboard=False)
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_run_command)
        variables = {name: os.environ[name] for name in (ALLOW, "OMP_NUM_THREADS", "QPEFT_CACHE") if name in os.environ}
        waiting: dict[Any, JobKind] = {}
        try:
            waiting = {remote.remote(job.command(), variables): job for job in jobs}
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                job = waiting.pop(done)
                try:
                    code = int(ray.get(done))
                except ray.exceptions.RayError:  # the worker or its machine died
                    code = -signal.SIGKILL
                yield job, code
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
            if mine:
                ray.shutdown()


def _run_command(command: list[str], variables: dict[str, str]) -> int:
    """In a Ray worker: run the program; its exit code."""
    return subprocess.run(command, env=os.environ | variables).returncode


def make_engine(name: str, *, gpus: float = 0.0) -> Engine:
    """The engine of this name.

    Args:
        name: "local" or "ray".
        gpus: GPUs of each run, for Ray.

    Raises:
        RunError: another name.
    """
    if name == "local":
        return LocalEngine()
    if name == "ray":
        return RayEngine(gpus=gpus)
    raise RunError("unknown engine", value=name, bound="local, ray")
