#!/usr/bin/env bash
# Trains on the GPUs of this machine, or, started on each of several machines, of all of them together. Goes on by itself
# after a stop that a restart mends; Ctrl-C and SIGTERM save, and end it.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/gpu.sh --config=CONFIG --workdir=DIR [--config.key=value ...]
environment:
  NODES=1        machines; above 1 the workdir is on a disk that all of them share, and these two must be set:
  NODE_RANK      number of this machine, from 0
  COORDINATOR    HOST:PORT of machine 0, a free port that the others reach
  RESTARTS=10    how often to go on after exit status 143 (stopped and saved), 75 or 134 (a host was lost)
  PRESET         of launch/xla_flags.py; gpu for one machine, gpu_multihost for several
END
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -gt 0 && "$*" == *--config=* && "$*" == *--workdir=* ]] || usage
NODES=${NODES:-1} RESTARTS=${RESTARTS:-10}
[[ "$NODES" =~ ^[1-9][0-9]*$ ]] || fail "NODES=$NODES must be a number of machines, at least 1"
[[ "$RESTARTS" =~ ^[0-9]+$ ]] || fail "RESTARTS=$RESTARTS must be a number, at least 0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/forwarding.sh

joined=()
if ((NODES > 1)); then
  if ! [[ "${NODE_RANK:-}" =~ ^(0|[1-9][0-9]*)$ ]] || ((NODE_RANK >= NODES)); then
    fail "NODE_RANK=${NODE_RANK:-} must be this machine's number, from 0 to $((NODES - 1))"
  fi
  [[ "${COORDINATOR:-}" =~ ^[^:]+:[0-9]+$ ]] || fail "COORDINATOR=${COORDINATOR:-} must be HOST:PORT of machine 0"
  joined=("--config.distributed={'coordinator_address': '$COORDINATOR', 'num_processes': $NODES, 'process_id': $NODE_RANK}")
  PRESET=${PRESET:-gpu_multihost}
fi
preset=$(python -m launch.xla_flags "${PRESET:-gpu}")
eval "$preset"

for ((restart = 0; ; restart++)); do
  forwarding python -m launch.train "$@" ${joined[@]+"${joined[@]}"}
  if [[ -n "$stopped" ]] || ! goes_on "$status" || ((restart == RESTARTS)); then exit "$status"; fi
  echo "exit status $status; restart $((restart + 1)) of $RESTARTS" >&2
  sleep 1
done
