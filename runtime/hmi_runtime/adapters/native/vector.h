// Vectors of 16 numbers on processors with AVX-512, VNNI and bfloat16.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace hmi {

using bf16 = uint16_t;  // the upper half of a float32

constexpr int kWide = 16;                    // numbers in a vector
constexpr float kLargest = 1e17f;  // of smaller values, sums of thousands of products of two are finite

// Memory of one thread that grows, and is kept for later calls.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <typename T>
  T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + 64;
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      if (data_ == nullptr) std::abort();  // what Python does, too, when its own allocator has nothing left
      size_ = bytes;
    }
    return static_cast<T*>(data_);
  }

  // Gives the memory back if it is more than most batches need: threads are many, and large batches are rare.
  void give_back_much() {
    if (size_ <= kMuch) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

 private:
  static constexpr size_t kMuch = size_t{16} << 20;
  void* data_ = nullptr;
  size_t size_ = 0;
};

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }

inline __m512 load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline float load_one(const float* p) { return *p; }

inline float load_one(const bf16* p) {
  const uint32_t bits = static_cast<uint32_t>(*p) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline void store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }

inline void store(bf16* p, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// Which of 16 numbers are so large that a sum of products could overflow, infinite or no number.
inline __mmask16 too_large(__m512 x) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(kLargest), _CMP_NLE_UQ);
}

// Operands of products are units of 32 bits: one float, or two bfloat16 that are neighbours in the sum.
template <typename T>
constexpr int64_t kInUnit = sizeof(uint32_t) / sizeof(T);

// sum + a * b, of 16 units.
template <typename T>
inline __m512 add_product(__m512 sum, __m512i a, __m512i b) {
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  } else {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
}

// Units (a[i], b[i]) of 16 columns; `b` may be null, for zeros.
inline __m512i interleave(const bf16* a, const bf16* b) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
  if (b == nullptr) return low;
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// e**x for x <= 88, to about 2 units in the last place; 0 below -87. Range reduction and a polynomial.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(y, n);
}

inline __m512 reciprocal(__m512 x) {
  const __m512 y = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));
}

// x / (1 + e**-x)
inline __m512 times_sigmoid(__m512 x, __m512 argument) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(argument)));
  const __m512 positive = reciprocal(_mm512_add_ps(one, e));  // of |argument|
  const __mmask16 negative = _mm512_cmp_ps_mask(argument, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_mul_ps(positive, negative, positive, e));
}

// x * (1 + erf(x / sqrt(2))) / 2, by Abramowitz and Stegun, 7.1.26: to 1.5e-7.
inline __m512 gelu(__m512 x) {
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = reciprocal(_mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
  __m512 p = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  }
  const __m512 e = exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), z), z));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(e, _mm512_set1_ps(0.5f)));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 share = _mm512_mask_blend_ps(negative, _mm512_sub_ps(_mm512_set1_ps(1.0f), tail), tail);
  return _mm512_mul_ps(x, share);
}

inline __m512 gelu_tanh(__m512 x) {
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
  return times_sigmoid(x, _mm512_mul_ps(inner, _mm512_set1_ps(1.5957691216f)));  // 2 * sqrt(2 / pi)
}

enum Activation : int64_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kSilu = 4 };

inline __m512 activate(__m512 x, int64_t activation) {
  switch (activation) {
    case kGelu:
      return gelu(x);
    case kGeluTanh:
      return gelu_tanh(x);
    case kRelu:
      return _mm512_max_ps(x, _mm512_setzero_ps());
    case kSilu:
      return times_sigmoid(x, x);
    default:
      return x;
  }
}

}  // namespace hmi
