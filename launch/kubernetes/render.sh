#!/usr/bin/env bash
# Prints a manifest of this folder with its ${FIELDS} filled from the environment, and the main job's arguments.
set -euo pipefail

if [[ $# -lt 3 || ! -f "$1" || "$*" != *--config=* || "$*" != *--workdir=* ]]; then
  cat >&2 <<'END'
usage: NAME=... IMAGE=... launch/kubernetes/render.sh launch/kubernetes/jobset_tpu.yaml --config=CONFIG --workdir=/runs/NAME \
         [--config.key=value ...] | kubectl apply -f -
The manifest's first lines say what its fields are.
END
  exit 2
fi
text=$(<"$1")
shift
ARGUMENTS=""
for argument in "$@"; do
  argument=${argument//\\/\\\\}
  # $$ is Kubernetes' own word for a dollar sign.
  argument=${argument//\$/\$\$}
  ARGUMENTS+="${ARGUMENTS:+, }\"${argument//\"/\\\"}\""
done
# shellcheck disable=SC2016  # the dollar signs are meant
fields=$(grep -o '\${[A-Z_]*}' <<<"$text" | sort -u | tr -d '${}')
for field in $fields; do
  if [[ -z "${!field:-}" ]]; then
    echo "error: $field is not set; the manifest's first lines say what it is" >&2
    exit 2
  fi
  text=${text//"\${$field}"/"${!field}"}
done
printf '%s\n' "$text"
