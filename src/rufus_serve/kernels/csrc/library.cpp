// The library's functions, for ctypes. Every pointer is the caller's, valid during the call alone.
#include <cstdint>

#include "abi.h"
#include "attn_half.h"
#include "candidates.h"
#include "check.h"
#include "draws.h"
#include "logits.h"
#include "mlp_half.h"
#include "team.h"
#include "workspace.h"

// Raised when a structure or a function changes; structs.py holds the same.
constexpr int kAbiVersion = 5;

struct Context {
  Team team;
  Workspace workspace;

  explicit Context(int num_threads) : team(num_threads) {}
};

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int abi_version() { return kAbiVersion; }

// Bytes of the structures in abi.h, in its order.
EXPORT void abi_sizes(int64_t* sizes) {
  const int64_t found[] = {sizeof(Weight), sizeof(Model), sizeof(Layer), sizeof(Cache),
                           sizeof(Step), sizeof(Candidates), sizeof(DrawParams),
                           sizeof(Draws)};
  memcpy(sizes, found, sizeof(found));
}

EXPORT Context* create_context(int num_threads) { return new Context(num_threads); }

EXPORT void destroy_context(Context* context) { delete context; }

EXPORT int check_step(const Model* model, const Cache* cache, const Step* step) {
  return fault_of(*model, *cache, *step);
}

EXPORT void attn_half(Context* context, const Model* model, const Layer* layer, const Cache* cache,
                      const Step* step) {
  AttnHalf(*model, *layer, *cache, *step, context->workspace).run(context->team);
}

EXPORT void mlp_half(Context* context, const Model* model, const Layer* layer, const Step* step) {
  MlpHalf(*model, *layer, *step, context->workspace).run(context->team);
}

EXPORT void logits(Context* context, const Model* model, const bf16* final_norm,
                   const Weight* lm_head, const Step* step, const int64_t* tokens,
                   int64_t num_outputs, float* to, int64_t vocab_size) {
  Logits(*model, final_norm, *lm_head, *step, tokens, num_outputs, to, vocab_size,
         context->workspace)
      .run(context->team);
}

EXPORT void find_candidates(Context* context, const Candidates* wanted) {
  Search(*wanted).run(context->team);
}

EXPORT void draw_tokens(const Draws* draws) { RowDraw::run_all(*draws); }
