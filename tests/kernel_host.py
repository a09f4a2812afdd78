"""The CUDA kernels compiled as C++ for the host: the same text, run pixel by pixel."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

import fathom

SOURCES = Path(fathom.__file__).parent / "trt_plugins" / "csrc"
SHIM = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#define FATHOM_HOST 1
#define __global__
#define __device__
struct Dim3 { int x, y, z; };
static thread_local Dim3 blockIdx, blockDim, threadIdx, gridDim;
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, 4); return bits; }
static void atomicAdd(int* at, int value) { *at += value; }
static void atomicMin(int* at, int value) { if (value < *at) *at = value; }
static void atomicMax(int* at, int value) { if (value > *at) *at = value; }
// IEEE half, round to nearest even, written from the definition of the format.
static float half_value(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24));
}
static unsigned short half_bits(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs((double)value);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0) return sign | 0x7c00;
    int exponent = size < std::ldexp(1.0, -14) ? -14 : std::ilogb(size);
    const double steps = std::nearbyint(std::ldexp(size, 10 - exponent));
    return sign | (unsigned short)(((exponent + 14) << 10) + (int)steps);
}
"""
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
// A cooperative kernel runs a whole block, all its threads, in one call.
#define RUN_TEAM(name, Parameters) \
    extern "C" void run_##name(const void* p, const int* g, const int*) { \
        const int alone[3] = {1, 1, 1}; \
        const int across[3] = {g[0], g[1], 1}; \
        for (blockIdx.z = 0; blockIdx.z < g[2]; ++blockIdx.z) run<decltype(&name), Parameters>(name, p, across, alone); \
    }
RUN_TEAM(fathom_bins_expectation, BinsExpectation)
RUN_TEAM(fathom_group_norm_silu, GroupNormSilu)
RUN_TEAM(fathom_group_norm_partial, GroupNormSilu)
RUN_TEAM(fathom_group_norm_apply, GroupNormSilu)
RUN_TEAM(fathom_cross_attention, CrossAttention)
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


class HostKernels:
    """The kernels by name; addresses in the structs are addresses of host memory."""

    def __init__(self, folder: Path):
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(SHIM + CALL)
        compile_library(source, library, "-O2", "-I", SOURCES)
        self.library = ctypes.CDLL(str(library))
        self.library.bounds_broken.restype = ctypes.c_longlong

    def launch(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray) -> None:
        """Run every thread of the grid, one after the other."""
        raw = parameters.tobytes()
        getattr(self.library, f"run_{name}")(raw, (ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*block))


def compile_library(source: Path, library: Path, *words: object) -> None:
    """Compile C++ as our kernels need it: products and sums rounded apart, memory read as any type."""
    common = ["g++", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing"]
    done = subprocess.run([*common, "-o", str(library), str(source), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiler() -> bool:
    """Whether there is a C++ compiler."""
    return shutil.which("g++") is not None
