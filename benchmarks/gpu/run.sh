#!/usr/bin/env bash
# A campaign on one GPU without Ray: benchmarks/gpu/run.sh OUT SECONDS JOBS ARGUMENTS...
#
#   benchmarks/gpu/run.sh results 560 6 --table 2 --variant qwr-lse --seeds 1
#
# ARGUMENTS are those of benchmarks/reproduce.py. JOBS cells run side by side with NVIDIA's MPS,
# each with one thread. After SECONDS, running cells are ended. Their checkpoints stay below
# OUT/storage, so that the same command resumes them on the same machine. Finished cells are in
# OUT/kept. OUT/kept.tar.gz, which is written every half minute and at the end, has OUT/kept, each
# cell's lines so far and the policies. Leave a minute between SECONDS and the machine's own limit.
#
# Needs these of the package's dependencies: torch, numpy, gymnasium with the environments, click,
# pyyaml, safetensors and pandas. Wheels in benchmarks/gpu/wheels are installed first
# (python benchmarks/gpu/wheels.py collects them). If OpenCV is missing, a stand-in is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "$1") seconds=$2 jobs=$3
shift 3
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
if compgen -G 'benchmarks/gpu/wheels/*.whl' >/dev/null; then
    python3 -m pip install --quiet --no-index --no-deps --target "$out/packages" \
        --find-links benchmarks/gpu/wheels $(cat benchmarks/gpu/wheels/names.txt)
    export PYTHONPATH="$PWD:$out/packages"
fi
python3 -c 'import cv2' 2>/dev/null || export PYTHONPATH="$PYTHONPATH:$PWD/benchmarks/gpu"
device=cpu
if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=cuda
    export CUDA_MPS_PIPE_DIRECTORY="$(mktemp -d)" CUDA_MPS_LOG_DIRECTORY="$(mktemp -d)"
    nvidia-cuda-mps-control -d || echo "without MPS: processes take turns on the GPU"
    trap 'echo quit | nvidia-cuda-mps-control || true' EXIT
fi
# Replaces the archive whole, so that a machine that is taken away leaves the last one. Each call has
# a file of its own: the last one may begin while an ended one still writes.
archive() {
    local new="$out/.kept.$BASHPID.tar.gz"
    find "$out" -path "$out/packages" -prune -o -printf '%P\n' |
        grep -E '(/result\.json|/commands\.txt|\.safetensors|\.log)$' |
        tar -czf "$new" -C "$out" --ignore-failed-read -T - &&
        mv "$new" "$out/kept.tar.gz" || true
}
while sleep 30; do archive; done >/dev/null 2>&1 & # keeps no output open after the end
archiver=$!
timeout --signal INT --kill-after 10 "$seconds" python3 benchmarks/reproduce.py "$@" \
    --in-process "$device" --jobs "$jobs" --results "$out/kept" --storage-path "$out/storage" ||
    echo "ended with exit code $?"
kill "$archiver"
tail -qn 1 "$out"/storage/*/in_process/result.json | cut -c 1-200 || true
archive
