// The final norm of the tokens that are asked for, and this follower's part of their logits.
#pragma once
#include "linear.h"
#include "norm.h"
#include "attn_half.h"

class Logits {
 public:
  Logits(const Model& model, const bf16* final_norm, const Weight& lm_head, const Step& step,
         const int64_t* tokens, int64_t num_outputs, float* logits, int64_t vocab_size,
         Workspace& workspace)
      : model_(model),
        final_norm_(final_norm),
        lm_head_(lm_head),
        step_(step),
        tokens_(tokens),
        grid_(num_outputs, lm_head),
        logits_(logits),
        vocab_size_(vocab_size),
        normed_(workspace.normed.of<bf16>(num_outputs * model.hidden_size)) {}

  void run(Team& team) const {
    team.run(this,
             {
                 stage<Logits, &Logits::norm>(grid_.num_rows),
                 stage<Logits, &Logits::multiply_all>(grid_.num_items()),
             },
             Then::kSleep);
  }

 private:
  void norm(int64_t output) const {
    const int64_t at = tokens_[output] * model_.hidden_size;
    add_and_norm(step_.hidden + at, step_.delta + at, final_norm_, model_.hidden_size,
                 model_.rms_norm_eps, normed_ + output * model_.hidden_size);
  }

  void multiply_all(int64_t item) const {
    linear_item(grid_, item, normed_, lm_head_, logits_, vocab_size_);
  }

  const Model& model_;
  const bf16* const final_norm_;
  const Weight& lm_head_;
  const Step& step_;
  const int64_t* const tokens_;
  const Grid grid_;
  float* const logits_;
  const int64_t vocab_size_;
  bf16* const normed_;
};
