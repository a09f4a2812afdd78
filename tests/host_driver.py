"""A libcuda in C++ that computes on the host, so that the real cuda-bindings and the real pycuda can be called without a GPU.

It knows the calls that the runtime makes, runs everything at once, counts what is alive, and starts our kernels as ``kernel_host`` does.
``build(folder)`` makes ``libcuda.so.1``; a process started with that folder in ``LD_LIBRARY_PATH`` takes it for the driver.
"""

import shutil
import subprocess

import kernel_host

SOURCE = r"""
#include <dlfcn.h>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>
typedef unsigned long long Address;
struct Graph { std::vector<std::function<void()>> work; };
struct Stream { Graph* recording = nullptr; };
struct Event { double at = -1; };
static std::atomic<int> alive{0};
static double now = 0;
static const size_t TOTAL = 1 << 30;
static size_t used = 0;
static std::map<Address, size_t> memory;
static thread_local std::vector<void*> stack;
static Stream default_stream;
static Stream* of(void* stream) { return stream ? (Stream*)stream : &default_stream; }
static int send(void* stream, std::function<void()> work) {
    if (stack.empty()) return 201;
    if (of(stream)->recording) of(stream)->recording->work.push_back(work); else work();
    return 0;
}
template <class T> static int make(T** out, T* made) { if (stack.empty()) return 201; *out = made; ++alive; return 0; }
template <class T> static int unmake(T* gone) { if (stack.empty()) return 201; delete gone; --alive; return 0; }
#define API extern "C" __attribute__((visibility("default")))
API int host_driver_alive() { return alive; }
API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
API int cuDeviceGet(int* d, int i) { *d = i; return i == 0 ? 0 : 101; }
API int cuDeviceGetCount(int* n) { *n = 1; return 0; }
API int cuDeviceGetName(char* name, int n, int) { strncpy(name, "Host GPU", n); return 0; }
API int cuDeviceTotalMem_v2(size_t* n, int) { *n = TOTAL; return 0; }
API int cuDeviceGetAttribute(int* v, int which, int) { *v = which == 75 ? 8 : which == 76 ? 6 : which == 115 ? 1 : 0; return 0; }
API int cuDeviceComputeCapability(int* a, int* b, int) { *a = 8; *b = 6; return 0; }
API int cuDevicePrimaryCtxRetain(void** c, int) { static int primary; *c = &primary; ++alive; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int) { --alive; return 0; }
API int cuCtxPushCurrent_v2(void* c) { stack.push_back(c); return 0; }
API int cuCtxPopCurrent_v2(void** c) { if (stack.empty()) return 201; if (c) *c = stack.back(); stack.pop_back(); return 0; }
API int cuCtxGetCurrent(void** c) { *c = stack.empty() ? nullptr : stack.back(); return 0; }
API int cuCtxSetCurrent(void* c) { if (!stack.empty()) stack.pop_back(); if (c) stack.push_back(c); return 0; }
API int cuCtxGetDevice(int* d) { *d = 0; return stack.empty() ? 201 : 0; }
API int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = TOTAL - used; *total = TOTAL; return stack.empty() ? 201 : 0; }
API int cuMemAlloc_v2(Address* a, size_t n) {
    if (stack.empty()) return 201;
    if (used + n > TOTAL) return 2;
    *a = (Address)aligned_alloc(256, (n + 255) / 256 * 256);
    memory[*a] = n; used += n; ++alive;
    return 0;
}
API int cuMemFree_v2(Address a) { if (!memory.count(a)) return 1; used -= memory[a]; memory.erase(a); free((void*)a); --alive; return 0; }
API int cuMemAllocAsync(Address* a, size_t n, void*) { return cuMemAlloc_v2(a, n); }
API int cuMemFreeAsync(Address a, void*) { return cuMemFree_v2(a); }
API int cuMemHostAlloc(void** p, size_t n, unsigned) { if (stack.empty()) return 201; *p = aligned_alloc(256, (n + 255) / 256 * 256); ++alive; return 0; }
API int cuMemFreeHost(void* p) { free(p); --alive; return 0; }
API int cuStreamCreate(Stream** s, unsigned flags) { return flags == 1 ? make(s, new Stream) : 1; }
API int cuStreamDestroy_v2(Stream* s) { return unmake(s); }
API int cuStreamSynchronize(void*) { return stack.empty() ? 201 : 0; }
API int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* s) { return send(s, [=] { memcpy((void*)to, from, n); }); }
API int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* s) { return send(s, [=] { memcpy(to, (void*)from, n); }); }
API int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void* s) { return send(s, [=] { memmove((void*)to, (void*)from, n); }); }
API int cuEventCreate(Event** e, unsigned flags) { return flags != 1 ? 1 : make(e, new Event); }
API int cuEventDestroy_v2(Event* e) { return unmake(e); }
API int cuEventRecord(Event* e, void* s) { return send(s, [=] { e->at = ++now; }); }
API int cuEventSynchronize(Event* e) { return e->at < 0 ? 1 : 0; }
API int cuStreamWaitEvent(void*, Event* e, unsigned) { return e->at < 0 ? 1 : 0; }
API int cuEventElapsedTime_v2(float* ms, Event* a, Event* b) { *ms = (float)(b->at - a->at); return 0; }
API int cuEventElapsedTime(float* ms, Event* a, Event* b) { return cuEventElapsedTime_v2(ms, a, b); }
API int cuModuleLoadData(int** m, const void* image) {
    static const unsigned char magic[4] = {0x50, 0xed, 0x55, 0xba};
    if (memcmp(image, magic, 4) && !strstr((const char*)image, ".version")) return 200;
    return make(m, new int(1));
}
API int cuModuleLoadDataEx(int** m, const void* image, unsigned, void*, void**) { return cuModuleLoadData(m, image); }
API int cuModuleUnload(int* m) { return unmake(m); }
typedef void (*Kernel)(const void*, const int*, const int*);
static std::map<std::string, Kernel> kernels = {
    {"fathom_antialias", run_fathom_antialias},
    {"fathom_preprocess", run_fathom_preprocess}, {"fathom_postprocess", run_fathom_postprocess}, {"fathom_inspect", run_fathom_inspect},
    {"fathom_bins_expectation", run_fathom_bins_expectation}, {"fathom_group_norm_silu", run_fathom_group_norm_silu},
    {"fathom_group_norm_partial", run_fathom_group_norm_partial},
    {"fathom_group_norm_apply", run_fathom_group_norm_apply},
    {"fathom_cross_attention_40", run_fathom_cross_attention_40}, {"fathom_cross_attention_80", run_fathom_cross_attention_80},
    {"fathom_cross_attention_128", run_fathom_cross_attention_128}};
static std::map<std::string, size_t> sizes = {
    {"fathom_antialias", sizeof(Antialias)},
    {"fathom_preprocess", sizeof(Preprocess)}, {"fathom_postprocess", sizeof(Postprocess)}, {"fathom_inspect", sizeof(Inspect)},
    {"fathom_bins_expectation", sizeof(BinsExpectation)}, {"fathom_group_norm_silu", sizeof(GroupNormSilu)},
    {"fathom_group_norm_partial", sizeof(GroupNormSilu)},
    {"fathom_group_norm_apply", sizeof(GroupNormSilu)},
    {"fathom_cross_attention_40", sizeof(CrossAttention)}, {"fathom_cross_attention_80", sizeof(CrossAttention)},
    {"fathom_cross_attention_128", sizeof(CrossAttention)}};
API int cuModuleGetFunction(void** f, int*, const char* name) {
    auto found = kernels.find(name);
    if (found == kernels.end()) return 500;
    *f = (void*)&*found;
    return 0;
}
API int cuFuncGetModule(void**, void*) { return 0; }
API int cuFuncSetBlockShape(void*, int, int, int) { return 0; }
typedef unsigned U;
API int cuLaunchKernel(void* f, U gx, U gy, U gz, U bx, U by, U bz, U, void* s, void** parameters, void** extra) {
    auto& kernel = *(std::pair<const std::string, Kernel>*)f;
    const void* raw = parameters ? parameters[0] : nullptr;
    if (!raw && extra)
        for (int i = 0; extra[i]; i += 2)
            if ((size_t)extra[i] == 1) raw = extra[i + 1];
    if (!raw) return 1;
    std::string bytes((const char*)raw, sizes[kernel.first]);
    return send(s, [=] {
        const int grid[3] = {(int)gx, (int)gy, (int)gz}, block[3] = {(int)bx, (int)by, (int)bz};
        kernel.second(bytes.data(), grid, block);
    });
}
API int cuStreamBeginCapture_v2(Stream* s, int mode) { if (mode != 1) return 1; s->recording = new Graph; ++alive; return 0; }
API int cuStreamEndCapture(Stream* s, Graph** g) { *g = s->recording; s->recording = nullptr; return *g ? 0 : 901; }
API int cuGraphInstantiateWithFlags(Graph** out, Graph* g, unsigned long long) { return make(out, new Graph(*g)); }
API int cuGraphDestroy(Graph* g) { return unmake(g); }
API int cuGraphExecDestroy(Graph* g) { return unmake(g); }
API int cuGraphLaunch(Graph* g, void* s) { return send(s, [=] { for (auto& work : g->work) work(); }); }
API int cuGetErrorName(int e, const char** p) { *p = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR"; return 0; }
API int cuGetErrorString(int e, const char** p) { *p = e == 2 ? "out of memory" : e == 101 ? "invalid device ordinal" : "another error"; return 0; }
API int cuGetProcAddress_v2(const char* name, void** f, int, unsigned long long, int* status) {
    static void* self = [] { Dl_info info; dladdr((void*)&cuInit, &info); return dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_LAZY); }();
    const std::string base = name;
    *f = nullptr;
    for (const auto& form : {base == "cuGraphInstantiate" ? base + "WithFlags" : base + "_v2", base})
        if (!*f) *f = dlsym(self, form.c_str());
    if (status) *status = *f ? 0 : 1;
    return *f ? 0 : 500;
}
API int cuGetProcAddress(const char* name, void** f, int v, unsigned long long flags) { return cuGetProcAddress_v2(name, f, v, flags, nullptr); }
"""


def build(folder, also=()):
    """Make ``libcuda.so.1`` in a folder.

    Args:
        also: further symbols that must exist; calling them fails.
    """
    source = folder / "driver.cpp"
    text = kernel_host.SHIM + kernel_host.CALL + SOURCE
    missing = [name for name in also if f" {name}(" not in text]
    source.write_text(text + "".join(f"API int {name}() {{ return 999; }}\n" for name in missing))
    kernel_host.compile_library(source, folder / "libcuda.so.1", "-O1", "-Wl,-soname,libcuda.so.1", "-I", kernel_host.SOURCES, "-ldl")
    return folder


def wanted_by(library):
    """Driver symbols that a compiled extension wants."""
    if shutil.which("nm") is None:
        return []
    lines = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True).stdout.split()
    return sorted({word.split("@")[0] for word in lines if word.startswith("cu")})
