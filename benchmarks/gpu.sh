#!/usr/bin/env bash
# What is measured on one GPU: benchmarks/gpu.sh ROOT OUTPUT [ORIGINALS]
#
# ROOT holds bottle, and for `quality` the other products, in MVTec AD's layout; OUTPUT gets what each part prints.
# Where ROOT has small copies, ORIGINALS holds the photographs that the reference loop decodes. Each part has a time
# limit of its own: what is late or fails is given up, and the others go on. Needs neither Ray nor MLflow, nor a network.
#
# PARTS names those to run, by default all but `quality`, in ten minutes:
#   tests     every test marked `gpu`: kernels agree, recorded steps and scorings are the plain ones, a step in every
#             precision
#   kernels   each kernel in Triton beside torch's operators, recorded, at the sizes of a step (none may be slower)
#   training  multiscale: images a second beside the reference loop (goal 15 times) and the limit (goal 50 %), recorded
#             or not, with msad's kernels or without
#   training-feature_pyramid  the same (goal 50 % of the limit)
#   packing   16 equal trials on the GPU: one at a time, as processes with MPS and without, by vmap (goal 3 times)
#   inference latency at batch 1 (goal 3 ms) and images a second at 32 (goal 2,000) of ARCHITECTURES
#   data      a warm start of a trial's data (goal 0.5 s)
#   devices   scores and verdicts of one bundle on the GPU and on the CPU (goal: off by at most 1e-3 of the threshold's
#             distance from the good images, every verdict equal)
#   quality   FAMILIES from scratch to convergence at 256 pixels on CATEGORIES, with SEEDS: hours in all, one product and
#             family in minutes
set -u
root=${1:?the dataset, in the layout of MVTec AD} output=${2:?where the figures go} originals=${3:-$1}
root=$(realpath "$root") originals=$(realpath "$originals") output=$(realpath -m "$output")
cd "$(dirname "${BASH_SOURCE[0]}")/.." && mkdir -p "$output" || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-16}
python=${PYTHON:-python3}
failed=0

measure() { # part, seconds, name, command
    [[ " ${PARTS:-tests kernels training packing inference data devices} " = *" $1 "* ]] || return
    echo "== $3, at most $2 s"
    timeout "$2" "$python" "${@:4}" 2>&1 | tee "$output/$3.txt"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || { echo "$3: exit status $status" | tee -a "$output/$3.txt" && failed=1; }
}

mapfile -t marked < <(grep -rl --include='test_*.py' 'pytest.mark.gpu' tests)
read -ra architectures <<<"${ARCHITECTURES:-multiscale feature_pyramid $(ls models/feature_memory.py 2>/dev/null | xargs -r basename -s .py)}"
common=(benchmarks/training.py --root "$root" --originals "$originals" --category bottle --recorded)

# Files that want Ray are left out where there is none, the rest goes on.
measure tests 120 tests -m pytest -q -m gpu --continue-on-collection-errors "${marked[@]}"
measure kernels 45 kernels benchmarks/kernels.py
measure training 110 training "${common[@]}" --rounds 3 --epochs 12 --reference-images 96
measure training 60 training-feature_pyramid "${common[@]}" --rounds 2 --epochs 24 --reference-images 48 \
    --architecture feature_pyramid
measure inference 100 inference benchmarks/inference.py --no-export --seconds 12 --architectures "${architectures[@]}"
measure devices 60 devices benchmarks/devices.py --root "$root" --category bottle
measure data 40 data benchmarks/data.py --root "$root" --parts warm --starts 3
measure packing 110 packing benchmarks/packing.py --architectures multiscale --repeats 1 --processes 16,8 --mps --limit 105
for category in ${CATEGORIES:-bottle kolektor magnetic_tile screw}; do
    for family in ${FAMILIES:-multiscale multiscale_segmenter baseline}; do
        for seed in ${SEEDS:-0 1 2}; do
            measure quality 900 "quality-$category-$family-$seed" benchmarks/quality.py --root "$root" \
                --categories "$category" --families "$family" --seed "$seed" --evaluations 6
        done
    done
done
exit "$failed"
