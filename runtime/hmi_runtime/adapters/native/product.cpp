// y = activation(x W' + bias + LoRA) + residual for rows of several adapters, W in int8, the rest in bfloat16.
//
// Every token is rounded to bytes with a step and a zero of its own, so that no token depends on another.
// A block of tokens stays in the second-level cache while the matrix passes by, 64 outputs at a time. Tiles of
// up to six tokens belong to one row; the sums stay in registers while LoRA, bias and residual are added.
#include <algorithm>

#include "batch.h"
#include "tiles.h"

namespace hmi {
namespace {

constexpr int64_t kBlockBytes = 192 * 1024;  // of quantised inputs
constexpr int64_t kBlockTokens = 128;

// Consecutive tokens of one row.
struct Segment {
  int64_t row;
  int64_t start, stop;  // in the batch
  int64_t ranks;        // of its LoRA; 0 without one
};

struct Token {
  float step;
  float zero;
};

// Rounds one token to bytes. Returns false if a number is too large.
bool quantise(const bf16* x, const float* shrink, int64_t width, uint8_t* out, Token* token) {
  __m512 high = _mm512_setzero_ps(), low = _mm512_setzero_ps();
  __mmask16 broken = 0;
  const auto scaled = [&](int64_t i) {
    const __m512 v = load_bf16(x + i);
    return shrink == nullptr ? v : _mm512_mul_ps(v, _mm512_loadu_ps(shrink + i));
  };
  for (int64_t i = 0; i < width; i += kWide) {
    const __m512 v = scaled(i);
    broken |= too_large(v);
    high = _mm512_max_ps(high, v);
    low = _mm512_min_ps(low, v);
  }
  const float top = _mm512_reduce_max_ps(high), bottom = _mm512_reduce_min_ps(low);
  // Halves, so that the difference of two large numbers is finite.
  token->step = std::max((top * 0.5f - bottom * 0.5f) * (2.0f / 255), 1e-30f);
  token->zero = static_cast<float>(static_cast<int>(-bottom / token->step + 0.5f));
  const __m512 inverse = _mm512_set1_ps(1.0f / token->step);
  const __m512i zero = _mm512_set1_epi32(static_cast<int>(token->zero));
  for (int64_t i = 0; i < width; i += kWide) {
    __m512i level = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(scaled(i), inverse)), zero);
    level = _mm512_max_epi32(level, _mm512_setzero_si512());
    _mm_store_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtusepi32_epi8(level));
  }
  return broken == 0;
}

// out[token][pair] = x[token] . a[rank], for pairs of `ranks` ranks.
void multiply_a(const bf16* x, int64_t tokens, int64_t width, const bf16* a, int64_t ranks, uint32_t* out,
                int64_t out_stride) {
  constexpr int kSide = 4;  // tokens and ranks of a tile
  for (int64_t t = 0; t < tokens; t += kSide) {
    const int nt = static_cast<int>(std::min<int64_t>(kSide, tokens - t));
    for (int64_t r = 0; r < ranks; r += kSide) {
      const int nr = static_cast<int>(std::min<int64_t>(kSide, ranks - r));
      const bf16 *xs[kSide], *as[kSide];
      for (int i = 0; i < kSide; ++i) {  // the last ones are repeated
        xs[i] = x + (t + std::min(i, nt - 1)) * width;
        as[i] = a + (r + std::min(i, nr - 1)) * width;
      }
      __m128 low[kSide];
      multiply_rows(xs, as, width, low);
      const __mmask8 kept = static_cast<__mmask8>((1 << nr) - 1);
      for (int i = 0; i < nt; ++i) {
        const __m128bh rounded = _mm_cvtneps_pbh(_mm_maskz_mov_ps(kept, low[i]));
        std::memcpy(out + (t + i) * out_stride + r / 2, &rounded, sizeof(bf16) * kSide);
      }
    }
  }
}

// Everything that a product of one batch needs; `run` computes a block of segments.
class Product {
 public:
  Product(const Batch& batch, const Matrix& matrix, const Lora& lora, const bf16* x, const bf16* residual,
          int64_t activation, bf16* out)
      : batch_(batch), matrix_(matrix), lora_(lora), x_(x), residual_(residual), activation_(activation),
        out_(out), part_(matrix.d_out / lora.matrices), pair_stride_((lora.slot_rows + 2) / 4 * 2) {}

  void run(const Segment* segments, int64_t count) {
    static thread_local Scratch levels_memory, tokens_memory, low_memory;
    const int64_t first = segments[0].start, tokens = segments[count - 1].stop - first;
    levels_ = levels_memory.get<uint8_t>(tokens * matrix_.d_in);
    tokens_ = tokens_memory.get<Token>(tokens);
    low_ = low_memory.get<uint32_t>(tokens * lora_.matrices * pair_stride_);
    first_ = first;
    for (int64_t s = 0; s < count; ++s) prepare(segments[s]);
    for (int64_t column = 0; column < matrix_.d_out; column += kPanel)
      for (int64_t s = 0; s < count; ++s) multiply(segments[s], column);
  }

 private:
  // The first rank's row of a slot's A: row 0 is of biases, and zero.
  const bf16* slot_a(int64_t row, int64_t matrix) const {
    const int64_t place = batch_.places[row];
    return lora_.a + ((place * lora_.matrices + matrix) * lora_.slot_rows + 1) * matrix_.d_in;
  }

  // Row 0 of a slot's B, from an output on: what its biases differ by.
  const bf16* slot_b(int64_t row, int64_t matrix, int64_t output) const {
    return lora_.b[matrix] + batch_.places[row] * lora_.slot_rows * part_ + output;
  }

  void prepare(const Segment& s) {
    for (int64_t t = s.start; t < s.stop; ++t)
      if (!quantise(x_ + t * matrix_.d_in, matrix_.shrink, matrix_.d_in, levels_ + (t - first_) * matrix_.d_in,
                    tokens_ + (t - first_)))
        batch_.broken[s.row] = 1;
    if (s.ranks == 0) return;
    for (int64_t m = 0; m < lora_.matrices; ++m)
      multiply_a(x_ + s.start * matrix_.d_in, s.stop - s.start, matrix_.d_in, slot_a(s.row, m), s.ranks,
                 low_of(s.start, m), lora_.matrices * pair_stride_);
  }

  uint32_t* low_of(int64_t token, int64_t matrix) const {
    return low_ + ((token - first_) * lora_.matrices + matrix) * pair_stride_;
  }

  // What a row adds to 64 outputs.
  struct Panel {
    int64_t column, matrix;
    const float* bias;       // (64): the base's and the row's own
    const uint32_t* packed;  // (pairs, 64) pairs of ranks of its B
  };

  Panel panel_of(const Segment& s, int64_t column) const {
    static thread_local Scratch bias_memory, packed_memory;
    const int64_t matrix = column / part_;
    Panel panel{column, matrix, matrix_.bias + column, nullptr};
    const bf16* b = slot_b(s.row, matrix, column - matrix * part_);
    const bool more = column + kPanel < (matrix + 1) * part_;  // whether the next panel is of this matrix
    if (batch_.own_bias[s.row]) {
      float* bias = bias_memory.get<float>(kPanel);
      for (int64_t j = 0; j < kPanel; j += kWide)
        _mm512_store_ps(bias + j, _mm512_add_ps(_mm512_loadu_ps(panel.bias + j), load_bf16(b + j)));
      if (more) fetch(b + kPanel);
      panel.bias = bias;
    }
    if (s.ranks > 0) {
      uint32_t* packed = packed_memory.get<uint32_t>(pair_stride_ * kPanel);
      panel.packed = packed;
      for (int64_t r = 0; r < s.ranks; r += 2, packed += kPanel) {
        const bf16* even = b + (r + 1) * part_;
        const bf16* odd = r + 1 < s.ranks ? even + part_ : nullptr;
        for (int64_t j = 0; j < kPanel; j += kWide)
          _mm512_store_si512(packed + j, interleave(even + j, odd ? odd + j : nullptr));
        if (more) fetch(even + kPanel);
        if (more && odd) fetch(odd + kPanel);
      }
    }
    return panel;
  }

  static void fetch(const bf16* panel) {
    _mm_prefetch(panel, _MM_HINT_T0);
    _mm_prefetch(panel + kPanel / 2, _MM_HINT_T0);
  }

  void multiply(const Segment& s, int64_t column) {
    const Panel panel = panel_of(s, column);
    for_tiles(s.stop - s.start, [&](auto size, int64_t start) {
      tile<decltype(size)::value>(s, s.start + start, panel);
    });
  }

  template <int M>
  void tile(const Segment& s, int64_t token, const Panel& panel) {
    const int64_t local = token - first_, column = panel.column;
    alignas(64) int32_t sums[M * kPanel];
    multiply_bytes<M>(levels_ + local * matrix_.d_in, matrix_.d_in, matrix_.weight + column * matrix_.d_in,
                      matrix_.d_in / 4, sums);
    alignas(64) float y[M * kPanel];
    for (int i = 0; i < M; ++i) scale(tokens_[local + i], panel, sums + i * kPanel, y + i * kPanel);
    if (s.ranks > 0)
      multiply_pairs<M, kPanelVectors, true>(low_of(token, panel.matrix), lora_.matrices * pair_stride_,
                                             panel.packed, kPanel, (s.ranks + 1) / 2, y, kPanel);
    __mmask16 broken = 0;
    for (int i = 0; i < M; ++i) broken |= finish(y + i * kPanel, (token + i) * matrix_.d_out + column);
    if (broken) batch_.broken[s.row] = 1;
  }

  // y = step * (sums - zero * sums of weights) * scales + bias, of one token.
  void scale(const Token& token, const Panel& panel, const int32_t* sums, float* y) const {
    const int64_t column = panel.column;
    const __m512 zero = _mm512_set1_ps(token.zero), step = _mm512_set1_ps(token.step);
    for (int j = 0; j < kPanel; j += kWide) {
      const __m512 sum = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(matrix_.sums + column + j),
                                          _mm512_cvtepi32_ps(_mm512_load_si512(sums + j)));
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(matrix_.scales + column + j), step);
      _mm512_store_ps(y + j, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(panel.bias + j)));
    }
  }

  // Adds the residual, activates and writes one token's outputs. Returns which are too large before that.
  __mmask16 finish(const float* y, int64_t at) {
    __mmask16 broken = 0;
    for (int j = 0; j < kPanel; j += kWide) {
      __m512 v = _mm512_load_ps(y + j);
      if (residual_ != nullptr) v = _mm512_add_ps(v, load_bf16(residual_ + at + j));
      broken |= too_large(v);
      store_bf16(out_ + at + j, activate(v, activation_));
    }
    return broken;
  }

  const Batch& batch_;
  const Matrix& matrix_;
  const Lora& lora_;
  const bf16* x_;
  const bf16* residual_;
  const int64_t activation_;
  bf16* out_;
  const int64_t part_;         // outputs of one matrix
  const int64_t pair_stride_;  // pairs of ranks that a token has room for
  uint8_t* levels_ = nullptr;  // of the block
  Token* tokens_ = nullptr;
  uint32_t* low_ = nullptr;
  int64_t first_ = 0;          // first token of the block
};

}  // namespace
}  // namespace hmi

extern "C" {

// Writes `weight` (d_out, d_in) as panels of 64 outputs: (d_out / 64, d_in / 4, 64, 4).
void hmi_pack_weight(const int8_t* weight, int64_t d_out, int64_t d_in, int8_t* packed) {
  for (int64_t column = 0; column < d_out; column += hmi::kPanel)
    for (int64_t q = 0; q < d_in; q += 4)
      for (int64_t j = 0; j < hmi::kPanel; ++j, packed += 4)
        std::memcpy(packed, weight + (column + j) * d_in + q, 4);
}

// out (tokens, d_out) = activation(x (tokens, d_in) W' + bias + LoRA + residual (tokens, d_out) or null).
// `residual` may be `out`.
void hmi_product(const hmi::Batch* batch, const hmi::Matrix* matrix, const hmi::Lora* lora, const uint16_t* x,
                 const uint16_t* residual, int64_t activation, uint16_t* out) {
  using hmi::kBlockTokens;
  hmi::Product product(*batch, *matrix, *lora, x, residual, activation, out);
  const int64_t limit = std::clamp<int64_t>(hmi::kBlockBytes / matrix->d_in, 16, kBlockTokens);
  hmi::Segment block[kBlockTokens];
  int64_t count = 0, tokens = 0;
  for (int64_t row = 0; row < batch->rows; ++row) {
    for (int64_t start = batch->offsets[row]; start < batch->offsets[row + 1];) {
      const int64_t stop = std::min<int64_t>(batch->offsets[row + 1], start + limit - tokens);
      block[count++] = {row, start, stop, batch->ranks[row]};
      tokens += stop - start;
      start = stop;
      if (tokens == limit) {
        product.run(block, count);
        count = tokens = 0;
      }
    }
  }
  if (count > 0) product.run(block, count);
}

}  // extern "C"
