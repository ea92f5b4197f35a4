# shellcheck shell=bash disable=SC2034
# To be sourced: forwarding COMMAND [ARGUMENT...] runs a command that gets the signals which the script gets, so that a
# stop saves. It sets `status`, the command's exit status, and `stopped`, the last signal that the script got, or "".

forwarding() {
  local child="" seen
  signals=0 stopped=""
  trap 'forward TERM' TERM
  trap 'forward INT' INT
  # In a process group of its own: a terminal's Ctrl-C comes to the script alone, and the command gets it once.
  set -m
  "$@" &
  child=$!
  set +m
  if [[ -n "$stopped" ]]; then kill -s "$stopped" "$child" || true; fi
  while :; do
    seen=$signals
    status=0
    wait "$child" || status=$?
    # A signal ends `wait`, not the command; the next `wait` has its status.
    if ((signals == seen)); then break; fi
  done
  trap - TERM INT
}

forward() {
  signals=$((signals + 1)) stopped=$1
  if [[ -n "$child" ]]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}

# Exit statuses after which the same command goes on: stopped and saved, another host is lost (EX_TEMPFAIL), or the first
# one is, upon which JAX aborts the others.
goes_on() { [[ "$1" == 143 || "$1" == 75 || "$1" == 134 ]]; }
