#!/usr/bin/env bash
# One task of train.sbatch. srun reports the highest exit status of all tasks: a task's own error outranks the 75 of the
# others, which lost it, so that the job does not queue again and fail again.
set -euo pipefail
source launch/forwarding.sh
forwarding python -m launch.train "$@" --config.distributed=auto
if ((status == 0)) || goes_on "$status"; then exit "$status"; fi
echo "error: task ${SLURM_PROCID:-0} ended with exit status $status" >&2
exit 255
