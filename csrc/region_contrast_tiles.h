// SPDX-License-Identifier: BSD-3-Clause
// How region_contrast's glue goes through the pairs of rows: which tiles run at the same time, and the matrix
// products of torch between them.
#pragma once

#include <algorithm>
#include <functional>

#include "ops.h"
#include "place.h"
#include "region_contrast.h"

namespace fastseg {

// Rows shared out in blocks: at least eight where that does not make them too small to multiply well. Must
// not depend on the number of threads, and neither do results then.
inline int64_t contrast_block(int64_t rows) {
  const int64_t eighth = (rows / 8 + 63) / 64 * 64;
  return std::clamp<int64_t>(eighth, 128, kContrastBlock);
}

struct ContrastBlocks {
  int64_t rows, size, count;

  explicit ContrastBlocks(int64_t rows)
      : rows(rows), size(contrast_block(rows)), count((rows + size - 1) / size) {}
  int64_t begin(int64_t block) const { return block * size; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * size); }
};

using ContrastPair = std::function<void(int64_t row_block, int64_t col_block)>;

// Every pair of blocks, in rounds. Within a round no block is in two pairs, so what is summed per row or per
// candidate needs no lock and is summed in one order, whatever the number of threads.
inline void for_each_pair(const Place& place, const ContrastBlocks& rows, const ContrastBlocks& cols,
                          const ContrastPair& body) {
  const int64_t rounds = std::max(rows.count, cols.count), at_once = std::min(rows.count, cols.count);
  const bool more_cols = cols.count >= rows.count;
  for (int64_t round = 0; round < rounds; ++round) {
    place.for_ranges(at_once, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t other = (k + round) % rounds;
        more_cols ? body(k, other) : body(other, k);
      }
    });
  }
}

// Every unordered pair of blocks once, those of a block with itself first. The rounds are those of a
// tournament: block n - 1 stays, the others turn around.
inline void for_each_unordered_pair(const Place& place, const ContrastBlocks& blocks,
                                    const ContrastPair& body) {
  place.for_ranges(blocks.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block, block);
  });
  const int64_t n = blocks.count + blocks.count % 2;
  for (int64_t round = 0; round + 1 < n; ++round) {
    place.for_ranges(n / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t one = k == 0 ? n - 1 : (round + k) % (n - 1);
        const int64_t other = (round + n - 1 - k) % (n - 1);
        if (std::max(one, other) < blocks.count) body(std::min(one, other), std::max(one, other));
      }
    });
  }
}

template <class Real>
constexpr ScalarType kTypeOf = sizeof(Real) == sizeof(double) ? ScalarType::Double : ScalarType::Float;

// A matrix where it lies; torch's autograd does not know it, as worker threads do not know what is switched
// off.
template <class Real>
torch::stable::Tensor view_matrix(const Real* values, int64_t rows, int64_t cols, int64_t row_stride,
                                  int64_t col_stride) {
  const int64_t sizes[] = {rows, cols}, strides[] = {row_stride, col_stride};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob_v2(
      const_cast<Real*>(values), 2, sizes, strides, 0,
      sizeof(Real) == sizeof(double) ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &handle, aoti_torch_layout_strided(), nullptr, 0));
  return torch::stable::Tensor(handle);
}

// As contrast_products_cpu.
template <class Real>
void multiply_rows(const Real* left, const Real* right, int64_t rows, int64_t cols, int64_t size,
                   Real* products) {
  if (rows * cols * size <= kContrastFewProducts) {
    contrast_products_cpu(left, right, rows, cols, size, products);
    return;
  }
  const torch::stable::Tensor out = view_matrix(products, rows, cols, cols, int64_t(1));
  const torch::stable::Tensor a = view_matrix(left, rows, size, size, int64_t(1));
  const torch::stable::Tensor b = view_matrix(right, size, cols, int64_t(1), size);
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// As contrast_weighted_sums_cpu.
template <class Real>
void add_weighted_rows(const Real* coefficients, int64_t rows, int64_t cols, bool transposed,
                       const Real* right, int64_t size, Real* sums) {
  if (rows * cols * size <= kContrastFewProducts) {
    contrast_weighted_sums_cpu(coefficients, rows, cols, transposed, right, size, sums);
    return;
  }
  const int64_t results = transposed ? cols : rows, summed = transposed ? rows : cols;
  const torch::stable::Tensor out = view_matrix(sums, results, size, size, int64_t(1));
  const torch::stable::Tensor a = transposed ? view_matrix(coefficients, cols, rows, int64_t(1), cols)
                                             : view_matrix(coefficients, rows, cols, cols, int64_t(1));
  const torch::stable::Tensor b = view_matrix(right, summed, size, size, int64_t(1));
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

// One buffer for a tile per thread.
template <class Real>
class TileBuffers {
 public:
  TileBuffers(const Place& place, const Tensor& like, const ContrastBlocks& rows, const ContrastBlocks& cols)
      : size_(std::min(rows.rows, rows.size) * std::min(cols.rows, cols.size)),
        buffers_(place, like, int64_t(torch::stable::get_num_threads()) * size_ * int64_t(sizeof(Real))) {}
  Real* of_this_thread() const {
    uint32_t thread = 0;
    TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&thread));
    return static_cast<Real*>(buffers_.data()) + thread * size_;
  }

 private:
  int64_t size_;
  Scratch buffers_;
};

}  // namespace fastseg
