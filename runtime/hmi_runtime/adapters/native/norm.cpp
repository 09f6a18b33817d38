// LayerNorm with a weight and a bias for each row.
#include <cmath>

#include "steps.h"

namespace hmi {
namespace {

// Statistics are in float32, in two passes: first the mean, then the variance.
template <typename T>
void norm_rows(const Batch& batch, const Norms& norms, const T* x, int64_t width, T* out) {
  for (int64_t row = 0; row < batch.rows; ++row) {
    const float* weight = norms.slots + static_cast<int64_t>(batch.places[row]) * 2 * width;
    const float* bias = weight + width;
    for (int64_t t = batch.offsets[row]; t < batch.offsets[row + 1]; ++t) {
      const T* from = x + t * width;
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += kWide) sum = _mm512_add_ps(sum, load(from + i));
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(width));
      __m512 squares = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += kWide) {
        const __m512 d = _mm512_sub_ps(load(from + i), mean);
        squares = _mm512_fmadd_ps(d, d, squares);
      }
      const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
      const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(variance + norms.eps));
      __mmask16 broken = 0;
      for (int64_t i = 0; i < width; i += kWide) {
        const __m512 d = _mm512_mul_ps(_mm512_sub_ps(load(from + i), mean), inverse);
        const __m512 y = _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i));
        broken |= too_large(y);
        store(out + t * width + i, y);
      }
      if (broken) batch.broken[row] = 1;
    }
  }
}

}  // namespace

void norm(const Batch& batch, bool floats, const Norms& norms, const void* x, int64_t width, void* out) {
  if (floats)
    norm_rows(batch, norms, static_cast<const float*>(x), width, static_cast<float*>(out));
  else
    norm_rows(batch, norms, static_cast<const bf16*>(x), width, static_cast<bf16*>(out));
}

}  // namespace hmi

extern "C" void hmi_norm(const hmi::Batch* batch, int64_t floats, const hmi::Norms* norms, const void* x, int64_t width,
                         void* out) {
  hmi::norm(*batch, floats != 0, *norms, x, width, out);
}
