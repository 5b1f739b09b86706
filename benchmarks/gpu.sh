#!/usr/bin/env bash
# All that is measured on one GPU, in nine minutes: benchmarks/gpu.sh ROOT OUTPUT [ORIGINALS]
# ROOT holds bottle in MVTec AD's layout, OUTPUT gets what each command prints. Where ROOT has small copies, ORIGINALS
# holds the photographs that the reference loop decodes. What is late or fails is given up, and the others go on.
set -u
root=${1:?the dataset, in the layout of MVTec AD} output=${2:?where the figures go} originals=${3:-$1}
cd "$(dirname "${BASH_SOURCE[0]}")/.." && mkdir -p "$output" || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-16}
python=${PYTHON:-python3}
failed=0

measure() { # seconds, name, command
    echo "== $2, at most $1 s"
    timeout "$1" "$python" "${@:3}" 2>&1 | tee "$output/$2.txt"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || { echo "$2: exit status $status" | tee -a "$output/$2.txt" && failed=1; }
}

training=(benchmarks/training.py --root "$root" --originals "$originals" --category bottle --recorded)
measure 90 tests -m pytest -q -m gpu tests/models tests/orchestrator
measure 30 kernels benchmarks/kernels.py
measure 110 training "${training[@]}" --rounds 3 --epochs 12 --reference-images 96
measure 60 training-feature_pyramid "${training[@]}" --rounds 2 --epochs 24 --reference-images 48 \
    --architecture feature_pyramid
measure 80 inference benchmarks/inference.py --no-export --seconds 15
measure 110 packing benchmarks/packing.py --architectures multiscale --repeats 1 --processes 16,8 --mps --limit 105
measure 40 data benchmarks/data.py --root "$root" --parts warm --starts 3
exit "$failed"
