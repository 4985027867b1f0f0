// Team: threads that work through the stages of a job together.
//
// A stage is a number of items, in shares of one per thread; who is done with its own takes from
// the others'. The next stage begins when every item is done, not when every thread has come: a
// thread whose core was taken away delays others by the one item it holds, and finds the stages
// it missed empty. That is why this is not OpenMP, whose barriers wait for everybody.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <thread>
#include <vector>

struct Stage {
  void (*run)(const void* job, int64_t item);
  int64_t num_items;
};

// What threads do when a job is done: await the next one of the same step, or leave their cores to
// others.
enum class Then { kSpin, kSleep };

class Team {
 public:
  // `num_threads` counts the caller of `run`.
  explicit Team(int num_threads) : num_threads_(num_threads) {
    for (Job& job : jobs_)
      for (Part& part : job.parts) part.shares = std::vector<Share>(num_threads);
    if (sched_getaffinity(0, sizeof(cpus_), &cpus_)) CPU_ZERO(&cpus_);
    for (int thread = 1; thread < num_threads; thread++) {
      Worker& worker = workers_.emplace_back();
      worker.thread = std::thread([this, thread, &worker] { serve(thread, worker); });
    }
  }

  ~Team() {
    stopping_.store(true);
    published_.fetch_add(1);
    published_.notify_all();
    for (Worker& worker : workers_) worker.thread.join();
  }

  int num_threads() const { return num_threads_; }

  // Runs all items of every stage. One thread calls it at a time.
  void run(const void* argument, std::initializer_list<Stage> stages, Then then = Then::kSpin) {
    if (num_threads_ == 1) {
      for (const Stage& stage : stages)
        for (int64_t item = 0; item < stage.num_items; item++) stage.run(argument, item);
      return;
    }
    uint32_t sequence = published_.load() + 1;
    Job& job = jobs_[sequence % kNumJobs];
    prepare(job, argument, stages);
    job.then = then;
    job.sequence.store(sequence);
    send_sleepers_elsewhere();
    published_.store(sequence);
    published_.notify_all();
    work(job, 0);
  }

 private:
  static constexpr int kMaxStages = 8;
  // How many jobs a thread may be behind before the caller waits for it.
  static constexpr int kNumJobs = 16;
  static constexpr auto kIdleSpin = std::chrono::microseconds(200);
  static constexpr int kPausesBeforeYield = 2000;

  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;

    Share() : next(0), end(0) {}
    Share(Share&&) : Share() {}
  };

  struct Part {
    Stage stage;
    std::vector<Share> shares;
    alignas(64) std::atomic<int64_t> num_done;
  };

  struct Worker {
    std::thread thread;
    std::atomic<bool> sleeps{false};
  };

  struct Job {
    std::atomic<uint32_t> sequence{0};
    std::atomic<int> num_inside{0};
    const void* argument = nullptr;
    int num_parts = 0;
    Then then = Then::kSpin;
    Part parts[kMaxStages];
  };

  void prepare(Job& job, const void* argument, std::initializer_list<Stage> stages) {
    // A thread that enters after this sees that the job is no longer the one it came for.
    job.sequence.store(0);
    while (job.num_inside.load()) std::this_thread::yield();
    job.argument = argument;
    job.num_parts = 0;
    for (const Stage& stage : stages) {
      Part& part = job.parts[job.num_parts++];
      part.stage = stage;
      part.num_done.store(0, std::memory_order_relaxed);
      for (int thread = 0; thread < num_threads_; thread++) {
        Share& share = part.shares[thread];
        share.next.store(stage.num_items * thread / num_threads_, std::memory_order_relaxed);
        share.end = stage.num_items * (thread + 1) / num_threads_;
      }
    }
  }

  void work(Job& job, int thread) {
    for (int index = 0; index < job.num_parts; index++) {
      Part& part = job.parts[index];
      for (int offset = 0; offset < num_threads_; offset++)
        take(part, part.shares[(thread + offset) % num_threads_], job.argument);
      wait_until_done(part);
    }
  }

  static void take(Part& part, Share& share, const void* argument) {
    int64_t num_taken = 0;
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
      if (item >= share.end) break;
      part.stage.run(argument, item);
      num_taken++;
    }
    if (num_taken) part.num_done.fetch_add(num_taken, std::memory_order_acq_rel);
  }

  static void wait_until_done(const Part& part) {
    for (int pauses = 0; part.num_done.load(std::memory_order_acquire) < part.stage.num_items;)
      if (pauses < kPausesBeforeYield) {
        __builtin_ia32_pause();
        pauses++;
      } else {
        std::this_thread::yield();
      }
  }

  // A virtual machine's idle CPU may look taken, and the kernel then queues who wakes behind who
  // woke it, for most of a millisecond. So whoever sleeps must wake on another CPU than this.
  void send_sleepers_elsewhere() {
    cpu_set_t others = cpus_;
    const int here = sched_getcpu();
    if (here >= 0) CPU_CLR(here, &others);
    if (CPU_COUNT(&others) == 0) return;
    for (Worker& worker : workers_)
      if (worker.sleeps.load())
        pthread_setaffinity_np(worker.thread.native_handle(), sizeof(others), &others);
  }

  void serve(int thread, Worker& worker) {
    uint32_t seen = 0;
    Then then = Then::kSleep;
    while (true) {
      seen = wait_for_job_after(seen, then, worker);
      if (stopping_.load()) return;
      Job& job = jobs_[seen % kNumJobs];
      job.num_inside.fetch_add(1);
      if (job.sequence.load() == seen) {
        work(job, thread);
        then = job.then;
      }
      job.num_inside.fetch_sub(1);
    }
  }

  // Spins over the gap between two jobs of a step, and sleeps through longer ones.
  uint32_t wait_for_job_after(uint32_t seen, Then then, Worker& worker) {
    auto until = std::chrono::steady_clock::now();
    if (then == Then::kSpin) until += kIdleSpin;
    while (true) {
      for (int pauses = 0; pauses < 64; pauses++) {
        uint32_t published = published_.load(std::memory_order_acquire);
        if (published != seen) return published;
        __builtin_ia32_pause();
      }
      if (std::chrono::steady_clock::now() > until) sleep_until_after(seen, worker);
    }
  }

  void sleep_until_after(uint32_t seen, Worker& worker) {
    worker.sleeps.store(true);
    published_.wait(seen);
    worker.sleeps.store(false);
    if (CPU_COUNT(&cpus_)) pthread_setaffinity_np(pthread_self(), sizeof(cpus_), &cpus_);
  }

  const int num_threads_;
  std::atomic<uint32_t> published_{0};
  std::atomic<bool> stopping_{false};
  Job jobs_[kNumJobs];
  std::deque<Worker> workers_;
  cpu_set_t cpus_;
};
