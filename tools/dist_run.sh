#!/usr/bin/env bash
# One of this folder's tools on GPUS processes of each of NNODES machines: dist_run.sh TOOL GPUS CONFIG ARGUMENTS...
set -e
: "${2:?give a config and the number of processes}" "${3:?give a config}"
exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$(dirname "$0")/$1" "${@:3}" --launcher pytorch
