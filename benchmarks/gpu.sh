#!/usr/bin/env bash
# Measures everything that needs a GPU, beside its peers, in under eight minutes.
#
#     benchmarks/gpu.sh                    all parts, on one GPU
#     benchmarks/gpu.sh snac pipeline      these parts
#     benchmarks/gpu.sh --cpu              all parts in their smallest form on a CPU: proves the script, no figure
#
# Each part has a deadline. Results, one log and a summary lie in $OUT (by default build/gpu), each
# written as soon as it is known, so that what was measured stays when the script is cut off. The exit code
# is the sum over the parts that failed: dnsmos 1, snac 2, pipeline 4, trainer 8; 64 is wrong use.
set -uo pipefail
out=$(realpath -m "${OUT:-$(dirname "$0")/../build/gpu}")
cd "$(dirname "$0")/.." || exit 64

python=${PYTHON:-.venv/bin/python}
parts=(dnsmos snac pipeline trainer)
declare -A bit=([dnsmos]=1 [snac]=2 [pipeline]=4 [trainer]=8)
declare -A seconds=([dnsmos]=100 [snac]=130 [pipeline]=105 [trainer]=140)  # 475 in all
declare -A command=(
    [dnsmos]="benchmarks.dnsmos_gpu"
    [snac]="benchmarks.snac_gpu"
    [pipeline]="benchmarks.gpu_pipeline"
    [trainer]="benchmarks.trainer_gpu --repeats 1 --steps 8"
)
declare -A on_cpu=(
    [dnsmos]="benchmarks.dnsmos_gpu --device cpu --clips 3 --rounds 1"
    [snac]="benchmarks.snac_gpu --device cpu --clips 3 --exact-seconds 3"
    [pipeline]="benchmarks.gpu_pipeline --cpu --engine inline"
    [trainer]="benchmarks.trainer_gpu --tiny --repeats 1 --steps 3 --peers huggingface"
)

wrong_use() { echo "gpu.sh: $1" >&2; exit 64; }

chosen=() cpu=""
for word in "$@"; do
    if [ "$word" = --cpu ]; then cpu=1
    elif [ -n "${bit[$word]:-}" ]; then chosen+=("$word")
    else wrong_use "$word is neither --cpu nor one of ${parts[*]}"; fi
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${parts[@]}")
"$python" -c "" || wrong_use "there is no Python at $python: name one with PYTHON=..."
[ -n "$cpu" ] || "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" ||
    wrong_use "torch finds no GPU; --cpu tries the script without one"

mkdir -p "$out/results"
: >"$out/log.txt"
: >"$out/summary.txt"
export KOE_BENCHMARK_RESULTS="$out/results" PYTHONUNBUFFERED=1
say() { echo "$1" | tee -a "$out/summary.txt" "$out/log.txt"; }

failed=0
for part in "${chosen[@]}"; do
    words=${command[$part]}
    if [ -n "$cpu" ]; then words=${on_cpu[$part]}; fi
    began=$SECONDS
    # shellcheck disable=SC2086  # the words of a command
    timeout --kill-after=10 "${seconds[$part]}" "$python" -m $words >>"$out/log.txt" 2>&1
    code=$?
    case $code in
        0) end="measured" ;;
        124 | 137) end="cut off after its ${seconds[$part]} seconds" ;;
        *) end="failed with $code" ;;
    esac
    [ $code -eq 0 ] || failed=$((failed + bit[$part]))
    say "$part: $end ($((SECONDS - began)) s)"
done
"$python" -m benchmarks.results "$out/results" | tee -a "$out/summary.txt"
exit $failed
