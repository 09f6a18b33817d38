// LayerNorm with a weight and a bias for each row.
#include <cmath>

#include "batch.h"

// out (tokens, D) of x (tokens, D): the row's weight and bias are norms[place], (2, D) float32. `out` may be `x`.
// D is a multiple of 16. Statistics are in float32, in two passes: first the mean, then the variance.
extern "C" void hmi_norm(const hmi::Batch* batch, const float* norms, const uint16_t* x, int64_t width, float eps,
                         uint16_t* out) {
  using namespace hmi;
  for (int64_t row = 0; row < batch->rows; ++row) {
    const float* weight = norms + static_cast<int64_t>(batch->places[row]) * 2 * width;
    const float* bias = weight + width;
    for (int64_t t = batch->offsets[row]; t < batch->offsets[row + 1]; ++t) {
      const bf16* from = x + t * width;
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += kWide) sum = _mm512_add_ps(sum, load_bf16(from + i));
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(width));
      __m512 squares = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += kWide) {
        const __m512 d = _mm512_sub_ps(load_bf16(from + i), mean);
        squares = _mm512_fmadd_ps(d, d, squares);
      }
      const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
      const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(variance + eps));
      __mmask16 broken = 0;
      for (int64_t i = 0; i < width; i += kWide) {
        const __m512 d = _mm512_mul_ps(_mm512_sub_ps(load_bf16(from + i), mean), inverse);
        const __m512 y = _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i));
        broken |= too_large(y);
        store_bf16(out + t * width + i, y);
      }
      if (broken) batch->broken[row] = 1;
    }
  }
}
