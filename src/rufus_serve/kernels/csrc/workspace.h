// Workspace: memory between the stages of a job, kept from one job to the next.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

// Grows and never shrinks; 64-byte aligned.
class Buffer {
 public:
  template <class Element>
  Element* of(int64_t count) {
    size_t wanted = ((size_t)count * sizeof(Element) + 63) / 64 * 64;
    if (wanted > size_) {
      memory_.reset(std::aligned_alloc(64, wanted));
      if (!memory_) abort();
      size_ = wanted;
    }
    return static_cast<Element*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

struct Workspace {
  Buffer normed, projected, queries, heads, partial, keys, values, inner;
};

// What a thread keeps from row to row, so that none allocates.
template <class Scratch>
Scratch& of_thread() {
  static thread_local Scratch scratch;
  return scratch;
}
