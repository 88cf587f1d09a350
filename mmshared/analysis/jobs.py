"""Runs of a suite as processes on this machine or as jobs on a cluster."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from ..engine.config import reason_in
from ..sharing import SharingError
from .suite import Run, Suite, collect

Command = list[str]


class Ended(NamedTuple):
    """How a process ended: its exit status, negative for a signal, and the peak memory in bytes of it or of a process
    that it started. (Linux also counts the memory of its parent process, if that is more.)"""

    status: int
    memory: int


class Process:
    """A command on this machine, in its own session. Until it ends, it holds a lock on the folder of its log.

    Args:
        command (list[str]): The command.
        log (Path): The file for its output.
        environment (dict): Environment variables to add to ours.

    Raises:
        SharingError: If another process holds the lock.
    """

    def __init__(self, command: Command, log: Path, environment: dict[str, str] = {}):
        self.ended: Ended | None = None
        with open(log.with_name('run.lock'), 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SharingError(f'another process trains in {log.parent}: end it, or wait for it') from None
            with open(log, 'w') as file:
                self.process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    start_new_session=True,
                    pass_fds=[lock.fileno()],  # it keeps the lock
                )

    def done(self) -> bool:
        return self.ended is not None or self._wait(os.WNOHANG)

    def result(self) -> Ended:
        """Wait until it ends."""
        while self.ended is None:
            self._wait(0)
        return self.ended

    def _wait(self, options: int) -> bool:
        pid, status, usage = os.wait4(self.process.pid, options)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.ended = Ended(self.process.returncode, usage.ru_maxrss * 1024)
        return bool(pid)

    def stop(self, signum: int) -> None:
        if not self.done():
            os.killpg(self.process.pid, signum)


class Job(Protocol):
    """A submitted run: a :class:`Process` or a job of submitit."""

    def done(self) -> bool: ...

    def result(self) -> Ended: ...


class Local:
    """Runs side by side on this machine, each on its own GPUs or, without GPUs, on its share of the cores.

    Args:
        gpus_per_run (int): Number of GPUs per run.
        jobs (int, optional): Number of runs side by side. Defaults to as many as the GPUs allow, or 1 without a GPU.

    Raises:
        SharingError: If there are too few GPUs.
    """

    def __init__(self, gpus_per_run: int = 1, jobs: int | None = None):
        count = torch.cuda.device_count()
        places = count // gpus_per_run
        if count and (jobs or 1) > places:
            raise SharingError(
                f'The {count} GPUs of this machine hold {places} runs of {gpus_per_run} side by side: '
                'ask for fewer GPUs per run, or for fewer runs.'
            )
        jobs = jobs or max(places, 1)
        # By their names here: a shared machine may hand out only some of its GPUs.
        gpus = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
        gpus = gpus or [str(index) for index in range(count)]
        threads = os.environ.get('OMP_NUM_THREADS', str(max(os.cpu_count() // (jobs * gpus_per_run), 1)))
        self.environments = [
            dict(CUDA_VISIBLE_DEVICES=','.join(gpus[job * gpus_per_run : (job + 1) * gpus_per_run]))
            if count
            else dict(OMP_NUM_THREADS=threads)
            for job in range(jobs)
        ]
        self.processes: list[Process | None] = [None] * jobs

    def _free(self) -> int | None:
        """The index of a free place, or None."""
        places = enumerate(self.processes)
        return next((place for place, process in places if process is None or process.done()), None)

    def has_room(self) -> bool:
        return self._free() is not None

    def submit(self, command: Command, log: Path) -> Job:
        """Start a run in a free place."""
        place = self._free()
        process = self.processes[place] = Process(command, log, self.environments[place])
        return process

    def stop(self, seconds: float = 15) -> None:
        """Interrupt all runs like Ctrl-C and wait until they end; terminate, then kill, those that do not."""
        running = [process for process in self.processes if process is not None]
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in running:
                process.stop(signum)
            deadline = time.monotonic() + seconds
            while not all(process.done() for process in running) and time.monotonic() < deadline:
                time.sleep(0.1)


class Slurm:
    """Runs as SLURM jobs, submitted with submitit.

    Args:
        folder (Path): Where submitit keeps its files.
        name (str): The name of the jobs.
        gpus_per_run (int): Number of GPUs per run.
        timeout (int): Minutes that a run may take.
        partition (str, optional): The partition.

    Raises:
        SharingError: If submitit or SLURM is missing.
    """

    def __init__(self, folder: Path, name: str, gpus_per_run: int, timeout: int, partition: str | None = None):
        try:
            import submitit
        except ImportError:
            raise SharingError('Jobs of SLURM need submitit: pip install submitit') from None
        try:
            self.executor = submitit.AutoExecutor(folder, cluster='slurm')
        except RuntimeError as error:
            raise SharingError(f'There is no SLURM here: {error}') from None
        self.executor.update_parameters(
            name=name,
            timeout_min=timeout,
            gpus_per_node=gpus_per_run,
            cpus_per_task=int(os.environ.get('CPUS_PER_TASK', 5)) * gpus_per_run,
            **(dict(slurm_partition=partition) if partition else {}),
        )
        self.jobs: list[submitit.Job] = []

    def has_room(self) -> bool:
        return True

    def submit(self, command: Command, log: Path) -> Job:
        self.jobs.append(self.executor.submit(_execute, command, log))
        return self.jobs[-1]

    def stop(self) -> None:
        for job in self.jobs:
            job.cancel(check=False)


def _execute(command: Command, log: Path) -> Ended:
    return Process(command, log).result()


def train(suite: Suite, runs: list[Run], engine: Local | Slurm, command: Callable[[Run], Command]) -> dict[Run, str]:
    """Train runs of a suite and collect their results. A run that fails does not stop the others.

    Args:
        suite (Suite): The suite.
        runs (list[Run]): The unfinished runs. Their folders and configs must exist.
        engine (Local | Slurm): Where they run.
        command (Callable): Makes the command that trains a run.

    Returns:
        dict[Run, str]: The reason for each failed run.

    Raises:
        KeyboardInterrupt: If this process was told to end. By then all runs have been interrupted.
    """
    left, running, failures, start = list(runs), {}, {}, time.time()

    def fail(run: Run, error: Exception) -> None:
        failures[run] = reason_in(error)
        tqdm.write(f'failed: {run.title}')

    bar = tqdm(total=len(suite.runs), initial=len(suite.runs) - len(runs), unit='run', disable=None)
    with bar, _told_to_end() as end:
        while left or running:
            while left and engine.has_room() and not end.is_set():
                run = left.pop(0)
                try:
                    running[run] = engine.submit(command(run), run.log)
                except Exception as error:  # from the cluster, or another process trains there
                    fail(run, error)
            if end.is_set():
                engine.stop()
                raise KeyboardInterrupt
            for run in [run for run, job in running.items() if job.done()]:
                try:
                    ended = running.pop(run).result()
                    if ended.status:
                        raise SharingError(reason_of(ended.status, run.log))
                    if not run.script:
                        collect(run, suite, ended.memory)
                    tqdm.write(f'finished: {run.title}')
                except Exception as error:  # from the run or the cluster
                    fail(run, error)
            bar.n = len(suite.runs) - len(left) - len(running)
            bar.set_postfix_str('; '.join(_etas(running, start)))
            end.wait(1)
    return failures


@contextmanager
def _told_to_end() -> Iterator[Event]:
    """Turn Ctrl-C and the other signals that end a process into an event, which is checked between two steps. What is
    ignored, as a hang-up is by nohup, stays so."""
    event = Event()
    signums = [
        each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN
    ]
    handlers = [signal.signal(signum, lambda *_: event.set()) for signum in signums]
    try:
        yield event
    finally:
        for signum, handler in zip(signums, handlers):
            signal.signal(signum, handler)


def _etas(running: dict[Run, Job], start: float) -> Iterator[str]:
    """The remaining time of each run according to its log, if it was written after ``start``."""
    for run in running:
        if run.log.is_file() and run.log.stat().st_mtime > start:
            eta = re.search(r'eta: \S+', last_line(run.log, 'eta: '))
            if eta:
                yield f'{run.title}: {eta.group()}'


def last_line(log: Path, pattern: str) -> str:
    """The last line in the last 100 kB of a log that contains a pattern."""
    if not log.is_file():
        return ''
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 100_000))
        lines = file.read().decode(errors='replace').splitlines()
    return next((line.strip() for line in reversed(lines) if re.search(pattern, line)), '')


def reason_of(status: int, log: Path) -> str:
    """Why a run ended with a status other than 0."""
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    reason = last_line(log, r'Error\b.*: ') or last_line(log, r'\w') or f'ended with status {status}'
    return reason.removeprefix('Error: ')
