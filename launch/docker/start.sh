#!/usr/bin/env bash
# The images' entry point: the flags of PRESET (launch/xla_flags.py), then the main job, which gets the signals itself.
set -euo pipefail
if [[ "$*" != *--config=* || "$*" != *--workdir=* ]]; then
  echo "usage: docker run [-e PRESET=NAME] IMAGE --config=CONFIG --workdir=DIR [--config.key=value ...]" >&2
  exit 2
fi
preset=$(python -m launch.xla_flags "${PRESET:?}")
eval "$preset"
exec python -m launch.train "$@"
