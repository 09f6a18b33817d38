// The steps of a layer, which layers.cpp puts together. `floats` says that T is float, else it is bf16.
#pragma once

#include "batch.h"

namespace hmi {

// out (tokens, d_out) = activation(x (tokens, d_in) W' + bias + LoRA + residual (tokens, d_out) or null).
// `residual` may be `out`. All are of T: float for kFloats, else bf16.
void product(const Batch& batch, const Matrix& matrix, const Lora& lora, const void* x, const void* residual,
             int64_t activation, void* out);

// out (tokens, D) of qkv (tokens, 3 D): queries, keys and values side by side, heads side by side in each. Every token
// of a row sees all of its row. D / heads is a multiple of 16.
void attention(const Batch& batch, bool floats, const void* qkv, int64_t width, int64_t heads, void* out);

// out (tokens, D) = norm of x (tokens, D) with the row's weight and bias. `out` may be `x`. D is a multiple of 16.
void norm(const Batch& batch, bool floats, const Norms& norms, const void* x, int64_t width, void* out);

}  // namespace hmi
