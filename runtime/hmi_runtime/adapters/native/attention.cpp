// softmax(q k' / sqrt(S)) v for every row and head, in bfloat16 or float32, with sums in float32.
#include <algorithm>
#include <cmath>
#include <limits>

#include "steps.h"
#include "tiles.h"

namespace hmi {
namespace {

// One head of one row. Operands are units of T; values are pairs of tokens where T is bf16.
template <typename T>
class Head {
 public:
  Head(int64_t length, int64_t width)
      : length_(length), width_(width), units_(width / kInUnit<T>), padded_((length + 15) / 16 * 16) {
    static thread_local Scratch keys, values, scores, weights;
    keys_ = keys.get<uint32_t>(units_ * padded_);
    scores_ = scores.get<float>(kTileTokens * padded_);
    weights_ = weights.get<T>(kTileTokens * padded_);
    pairs_ = kInUnit<T> == 2 ? values.get<uint32_t>(padded_ / 2 * width) : nullptr;
  }

  // Keys as (units, T), with zeros after the last token; values as they are, or as (T / 2, S) pairs of tokens.
  void load(const T* key, const T* value, int64_t stride) {
    for (int64_t t = 0; t < padded_; t += kWide)
      for (int64_t u = 0; u < units_; u += 8) transpose_keys(key, stride, t, u);
    values_ = reinterpret_cast<const uint32_t*>(value);
    values_stride_ = stride;
    if constexpr (kInUnit<T> == 2) {
      for (int64_t t = 0; t < length_; t += 2)
        for (int64_t c = 0; c < width_; c += kWide) {
          const T* even = value + t * stride + c;
          const __m512i pairs = interleave(even, t + 1 < length_ ? even + stride : nullptr);
          _mm512_storeu_si512(pairs_ + t / 2 * width_ + c, pairs);
        }
      values_ = pairs_;
      values_stride_ = width_;
    }
  }

  template <int M>
  void attend(const T* query, int64_t stride, T* out, int64_t out_stride) {
    int64_t t = 0;
    for (; t + 4 * kWide <= padded_; t += 4 * kWide) score<M, 4>(query, stride, t);
    switch ((padded_ - t) / kWide) {
      case 3: score<M, 3>(query, stride, t); break;
      case 2: score<M, 2>(query, stride, t); break;
      case 1: score<M, 1>(query, stride, t); break;
    }
    float inverse[M];
    for (int i = 0; i < M; ++i) inverse[i] = soften(scores_ + i * padded_, weights_ + i * padded_);
    int64_t c = 0;
    for (; c + 4 * kWide <= width_; c += 4 * kWide) combine<M, 4>(c, inverse, out, out_stride);
    for (; c + 2 * kWide <= width_; c += 2 * kWide) combine<M, 2>(c, inverse, out, out_stride);
    for (; c < width_; c += kWide) combine<M, 1>(c, inverse, out, out_stride);
  }

 private:
  // keys[u + i][t + j] = unit u + i of token t + j, for 8 units of 16 tokens: tokens are read by 32 bytes.
  void transpose_keys(const T* key, int64_t stride, int64_t t, int64_t u) {
    __m512i x[8];  // x[i]: eight units of token i, and of token i + 8
    for (int64_t i = 0; i < 8; ++i) {
      const __m256i low = load_units(key, stride, t + i, u), high = load_units(key, stride, t + i + 8, u);
      x[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    __m512i y[8];
    for (int i = 0; i < 8; i += 2) {
      y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
        x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
      }
    // x[k] has tokens 0-3 of unit k, tokens 0-3 of unit k + 4, tokens 8-11 of unit k, tokens 8-11 of unit k + 4;
    // x[k + 4] the same of tokens 4-7 and 12-15.
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int64_t k = 0; k < 4; ++k) {
      _mm512_storeu_si512(keys_ + (u + k) * padded_ + t, _mm512_permutex2var_epi64(x[k], first, x[k + 4]));
      _mm512_storeu_si512(keys_ + (u + k + 4) * padded_ + t, _mm512_permutex2var_epi64(x[k], second, x[k + 4]));
    }
  }

  __m256i load_units(const T* key, int64_t stride, int64_t t, int64_t u) const {
    if (t >= length_) return _mm256_setzero_si256();
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + t * stride + u * kInUnit<T>));
  }

  template <int M, int N>
  void score(const T* query, int64_t stride, int64_t t) {
    multiply_units<T, M, N, false>(reinterpret_cast<const uint32_t*>(query), stride / kInUnit<T>, keys_ + t, padded_,
                                   units_, scores_ + t, padded_);
  }

  // Writes e**(score - largest) and returns 1 / their sum.
  float soften(const float* scores, T* weights) const {
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(width_)));
    const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const int64_t last = padded_ - kWide;
    const __mmask16 tail = static_cast<__mmask16>(0xffff >> (padded_ - length_));
    const __m512 ending = _mm512_mask_loadu_ps(least, tail, scores + last);
    __m512 most = ending;
    for (int64_t t = 0; t < last; t += kWide) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + t));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    const auto weigh = [&](__m512 score, int64_t t) {
      const __m512 e = exponential(_mm512_mul_ps(_mm512_sub_ps(score, top), scale));
      store(weights + t, e);
      return e;
    };
    __m512 total = weigh(ending, last);
    for (int64_t t = 0; t < last; t += kWide) total = _mm512_add_ps(total, weigh(_mm512_loadu_ps(scores + t), t));
    return 1.0f / _mm512_reduce_add_ps(total);
  }

  template <int M, int N>
  void combine(int64_t c, const float* inverse, T* out, int64_t out_stride) const {
    alignas(64) float sums[M * N * kWide];
    multiply_units<T, M, N, false>(reinterpret_cast<const uint32_t*>(weights_), padded_ / kInUnit<T>, values_ + c,
                                   values_stride_, (length_ + kInUnit<T> - 1) / kInUnit<T>, sums, N * kWide);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N * kWide; j += kWide)
        store(out + i * out_stride + c + j,
              _mm512_mul_ps(_mm512_load_ps(sums + i * N * kWide + j), _mm512_set1_ps(inverse[i])));
  }

  const int64_t length_, width_;
  const int64_t units_;   // of a token's query or key
  const int64_t padded_;  // tokens, a multiple of 16
  uint32_t* keys_;
  uint32_t* pairs_;
  const uint32_t* values_ = nullptr;
  int64_t values_stride_ = 0;
  float* scores_;
  T* weights_;
};

template <typename T>
void mix_rows(const Batch& batch, const T* qkv, int64_t width, int64_t heads, T* out) {
  const int64_t head_width = width / heads, stride = 3 * width;
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t first = batch.offsets[row], length = batch.offsets[row + 1] - first;
    if (length == 0) continue;
    for (int64_t h = 0; h < heads; ++h) {
      Head<T> head(length, head_width);
      const T* query = qkv + first * stride + h * head_width;
      T* mixed = out + first * width + h * head_width;
      head.load(query + width, query + 2 * width, stride);
      for_tiles(length, [&](auto size, int64_t t) {
        head.template attend<decltype(size)::value>(query + t * stride, stride, mixed + t * width, width);
      });
    }
  }
}

}  // namespace

void attention(const Batch& batch, bool floats, const void* qkv, int64_t width, int64_t heads, void* out) {
  if (floats)
    mix_rows(batch, static_cast<const float*>(qkv), width, heads, static_cast<float*>(out));
  else
    mix_rows(batch, static_cast<const bf16*>(qkv), width, heads, static_cast<bf16*>(out));
}

}  // namespace hmi

extern "C" void hmi_attention(const hmi::Batch* batch, int64_t floats, const void* qkv, int64_t width, int64_t heads,
                              void* out) {
  hmi::attention(*batch, floats != 0, qkv, width, heads, out);
}
