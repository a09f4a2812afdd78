// Just enough of CUDA to compile our kernels as C++ and run them on a CPU, block by block, with the tests' indices checked.
//
// The threads of a block are fibers of one thread of the CPU. One runs until it waits for its block (__syncthreads) or its warp (a shuffle), and a warp
// runs on until all of it waits for the block, so where a barrier is missing a thread reads what is not written yet, or what is overwritten already. Every
// second block runs from its last thread to its first. Threads that wait for some that never come end the process with a message.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if __has_include(<vector_types.h>)  // where TensorRT's headers bring CUDA's along
#include <vector_types.h>
#else
struct uint4 {
    unsigned int x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
#endif
#undef __global__
#undef __device__
#undef __constant__
#undef __shared__
#undef __noinline__
#undef __launch_bounds__

#define FATHOM_HOST 1
#define __global__
#define __device__
#define __constant__
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct Dim3 {
    int x, y, z;
};
static thread_local Dim3 blockIdx, blockDim, threadIdx, gridDim;

static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
static void atomicAdd(int* at, int value) { *at += value; }
static void atomicMin(int* at, int value) {
    if (value < *at) *at = value;
}
static void atomicMax(int* at, int value) {
    if (value > *at) *at = value;
}

// IEEE half, round to nearest even, written from the definition of the format.
static float half_by_definition(int bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24));
}
static float half_value(unsigned short bits) {
    static const std::vector<float> all = [] {
        std::vector<float> made(1 << 16);
        for (int k = 0; k < 1 << 16; ++k) made[k] = half_by_definition(k);
        return made;
    }();
    return all[bits];
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

namespace host {

enum { WARP = 32, STACK = 24 * 1024 + 832, SLOTS = 4 };  // stacks that start in different sets of the CPU's cache

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool begun, done, ready;
    int shown;  // how often it showed its warp something
};

struct Team {
    std::vector<Fiber> fibers;
    std::vector<unsigned long long> slots[SLOTS];  // what the lanes of a warp show each other, in turns
    std::vector<int> in_warp, alive_in_warp;
    int size = 0, current = 0, in_block = 0, alive = 0;
    bool backwards = false;
    jmp_buf scheduler;
    std::function<void()> kernel;
};
static thread_local Team team;

static void place(int thread) {
    if (thread < blockDim.x) threadIdx = {thread, 0, 0};
    else threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

static void release(int first, int last) {
    for (int k = first; k < last; ++k) team.fibers[k].ready = true;
}

// Whoever waits goes on once all that are alive have come.
static void settle(int warp) {
    if (team.in_warp[warp] && team.in_warp[warp] == team.alive_in_warp[warp]) {
        team.in_warp[warp] = 0;
        release(warp * WARP, min((warp + 1) * WARP, team.size));
    }
    if (team.in_block && team.in_block == team.alive) {
        team.in_block = 0;
        release(0, team.size);
    }
}

static void pause() {
    Fiber& self = team.fibers[team.current];
    if (!_setjmp(self.at)) _longjmp(team.scheduler, 1);
}

static void begin() {
    team.kernel();
    const int warp = team.current / WARP;
    team.fibers[team.current].done = true;
    --team.alive, --team.alive_in_warp[warp];
    settle(warp);
    _longjmp(team.scheduler, 1);
}

// Let a thread run until it waits; false if it is not there, done, or waits already.
static bool resume(int thread) {
    if (thread >= team.size || team.fibers[thread].done || !team.fibers[thread].ready) return false;
    Fiber& fiber = team.fibers[thread];
    team.current = thread;
    place(thread);
    if (_setjmp(team.scheduler)) return true;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get(), fiber.start.uc_stack.ss_size = STACK, fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, begin, 0);
    setcontext(&fiber.start);
    return true;
}

static void run_block(std::function<void()> kernel) {
    team.size = blockDim.x * blockDim.y * blockDim.z;
    const int warps = (team.size + WARP - 1) / WARP;
    if ((int)team.fibers.size() < team.size) team.fibers.resize(team.size);
    for (auto& slots : team.slots) slots.assign(team.size, 0);
    team.in_warp.assign(warps, 0), team.alive_in_warp.assign(warps, 0);
    team.in_block = 0, team.alive = team.size, team.kernel = std::move(kernel);
    for (int k = 0; k < team.size; ++k) {
        Fiber& fiber = team.fibers[k];
        fiber.begun = fiber.done = false, fiber.ready = true, fiber.shown = 0;
        ++team.alive_in_warp[k / WARP];
    }
    while (team.alive) {
        bool went_on = false;
        for (int number = 0; number < warps; ++number) {
            const int warp = team.backwards ? warps - 1 - number : number;
            int ran;
            do {
                ran = 0;
                for (int lane = 0; lane < WARP; ++lane) ran += resume(warp * WARP + (team.backwards ? WARP - 1 - lane : lane));
                went_on |= ran > 0;
            } while (ran);
        }
        if (!went_on) std::fprintf(stderr, "threads of a block wait for threads that never come\n"), std::abort();
    }
    team.backwards = !team.backwards;
}

// Run a kernel whose threads wait for each other.
template <typename Kernel, typename Parameters>
void run_grid(Kernel kernel, const Parameters& parameters, Dim3 grid, Dim3 block) {
    gridDim = grid, blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block([=] { kernel(parameters); });
}

}  // namespace host

static void __syncthreads() {
    using namespace host;
    team.fibers[team.current].ready = false;
    ++team.in_block;
    settle(team.current / WARP);
    pause();
}

namespace host {

// What every lane of the warp shows, up to 64 bits each; stays until the lane has shown its warp three other things.
template <typename T>
class Shown {
  public:
    explicit Shown(const T& mine) {
        static_assert(sizeof(T) <= 8, "a lane shows up to 64 bits");
        Fiber& self = team.fibers[team.current];
        const int warp = team.current / WARP;
        auto& slots = team.slots[self.shown++ % SLOTS];
        std::memcpy(&slots[team.current], &mine, sizeof mine);
        self.ready = false;
        ++team.in_warp[warp];
        settle(warp);
        pause();
        lanes_ = &slots[warp * WARP];
        count_ = min(WARP, team.size - warp * WARP);
    }
    T of(int lane) const {
        T value;
        if (lane < 0 || lane >= count_) std::fprintf(stderr, "there is no lane %d\n", lane), std::abort();
        std::memcpy(&value, lanes_ + lane, sizeof value);
        return value;
    }

  private:
    const unsigned long long* lanes_;
    int count_;
};

}  // namespace host

template <typename T>
static T __shfl_xor_sync(unsigned, T value, int distance) {
    const int lane = host::team.current % host::WARP;
    return host::Shown<T>(value).of(lane ^ distance);
}
