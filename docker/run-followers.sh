#!/usr/bin/env bash
# Runs several followers in one container: run-followers COUNT ARGUMENTS…
# Ends all of them as soon as one ends, with the exit code of that one.
set -u

count=$1
shift
pids=()
stopped=0

stop() {
  stopped=1
  kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap stop TERM INT

for ((i = 0; i < count; i++)); do
  rufus-serve follower "$@" &
  pids+=($!)
done

wait -n
code=$?
stop_requested=$stopped
stop
wait
# A signal ends `wait -n` early; a stop that was asked for is no failure.
if ((stop_requested)); then
  exit 0
fi
exit "$code"
