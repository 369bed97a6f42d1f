// What one core can do at most: multiplications and additions of fp32 numbers (FMA), and of bytes (VNNI), in registers only.
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

#define N 12  // independent chains: enough to hide the latency of an instruction
#define TIMES 20000000L

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }

int main(void) {
    double fp32 = 1e9, int8 = 1e9;
    volatile float kept = 0;  // so that nothing is left out
    for (int round = 0; round < 10; round++) {
        __m512 x[N], factor = _mm512_set1_ps(.999f), more = _mm512_set1_ps(.001f);
        for (int i = 0; i < N; i++) x[i] = _mm512_set1_ps(i);
        double begin = now();
        for (long k = 0; k < TIMES; k++) for (int i = 0; i < N; i++) x[i] = _mm512_fmadd_ps(x[i], factor, more);
        double took = now() - begin;
        if (took < fp32) fp32 = took;
        for (int i = 0; i < N; i++) kept += _mm512_reduce_add_ps(x[i]);

        __m512i y[N], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
        for (int i = 0; i < N; i++) y[i] = _mm512_set1_epi32(i);
        begin = now();
        for (long k = 0; k < TIMES; k++) for (int i = 0; i < N; i++) y[i] = _mm512_dpbusd_epi32(y[i], a, b);
        took = now() - begin;
        if (took < int8) int8 = took;
        for (int i = 0; i < N; i++) kept += _mm512_reduce_add_epi32(y[i]);
    }
    printf("%.1f %.1f\n", TIMES * N * 32 / fp32 / 1e9, TIMES * N * 128 / int8 / 1e9);  // GFLOP/s, GOP/s
    return 0;
}
