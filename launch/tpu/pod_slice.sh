#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice by a queued resource: asks for it, waits, installs on every worker, starts the job, and
# does it all again when the slice is taken away.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/tpu/pod_slice.sh [--dry-run] train --config=CONFIG --workdir=/mnt/runs/NAME [--config.key=value ...]
       launch/tpu/pod_slice.sh [--dry-run] stop     saves and ends the job, keeps the slice
       launch/tpu/pod_slice.sh [--dry-run] delete   gives the slice back
environment:
  TPU_NAME, TPU_ZONE   name of the slice, made if it is not there, and its zone
  TPU_TYPE             accelerator type, such as v5litepod-16, v5p-32, v6e-16
  SOURCE               git URL of this repository that the workers can clone
  NFS_SHARE            HOST:/SHARE, a Filestore share, for example; every worker mounts it at /mnt/runs
  REVISION=main        branch or tag to clone
  TIER=spot            spot, reserved or guaranteed
  RESTARTS=10          how often to go on on the same slice after 143, 75 or 134; a slice that is taken away does not count
  TPU_RUNTIME          software version, if the type's usual one does not do
The project is gcloud's own: gcloud config set project PROJECT.
END
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 2
}

dry=""
if [[ "${1:-}" == --dry-run ]]; then
  dry=1
  shift
fi
action=${1:-}
shift || true
case "$action" in
  train) [[ "$*" == *--config=* && "$*" == *--workdir=* ]] || usage ;;
  stop | delete) [[ $# == 0 ]] || usage ;;
  *) usage ;;
esac
need=(TPU_NAME TPU_ZONE)
[[ "$action" != train ]] || need+=(TPU_TYPE SOURCE NFS_SHARE)
for name in "${need[@]}"; do
  [[ -n "${!name:-}" ]] || fail "$name is not set; launch/tpu/pod_slice.sh without arguments says what it is"
done
# shellcheck source=launch/forwarding.sh
source "$(dirname "${BASH_SOURCE[0]}")/../forwarding.sh"
REVISION=${REVISION:-main} TIER=${TIER:-spot} RESTARTS=${RESTARTS:-10}

# Runs a command, or prints it.
run() {
  if [[ -n "$dry" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

slice() { run gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone="$TPU_ZONE" --quiet "${@:2}"; }
workers() { run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=all --quiet --command="$1"; }
on_workers() { workers "cd spatial_clip_jax && launch/tpu/worker.sh $1"; }
state() {
  if [[ -n "$dry" ]]; then return; fi
  slice describe --format='value(state.state)' 2>/dev/null || true
}

case "$action" in
  stop)
    on_workers stop
    exit
    ;;
  delete)
    slice delete --force
    exit
    ;;
esac

# The usual runtime and the preset of flags of every generation.
case "$TPU_TYPE" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite preset=tpu_v5e ;;
  v5p-*) runtime=v2-alpha-tpuv5 preset=tpu_v5p ;;
  v6e-*) runtime=v2-alpha-tpuv6e preset=tpu_v6e ;;
  *) fail "TPU_TYPE=$TPU_TYPE is none of v5litepod-N, v5p-N, v6e-N" ;;
esac

create() {
  slice create --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" --runtime-version="${TPU_RUNTIME:-$runtime}" \
    "--$TIER"
}

# Until the slice is there: one that was taken away, or that could not be had, is asked for again.
obtain() {
  local found
  found=$(state)
  [[ -n "$found" ]] || create
  while [[ -z "$dry" ]]; do
    found=$(state)
    case "$found" in
      ACTIVE) return ;;
      FAILED | SUSPENDED)
        echo "slice $TPU_NAME is $found; asking for it again" >&2
        slice delete --force
        create
        ;;
      *) sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}

# The images' own Python is older than ours needs: uv brings one.
install() {
  local url revision share
  printf -v url %q "$SOURCE"
  printf -v revision %q "$REVISION"
  printf -v share %q "$NFS_SHARE"
  workers "set -e
if ! mountpoint -q /mnt/runs; then
  sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
  sudo mkdir -p /mnt/runs && sudo mount -t nfs $share /mnt/runs && sudo chmod 777 /mnt/runs
fi
[ -d spatial_clip_jax ] || git clone --depth 1 --branch $revision $url spatial_clip_jax
cd spatial_clip_jax
python3 -m pip install --quiet --user uv
[ -d .venv ] || python3 -m uv venv --quiet --python 3.11 .venv
VIRTUAL_ENV=\$PWD/.venv python3 -m uv pip install --quiet -e '.[tpu]'"
}

arguments=$(printf '%q ' "$@")
restart=0
while :; do
  obtain
  install
  forwarding on_workers "start $preset $arguments"
  if [[ -n "$stopped" ]]; then
    # gcloud has gone without a word to the workers.
    on_workers stop
    exit 143
  fi
  found=$(state)
  if [[ "$status" != 0 && -n "$found" && "$found" != ACTIVE ]]; then continue; fi
  if ! goes_on "$status" || ((restart == RESTARTS)); then exit "$status"; fi
  restart=$((restart + 1))
  echo "exit status $status; restart $restart of $RESTARTS" >&2
done
