#!/usr/bin/env bash
# A Cloud TPU slice of any number of hosts, or several slices, through queued resources:
#
#     export TPU=dtc PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite
#     launch/tpu_pod.sh create                # SLICES=4 for four slices; SPOT=yes for spot capacity
#     launch/tpu_pod.sh state                 # until it says ACTIVE
#     REPOSITORY=https://... launch/tpu_pod.sh setup          # this revision, and its environment, on every host
#     BUCKET=my-bucket launch/tpu_pod.sh mount                # the run folder's storage, at /mnt/runs on every host
#     launch/tpu_pod.sh run sd15 --run-dir /mnt/runs/sd15 --init-from /mnt/runs/sd15-start --training.fsdp-devices 16
#     launch/tpu_pod.sh stop                  # ask the processes to end: they save first
#     launch/tpu_pod.sh delete
#
# `run` again resumes. Every host runs the same command: JAX finds the others, the slice and the chips by itself.

set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: launch/tpu_pod.sh create|state|setup|mount|run NAME ...|stop|delete: see the head of the file" >&2
    exit 2
}
[ "$#" -ge 1 ] || usage
action=$1
shift

: "${TPU:?set TPU to a name for the machines}" "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}"
SLICES="${SLICES:-1}"
where=(--project="$PROJECT" --zone="$ZONE")
resources=(gcloud compute tpus queued-resources)

# The same command on every host of every slice; it fails if it fails on one.
everywhere() {
    "${resources[@]}" ssh "$TPU" "${where[@]}" --node=all --worker=all --command="$1"
}

case "$action" in
create)
    : "${TYPE:?set TYPE, e.g. v5litepod-256}" "${RUNTIME:?set RUNTIME, e.g. v2-alpha-tpuv5-lite}"
    shape=(--node-id="$TPU")
    [ "$SLICES" -eq 1 ] || shape=(--node-count="$SLICES" --node-prefix="$TPU")
    [ -z "${SPOT:-}" ] || shape+=(--spot)
    exec "${resources[@]}" create "$TPU" "${where[@]}" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
        "${shape[@]}"
    ;;
state)
    exec "${resources[@]}" describe "$TPU" "${where[@]}" --format="value(state.state)"
    ;;
setup)
    : "${REPOSITORY:?set REPOSITORY to an address that the hosts can clone this revision from}"
    everywhere "rm -rf dtc-jax && git clone --quiet '$REPOSITORY' dtc-jax && cd dtc-jax && \
git checkout --quiet $(git rev-parse HEAD) && \
python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu,datasets]'"
    ;;
mount)
    : "${BUCKET:?set BUCKET}"
    # Checkpoints are written beside their place and renamed: a bucket with a hierarchical namespace renames folders.
    everywhere "sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs && \
{ mountpoint -q /mnt/runs || gcsfuse --implicit-dirs --rename-dir-limit=100000 '$BUCKET' /mnt/runs; }"
    ;;
run)
    [ "$#" -ge 1 ] || usage
    everywhere "cd dtc-jax && exec .venv/bin/python -u train.py $(printf '%q ' "$@")"
    ;;
stop)
    everywhere "pkill -TERM -f '[t]rain.py' || true"
    ;;
delete)
    exec "${resources[@]}" delete "$TPU" "${where[@]}" --force --quiet
    ;;
*)
    usage
    ;;
esac
