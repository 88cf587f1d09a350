#!/usr/bin/env bash
# One of this folder's tools under SLURM: slurm_run.sh TOOL PARTITION JOB_NAME ARGUMENTS...
set -e
exec srun \
    --partition="$2" \
    --job-name="$3" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS} \
    python -u "$(dirname "$0")/$1" "${@:4}" --launcher slurm
