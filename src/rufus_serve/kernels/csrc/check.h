// What keeps a step's reads and writes within the memory that it names.
#pragma once
#include "abi.h"
#include "rope_store.h"

enum Fault : int { kNone, kBadStarts, kBadPosition, kBadSlot, kBadBlock };

static bool all_within(const int64_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; i++)
    if (values[i] < 0 || values[i] >= limit) return false;
  return true;
}

static Fault fault_of(const Model& model, const Cache& cache, const Step& step) {
  const int64_t num_blocks = cache.num_slots / cache.block_size;
  if (step.num_sequences < 1 || step.starts[0] != 0 ||
      step.starts[step.num_sequences] != step.num_tokens)
    return kBadStarts;
  for (int64_t sequence = 0; sequence < step.num_sequences; sequence++)
    if (step.starts[sequence] >= step.starts[sequence + 1]) return kBadStarts;
  const int64_t context = step.blocks_per_sequence * cache.block_size;
  const int64_t num_positions = context < model.num_positions ? context : model.num_positions;
  if (!all_within(step.positions, step.num_tokens, num_positions)) return kBadPosition;
  if (!all_within(step.slots, step.num_tokens, cache.num_slots)) return kBadSlot;
  if (!all_within(step.blocks, step.num_sequences * step.blocks_per_sequence, num_blocks))
    return kBadBlock;
  return kNone;
}
