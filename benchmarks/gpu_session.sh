#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can tell, in steps that stand alone, also without a network: each has its limit, its log, and its line in
# OUT/logs/summary. A step that fails stops no other.
#
#   benchmarks/gpu_session.sh OUT [STEP...]        without steps: facts trial kernels device whole operators build accuracy latency graphs record
#
# facts      driver, clocks, power, packages                      trial     depth-doctor --try
# kernels    every test of our kernels with the shipped fatbins    device    device layer and pixel kernels, both bindings
# whole      the runtime with PyTorch in the place of TensorRT: photos, CUDA graphs, threads, 10,000 frames
# operators  our operators against PyTorch and double precision    build     every bundle in FP32, FP16 and INT8, certified as it is built
# accuracy   every plan on rooms:50:8 and on the indoor pairs of DATA     latency   engines, PyTorch, engines, network by network
# graphs     CUDA graph on and off                                stages    stage times of every bundle, for depth-calibrate
# ours       evp bundles in FP16 with our operators as kernels between engines, and as plugins of PLUGINS; certified as they are built, and in accuracy and
#            latency beside the others after that. Not among the steps that run by themselves, because every engine of them is another one to build
# full       a network of full size with random weights (FULL): exported here, built in FP16, its times, layers and energy beside PyTorch's. Not among the
#            steps that run by themselves: minutes, 8 GB of disk
# record     all of it as OUT/gpu.json (python -m fathom.benchmarks.card.gather)
#
# PYTHON=python3          has PyTorch with CUDA, pytest, hypothesis
# ENGINES="$PYTHON"       has TensorRT; TensorRT 8.5 is at home in Python 3.10 only, and wants cuBLAS 11 beside it for attention
# BUNDLES=DIR             bundles made elsewhere by depth-export, calibrated for INT8 (the machine needs no exporter)
# DATA=DIR                photos with depth, as for --data pairs:DIR:test:indoor       JOBS=8  builds at a time         ROUNDS=200
# FULL=evp                a network of the catalog, for the step full        BUILD_LIMIT=900  seconds of one build
# PLUGINS=FILE            the library of our operators for that TensorRT (python -m fathom.trt_plugins.build_plugins)
# BACKEND=tensorrt        or tensorrt-rtx                                        MODES=eager-fp32,eager-fp16,compile-fp16,max-autotune-fp16
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
mkdir -p "$1/logs" "$1/out" "$1/plans" "$1/bundles" "$1/parent"
out=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- facts trial kernels device whole operators build accuracy latency graphs record
python=${PYTHON:-python3} engines=${ENGINES:-$python} backend=${BACKEND:-tensorrt} jobs=${JOBS:-8} rounds=${ROUNDS:-200} limit=${BUILD_LIMIT:-900} full=${FULL:-evp}
modes=${MODES-eager-fp32,eager-fp16,compile-fp16,max-autotune-fp16}
ln -sfn "$here" "$out/parent/fathom"  # the checkout is the package; nothing is installed
export PYTHONPATH="$out/parent${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 FATHOM_CACHE_DIR="${FATHOM_CACHE_DIR:-$out/cache}"
networks=$(for bundle in "${BUNDLES:-/nonexistent}"/*/bundle.json; do [ ! -e "$bundle" ] || basename "$(dirname "$bundle")"; done)

step() { # NAME LIMIT_S COMMAND...
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  timeout -k 5 "$limit" "$@" > "$out/logs/$name.log" 2> "$out/logs/$name.err"
  code=$?
  echo "$name: exit code $code after $((SECONDS - start)) s: $(tail -qn 1 "$out/logs/$name.err" "$out/logs/$name.log" | tail -n 1 | cut -c1-150)" | tee -a "$out/logs/summary"
  return "$code"
}

gpu_tests() { step "$1" "$2" "$python" -m pytest -m gpu -p no:cacheprovider -q -rs --rootdir "$here" --junitxml "$out/out/$1.xml" "${@:3}"; }
plans() { for precision in fp32 fp16 int8 kernels plugins; do [ ! -e "$out/plans/$1-$precision.plan" ] || printf -- '--engine\n%s\n' "$out/plans/$1-$precision.plan"; done; }

build() { # BUNDLE PLAN-NAME WORD...
  local command=("$engines" -m fathom.export.commands.build_command "$1" --backend "$backend" ${target:+--target "$target"})
  step "build-$2" "$limit" "${command[@]}" -o "$out/plans/$2.plan" --force --json "${@:3}"
}

latency() { # NETWORK BUNDLE
  mapfile -t given < <(plans "$1")
  [ ${#given[@]} -gt 0 ] || return 0
  local bench=(-m fathom.benchmarks.bench_command latency) end=(--rounds "$rounds" --force --quiet)
  step "lat-$1-1" 200 "$engines" "${bench[@]}" "${given[@]}" "${end[@]}" -o "$out/out/lat-$1-1.json"
  [ -z "$modes" ] || step "lat-$1-torch" 400 "$python" "${bench[@]}" "$2" --pytorch "$modes" --device cuda "${end[@]}" -o "$out/out/lat-$1-torch.json"
  step "lat-$1-2" 300 "$engines" "${bench[@]}" "${given[@]}" "${end[@]}" --details -o "$out/out/lat-$1-2.json"
}

export -f step build
export out backend engines limit

facts() {
  if command -v nvidia-smi > /dev/null; then nvidia-smi; nvidia-smi -q -d CLOCK,POWER; fi
  if command -v jetson_clocks > /dev/null; then nvpmodel -q; jetson_clocks --show; fi  # a Jetson; both may want root
  "$python" -m pip list
  [ "$python" = "$engines" ] || "$engines" -m pip list
  lscpu | grep 'Model name'
}
export -f facts
export python

run_step() {
  case $1 in
    facts) step facts 60 bash -c facts; step doctor 60 "$engines" -m fathom.runtime.commands.doctor --json ;;
    trial) step trial 200 "$engines" -m fathom.runtime.commands.doctor --try ;;
    kernels) gpu_tests kernels 120 "$here/tests/test_runtime_gpu_kernels.py" ;;
    device) gpu_tests device 90 "$here/tests/test_runtime_gpu.py" -k "facts_and_memory or copies_events or kernels_equal" ;;
    whole) gpu_tests whole 150 "$here/tests/test_runtime_gpu.py" -k "photos_to_maps or graph_on_and_off or eight_threads or many_frames" ;;
    operators) step operators 240 "$python" -m fathom.benchmarks.card.operators -o "$out/out/operators.json" ;;
    build)
      [ "$backend" != tensorrt-rtx ] || target=$("$engines" -c 'import json, sys; print(json.load(open(sys.argv[1]))["gpus"][0]["target"])' "$out/logs/doctor.log")
      export target=${target:-}
      for network in $networks; do for precision in fp16 fp32 int8; do echo "$network $precision"; done; done |
        xargs -r -P "$jobs" -L 1 bash -c 'build "$0/$1" "$1-$2" --precision "$2"; true' "${BUNDLES:-}" ;;
    accuracy)
      for network in $networks; do
        for pictures in rooms ${DATA:+pairs}; do
          local data=rooms:50:8
          [ "$pictures" = rooms ] || data=pairs:$DATA:test:indoor
          mapfile -t given < <(plans "$network")
          [ ${#given[@]} -eq 0 ] || step "acc-$network-$pictures" 300 "$engines" -m fathom.benchmarks.bench_command accuracy "${given[@]}" --data "$data" --evaluation full \
            -o "$out/out/acc-$network-$pictures.json" --force --quiet
        done
      done ;;
    latency) for network in $networks; do latency "$network" "$BUNDLES/$network"; done ;;
    graphs) step graphs 200 "$engines" -m fathom.benchmarks.card.graphs "$out"/plans/*.plan -o "$out/out/graphs.json" ;;
    ours)
      for network in $networks; do
        [[ $network == evp* ]] || continue
        for how in kernels ${PLUGINS:+plugins}; do
          local words=(--precision fp16 --operators BinsExpectation,GroupNormSilu,CrossAttention --layers "$out/out/layers-$network-$how.json")
          [ "$how" = kernels ] || words+=(--plugins "$PLUGINS")
          build "$BUNDLES/$network" "$network-$how" "${words[@]}"
        done
      done ;;
    full)
      step "export-$full" 600 "$python" -m fathom.export.commands.export_command --model "$full" --random-init -o "$out/bundles/$full" --force --quiet &&
        build "$out/bundles/$full" "$full-fp16" --precision fp16 --layers "$out/out/layers-$full-fp16.json" &&
        latency "$full" "$out/bundles/$full" ;;
    stages)
      for network in $networks; do
        step "stages-$network" 600 "$engines" -m fathom.export.commands.build_command "$BUNDLES/$network" --backend "$backend" --stage-times "$out/out/stages-$network.json" --force
      done ;;
    record) step record 60 "$python" -m fathom.benchmarks.card.gather "$out" -o "$out/gpu.json" ;;
    *) echo "there is no step $1" >&2; exit 2 ;;
  esac
}

for name in "$@"; do run_step "$name"; done
echo "results are in $out"
! grep -qv 'exit code 0' "$out/logs/summary"
