"""The CUDA kernels compiled as C++ for the host: the same text, on what ``cuda_on_host.hpp`` has of CUDA."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

import fathom

SOURCES = Path(fathom.__file__).parent / "trt_plugins" / "csrc"
SHIM = (Path(__file__).parent / "cuda_on_host.hpp").read_text()
CALL = r"""
#include "antialias.cu"
#include "preprocess.cu"
#include "postprocess.cu"
#include "bins_expectation.cuh"
#include "group_norm_silu.cuh"
#include "cross_attention.cuh"
template <typename Kernel, typename Parameters>
static void run(Kernel kernel, const void* raw, const int* grid, const int* block) {
    Parameters parameters;
    std::memcpy(&parameters, raw, sizeof parameters);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x) kernel(parameters);
}
#define RUN(name, Parameters) extern "C" void run_##name(const void* p, const int* g, const int* b) { run<decltype(&name), Parameters>(name, p, g, b); }
// A kernel whose threads wait for each other.
#define RUN_TEAM(name, Parameters) \
    extern "C" void run_##name(const void* raw, const int* g, const int* b) { \
        Parameters parameters; \
        std::memcpy(&parameters, raw, sizeof parameters); \
        host::run_grid(name, parameters, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}); \
    }
RUN_TEAM(fathom_bins_expectation, BinsExpectation)
RUN_TEAM(fathom_group_norm_silu, GroupNormSilu)
RUN_TEAM(fathom_group_norm_partial, GroupNormSilu)
RUN_TEAM(fathom_group_norm_apply, GroupNormSilu)
RUN_TEAM(fathom_cross_attention_40, CrossAttention)
RUN_TEAM(fathom_cross_attention_80, CrossAttention)
RUN_TEAM(fathom_cross_attention_128, CrossAttention)
extern "C" long long bounds_broken() { return out_of_bounds; }
RUN(fathom_antialias, Antialias)
RUN(fathom_preprocess, Preprocess)
RUN(fathom_postprocess, Postprocess)
RUN(fathom_inspect, Inspect)
extern "C" int size_of(int which) {
    const int sizes[] = {sizeof(Preprocess),      sizeof(Postprocess),   sizeof(Inspect),       sizeof(Antialias),
                         sizeof(BinsExpectation), sizeof(GroupNormSilu), sizeof(CrossAttention)};
    return sizes[which];
}
"""


def build(folder: Path, sources: Path = SOURCES) -> Path:
    """Compile them; returns the library."""
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(SHIM + CALL)
    compile_library(source, library, "-O2", "-I", sources)
    return library


class HostKernels:
    """The kernels of a library that was built; addresses in the structs are addresses of host memory."""

    def __init__(self, path: Path):
        self.path, self.library = path, ctypes.CDLL(str(path))
        self.library.bounds_broken.restype = ctypes.c_longlong

    def launch(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray) -> None:
        """Run every thread of the grid, one after the other."""
        raw = parameters.tobytes()
        getattr(self.library, f"run_{name}")(raw, (ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*block))


def compile_library(source: Path, library: Path, *words: object) -> None:
    """Compile C++ as our kernels need it: products and sums rounded apart, memory read as any type."""
    common = ["g++", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
    done = subprocess.run([*common, "-o", str(library), str(source), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiler() -> bool:
    """Whether there is a C++ compiler."""
    return shutil.which("g++") is not None
