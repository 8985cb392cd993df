#!/usr/bin/env bash
# Everything that can only be known on a machine with a GPU, in one run of less than nine minutes:
#
#     benchmarks/gpu_check.sh OUTDIR [CIFAR]
#
# CIFAR: a .npz of images to train on, as benchmarks/cifar_subset.py writes it, or a folder that holds one; without it
# the embedded digits are trained on. OUTDIR gets summary.txt, summary.json (with what each part measured) and
# logs.tar.gz, written anew after every part. The exit status is 1 if a part failed or ran out of time.
#
# Needs Python with NumPy, Numba, CuPy, pytest, typer, rich, tqdm, safetensors and matplotlib. PyTorch is compared with
# where it is, compute-sanitizer used where it is. tinyres is run from this checkout, nothing is installed or fetched.
#
#   PYTHON=...                     the interpreter (default: python3)
#   TINYRES_GPU_CHECK_SECONDS=N    the whole run's limit (default: 525)
#   TINYRES_GPU_CHECK_REHEARSAL=1  without a GPU: the same parts, tiny, on the tests' stand-in for CuPy. It shows
#                                  that they run, and measures nothing.
#   TINYRES_GPU_CHECK_PARTS=REGEX  only the parts whose names match
set -uo pipefail
exec </dev/null

if (($# < 1 || $# > 2)); then
    sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cifar=${2:-}
python=${PYTHON:-python3}
total=${TINYRES_GPU_CHECK_SECONDS:-525}
rehearsal=${TINYRES_GPU_CHECK_REHEARSAL:-}
only=${TINYRES_GPU_CHECK_PARTS:-.}
work=$(mktemp -d)
background=""
trap 'rm -rf "$work"' EXIT

if [[ -n $cifar && -d $cifar ]]; then
    files=("$cifar"/*.npz)
    cifar=${files[0]}
fi
if [[ -n $cifar ]]; then
    if [[ ! -f $cifar ]]; then
        printf 'gpu_check: there is no .npz file at %s: benchmarks/cifar_subset.py makes one\n' "$2" >&2
        exit 2
    fi
    cifar=$(cd "$(dirname "$cifar")" && pwd)/$(basename "$cifar")
fi
cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 CUPY_CACHE_DIR="$work/.cupy" MPLBACKEND=Agg
: >"$work/parts.tsv"

# part NAME LIMIT COMMAND...: run it, for LIMIT seconds at most and no longer than there is time; keep what it writes.
part() {
    local name=$1 limit=$2 began=$SECONDS status left
    shift 2
    [[ $name =~ $only ]] || return 0
    left=$((total - SECONDS))
    if ((left < 5)); then
        note "$name" "no time was left"
        return 0
    fi
    ((limit = limit < left ? limit : left))
    printf '%4d s  %s, at most %d s\n' "$SECONDS" "$name" "$limit"
    timeout --kill-after=5 "$limit" "$@" >"$work/$name.out" 2>"$work/$name.err"
    status=$?
    printf '%s\t%d\t%d\t%d\n' "$name" "$status" $((SECONDS - began)) "$limit" >>"$work/parts.tsv"
    ((status == 0)) || printf '        %s ended with status %d\n' "$name" "$status"
    collect
}

# note NAME WHY: a part that is not run.
note() {
    [[ $1 =~ $only ]] || return 0
    printf '%s\t0\t0\t0\t%s\n' "$1" "$2" >>"$work/parts.tsv"
    printf '%4d s  %s is not run: %s\n' "$SECONDS" "$1" "$2"
    collect
}

collect() {
    "$python" benchmarks/gpu_summary.py collect "$work" "$out"
}

has() {
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null
}

# What differs in a rehearsal: how Python programs are run, and how much they are given to do.
if [[ -n $rehearsal ]]; then
    : >"$work/rehearsal"
    run=("$python" tests/gpu_rehearsal.py)
    program=("$python" tests/gpu_rehearsal.py tinyres)
    step=(--model resnet8 --image-size 8 --batch 2 --rounds 1) step18=("${step[@]}") infer=("${step[@]}")
    kernels=(--batch 1 --rounds 1) parity=(--model resnet8 --steps 1 --batch 2 --size 8) place=(--place emulator)
    training=(--data "${cifar:-digits}" --model resnet8 --iterations 1 --batch 4)
    tests=("$python" tests/gpu_rehearsal.py pytest tests/test_gpu.py -k "test_op and dropout")
else
    run=("$python")
    program=("$python" -m tinyres)
    step=(--model resnet20 --batch 128 --rounds 9) step18=(--model resnet18 --cifar-stem --batch 512 --rounds 5)
    infer=(--model resnet20 --batch 1 --batch 128 --rounds 7) kernels=(--batch 128 --rounds 5) parity=(--steps 20)
    training=(--data "${cifar:-digits}" --model resnet20 --epochs 10 --batch 128) place=(--place gpu)
    tests=("$python" -m pytest tests --continue-on-collection-errors)
fi
against=()
if [[ -z $rehearsal ]] && has torch; then
    against=(--against torch)
fi
if [[ -z $rehearsal ]] && has xdist; then
    tests+=(-n 4)
fi

part environment 60 "$python" benchmarks/gpu_summary.py facts
if [[ -z $rehearsal ]]; then
    # Numba's kernels, which the tests compare with: compiled meanwhile.
    timeout 150 "${program[@]}" doctor --warm >"$work/warm.out" 2>"$work/warm.err" &
    background=$!
fi
part kernels-once 90 "${run[@]}" benchmarks/gpu_kernels.py "${place[@]}"
[[ -z $background ]] || wait "$background"
part tests 170 "${tests[@]}" -m gpu -q -p no:cacheprovider --junitxml="$work/tests.xml"
part step-resnet20 80 "${program[@]}" bench step --device cuda "${step[@]}" ${against[@]+"${against[@]}"} --json
part parity 40 "${run[@]}" benchmarks/gpu_parity.py "${parity[@]}"
part train 75 "${program[@]}" train --device cuda "${training[@]}" --seed 0 --out "$work/train" --json
part bench-kernels 75 "${program[@]}" bench kernels "${kernels[@]}" --json
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
        part "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 50 --launch-timeout 60 \
            "$python" benchmarks/gpu_kernels.py "${place[@]}"
    done
else
    for tool in memcheck racecheck synccheck initcheck; do
        note "$tool" "compute-sanitizer is not here"
    done
fi
part step-resnet18 70 "${program[@]}" bench step --device cuda "${step18[@]}" ${against[@]+"${against[@]}"} --json
part infer 40 "${program[@]}" bench infer --device cuda "${infer[@]}" ${against[@]+"${against[@]}"} --json
if ((${#against[@]})); then
    part step-compiled 150 "${program[@]}" bench step --device cuda "${step[@]}" --against torch --compile --json
else
    note step-compiled "there is no PyTorch here, or it is a rehearsal"
fi
collect
status=$?
printf '\n'
cat "$out/summary.txt"
exit "$status"
