#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is asked, in one go, also offline: what runs on this card, the GPU tests, a first latency table.
#
#   benchmarks/gpu_session.sh --collect DIR [PACKAGE...]         on a machine with a network: fill DIR with the wheels that are wanted there
#   benchmarks/gpu_session.sh [--wheels DIR] [--out DIR] [--full]   on the machine with the GPU
#
# --wheels DIR   install every wheel of DIR; what the machine has already (PyTorch, CUDA) is used as it is
# --out DIR      where the results go (default: gpu_session)
# --full         also time full-size EVP with random weights (takes about 12 GB of disk and minutes of export)
# PYTHON=…       the interpreter to use (default: python3); ROUNDS=…  samples in the tiny table (default: 200)
#
# The latency tables are made from networks with random weights: the times are real, the depth means nothing.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels="" out=gpu_session full=no rounds=${ROUNDS:-200}

usage() {
  sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

collect() {
  [ $# -ge 1 ] || usage
  local folder=$1
  shift
  [ $# -gt 0 ] || set -- cuda-bindings cuda-pathfinder tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs \
    onnx onnxruntime onnxscript onnx-ir ml-dtypes protobuf flatbuffers safetensors pytest iniconfig pluggy hypothesis sortedcontainers
  mkdir -p "$folder"
  local package failed=0
  for package in "$@"; do
    "$python" -m pip download --quiet --no-deps --dest "$folder" "$package" || failed=1
  done
  ls -l "$folder"
  exit "$failed"
}

while [ $# -gt 0 ]; do
  case $1 in
    --collect) shift; collect "$@" ;;
    --wheels) [ $# -ge 2 ] || usage; wheels=$2; shift 2 ;;
    --out) [ $# -ge 2 ] || usage; out=$2; shift 2 ;;
    --full) full=yes; shift ;;
    *) usage ;;
  esac
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
summary=$out/summary.txt
: > "$summary"

# Runs one step with its own log; a step that fails is told and does not stop the others.
step() {
  local name=$1 code
  shift
  echo "== $name"
  "$@" > "$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code" | tee -a "$summary"
  [ "$code" -eq 0 ] || tail -n 15 "$out/$name.log"
  return "$code"
}

prepare() {
  "$python" -m venv --system-site-packages "$out/venv" || return
  if [ -n "$wheels" ]; then
    "$out/venv/bin/python" -m pip install --no-index --no-deps "$wheels"/*.whl || return
  fi
  # The checkout is the package: a link is all the installation it needs, and needs no build tools.
  local site
  site=$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
  ln -sfn "$here" "$site/fathom"
  # A virtual environment given as PYTHON is not what --system-site-packages means; its packages are wanted all the same.
  "$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > "$site/inherited.pth"
  "$out/venv/bin/python" -m pip list
}

fathom() { "$out/venv/bin/python" -m "fathom.$1" "${@:2}"; }

doctor() { fathom runtime.commands.doctor --try --json | tee "$out/doctor.json" && fathom runtime.commands.doctor; }

gpu_tests() { (cd "$here" && "$out/venv/bin/python" -m pytest -m gpu -p no:cacheprovider -rs --junitxml "$out/gpu_tests.xml" tests/test_runtime_gpu.py); }

# The target of GPU 0 (sm86), for the engines.
target() { "$out/venv/bin/python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["gpus"][0]["target"])' "$out/doctor.json"; }

latency() {
  local model=$1 bundle=$out/$1 engines=() name=${1//-/_}
  fathom export.commands.export_command --model "$model" --random-init -o "$bundle" --force --quiet || return
  for backend in tensorrt-rtx tensorrt; do
    local extra=()
    [ "$backend" = tensorrt ] || extra=(--target "$(target)")
    if fathom export.commands.build_command "$bundle" --backend "$backend" --precision fp16 "${extra[@]}" -o "$out/$name-$backend-fp16.plan" --force --quiet; then
      engines+=(--engine "$out/$name-$backend-fp16.plan")
    fi
  done
  for backend in tensorrt-rtx tensorrt; do
    fathom export.commands.build_command "$bundle" --backend "$backend" --stage-times "$out/stage_times_$name-$backend.json" --force --quiet
  done
  fathom benchmarks.bench_command latency "$bundle" "${engines[@]}" --pytorch eager-fp32,eager-fp16,eager-autocast,compile-fp16,max-autotune-fp16 --device cuda \
    --onnxruntime cpu,cuda --rounds "$2" --details -o "$out/latency_$name.json" --force
}

step prepare prepare || exit 1
step doctor doctor
step gpu_tests gpu_tests
step latency_evp_tiny latency evp-tiny "$rounds"
if [ "$full" = yes ]; then
  step latency_evp latency evp 20
fi
step smi nvidia-smi -q
rm -rf "$out/evp-tiny" "$out/evp" "$out"/*.plan "$out/venv"
echo "results are in $out"
! grep -qv 'exit code 0' "$summary"
