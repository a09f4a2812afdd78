// One pass of a filtered resize of bytes, as Pillow does it: weighted sums in whole numbers, rounded to whole steps after each pass.
//
// The host works the filter out (runtime/kernels/antialias.py): for every output position the first source position, how many are summed,
// and their weights in steps of 1 / 2^22. Along a row (across = 0) or down a column (across = 1); three channels beside each other.
#include "sampling.cuh"

struct Antialias {
    unsigned long long source, target, table;  // uint8, uint8 [height, width, 3], int[positions][2 + taps]
    int source_row;                            // bytes from one row of the source to the next
    int height, width, taps, across;
};

extern "C" __global__ void fathom_antialias(const Antialias p) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= p.width || y >= p.height) return;
    const int* row = (const int*)p.table + (long long)(p.across ? y : x) * (2 + p.taps);
    const long long step = p.across ? p.source_row : 3;
    const unsigned char* from = (const unsigned char*)p.source + (p.across ? (long long)x * 3 : (long long)y * p.source_row) + row[0] * step;
    int sum[3] = {1 << 21, 1 << 21, 1 << 21};  // half a step: the shift below rounds to the nearest
    for (int tap = 0; tap < row[1]; ++tap, from += step)
        for (int c = 0; c < 3; ++c) sum[c] += from[c] * row[2 + tap];
    unsigned char* to = (unsigned char*)p.target + ((long long)y * p.width + x) * 3;
    for (int c = 0; c < 3; ++c) to[c] = (unsigned char)max(0, min(255, sum[c] >> 22));
}
