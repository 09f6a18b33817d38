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
  const int32_t* widths;    // (rows): the width of its bottlenecks; 0 without, then for all rows
  const uint8_t* activations;     // (rows): of its bottlenecks, one of Activation
  const uint8_t* placements[2];   // (rows): of the bottleneck of attention and feed-forward, one of Placement
  uint8_t* broken;          // (rows): set to 1 by a kernel that meets a number that is too large
};

enum Placement : uint8_t { kNoBottleneck = 0, kParallel = 1, kSequential = 2 };

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

// The slots' bottlenecks at one place; null pointers where slots have no room for any.
struct Bottlenecks {
  int64_t slot_width;     // max_bottleneck
  const void* down;       // (slots, slot_width, D) of T
  const void* down_bias;  // (slots, slot_width) of T
  const void* up;         // (slots, slot_width, D) of T
  const void* up_bias;    // (slots, D) of T
};

struct Norms {
  const float* slots;  // (slots, 2, D): weights and biases
  float eps;
};

// One layer; products are queries, keys and values together, attention output, widening and narrowing.
struct Layer {
  Matrix matrices[4];
  Lora loras[4];
  Norms norms[2];              // after attention and after the feed-forward
  Bottlenecks bottlenecks[2];  // of attention and of the feed-forward
  int64_t heads;
  int64_t activation;
};

}  // namespace hmi
