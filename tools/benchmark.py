"""Train a suite of configs and seeds, and put what comes of them into one table and one plot.

A suite is a YAML file, as those in configs/benchmarks: see there. The runs are made one after the other, or side by
side on the GPUs there are, or as jobs of a cluster. What has finished is skipped, what was interrupted goes on, a run
that fails stops no other. The same command, called again, does what is left.
"""

import argparse
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import Queue

import torch
from tqdm import tqdm

from mmshared import SharingError
from mmshared.analysis.suite import Run, collect, finished, read_suite, write_tables
from mmshared.cli import errors_in_a_sentence, own_files

TRAIN = Path(__file__).with_name('train.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', type=Path, help='the YAML file of the suite')
    parser.add_argument('--work-dir', type=Path, help='where all goes (default: work_dirs/ and the name of the suite)')
    parser.add_argument('--gpus-per-run', type=int, default=1, metavar='N', help='processes of a run (default: 1)')
    parser.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='runs side by side (default: as many as the GPUs allow, without a GPU one)',
    )
    parser.add_argument('--submitit', action='store_true', help='submit each run to SLURM, by submitit')
    parser.add_argument('--partition', help="SLURM's partition, with --submitit")
    parser.add_argument(
        '--timeout', type=int, default=24 * 60, metavar='MINUTES', help='of a run, with --submitit (default: a day)'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build the models, write the configs of the runs and print their commands',
    )
    args = parser.parse_args()
    if min(args.gpus_per_run, 1 if args.jobs is None else args.jobs, args.timeout) < 1:
        parser.error('--gpus-per-run, --jobs and --timeout are 1 or more')
    if args.partition and not args.submitit:
        parser.error('--partition is about --submitit')
    args.work_dir = args.work_dir or Path('work_dirs') / args.suite.stem
    return args


def command_of(run: Run, processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, str(TRAIN), *run.arguments()]
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return [sys.executable, *launcher, str(TRAIN), *run.arguments(), '--launcher', 'pytorch']


def execute(
    command: list[str], log: Path, place: dict[str, str] | None = None, started: set[int] | None = None
) -> tuple[int, int]:
    """Run a command, its output into a file and ``place`` in its environment. Returns its exit status and the most
    memory that a process of it held, in bytes. While it runs its process is in ``started``, and it holds a lock on the
    folder of the file."""
    started = set() if started is None else started
    lock = open(log.with_name('run.lock'), 'w')  # noqa: SIM115  (held until the process has ended)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SharingError(f'another process trains in {log.parent}: end it, or wait for it') from None
    environment = {**os.environ, **(place or {})}
    with lock, open(log, 'w') as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )  # it keeps the lock
    started.add(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    started.discard(process.pid)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


class Local:
    """Runs side by side on this machine, each on GPUs of its own, or where there are none on its part of the cores."""

    def __init__(self, args: argparse.Namespace):
        count = torch.cuda.device_count()
        # By the names that they have here: a shared machine hands out some of its GPUs.
        gpus = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name] or range(count)
        places = count // args.gpus_per_run
        if count and max(args.jobs or 1, 1) > places:
            raise SharingError(
                f'The {count} GPUs of this machine hold {places} runs of {args.gpus_per_run} side by '
                'side: lower --gpus-per-run or --jobs.'
            )
        jobs = args.jobs or max(places, 1)
        threads = os.environ.get('OMP_NUM_THREADS', str(max(os.cpu_count() // jobs, 1)))
        self.places: Queue = Queue()
        for job in range(jobs):
            own = gpus[job * args.gpus_per_run : (job + 1) * args.gpus_per_run]
            self.places.put(
                dict(CUDA_VISIBLE_DEVICES=','.join(map(str, own))) if count else dict(OMP_NUM_THREADS=threads)
            )
        self.pool, self.started, self.stopped = ThreadPoolExecutor(jobs), set(), threading.Event()

    def submit(self, command: list[str], log: Path) -> Future:

        def on_device():
            place = self.places.get()
            try:
                return (-signal.SIGINT, 0) if self.stopped.is_set() else execute(command, log, place, self.started)
            finally:
                self.places.put(place)

        return self.pool.submit(on_device)

    def stop(self) -> None:
        """Interrupt all runs, as Ctrl-C does, and wait until they have ended."""
        self.stopped.set()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in list(self.started):
                os.killpg(process, signum)
            deadline = time.monotonic() + 15
            while self.started and time.monotonic() < deadline:
                time.sleep(0.1)
        self.pool.shutdown()


class Submitted:
    """Runs as jobs of a cluster."""

    def __init__(self, args: argparse.Namespace):
        try:
            import submitit
        except ImportError:
            raise SharingError('--submitit needs submitit: pip install submitit') from None
        try:
            self.executor = submitit.AutoExecutor(args.work_dir / 'jobs', cluster='slurm')
        except RuntimeError as error:
            raise SharingError(f'--submitit finds no SLURM here: {error}') from None
        self.executor.update_parameters(
            name=args.suite.stem,
            timeout_min=args.timeout,
            gpus_per_node=args.gpus_per_run,
            cpus_per_task=int(os.environ.get('CPUS_PER_TASK', 5)) * args.gpus_per_run,
            **(dict(slurm_partition=args.partition) if args.partition else {}),
        )
        self.pool, self.jobs = ThreadPoolExecutor(256), []

    def submit(self, command: list[str], log: Path) -> Future:
        job = self.executor.submit(execute, command, log)
        self.jobs.append(job)
        return self.pool.submit(job.result)

    def stop(self) -> None:
        for job in self.jobs:
            job.cancel(check=False)
        self.pool.shutdown(wait=False, cancel_futures=True)


def last_line(log: Path, pattern: str) -> str:
    """The last line of a log that has a pattern in it, of the log's last 100 kB."""
    if not log.is_file():
        return ''
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 100_000))
        lines = file.read().decode(errors='replace').splitlines()
    return next((line.strip() for line in reversed(lines) if re.search(pattern, line)), '')


def reason_of(status: int, log: Path) -> str:
    """Why a run has ended with a status other than 0."""
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    reason = last_line(log, r'Error\b.*: ') or last_line(log, r'\w') or f'ended with status {status}'
    return reason.removeprefix('Error: ')


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)  # ends the runs too
    suite = read_suite(args.suite, args.work_dir)
    with own_files():
        left = [run for run in suite.runs if not finished(run, suite)]
        for run in suite.runs:
            run.config_file.parent.mkdir(parents=True, exist_ok=True)
            run.config_file.write_text(run.config)
    if args.dry_run:
        for run in suite.runs:
            print('' if run in left else '# finished: ', shlex.join(command_of(run, args.gpus_per_run)), sep='')
        return
    engine = (Submitted if args.submitit else Local)(args)

    failures, waiting, start = [], {}, time.time()
    bar = tqdm(total=len(suite.runs), initial=len(suite.runs) - len(left), unit='run', disable=None)
    try:
        for run in left:
            with own_files():
                run.work_dir.mkdir(exist_ok=True)
            log = run.work_dir / 'run.log'
            waiting[engine.submit(command_of(run, args.gpus_per_run), log)] = run, log
        while waiting:
            done, _ = wait(waiting, timeout=2, return_when=FIRST_COMPLETED)
            for future in done:
                run, log = waiting.pop(future)
                try:
                    status, memory = future.result()
                    if status:
                        raise SharingError(reason_of(status, log))
                    collect(run, suite, memory)
                    tqdm.write(f'finished: {run.title}')
                except Exception as error:  # of a run or of the cluster: the other runs go on
                    failures.append((run, str(error).splitlines()[-1] if str(error) else type(error).__name__))
                    tqdm.write(f'failed: {run.title}')
                bar.update()
            now = [(run, log) for run, log in waiting.values() if log.is_file() and log.stat().st_mtime > start]
            at = [
                f'{run.title}: {eta.group()}'
                for run, log in now
                for eta in [re.search(r'eta: \S+', last_line(log, 'eta: '))]
                if eta
            ]
            bar.set_postfix_str('; '.join(at))
    except KeyboardInterrupt:
        engine.stop()
        bar.close()
        raise
    bar.close()
    if any(finished(run, suite) for run in suite.runs):
        with own_files():
            print(write_tables(suite, args.work_dir), end='')
        print(f'wrote {args.work_dir}/results.json, .csv, .md and .png')
    for run, reason in failures:
        print(f'failed: {run.title}: {reason} ({run.work_dir}/run.log)')
    sys.exit(bool(failures))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('Interrupted. The same command goes on.') from None
