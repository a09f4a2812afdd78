"""``depth-doctor``: what is here, what each backend can do with it, and the command that mends what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from ... import __version__
from ..cuda.driver_release import driver_release
from ..errors import FathomError, UsageError
from ..jetson import read_jetson, tensorrt_fix
from .command import common_flags, run_command
from .package_conflicts import conflicts, onnxruntime_gpu_fix, two_onnxruntimes, version_of

PACKAGES = ("numpy", "Pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "pycuda", "tokenizers", "tqdm", "av")
NO_BACKEND = 6
RATHER_TENSORRT = "pip install tensorrt, and depth-build --backend tensorrt on this machine"
EPILOG = """\
Exit code 0 if at least one backend works here, 6 if none does. --try goes further than looking: it compiles, loads and runs an engine
of one operator with each GPU backend that is installed, in a process of its own. --engine asks whether one plan is right on this
machine: exit code 0 if it is, 4 with the first wrong stage if it is not.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-doctor``."""
    parser = argparse.ArgumentParser(
        prog="depth-doctor", description="What works on this machine, and why not.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--try", dest="trial", action="store_true", help="compile, load and run a trial engine with each GPU backend")
    proof = "run this plan on its own golden tensors, alone and chained, in two starts; nothing else is looked at"
    parser.add_argument("--engine", metavar="PLAN", help=proof)
    common_flags(parser, force=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-doctor``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.engine:
        if arguments.trial:
            raise UsageError("--try and --engine are two questions", fix="ask one at a time")
        return _prove(arguments.engine, arguments.json)
    found = examine(arguments.trial)
    print(json.dumps(found) if arguments.json else _words(found))
    return 0 if any(backend["works"] for backend in found["backends"].values()) else NO_BACKEND


def _prove(path: str, as_json: bool) -> int:
    """Prove one plan here; returns 0, or raises what is wrong with it."""
    from ..artefact.plan import PlanFile
    from ..examination import examine_plan

    with PlanFile.open(path) as plan:
        found = examine_plan(plan)
    proof = found.proof
    rows = [{"stage": row.stage, "mode": row.mode, "tensor": row.tensor, "rms": row.found.rms, "gain": row.found.gain} for row in proof.rows]
    facts = {"plan": path, "where": found.where, "depth": {proof.measure: proof.error}, "equal_starts": found.equal, "rows": rows}
    print(json.dumps(facts) if as_json else f"{path} is {found.words}")
    return 0


def devices() -> dict[str, Any]:
    """The part of ``examine`` that says on what a measurement is made: ``driver``, ``gpus``, ``gpu_problem`` and ``packages``. Starts no process."""
    gpus, problem = _gpus()
    packages = {name: version for name in PACKAGES if (version := version_of(name))}
    return {"driver": _driver(gpus), "gpus": gpus, "gpu_problem": problem, "packages": packages}


def examine(trial: bool = False) -> dict[str, Any]:
    """Everything, as JSON values.

    Args:
        trial: also run a trial engine with each GPU backend.

    Returns:
        ``fathom``, ``python``, ``system``, ``jetson`` (null on other machines), ``driver``, ``gpus``, ``gpu_problem``, ``packages``, ``conflicts`` (between
        packages: ``says`` and ``fix``), ``kernels``, ``cache`` and ``backends``: name -> ``works``, ``says``, ``fix``, and with ``trial`` also ``trial``.
    """
    seen = devices()
    gpus, problem = seen["gpus"], seen["gpu_problem"]
    found: dict[str, Any] = {
        "fathom": __version__,
        "python": platform.python_version(),
        "system": _system(),
        "jetson": _jetson(),
        **seen,
        "conflicts": conflicts(),
        "kernels": _kernels(gpus),
        "cache": _cache(),
    }
    found["backends"] = {"onnxruntime": _onnxruntime_cpu(), "onnxruntime-cuda": _onnxruntime_cuda(gpus, problem)}
    for backend in ("tensorrt", "tensorrt-rtx"):
        found["backends"][backend] = _tensorrt(backend, gpus, problem)
        if trial:
            from .doctor_trial import try_in_child

            found["backends"][backend]["trial"] = outcome = try_in_child(backend)
            found["backends"][backend]["works"] = found["backends"][backend]["works"] and outcome["ok"]
    return found


def _system() -> dict[str, str]:
    return {"os": platform.system(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver())}


def _jetson() -> dict[str, Any] | None:
    found = read_jetson()
    if found is None:
        return None
    remarks = [{"says": remark.says, "fix": remark.fix} for remark in found.remarks()]
    release = ".".join(map(str, found.l4t))
    return {"says": found.words, "model": found.model, "l4t": release, "jetpack": found.jetpack, "packages": found.packages, "remarks": remarks}


def _driver(gpus: list[dict[str, Any]]) -> dict[str, str]:
    facts = {"release": release} if (release := driver_release()) else {}
    if gpus:
        facts["cuda"] = gpus[0]["driver_cuda"]
    return facts


def _gpus() -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """All GPUs that CUDA shows, and what stands in the way if there are none."""
    from ..cuda.open_device import open_device

    found: list[dict[str, Any]] = []
    while len(found) < 64:
        try:
            device = open_device(len(found))
        except FathomError as error:
            return found, None if found else {"says": error.was, "fix": error.fix}
        try:
            with device:
                free, total = device.memory()
            found.append(
                {
                    "index": device.index,
                    "name": device.name,
                    "target": device.target,
                    "memory_mib": total >> 20,
                    "free_mib": free >> 20,
                    "driver_cuda": f"{device.driver[0]}.{device.driver[1]}",
                    "binding": device.binding,
                }
            )
        except FathomError as error:
            return found, {"says": error.was, "fix": error.fix}
        finally:
            device.close()
    return found, None


def _kernels(gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Which of our own kernels would be taken on each GPU."""
    try:
        facts = json.loads((Path(__file__).parents[1] / "kernels" / "kernels.json").read_text())
        compiled, ptx = facts["architectures"], facts["ptx"]
    except (OSError, ValueError, KeyError):
        return {"compiled_for": [], "says": "not installed; photos are shaped on the CPU"}
    taken = {gpu["target"]: "cubin" if int(gpu["target"][2:]) in compiled else "PTX" if int(gpu["target"][2:]) >= ptx else "none" for gpu in gpus}
    return {"compiled_for": [f"sm{number}" for number in compiled], "taken": taken}


def _cache() -> dict[str, str]:
    from ..tensorrt.user_cache import cache_root, refuse_shared

    root = cache_root()
    try:
        if root.exists():
            refuse_shared(root)
    except FathomError as error:
        return {"folder": str(root), "says": error.was, "fix": error.fix}
    return {"folder": str(root), "says": "", "fix": ""}


def _works(says: str) -> dict[str, Any]:
    return {"works": True, "says": says, "fix": ""}


def _fails(says: str, fix: str) -> dict[str, Any]:
    return {"works": False, "says": says, "fix": fix}


def _onnxruntime_cpu() -> dict[str, Any]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return _fails(f"ONNX Runtime cannot be loaded ({error})", "pip install onnxruntime")
    return _works(f"ONNX Runtime {onnxruntime.__version__} on {os.cpu_count()} CPU cores: bundles, and plans for onnxruntime")


def _onnxruntime_cuda(gpus: list[dict[str, Any]], problem: dict[str, str] | None) -> dict[str, Any]:
    if both := two_onnxruntimes():
        return _fails(both["says"], both["fix"])
    if not gpus:
        return _no_gpu(problem)
    fix = onnxruntime_gpu_fix()
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return _fails(f"ONNX Runtime cannot be loaded ({error})", fix)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return _fails(f"ONNX Runtime {onnxruntime.__version__} here has no CUDA provider", fix)
    return _works(f"ONNX Runtime {onnxruntime.__version__} with its CUDA provider: depth-run --device cuda")


def _tensorrt(backend: str, gpus: list[dict[str, Any]], problem: dict[str, str] | None) -> dict[str, Any]:
    from ..tensorrt.compatibility import cuda_major
    from ..tensorrt.loading import MODULES, import_tensorrt
    from ..tensorrt.rtx_targets import why_not_here

    try:
        trt = import_tensorrt(backend)
    except FathomError as error:
        return _fails(error.was, error.fix)
    if not gpus:
        more = "; it compiles plans here for other machines" if backend == "tensorrt-rtx" else ""
        return _no_gpu(problem, f"{backend} {trt.__version__} is installed{more}, but ")
    major, known = cuda_major(MODULES[backend]), tuple(map(int, gpus[0]["driver_cuda"].split(".")))
    if major and known[0] < major:
        return _fails(
            f"{backend} {trt.__version__} needs CUDA {major}, the driver knows {gpus[0]['driver_cuda']}",
            tensorrt_fix(backend, f"update the driver, or pip install {backend}-cu{known[0]}"),
        )
    refused = {gpu["target"]: why_not_here(trt, gpu["target"]) for gpu in gpus}
    fitting = [gpu for gpu in gpus if not refused[gpu["target"]]]
    if not fitting:
        reasons = "; ".join(f"{target}: {why}" for target, why in sorted(refused.items()))
        return _fails(f"{backend} {trt.__version__} runs no plan here ({reasons})", tensorrt_fix(backend, RATHER_TENSORRT))
    here = ", ".join(f"GPU {gpu['index']} ({gpu['target']})" for gpu in fitting)
    return _works(f"{backend} {trt.__version__} on {here}{_tier(backend, trt.__version__)}")


def _tier(backend: str, version: str) -> str:
    """What kind of engines this release takes, where that is not the usual kind."""
    from ..tensorrt.adapters.releases import tier_of

    if backend != "tensorrt" or tier_of(version).strongly_typed:
        return ""
    return f": the tier of {tier_of(version).name}, whose engines are built under precision constraints"


def _no_gpu(problem: dict[str, str] | None, before: str = "") -> dict[str, Any]:
    found = problem or {"says": "no GPU was found", "fix": ""}
    return _fails(before + found["says"], found["fix"])


def _words(found: dict[str, Any]) -> str:
    system = " ".join(value for value in found["system"].values() if value)
    lines = [f"Fathom {found['fathom']}, Python {found['python']}, {system}"]
    if jetson := found["jetson"]:
        lines.append(f"Jetson: {jetson['says']}")
        for remark in jetson["remarks"]:
            lines.append(f"  {remark['says']}" + (f"\n     fix: {remark['fix']}" if remark["fix"] else ""))
    driver = found["driver"]
    lines.append("NVIDIA driver: " + (" ".join(filter(None, (driver.get("release"), f"for CUDA {driver['cuda']}" if "cuda" in driver else ""))) or "none"))
    for gpu in found["gpus"]:
        lines.append(f"GPU {gpu['index']}: {gpu['name']}, {gpu['target']}, {gpu['free_mib']} of {gpu['memory_mib']} MiB free, through {gpu['binding']}")
    if not found["gpus"]:
        lines.append(f"GPU: none ({(found['gpu_problem'] or {}).get('says', '')})")
    lines.append("packages: " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    for conflict in found["conflicts"]:
        lines += [f"  {conflict['says']}", f"     fix: {conflict['fix']}"]
    taken = found["kernels"].get("taken", {})
    lines.append("own kernels: " + (found["kernels"].get("says") or f"for {', '.join(found['kernels']['compiled_for'])}, and PTX"))
    lines += [f"  {target}: {what}" for target, what in taken.items()]
    cache = found["cache"]
    lines.append(f"cache: {cache['says'] or cache['folder']}")
    lines.append("")
    for name, backend in found["backends"].items():
        lines.append(f"{'yes' if backend['works'] else 'no ':3}  {name}: {backend['says']}")
        if backend["fix"]:
            lines.append(f"     fix: {backend['fix']}")
        if "trial" in backend:
            lines.append(f"     trial: {backend['trial']['words']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
