#!/usr/bin/env bash
# One machine with several GPUs, without a scheduler. One process that drives all of them:
#
#     launch/multi_gpu.sh sd15 --run-dir runs/sd15 --init-from weights/sd15 --training.fsdp-devices 8
#
# or one process per GPU, where the host's own work (decoding, Python) is what limits one:
#
#     PROCESSES=8 launch/multi_gpu.sh sd15 --run-dir runs/sd15 --init-from weights/sd15 --training.fsdp-devices 8
#
# CUDA_VISIBLE_DEVICES restricts either. The same line again resumes.

set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
PROCESSES="${PROCESSES:-1}"
PORT="${PORT:-29400}"
# Collectives overlap with arithmetic. For bit-identical resuming add --xla_gpu_deterministic_ops=true.
export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}"

if [ "$PROCESSES" -eq 1 ]; then
    exec "$PYTHON" train.py "$@"
fi

children=()
stopped=
# Each process is asked to end once, and saves first.
stop() {
    [ -n "$stopped" ] || kill -TERM "${children[@]}" 2>/dev/null || true
    stopped=yes
}
trap stop TERM INT
for ((index = 0; index < PROCESSES; index++)); do
    "$PYTHON" train.py "$@" --local-device-ids "$index" \
        --coordinator "localhost:$PORT" --num-processes "$PROCESSES" --process-id "$index" &
    children+=("$!")
done

while [ -n "$(jobs -rp)" ]; do
    # If one fails, the others would wait for it.
    wait -n || stop
done
code=0
for child in "${children[@]}"; do
    wait "$child" || code=$?
done
exit "$code"
