// y = activation(x W' + bias + LoRA + residual) for rows of several adapters.
//
// W is in int8, bfloat16 or float32, the rest in bfloat16 (with int8, too) or float32. For int8 every token is
// rounded to bytes with a step and a zero of its own, so that no token depends on another. A block of tokens stays in
// the second-level cache while the matrix passes by, 64 outputs at a time; their sums stay in the first-level cache
// while LoRA, biases and the residual are added.
#include <algorithm>

#include "steps.h"
#include "tiles.h"

namespace hmi {
namespace {

constexpr int64_t kBlockBytes = 384 * 1024;  // of inputs
constexpr int64_t kBlockTokens = 128;
constexpr int64_t kChunkUnits = 768;         // of a sum, while a part of the weights stays in the cache

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

// Rounds one token to bytes. Returns false if a number is too large; the bytes are zeros then.
bool quantise(const bf16* x, const float* shrink, int64_t width, uint8_t* out, Token* token) {
  __m512 high = _mm512_setzero_ps(), low = _mm512_setzero_ps();
  __mmask16 broken = 0;
  const auto scaled = [&](int64_t i) {
    const __m512 v = load(x + i);
    return shrink == nullptr ? v : _mm512_mul_ps(v, _mm512_loadu_ps(shrink + i));
  };
  for (int64_t i = 0; i < width; i += kWide) {
    const __m512 v = scaled(i);
    broken |= too_large(v);
    high = _mm512_max_ps(high, v);
    low = _mm512_min_ps(low, v);
  }
  if (broken) {  // the step could be infinite, and the zero no number
    std::memset(out, 0, static_cast<size_t>(width));
    *token = {0.0f, 0.0f};
    return false;
  }
  const float top = _mm512_reduce_max_ps(high), bottom = _mm512_reduce_min_ps(low);
  token->step = std::max((top - bottom) / 255, 1e-30f);
  token->zero = static_cast<float>(static_cast<int>(-bottom / token->step + 0.5f));
  const __m512 inverse = _mm512_set1_ps(1.0f / token->step);
  const __m512i zero = _mm512_set1_epi32(static_cast<int>(token->zero));
  for (int64_t i = 0; i < width; i += kWide) {
    __m512i level = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(scaled(i), inverse)), zero);
    level = _mm512_max_epi32(level, _mm512_setzero_si512());
    _mm_store_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtusepi32_epi8(level));
  }
  return true;
}

// Four numbers as units.
void store_units(uint32_t* units, __m128 numbers, float) { std::memcpy(units, &numbers, sizeof(numbers)); }

void store_units(uint32_t* units, __m128 numbers, bf16) {
  const __m128bh rounded = _mm_cvtneps_pbh(numbers);
  std::memcpy(units, &rounded, 4 * sizeof(bf16));
}

// out[token] = x[token] . a[rank] for `ranks` ranks, as units.
template <typename T>
void multiply_a(const T* x, int64_t tokens, int64_t width, const T* a, int64_t ranks, uint32_t* out,
                int64_t out_stride) {
  constexpr int kSide = 4;  // tokens and ranks of a tile
  for (int64_t t = 0; t < tokens; t += kSide) {
    const int nt = static_cast<int>(std::min<int64_t>(kSide, tokens - t));
    for (int64_t r = 0; r < ranks; r += kSide) {
      const int nr = static_cast<int>(std::min<int64_t>(kSide, ranks - r));
      const uint32_t *xs[kSide], *as[kSide];
      for (int i = 0; i < kSide; ++i) {  // the last ones are repeated
        xs[i] = reinterpret_cast<const uint32_t*>(x + (t + std::min(i, nt - 1)) * width);
        as[i] = reinterpret_cast<const uint32_t*>(a + (r + std::min(i, nr - 1)) * width);
      }
      __m128 low[kSide];
      multiply_rows<T>(xs, as, width / kInUnit<T>, low);
      const __mmask8 kept = static_cast<__mmask8>((1 << nr) - 1);
      for (int i = 0; i < nt; ++i)
        store_units(out + (t + i) * out_stride + r / kInUnit<T>, _mm_maskz_mov_ps(kept, low[i]), T());
    }
  }
}

// Everything that a product of one batch needs; `run` computes a block of segments.
template <typename T, bool kRounds>
class Product {
 public:
  Product(const Batch& batch, const Matrix& matrix, const Lora& lora, const T* x, const T* residual,
          int64_t activation, T* out)
      : batch_(batch), matrix_(matrix), lora_(lora), x_(x), residual_(residual), activation_(activation),
        out_(out), part_(matrix.d_out / lora.matrices),
        low_stride_((lora.slot_rows + 2) / 4 * 4 / kInUnit<T>) {}

  void run(const Segment* segments, int64_t count) {
    static thread_local Scratch levels_memory, tokens_memory, low_memory, sums_memory;
    first_ = segments[0].start;
    tokens_ = segments[count - 1].stop - first_;
    low_ = low_memory.get<uint32_t>(tokens_ * lora_.matrices * low_stride_);
    sums_ = sums_memory.get<float>(kBlockTokens * kPanel);
    if constexpr (kRounds) {
      levels_ = levels_memory.get<uint8_t>(tokens_ * matrix_.d_in);
      scales_ = tokens_memory.get<Token>(tokens_);
    }
    for (int64_t s = 0; s < count; ++s) prepare(segments[s]);
    for (int64_t column = 0; column < matrix_.d_out; column += kPanel) {
      multiply(column);
      for (int64_t s = 0; s < count; ++s) finish(segments[s], column);
    }
  }

 private:
  // The first rank's row of a slot's A; row 0, of biases, is zero.
  const T* slot_a(int64_t row, int64_t matrix) const {
    const int64_t slot = batch_.places[row] * lora_.matrices + matrix;
    return static_cast<const T*>(lora_.a) + (slot * lora_.slot_rows + 1) * matrix_.d_in;
  }

  // Row 0 of a slot's B, from an output on: what its biases differ by.
  const T* slot_b(int64_t row, int64_t matrix, int64_t output) const {
    return static_cast<const T*>(lora_.b[matrix]) + batch_.places[row] * lora_.slot_rows * part_ + output;
  }

  uint32_t* low_of(int64_t token, int64_t matrix) const {
    return low_ + ((token - first_) * lora_.matrices + matrix) * low_stride_;
  }

  // Rounds a segment's tokens, and multiplies them by A.
  void prepare(const Segment& s) {
    if constexpr (kRounds)
      for (int64_t t = s.start; t < s.stop; ++t)
        if (!quantise(x_ + t * matrix_.d_in, matrix_.shrink, matrix_.d_in, levels_ + (t - first_) * matrix_.d_in,
                      scales_ + (t - first_)))
          batch_.broken[s.row] = 1;
    if (s.ranks == 0) return;
    for (int64_t m = 0; m < lora_.matrices; ++m)
      multiply_a(x_ + s.start * matrix_.d_in, s.stop - s.start, matrix_.d_in, slot_a(s.row, m), s.ranks,
                 low_of(s.start, m), lora_.matrices * low_stride_);
  }

  // sums = x W' + bias, of 64 outputs for the block.
  void multiply(int64_t column) {
    if constexpr (kRounds) {
      const auto* weight = static_cast<const int8_t*>(matrix_.weight) + column * matrix_.d_in;
      for_tiles(tokens_, [&](auto size, int64_t t) {
        constexpr int kTokens = decltype(size)::value;
        alignas(64) int32_t products[kTokens * kPanel];
        multiply_bytes<kTokens>(levels_ + t * matrix_.d_in, matrix_.d_in, weight, matrix_.d_in / 4, products);
        for (int i = 0; i < kTokens; ++i)
          scale(scales_[t + i], column, products + i * kPanel, sums_ + (t + i) * kPanel);
      });
    } else {
      const int64_t units = matrix_.d_in / kInUnit<T>;
      const auto* weight = static_cast<const uint32_t*>(matrix_.weight) + column * units;
      const auto* x = reinterpret_cast<const uint32_t*>(x_) + first_ * units;
      for (int64_t t = 0; t < tokens_; ++t)
        for (int64_t j = 0; j < kPanel; j += kWide)
          _mm512_store_ps(sums_ + t * kPanel + j, _mm512_loadu_ps(matrix_.bias + column + j));
      for (int64_t u = 0; u < units; u += kChunkUnits)
        for_tiles(tokens_, [&](auto size, int64_t t) {
          multiply_units<T, decltype(size)::value, kPanelVectors, true>(
              x + t * units + u, units, weight + u * kPanel, kPanel, std::min(kChunkUnits, units - u),
              sums_ + t * kPanel, kPanel);
        });
    }
  }

  // y = step * (products - zero * sums of weights) * scales + bias, of one token.
  void scale(const Token& token, int64_t column, const int32_t* products, float* y) const {
    const __m512 zero = _mm512_set1_ps(token.zero), step = _mm512_set1_ps(token.step);
    for (int64_t j = 0; j < kPanel; j += kWide) {
      const __m512 sum = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(matrix_.sums + column + j),
                                          _mm512_cvtepi32_ps(_mm512_load_si512(products + j)));
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(matrix_.scales + column + j), step);
      _mm512_store_ps(y + j, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(matrix_.bias + column + j)));
    }
  }

  // Adds what belongs to the row and the residual to 64 outputs of a segment, activates and writes them.
  void finish(const Segment& s, int64_t column) {
    const int64_t matrix = column / part_;
    const T* b = slot_b(s.row, matrix, column - matrix * part_);
    const bool more = column + kPanel < (matrix + 1) * part_;  // whether the next 64 are of this matrix
    if (s.ranks > 0) add_lora(s, matrix, b + part_, more);
    const T* own_bias = batch_.own_bias[s.row] ? b : nullptr;
    if (own_bias && more) fetch(b + kPanel);
    __mmask16 broken = 0;
    for (int64_t t = s.start; t < s.stop; ++t) {
      const float* y = sums_ + (t - first_) * kPanel;
      const int64_t at = t * matrix_.d_out + column;
      for (int64_t j = 0; j < kPanel; j += kWide) {
        __m512 v = _mm512_load_ps(y + j);
        if (own_bias) v = _mm512_add_ps(v, load(own_bias + j));
        if (residual_) v = _mm512_add_ps(v, load(residual_ + at + j));
        broken |= too_large(v);
        store(out_ + at + j, activate(v, activation_));
      }
    }
    if (broken) batch_.broken[s.row] = 1;
  }

  // Adds low . b to the sums of a segment; `b` is the first rank's row, and `more` whether to fetch what follows.
  void add_lora(const Segment& s, int64_t matrix, const T* b, bool more) {
    static thread_local Scratch units_memory;
    const uint32_t* units = reinterpret_cast<const uint32_t*>(b);
    int64_t stride = part_;
    if constexpr (kInUnit<T> == 2) {
      auto* packed = units_memory.get<uint32_t>(low_stride_ * kPanel);
      for (int64_t r = 0; r < s.ranks; r += 2) {
        const bf16* even = b + r * part_;
        const bf16* odd = r + 1 < s.ranks ? even + part_ : nullptr;
        for (int64_t j = 0; j < kPanel; j += kWide)
          _mm512_store_si512(packed + r / 2 * kPanel + j, interleave(even + j, odd ? odd + j : nullptr));
      }
      units = packed;
      stride = kPanel;
    }
    if (more)
      for (int64_t r = 0; r < s.ranks; ++r) fetch(b + r * part_ + kPanel);
    for_tiles(s.stop - s.start, [&](auto size, int64_t t) {
      multiply_units<T, decltype(size)::value, kPanelVectors, true>(
          low_of(s.start + t, matrix), lora_.matrices * low_stride_, units, stride,
          (s.ranks + kInUnit<T> - 1) / kInUnit<T>, sums_ + (s.start + t - first_) * kPanel, kPanel);
    });
  }

  static void fetch(const T* panel) {
    for (int64_t i = 0; i < kPanel; i += 64 / static_cast<int64_t>(sizeof(T)))
      _mm_prefetch(reinterpret_cast<const char*>(panel + i), _MM_HINT_T0);
  }

  const Batch& batch_;
  const Matrix& matrix_;
  const Lora& lora_;
  const T* x_;
  const T* residual_;
  const int64_t activation_;
  T* out_;
  const int64_t part_;         // outputs of one matrix
  const int64_t low_stride_;   // units that a token's low-rank values have room for
  int64_t first_ = 0;          // first token of the block
  int64_t tokens_ = 0;         // of the block
  uint8_t* levels_ = nullptr;  // (tokens, d_in): rounded inputs
  Token* scales_ = nullptr;    // (tokens)
  uint32_t* low_ = nullptr;    // (tokens, matrices, low_stride)
  float* sums_ = nullptr;      // (tokens, 64)
};

// Cuts the batch into blocks of whole and partial rows.
template <typename T, bool kRounds>
void run_product(const Batch& batch, const Matrix& matrix, const Lora& lora, const void* x, const void* residual,
                 int64_t activation, void* out) {
  Product<T, kRounds> product(batch, matrix, lora, static_cast<const T*>(x), static_cast<const T*>(residual),
                              activation, static_cast<T*>(out));
  const int64_t bytes = matrix.d_in * static_cast<int64_t>(kRounds ? 1 : sizeof(T));
  const int64_t limit = std::clamp<int64_t>(kBlockBytes / bytes, 24, kBlockTokens);
  Segment block[kBlockTokens];
  int64_t count = 0, tokens = 0;
  for (int64_t row = 0; row < batch.rows; ++row)
    for (int64_t start = batch.offsets[row]; start < batch.offsets[row + 1];) {
      const int64_t stop = std::min<int64_t>(batch.offsets[row + 1], start + limit - tokens);
      block[count++] = {row, start, stop, batch.ranks[row]};
      tokens += stop - start;
      start = stop;
      if (tokens == limit) {
        product.run(block, count);
        count = tokens = 0;
      }
    }
  if (count > 0) product.run(block, count);
}

}  // namespace

void product(const Batch& batch, const Matrix& matrix, const Lora& lora, const void* x, const void* residual,
             int64_t activation, void* out) {
  const auto run = matrix.kind == kBytes  ? run_product<bf16, true>
                   : matrix.kind == kBf16 ? run_product<bf16, false>
                                          : run_product<float, false>;
  run(batch, matrix, lora, x, residual, activation, out);
}

}  // namespace hmi

extern "C" {

// Writes `weight` (d_out, units) as panels of 64 outputs: (d_out / 64, units, 64). A unit is 4 bytes of a row: four
// int8, two bfloat16 or one float.
void hmi_pack_weight(const uint32_t* weight, int64_t d_out, int64_t units, uint32_t* packed) {
  for (int64_t column = 0; column < d_out; column += hmi::kPanel)
    for (int64_t u = 0; u < units; ++u)
      for (int64_t j = 0; j < hmi::kPanel; ++j) *packed++ = weight[(column + j) * units + u];
}

// out (tokens, d_out) = activation(x (tokens, d_in) W' + bias + LoRA + residual (tokens, d_out) or null).
// `residual` may be `out`. All are of T: float for kFloats, else bf16.
void hmi_product(const hmi::Batch* batch, const hmi::Matrix* matrix, const hmi::Lora* lora, const void* x,
                 const void* residual, int64_t activation, void* out) {
  hmi::product(*batch, *matrix, *lora, x, residual, activation, out);
}

}  // extern "C"
