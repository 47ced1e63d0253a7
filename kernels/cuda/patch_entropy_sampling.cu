// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_sample on CUDA. A row's windows are summed up in chunks by all multiprocessors; then blocks
// draw: they search the chunks, then the one chunk. With replacement the draws of a row are shared out,
// otherwise one block makes them in turn and mends the chunk it took from. Sums are integers, so their order
// does not matter.
#include "../cuda_utils.cuh"
#include "../patch_entropy_sampling.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerThread = int(kSampleChunk) / kThreads;
constexpr int kMostShares = 64;  // blocks that draw for one row
constexpr int kBlocksPerProcessor = 8;
constexpr uint64_t kNone = ~uint64_t(0);  // above the key of every number

// The sum of `value` over the threads before this one; *total is that over all. Called by the whole block.
__device__ uint64_t sum_before(uint64_t value, uint64_t* total) {
  __shared__ uint64_t of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t sum = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += below;
  }
  __syncthreads();  // the last call's sums are read
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();  // every warp's sum is in
  uint64_t before = 0;
  *total = 0;
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? of_warp[i] : 0;
    *total += of_warp[i];
  }
  return before + sum - value;
}

struct Candidate {
  uint64_t key;
  int64_t item;
};

__device__ __forceinline__ bool comes_before(const Candidate& first, const Candidate& second) {
  return first.key < second.key || (first.key == second.key && first.item < second.item);
}

// The candidate of all threads that comes first, for every thread.
__device__ Candidate first_of(Candidate candidate) {
  __shared__ Candidate of_warp[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) {
    const Candidate other{__shfl_xor_sync(0xffffffffu, candidate.key, offset),
                          __shfl_xor_sync(0xffffffffu, candidate.item, offset)};
    if (comes_before(other, candidate)) candidate = other;
  }
  __syncthreads();  // the last call's candidates are read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = candidate;
  __syncthreads();  // every warp's candidate is in
  for (int i = 0; i < kWarps; ++i) {
    if (comes_before(of_warp[i], candidate)) candidate = of_warp[i];
  }
  return candidate;
}

// The first window of a chunk that comes behind `last`; null: the first of all. Key kNone: none.
__device__ Candidate next_in_chunk(const PatchSampling& in, int64_t row, int64_t chunk,
                                   const Candidate* last) {
  Candidate found{kNone, in.windows};
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t window = chunk * kSampleChunk + i * kThreads + threadIdx.x;
    Candidate candidate{0, window};
    if (window >= in.windows || !in.order(row, window, &candidate.key)) continue;
    if ((!last || comes_before(*last, candidate)) && comes_before(candidate, found)) found = candidate;
  }
  return first_of(found);
}

// A block per chunk: weights and their sum, or the first window.
__global__ void __launch_bounds__(kThreads, 4)
    chunk_kernel(PatchSampling in, bool random, uint32_t* weights, uint64_t* sums, int64_t* firsts) {
  const int64_t chunks = sample_chunks(in.windows);
  for (int64_t number = blockIdx.x; number < in.rows() * chunks; number += gridDim.x) {
    const int64_t row = quotient(number, chunks), chunk = number - row * chunks;
    if (random) {
      uint64_t sum = 0, total = 0;
      for (int i = 0; i < kPerThread; ++i) {
        const int64_t window = chunk * kSampleChunk + i * kThreads + threadIdx.x;
        if (window >= in.windows) continue;
        const uint32_t weight = in.weight(row, window);
        weights[row * in.windows + window] = weight;
        sum += weight;
      }
      sum_before(sum, &total);
      if (threadIdx.x == 0) sums[number] = total;
    } else {
      const Candidate first = next_in_chunk(in, row, chunk, nullptr);
      if (threadIdx.x == 0) {
        sums[number] = first.key;
        firsts[number] = first.item;
      }
    }
  }
}

// One draw by the whole block: false if all weights are 0. `take`: the drawn window's weight becomes 0.
__device__ bool draw_window(const PatchSampling& in, int64_t row, int64_t draw, bool take, uint32_t* weights,
                            uint64_t* sums) {
  __shared__ int64_t chunk;
  __shared__ uint64_t rest;
  const int64_t chunks = sample_chunks(in.windows);
  const int64_t each = (chunks + kThreads - 1) / kThreads;
  const int64_t begin = min(each * threadIdx.x, chunks), end = min(begin + each, chunks);
  uint64_t sum = 0, total = 0;
  for (int64_t i = begin; i < end; ++i) sum += sums[i];
  const uint64_t before = sum_before(sum, &total);
  if (total == 0) return false;
  const uint64_t target = multiply_high(in.uniform(row, draw), total);
  if (target >= before && target - before < sum) {  // one thread's
    uint64_t left = target - before;
    int64_t i = begin;
    for (; left >= sums[i]; ++i) left -= sums[i];
    chunk = i;
    rest = left;
  }
  __syncthreads();  // the chunk is found
  const int64_t first = chunk * kSampleChunk + int64_t(threadIdx.x) * kPerThread;
  uint32_t own[kPerThread];
  sum = 0;
  for (int i = 0; i < kPerThread; ++i) {
    own[i] = first + i < in.windows ? weights[first + i] : 0;
    sum += own[i];
  }
  const uint64_t earlier = sum_before(sum, &total);
  if (rest >= earlier && rest - earlier < sum) {
    uint64_t left = rest - earlier;
    int i = 0;
    for (; left >= own[i]; ++i) left -= own[i];
    in.write(row, draw, first + i);
    if (take) {
      weights[first + i] = 0;
      sums[chunk] -= own[i];
    }
  }
  __syncthreads();  // nobody looks for the next chunk before this one is read and mended
  return true;
}

// May have a stack: draw_kernel (the weights of a thread, walked through until the draw is met)
__global__ void __launch_bounds__(kThreads)
    draw_kernel(PatchSampling in, int shares, uint32_t* weights, uint64_t* sums) {
  const int64_t chunks = sample_chunks(in.windows);
  for (int64_t job = blockIdx.x; job < in.rows() * shares; job += gridDim.x) {
    const int64_t row = quotient(job, shares), share = job - row * shares;
    int64_t draw = share;
    for (; draw < in.draws; draw += shares) {
      if (!draw_window(in, row, draw, !in.replacement, weights + row * in.windows, sums + row * chunks))
        break;
    }
    if (share == 0 && threadIdx.x == 0) in.count[row] = min(draw, in.draws);
    for (draw += int64_t(threadIdx.x) * shares; draw < in.draws; draw += int64_t(kThreads) * shares) {
      in.write(row, draw, -1);
    }
  }
}

__global__ void __launch_bounds__(kThreads) first_kernel(PatchSampling in, uint64_t* sums, int64_t* firsts) {
  const int64_t chunks = sample_chunks(in.windows);
  for (int64_t row = blockIdx.x; row < in.rows(); row += gridDim.x) {
    uint64_t* keys = sums + row * chunks;
    int64_t* windows = firsts + row * chunks;
    int64_t draw = 0;
    for (; draw < in.draws; ++draw) {
      Candidate own{kNone, in.windows};
      for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
        const Candidate candidate{keys[i], windows[i]};
        if (comes_before(candidate, own)) own = candidate;
      }
      const Candidate first = first_of(own);
      if (first.key == kNone) break;
      if (threadIdx.x == 0) in.write(row, draw, first.item);
      const int64_t chunk = first.item / kSampleChunk;
      const Candidate next = next_in_chunk(in, row, chunk, &first);
      if (threadIdx.x == 0) {
        keys[chunk] = next.key;
        windows[chunk] = next.item;
      }
      __syncthreads();  // the chunk is mended
    }
    if (threadIdx.x == 0) in.count[row] = draw;
    for (draw += threadIdx.x; draw < in.draws; draw += kThreads) in.write(row, draw, -1);
  }
}

}  // namespace

cudaError_t patch_sample_cuda(const PatchSampling& in, uint32_t* weights, uint64_t* sums, int64_t* firsts,
                              cudaStream_t stream) {
  const bool random =
      in.strategy == SampleStrategy::kProbabilistic || in.strategy == SampleStrategy::kThreshold;
  int most = 0;
  cudaError_t status = resident_blocks(kBlocksPerProcessor, &most);
  if (status != cudaSuccess || in.rows() == 0) return status;
  const auto blocks = [&](int64_t jobs) { return int(std::min<int64_t>(jobs, most)); };
  const int64_t chunks = in.rows() * sample_chunks(in.windows);
  if (chunks > 0) {
    status = launch(chunk_kernel, blocks(chunks), kThreads, 0, stream, in, random, weights, sums, firsts);
    if (status != cudaSuccess) return status;
  }
  if (!random) return launch(first_kernel, blocks(in.rows()), kThreads, 0, stream, in, sums, firsts);
  const int shares = in.replacement ? int(std::min<int64_t>(std::max<int64_t>(in.draws, 1), kMostShares)) : 1;
  return launch(draw_kernel, blocks(in.rows() * shares), kThreads, 0, stream, in, shares, weights, sums);
}

}  // namespace fastseg
