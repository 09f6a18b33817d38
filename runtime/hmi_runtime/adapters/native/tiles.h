// The inner loops of all products: tiles of up to six tokens by some vectors of columns.
//
// They are functions of their own, not inlined, with plain loops: so compilers keep a tile's sums in registers.
#pragma once

#include <type_traits>

#include "vector.h"

namespace hmi {

constexpr int kPanelVectors = 4;
constexpr int kPanel = kPanelVectors * kWide;  // columns that a tile of a large product computes
constexpr int kTileTokens = 6;                 // 6 x 4 sums, 4 columns and 1 operand fill the 32 registers

#define HMI_UNROLL _Pragma("GCC unroll 8")

// sums (M, 64) = bytes (M tokens, `stride` apart) . weights of 64 outputs, (quads, 64, 4).
template <int M>
__attribute__((noinline)) void multiply_bytes(const uint8_t* __restrict bytes, int64_t stride,
                                              const int8_t* __restrict weights, int64_t quads,
                                              int32_t* __restrict sums) {
  __m512i y[M][kPanelVectors];
  HMI_UNROLL
  for (int i = 0; i < M; ++i)
    HMI_UNROLL
    for (int j = 0; j < kPanelVectors; ++j) y[i][j] = _mm512_setzero_si512();
  for (int64_t q = 0; q < quads; ++q, bytes += 4, weights += 4 * kPanel) {
    __m512i w[kPanelVectors];
    HMI_UNROLL
    for (int j = 0; j < kPanelVectors; ++j) w[j] = _mm512_load_si512(weights + j * 64);
    HMI_UNROLL
    for (int i = 0; i < M; ++i) {
      int32_t four;
      std::memcpy(&four, bytes + i * stride, sizeof(four));
      const __m512i x = _mm512_set1_epi32(four);
      HMI_UNROLL
      for (int j = 0; j < kPanelVectors; ++j) y[i][j] = _mm512_dpbusd_epi32(y[i][j], x, w[j]);
    }
  }
  HMI_UNROLL
  for (int i = 0; i < M; ++i)
    HMI_UNROLL
    for (int j = 0; j < kPanelVectors; ++j) _mm512_storeu_si512(sums + i * kPanel + j * kWide, y[i][j]);
}

// sums (M, 16 N) [+]= a (M, units), `a_stride` apart, . b (units, 16 N), `b_stride` apart.
template <typename T, int M, int N, bool kAdd>
__attribute__((noinline)) void multiply_units(const uint32_t* __restrict a, int64_t a_stride,
                                              const uint32_t* __restrict b, int64_t b_stride, int64_t units,
                                              float* __restrict sums, int64_t sums_stride) {
  __m512 y[M][N];
  HMI_UNROLL
  for (int i = 0; i < M; ++i)
    HMI_UNROLL
    for (int j = 0; j < N; ++j)
      y[i][j] = kAdd ? _mm512_loadu_ps(sums + i * sums_stride + j * kWide) : _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u, a += 1, b += b_stride) {
    __m512i w[N];
    HMI_UNROLL
    for (int j = 0; j < N; ++j) w[j] = _mm512_loadu_si512(b + j * kWide);
    HMI_UNROLL
    for (int i = 0; i < M; ++i) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(a[i * a_stride]));
      HMI_UNROLL
      for (int j = 0; j < N; ++j) y[i][j] = add_product<T>(y[i][j], x, w[j]);
    }
  }
  HMI_UNROLL
  for (int i = 0; i < M; ++i)
    HMI_UNROLL
    for (int j = 0; j < N; ++j) _mm512_storeu_ps(sums + i * sums_stride + j * kWide, y[i][j]);
}

// The sums of four vectors.
inline __m128 add_across(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 lanes = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));  // 4 x (a, b, c, d)
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// sums[i][j] = x[i] . a[j] over `units`, a multiple of 16, for four tokens and four ranks.
template <typename T>
__attribute__((noinline)) void multiply_rows(const uint32_t* const (&x)[4], const uint32_t* const (&a)[4],
                                             int64_t units, __m128 (&sums)[4]) {
  __m512 y[4][4];
  HMI_UNROLL
  for (int i = 0; i < 4; ++i)
    HMI_UNROLL
    for (int j = 0; j < 4; ++j) y[i][j] = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; u += kWide) {
    __m512i w[4];
    HMI_UNROLL
    for (int j = 0; j < 4; ++j) w[j] = _mm512_loadu_si512(a[j] + u);
    HMI_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512i v = _mm512_loadu_si512(x[i] + u);
      HMI_UNROLL
      for (int j = 0; j < 4; ++j) y[i][j] = add_product<T>(y[i][j], v, w[j]);
    }
  }
  HMI_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] = add_across(y[i][0], y[i][1], y[i][2], y[i][3]);
}

// Calls `f` with the number of tokens of each tile of `count` tokens: as equal as possible, at most six.
template <typename F>
inline void for_tiles(int64_t count, F&& f) {
  const int64_t tiles = (count + kTileTokens - 1) / kTileTokens;
  int64_t start = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t stop = count * (tile + 1) / tiles;
    switch (stop - start) {
      case 1: f(std::integral_constant<int, 1>(), start); break;
      case 2: f(std::integral_constant<int, 2>(), start); break;
      case 3: f(std::integral_constant<int, 3>(), start); break;
      case 4: f(std::integral_constant<int, 4>(), start); break;
      case 5: f(std::integral_constant<int, 5>(), start); break;
      case 6: f(std::integral_constant<int, 6>(), start); break;
    }
    start = stop;
  }
}

}  // namespace hmi
