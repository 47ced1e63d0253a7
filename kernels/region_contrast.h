// SPDX-License-Identifier: BSD-3-Clause
// region_contrast: supervised and multi-positive contrastive loss without the matrix of similarities.
// The contract between the torch glue and the CPU kernels. The GPU's are in triton/region_contrast.py.
//
// With dot_ij = <row_i, candidate_j>, every similarity over its temperature has one form,
//   z_ij = factor * dot_ij * scale_i * scale_j + offset_i + offset_j:
//   cosine: factor 1 / T, scale 1 / |row|;  dot: factor 1 / T;  neg_mse: factor 2 / (D T), offset -|row|^2 /
//   (D T).
// The glue has torch multiply blocks of rows into a tile of dot_ij; a kernel turns the tile into statistics
// of its rows, or in place into dL/dot_ij, which torch multiplies with the rows again. A tile is all that is
// ever stored.
//
// Only rows that take part come here, with ids and groups recoded to 0, 1, 2, ... over both sides.
#pragma once

#include <cstdint>

#include "contract.h"

namespace fastseg {

enum class ContrastSimilarity : int { kCosine, kDot, kNegMse };
enum class ContrastDenominator : int { kAll, kNegatives };
enum class ContrastReduction : int { kMean, kSum, kNone };

// Real, here and below: float, or double for double input. Arrays of one number per row.
template <class Real>
struct ContrastSide {
  const Real* scale;
  const Real* offset;
  const int32_t* ids;
  const int32_t* groups;
};

// What the online log-sum-exp of a row holds: sums of exp(z - shift), where shift is the largest z so far of
// those in the denominator. `tilt` is the sum of exp(z - shift) (z - shift) over the denominator.
template <class Real>
struct ContrastSums {
  Real shift;  // -inf: none so far
  double negatives, positives, positive_z, tilt;
};

// Statistics of a row, kept for the backward pass: arrays one after the other.
enum ContrastStats {
  kContrastPositives,  // how many
  kContrastMean,       // mean z of the positives
  kContrastExcess,     // the loss, less log(positives) where they are in the denominator; -inf: empty
                       // denominator
  kContrastTilt,       // d loss / d temperature
  kContrastLogSum,     // log-sum-exp of the denominator, in log 2 on a GPU,
  kContrastRest,       // and what its rounding to Real has lost, which |z| of some tens would show
  kContrastStats
};

// Products of rows [row_begin, row_end) and candidates [col_begin, col_end), rows one after the other.
// `self` has for every row the candidate that is this row itself and left out, or -1.
template <class Real>
struct ContrastTile {
  Real* values;
  int64_t row_begin, row_end, col_begin, col_end;
  const int64_t* self;
};
constexpr int64_t kContrastBlock = 256;  // rows and columns of a tile at most: 256 KiB in float32, within L2

// Adds a tile to the sums of its rows and, if col_sums is given, of its candidates: a tile of a symmetric
// matrix off the diagonal. Arrays are indexed by row and candidate. Leaves z in the tile. tilt only where
// asked for.
template <class Real>
void contrast_add_tile_cpu(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                           const ContrastSide<Real>& candidates, Real factor, ContrastDenominator denominator,
                           bool with_tilt, ContrastSums<Real>* row_sums, ContrastSums<Real>* col_sums);

// Loss and statistics of rows [begin, end); stats arrays are `stride` apart. A row without positives, or
// without a denominator, has loss 0. Returns the sum of the losses, and adds the rows that have one to
// *count.
template <class Real>
double contrast_finish_rows_cpu(const ContrastSums<Real>* sums, const int64_t* positives, double temperature,
                                ContrastDenominator denominator, int64_t begin, int64_t end, Real* loss,
                                Real* stats, int64_t stride, int64_t* count);

// What the gradient needs of a row: dL/dz = pos_scale * e + pos_offset for a positive and neg_scale * e for a
// negative, where e = exp(z - log_sum).
template <class Real>
struct ContrastUpstream {
  Real *log_sum, *pos_scale, *pos_offset, *neg_scale;
};

// From the gradient of each row's loss: grad[i], or grad[0] for all if grad_stride is 0, times grad_scale.
template <class Real>
void contrast_prepare_upstream_cpu(const Real* stats, int64_t stride, const Real* grad, int64_t grad_stride,
                                   double grad_scale, ContrastDenominator denominator, int64_t begin,
                                   int64_t end, const ContrastUpstream<Real>& upstream);

// Turns a tile of products into dL/dot * scale_i * scale_j ("coefficients"), by the losses of the rows and,
// if `of_candidates` is given, also by those of the candidates: a symmetric matrix. Adds the sums of
// coefficients along rows and columns to the arrays that are given, indexed by row and candidate.
template <class Real>
void contrast_coefficients_cpu(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                               const ContrastSide<Real>& candidates, Real factor,
                               const ContrastUpstream<Real>& of_rows,
                               const ContrastUpstream<Real>* of_candidates, Real* row_totals,
                               Real* col_totals);

// Products of up to kContrastFewProducts numbers; more go to torch's matrix products. products (rows, cols) =
// left (rows, size) right (cols, size)^T.
constexpr int64_t kContrastFewProducts = 16384;  // a few microseconds, what it costs to call torch
template <class Real>
void contrast_products_cpu(const Real* left, const Real* right, int64_t rows, int64_t cols, int64_t size,
                           Real* products);
// sums (rows, size) += coefficients (rows, cols) right (cols, size); or transposed, sums (cols, size) +=
// coefficients^T right, with right (rows, size).
template <class Real>
void contrast_weighted_sums_cpu(const Real* coefficients, int64_t rows, int64_t cols, bool transposed,
                                const Real* right, int64_t size, Real* sums);

// In place, from sum_j coefficient_ij candidate_j to the gradient of row i, for rows [begin, end).
template <class Real>
void contrast_finish_gradient_cpu(ContrastSimilarity similarity, const Real* rows, const Real* scale,
                                  const Real* totals, int64_t size, int64_t begin, int64_t end,
                                  Real* gradient);

// Copies rows kept[begin..end) of `size` numbers of any kind, one after the other.
template <class Real>
void contrast_pack_rows_cpu(const void* from, ScalarKind kind, const int64_t* kept, int64_t size,
                            int64_t begin, int64_t end, Real* rows);
// The way back: row kept[k] of an array of any kind, from row k.
template <class Real>
void contrast_unpack_rows_cpu(const Real* rows, const int64_t* kept, int64_t size, int64_t begin, int64_t end,
                              ScalarKind kind, void* to);

// scale and offset of rows [begin, end) of `size` numbers each.
template <class Real>
void contrast_measure_rows_cpu(ContrastSimilarity similarity, const Real* rows, int64_t size,
                               double temperature, int64_t begin, int64_t end, Real* scale, Real* offset);

}  // namespace fastseg
