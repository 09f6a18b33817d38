// What the kernels are given; library.py has the same structures.
//
// `T` below is the type of activations and of the slots' matrices: bf16, or float.
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

enum Weights : int64_t { kBytes = 0, kBf16 = 1, kFloats = 2 };

// A frozen matrix.
struct Matrix {
  int64_t kind;         // one of Weights
  const void* weight;   // as hmi_pack_weight writes it
  const float* scales;  // (d_out), of kBytes: the step of each output's weights
  const float* sums;    // (d_out), of kBytes: sums of the rounded weights of each output
  const float* bias;    // (d_out)
  const float* shrink;  // (d_in), of kBytes: what inputs are multiplied by before they are rounded; or null
  int64_t d_in;         // a multiple of 64
  int64_t d_out;        // a multiple of 64 times the number of matrices in `Lora`
};

// The slots of one layer and product (see slot_pool.py); `matrices` stand side by side in the output.
struct Lora {
  int64_t matrices;
  int64_t slot_rows;  // max_rank + 1; row 0 is of biases
  const void* a;      // (slots, matrices, slot_rows, d_in) of T
  const void* b[3];   // (slots, slot_rows, d_out / matrices) of T each
};

}  // namespace hmi
