#!/usr/bin/env bash
# On one worker of a pod slice, in the repository's folder: starts the job, or saves and ends it.
set -euo pipefail

usage() {
  echo "usage: launch/tpu/worker.sh start PRESET --config=CONFIG --workdir=DIR [...] | launch/tpu/worker.sh stop" >&2
  exit 2
}

pid_file=.worker.pid

# A job that is still there, its ssh connection lost, holds the TPU: it saves and goes first.
stop() {
  local pid
  if [[ ! -f "$pid_file" ]]; then return; fi
  pid=$(<"$pid_file")
  if grep -qs launch.train "/proc/$pid/cmdline"; then
    kill -s TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 1; done
  fi
  rm -f "$pid_file"
}

case "${1:-}" in
  stop) stop ;;
  start)
    [[ $# -ge 4 ]] || usage
    preset_name=$2
    shift 2
    stop
    # shellcheck disable=SC1091  # made on the worker
    source .venv/bin/activate
    preset=$(python -m launch.xla_flags "$preset_name")
    eval "$preset"
    echo $$ >"$pid_file"
    exec python -m launch.train "$@" --config.distributed=auto
    ;;
  *) usage ;;
esac
