// Many short jobs on more threads than cores, so that threads come late to most of them.
#include "team.h"

#include <cstdio>
#include <cstdlib>

struct Sums {
  std::vector<std::atomic<int>> counts;
  std::vector<int> doubled;

  explicit Sums(int size) : counts(size), doubled(size) {}

  static void count(const void* job, int64_t item) {
    const_cast<Sums*>(static_cast<const Sums*>(job))->counts[item]++;
  }

  // Reads what other threads wrote in the stage before.
  static void add(const void* job, int64_t item) {
    Sums* sums = const_cast<Sums*>(static_cast<const Sums*>(job));
    int64_t size = sums->counts.size();
    sums->doubled[item] = sums->counts[item] + sums->counts[size - 1 - item];
  }
};

int main() {
  for (int num_threads : {1, 2, 3, 16}) {
    Team team(num_threads);
    for (int round = 0; round < 3000; round++) {
      Sums sums(1 + round % 40);
      int64_t size = sums.counts.size();
      team.run(&sums, {{Sums::count, size}, {Sums::add, size}, {Sums::count, 0}});
      for (int64_t item = 0; item < size; item++)
        if (sums.counts[item] != 1 || sums.doubled[item] != 2) {
          printf("%d threads, round %d: item %ld done %d times\n", num_threads, round, (long)item,
                 sums.counts[item].load());
          return 1;
        }
    }
  }
  puts("every item done once");
}
