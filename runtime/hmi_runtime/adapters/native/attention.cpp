// softmax(q k' / sqrt(S)) v for every row and head, in bfloat16 with sums in float32.
#include <algorithm>
#include <cmath>

#include "batch.h"
#include "tiles.h"

namespace hmi {
namespace {

// One head of one row.
class Head {
 public:
  Head(int64_t length, int64_t width) : length_(length), width_(width), padded_((length + 15) / 16 * 16) {
    static thread_local Scratch keys, values, scores, weights;
    keys_ = keys.get<uint32_t>(width / 2 * padded_);
    values_ = values.get<uint32_t>(padded_ / 2 * width);
    scores_ = scores.get<float>(kTileTokens * padded_);
    weights_ = weights.get<bf16>(kTileTokens * padded_);
  }

  // Keys as (S / 2, T) pairs of channels, values as (T / 2, S) pairs of tokens; zeros after the last token.
  void load(const bf16* key, const bf16* value, int64_t stride) {
    for (int64_t t = 0; t < padded_; t += kWide)
      for (int64_t p = 0; p < width_ / 2; p += 8) transpose_keys(key, stride, t, p);
    for (int64_t t = 0; t < padded_; t += 2)
      for (int64_t c = 0; c < width_; c += kWide) {
        const bf16* even = value + t * stride + c;
        const __m512i pairs = t >= length_ ? _mm512_setzero_si512()
                                           : interleave(even, t + 1 < length_ ? even + stride : nullptr);
        _mm512_storeu_si512(values_ + t / 2 * width_ + c, pairs);
      }
  }

  template <int M>
  void attend(const bf16* query, int64_t stride, bf16* out, int64_t out_stride) {
    uint32_t pairs[M * kMostPairs];
    for (int i = 0; i < M; ++i) std::memcpy(pairs + i * kMostPairs, query + i * stride, width_ * sizeof(bf16));
    int64_t t = 0;
    for (; t + 4 * kWide <= padded_; t += 4 * kWide) score<M, 4>(pairs, t);
    switch ((padded_ - t) / kWide) {
      case 3: score<M, 3>(pairs, t); break;
      case 2: score<M, 2>(pairs, t); break;
      case 1: score<M, 1>(pairs, t); break;
    }
    float inverse[M];
    for (int i = 0; i < M; ++i) inverse[i] = soften(scores_ + i * padded_, weights_ + i * padded_);
    int64_t c = 0;
    for (; c + 4 * kWide <= width_; c += 4 * kWide) combine<M, 4>(c, inverse, out, out_stride);
    for (; c + 2 * kWide <= width_; c += 2 * kWide) combine<M, 2>(c, inverse, out, out_stride);
    for (; c < width_; c += kWide) combine<M, 1>(c, inverse, out, out_stride);
  }

  static constexpr int kMostPairs = 128;  // heads of at most 256 channels

 private:
  // keys[p + i][t + j] = pair p + i of token t + j, for 8 pairs of 16 tokens: tokens are read by 32 bytes.
  void transpose_keys(const bf16* key, int64_t stride, int64_t t, int64_t p) {
    __m512i x[8];  // x[i]: eight pairs of token i, and of token i + 8
    for (int64_t i = 0; i < 8; ++i) {
      const __m256i low = load_pairs(key, stride, t + i, p), high = load_pairs(key, stride, t + i + 8, p);
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
    // x[k] has pair k, x[k + 4] the same of tokens 4 to 7: lanes are tokens 0-3, pairs k and k + 4, 8-11, 12-15.
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int64_t k = 0; k < 4; ++k) {
      _mm512_storeu_si512(keys_ + (p + k) * padded_ + t, _mm512_permutex2var_epi64(x[k], first, x[k + 4]));
      _mm512_storeu_si512(keys_ + (p + k + 4) * padded_ + t, _mm512_permutex2var_epi64(x[k], second, x[k + 4]));
    }
  }

  __m256i load_pairs(const bf16* key, int64_t stride, int64_t t, int64_t p) const {
    if (t >= length_) return _mm256_setzero_si256();
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + t * stride + 2 * p));
  }

  template <int M, int N>
  void score(const uint32_t* pairs, int64_t t) {
    multiply_pairs<M, N, false>(pairs, kMostPairs, keys_ + t, padded_, width_ / 2, scores_ + t, padded_);
  }

  // Writes e**(score - largest) as bfloat16 and returns 1 / their sum.
  float soften(const float* scores, bf16* weights) const {
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(width_)));
    const __m512 least = _mm512_set1_ps(-1e30f);
    const int64_t last = padded_ - kWide;
    const __mmask16 tail = static_cast<__mmask16>(0xffff >> (padded_ - length_));
    const __m512 ending = _mm512_mask_loadu_ps(least, tail, scores + last);
    __m512 most = ending;
    for (int64_t t = 0; t < last; t += kWide) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + t));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    const auto weigh = [&](__m512 score, int64_t t) {
      const __m512 e = exponential(_mm512_mul_ps(_mm512_sub_ps(score, top), scale));
      store_bf16(weights + t, e);
      return e;
    };
    __m512 total = weigh(ending, last);
    for (int64_t t = 0; t < last; t += kWide) total = _mm512_add_ps(total, weigh(_mm512_loadu_ps(scores + t), t));
    return 1.0f / _mm512_reduce_add_ps(total);
  }

  template <int M, int N>
  void combine(int64_t c, const float* inverse, bf16* out, int64_t out_stride) const {
    alignas(64) float sums[M * N * kWide];
    multiply_pairs<M, N, false>(reinterpret_cast<const uint32_t*>(weights_), padded_ / 2, values_ + c, width_,
                                padded_ / 2, sums, N * kWide);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N * kWide; j += kWide)
        store_bf16(out + i * out_stride + c + j,
                   _mm512_mul_ps(_mm512_load_ps(sums + i * N * kWide + j), _mm512_set1_ps(inverse[i])));
  }

  const int64_t length_, width_;
  const int64_t padded_;  // tokens, a multiple of 16
  uint32_t* keys_;
  uint32_t* values_;
  float* scores_;
  bf16* weights_;
};

}  // namespace
}  // namespace hmi

// out (tokens, D) of qkv (tokens, 3 D): queries, keys and values side by side, heads side by side in each.
// Every token of a row sees all of its row. D / heads is a multiple of 16, at most 256.
extern "C" void hmi_attention(const hmi::Batch* batch, const uint16_t* qkv, int64_t width, int64_t heads,
                              uint16_t* out) {
  const int64_t head_width = width / heads, stride = 3 * width;
  for (int64_t row = 0; row < batch->rows; ++row) {
    const int64_t first = batch->offsets[row], length = batch->offsets[row + 1] - first;
    if (length == 0) continue;
    for (int64_t h = 0; h < heads; ++h) {
      hmi::Head head(length, head_width);
      const uint16_t* query = qkv + first * stride + h * head_width;
      uint16_t* mixed = out + first * width + h * head_width;
      head.load(query + width, query + 2 * width, stride);
      hmi::for_tiles(length, [&](auto size, int64_t t) {
        head.attend<decltype(size)::value>(query + t * stride, stride, mixed + t * width, width);
      });
    }
  }
}
