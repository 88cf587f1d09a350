"""Train a suite of configs and seeds, and put the results into one table and one plot.

A suite is a YAML file like mmshared::benchmarks/dsfb_cifar10.yaml. The runs go one after the other, side by side on
the available GPUs, or as jobs on a cluster. Finished runs are skipped, interrupted runs resume, and a run that fails
does not stop the others. Call the same command again to do the rest. Entries with a script, as in
mmshared::benchmarks/compression.yaml, run it instead of a training; its results are where it writes them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmshared_cli import errors_in_a_sentence, own_files

if TYPE_CHECKING:
    from mmshared.analysis.suite import Run

TRAIN = Path(__file__).with_name('train.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', type=Path, help='the YAML file of the suite, or its name')
    parser.add_argument('--work-dir', type=Path, help='output folder (default: work_dirs/ and the name of the suite)')
    parser.add_argument('--gpus-per-run', type=int, default=1, metavar='N', help='processes per run (default: 1)')
    parser.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='runs side by side (default: as many as the GPUs allow, or 1 without a GPU)',
    )
    parser.add_argument(
        '--submitit', action='store_true', help='submit each run to SLURM with submitit; an interrupt cancels them'
    )
    parser.add_argument('--partition', help="SLURM's partition, with --submitit")
    parser.add_argument(
        '--timeout', type=int, metavar='MINUTES', help='limit of a run, with --submitit (default: a day)'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build the models, write the configs of the runs and print their commands',
    )
    args = parser.parse_args()
    if min(args.gpus_per_run, *(1 if each is None else each for each in (args.jobs, args.timeout))) < 1:
        parser.error('--gpus-per-run, --jobs and --timeout must be 1 or more')
    if not args.submitit and (args.partition or args.timeout):
        parser.error('--partition and --timeout need --submitit')
    if args.submitit and args.jobs:
        parser.error('--jobs is for runs on this machine, and SLURM runs what it has room for: leave it out')
    args.timeout = args.timeout or 24 * 60
    args.work_dir = args.work_dir or Path('work_dirs') / args.suite.stem
    return args


def command_of(run: Run, processes: int) -> list[str]:
    """The command of a run. With ``--resume`` a training continues an interrupted one."""
    if run.script:
        script, *arguments = shlex.split(run.script)
        return [sys.executable, script, run.config, *arguments, '--work-dir', str(run.work_dir)]
    command = [str(TRAIN), str(run.config_file), '--work-dir', str(run.work_dir), '--resume']
    if processes == 1:
        return [sys.executable, *command]
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return [sys.executable, *launcher, *command, '--launcher', 'pytorch']


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    from mmshared.analysis.jobs import Local, Slurm, train
    from mmshared.analysis.suite import finished, read_suite, write_tables
    from mmshared.engine.config import config_path

    suite = read_suite(Path(config_path(str(args.suite))), args.work_dir)
    with own_files():
        left = [run for run in suite.runs if not finished(run, suite)]
        for run in suite.runs:
            run.config_file.parent.mkdir(parents=True, exist_ok=True)
            if not run.script:
                run.config_file.write_text(run.config)
    if args.dry_run:
        for run in suite.runs:
            print('' if run in left else '# finished: ', shlex.join(command_of(run, args.gpus_per_run)), sep='')
        return
    with own_files():
        for run in left:
            run.work_dir.mkdir(exist_ok=True)
    if args.submitit:
        engine = Slurm(args.work_dir / 'jobs', args.suite.stem, args.gpus_per_run, args.timeout, args.partition)
    else:
        engine = Local(args.gpus_per_run, args.jobs)
    failures = train(suite, left, engine, lambda run: command_of(run, args.gpus_per_run))
    if any(finished(run, suite) for run in suite.runs):
        with own_files():
            print(write_tables(suite, args.work_dir), end='')
        print(f'wrote {args.work_dir}/results.json, .csv, .md and .png')
    for run, reason in failures.items():
        print(f'failed: {run.title}: {reason} ({run.log})')
    sys.exit(bool(failures))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('Interrupted. Call the same command again to go on.') from None
