#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [options of train.py]
exec "$(dirname "$0")/dist_run.sh" train.py "$2" "$1" "${@:3}"
