// Layers with norms after the residual sums, as BERT has them, with bottlenecks.
#include <algorithm>

#include "steps.h"

namespace hmi {
namespace {

// Adds one token's bottleneck to `out` (D): up activation(down read + down_bias) + up_bias. `read` (D) may be `out`.
// Returns false if an inner number is too large, which ReLU would turn into zero, or one of `out`, whose infinite
// variance would turn the token into its norm's bias.
template <typename T>
bool add_bottleneck(const Bottlenecks& slots, int64_t place, int64_t inner, int64_t activation, int64_t width,
                    const T* read, T* out) {
  static thread_local Scratch memory;
  const int64_t padded = (inner + kWide - 1) / kWide * kWide;
  float* narrow = memory.get<float>(padded);
  std::fill(narrow + inner, narrow + padded, 0.0f);
  const T* down = static_cast<const T*>(slots.down) + place * slots.slot_width * width;
  const T* down_bias = static_cast<const T*>(slots.down_bias) + place * slots.slot_width;
  for (int64_t i = 0; i < inner; ++i) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += kWide) sum = _mm512_fmadd_ps(load(read + k), load(down + i * width + k), sum);
    narrow[i] = _mm512_reduce_add_ps(sum) + load_one(down_bias + i);
  }
  __mmask16 broken = 0;
  for (int64_t i = 0; i < padded; i += kWide) {
    const __m512 v = _mm512_loadu_ps(narrow + i);
    broken |= too_large(v);
    _mm512_storeu_ps(narrow + i, activate(v, activation));
  }
  const T* up = static_cast<const T*>(slots.up) + place * slots.slot_width * width;
  const T* up_bias = static_cast<const T*>(slots.up_bias) + place * width;
  for (int64_t k = 0; k < width; k += kWide) {
    __m512 sum = _mm512_add_ps(load(out + k), load(up_bias + k));
    for (int64_t i = 0; i < inner; ++i)
      sum = _mm512_fmadd_ps(_mm512_set1_ps(narrow[i]), load(up + i * width + k), sum);
    broken |= too_large(sum);
    store(out + k, sum);
  }
  return broken == 0;
}

// out = x + product(inner) + bottlenecks, for a sublayer, 0 or 1, whose input is `x`.
template <typename T>
void add_sublayer(const Batch& batch, const Layer& layer, int sublayer, const T* x, const T* inner, T* out) {
  const Matrix& matrix = layer.matrices[sublayer == 0 ? 1 : 3];
  const Lora& lora = layer.loras[sublayer == 0 ? 1 : 3];
  if (batch.rows == 0 || batch.widths[0] == 0) {
    product(batch, matrix, lora, inner, x, kNone, out);
    return;
  }
  const int64_t width = matrix.d_out;
  product(batch, matrix, lora, inner, nullptr, kNone, out);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const uint8_t placement = batch.placements[sublayer][row];
    for (int64_t t = batch.offsets[row]; t < batch.offsets[row + 1]; ++t) {
      T* sum = out + t * width;
      const T* read = placement == kSequential ? sum : x + t * width;
      if (placement != kNoBottleneck &&
          !add_bottleneck(layer.bottlenecks[sublayer], batch.places[row], batch.widths[row], batch.activations[row],
                          width, read, sum))
        batch.broken[row] = 1;
      for (int64_t k = 0; k < width; k += kWide) store(sum + k, _mm512_add_ps(load(sum + k), load(x + t * width + k)));
    }
  }
}

template <typename T>
void run_layers(const Batch& batch, const Layer* layers, int64_t count, T* x) {
  static thread_local Scratch qkv_memory, mixed_memory, middle_memory, inner_memory;
  constexpr bool floats = std::is_same_v<T, float>;
  const int64_t tokens = batch.offsets[batch.rows];
  for (const Layer* layer = layers; layer < layers + count; ++layer) {
    const int64_t width = layer->matrices[1].d_out;
    T* qkv = qkv_memory.get<T>(tokens * layer->matrices[0].d_out);
    T* mixed = mixed_memory.get<T>(tokens * width);
    T* middle = middle_memory.get<T>(tokens * width);
    T* inner = inner_memory.get<T>(tokens * layer->matrices[2].d_out);
    product(batch, layer->matrices[0], layer->loras[0], x, nullptr, kNone, qkv);
    attention(batch, floats, qkv, width, layer->heads, mixed);
    add_sublayer(batch, *layer, 0, x, mixed, middle);
    norm(batch, floats, layer->norms[0], middle, width, middle);
    product(batch, layer->matrices[2], layer->loras[2], middle, nullptr, layer->activation, inner);
    add_sublayer(batch, *layer, 1, middle, inner, x);
    norm(batch, floats, layer->norms[1], x, width, x);
  }
  for (Scratch* memory : {&qkv_memory, &mixed_memory, &middle_memory, &inner_memory}) memory->give_back_much();
}

}  // namespace
}  // namespace hmi

// Runs `count` layers over x (tokens, D), floats if `floats`, else bf16, in place.
extern "C" void hmi_layers(const hmi::Batch* batch, const hmi::Layer* layers, int64_t count, int64_t floats, void* x) {
  if (floats)
    hmi::run_layers(*batch, layers, count, static_cast<float*>(x));
  else
    hmi::run_layers(*batch, layers, count, static_cast<hmi::bf16*>(x));
}
