// What the library's callers pass: plain structs, mirrored field by field in structs.py.
//
// Legend: T new tokens, S sequences, W KV blocks per sequence, M hidden size, D head size, Q query
// heads and H KV heads held here, I inner size of the MLP held here, rounded up to 16.
#pragma once
#include "simd.h"

struct Weight {
  const void* panels;   // bf16 [N / 32][K / 2][32][2], or int8 [N / 32][K / 2][2][32]
  const float* scales;  // [N] what an int8 stands for in its output; null: bf16
  const float* bias;    // [N] or null
  int64_t num_inputs;   // K, even
  int64_t num_panels;   // N / 32
};

struct Model {
  int64_t hidden_size, head_size, num_q_heads, num_kv_heads, inner_size;
  float rms_norm_eps;
  const float* cos;  // [P, D / 2]
  const float* sin;
  int64_t num_positions;  // P
};

struct Layer {
  const bf16* input_norm;  // [M]
  Weight qkv;              // queries, keys, values; N = (Q + 2H) D
  const bf16* q_norm;      // [D] or null, as k_norm
  const bf16* k_norm;
  Weight output;  // Q D -> M
  const bf16* mlp_norm;
  Weight gate_up;  // a panel: 16 gate outputs, then their 16 up outputs
  Weight down;     // I -> M
  int64_t window;  // keys that a query sees, itself included; 0: all
};

struct Cache {
  bf16* slots;  // one layer: [2H, num_slots, D], keys first
  int64_t num_slots, block_size;
};

struct Step {
  int64_t num_tokens, num_sequences;
  const int64_t* starts;     // [S + 1] first token of each sequence
  const int64_t* positions;  // [T] a token sees the keys up to its own position
  const int64_t* slots;      // [T] where its key and value go
  const int64_t* blocks;     // [S, W] block table
  int64_t blocks_per_sequence;
  float* hidden;  // [T, M] residual stream
  bf16* delta;    // [T, M] what the next half adds to it, and what a half answers with
};

// Legend: R rows, V vocabulary or a share of it, K candidates of a row, E tokens named for a row.
struct Candidates {
  float* logits;  // [R, V], written to meanwhile
  int64_t num_rows, vocab_size;
  int64_t first_id;             // of the share
  const int32_t* counts;        // [R] K; below 1: none
  const float* temperatures;    // [R, 2] at which totals are wanted; 0: none
  const int32_t* named_counts;  // [R] E
  const int32_t* named;         // [sum of E] left out of candidates and totals
  float* best;                  // [sum of K] falling; equals by their ids
  int32_t* ids;                 // [sum of K]
  double* totals;               // [R, 2] logarithms of sums of exponentials
  float* named_logits;          // [sum of E]
  double* held;                 // [R] of the first total, what the candidates have; 0 without
};

enum DrawFlags { kGreedy = 1, kOnlyNamed = 2, kNeedsTotal = 4 };

// How a row is drawn.
struct DrawParams {
  double top_p;  // 1 for all
  double min_p;  // 0 for all
  float temperature;
  int32_t top_k;  // 0 for all
  int64_t flags;
};

// Legend as for Candidates; G bitmasks.
struct Draws {
  int64_t num_rows;
  const int32_t* counts;        // [R] K
  const float* logits;          // [sum of K] falling; equals by their ids
  const int32_t* ids;           // [sum of K]
  const double* totals;         // [R, 2] without named tokens; the first is at the temperature
  const int32_t* named_counts;  // [R] E
  const int32_t* named;         // [sum of E]
  const float* named_logits;    // [sum of E] as they are drawn from
  const DrawParams* params;     // [R]
  const double* uniforms;       // [R] of [0, 1)
  const int32_t* masks;         // [G, W] a bit for each token that is allowed
  int64_t words_per_mask;       // W
  const int32_t* mask_places;   // [R] below 0: none
  int64_t* tokens;              // [R] drawn; below 0: the row in full must decide
};
