// What the kernels are given; library.py has the same structures.
#pragma once

#include "vector.h"

namespace hmi {

// Rows of a batch, one after another without padding.
struct Batch {
  int64_t rows;
  const int32_t* offsets;   // (rows + 1): where the tokens of each row begin
  const int32_t* places;    // (rows): the slot's index in the pool
  const int32_t* ranks;     // (rows): the rank of its LoRA; 0 without one
  const uint8_t* own_bias;  // (rows): whether it has biases of its own
  uint8_t* broken;          // (rows): set to 1 by a kernel that meets a number that is too large
};

// A frozen matrix in int8.
struct Matrix {
  const int8_t* weight;  // as hmi_pack_weight writes it
  const float* scales;   // (d_out)
  const float* sums;     // (d_out): sums of the quantised weights of each output
  const float* bias;     // (d_out)
  const float* shrink;   // (d_in): what inputs are multiplied by before they are rounded; or null
  int64_t d_in;          // a multiple of 64
  int64_t d_out;         // a multiple of 64 times the number of matrices in `Lora`
};

// The slots of one layer and product (see slot_pool.py); `matrices` stand side by side in the output.
struct Lora {
  int64_t matrices;
  int64_t slot_rows;     // max_rank + 1
  const bf16* a;         // (slots, matrices, slot_rows, d_in)
  const bf16* b[3];      // (slots, slot_rows, d_out / matrices) each
};

}  // namespace hmi
