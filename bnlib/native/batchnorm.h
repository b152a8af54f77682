// Batch norm with sum and ReLU, and its gradient, as passes over channels-last tensors: two forward, two backward.
//
// A tensor (N, C, H, W) in channels-last order is a matrix of N·H·W rows and C columns. Each loop below walks down the
// rows of a block with 8 to 64 channels in registers. bfloat16 is read and written as shifted integers; sums are taken
// in float over a block and then block by block, in order and in double, so that the result does not depend on the
// number of threads. Batch norm: Ioffe & Szegedy 2015, Algorithm 1; its gradient: ibid., Sec. 3.

#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace bnlib {

// ------------------------------------------------------------------------------------ blocks of rows and columns

constexpr int64_t kRows = 256;  // a block: its data stays in the cache
constexpr int64_t kRun = 16;    // rows added up before they join the block's sums: the error grows with both, not their product
inline int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// Runs body(block, first row, last row, first channel, number of vectors) over the whole matrix, blocks in parallel.
template <typename Body>
void for_tiles(int64_t rows, int64_t channels, const Body& body) {
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks_of(rows); ++block) {
    const int64_t first = block * kRows, last = std::min(rows, first + kRows);
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) body(block, first, last, c, std::integral_constant<int, 4>());
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes) body(block, first, last, c, std::integral_constant<int, 2>());
    for (; c < channels; c += kLanes) body(block, first, last, c, std::integral_constant<int, 1>());
  }
}

// V vectors of one value a channel, from channel c on.
template <typename S, int V>
struct PerChannel {
  Vector<S> v[V];
  PerChannel() : v{} {}
  PerChannel(const S* values, int64_t c) {
    for (int i = 0; i < V; ++i) v[i] = load(values + c + i * kLanes);
  }
  void add(const PerChannel& other) {
    for (int i = 0; i < V; ++i) v[i] += other.v[i];
  }
  void copy_to(S* values) const {
    for (int i = 0; i < V; ++i) store(values + i * kLanes, v[i]);
  }
};

// Two sums of each channel over each block, and both added up over the blocks. Where each block has an origin of its own,
// from which distances are taken, it stands beside them.
template <typename S>
struct BlockSums {
  static constexpr int kOrigin = 2;
  int64_t blocks, channels;
  std::vector<S> sums;
  BlockSums(int64_t blocks, int64_t channels) : blocks(blocks), channels(channels), sums(3 * blocks * channels) {}
  S* at(int64_t block, int which, int64_t c) { return &sums[(3 * block + which) * channels + c]; }
  void add_up(std::vector<double>& a, std::vector<double>& b) {
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t c = 0; c < channels; ++c) {
        a[c] += *at(block, 0, c);
        b[c] += *at(block, 1, c);
      }
  }
};

// Mean and (biased) variance of each channel, which begin at 0, from sums of the distances from each block's origin and of
// their squares, one block after the other: Chan et al. 1979. rows(block): how many it has.
template <typename S, typename Rows>
void moments_of(BlockSums<S>& sums, const Rows& rows, std::vector<double>& mean, std::vector<double>& var) {
  double before = 0;
  for (int64_t block = 0; block < sums.blocks; ++block) {
    const double more = rows(block), all = before + more;
    for (int64_t c = 0; c < sums.channels; ++c) {
      const double sum = *sums.at(block, 0, c), squares = *sums.at(block, 1, c);
      const double away = *sums.at(block, BlockSums<S>::kOrigin, c) + sum / more - mean[c];
      mean[c] += away * more / all;
      var[c] += squares - sum * sum / more + away * away * before * more / all;
    }
    before = all;
  }
  for (double& each : var) each = std::max(each / before, 0.0);  // in this order NaN stays
}

// Refuses γ, β and running statistics that are not one value a channel, in the type that the images are computed in.
inline void check_affine(const char* name, const at::Tensor& images, int64_t channels,
                         std::initializer_list<at::Tensor> values) {
  for (const at::Tensor& each : values)
    TORCH_CHECK(each.defined() && each.is_cpu() && each.is_contiguous() && each.sizes() == at::IntArrayRef({channels}) &&
                    each.scalar_type() == computed_in(images),
                name, ": takes γ, β and running statistics (", channels, ",) of the images' type, float beside bfloat16");
}

// Batch norm of a channel is x · scale + shift; mean and 1 / deviation are those of the batch.
template <typename S>
struct Affine {
  S *scale, *shift, *mean, *inverse;
  Affine(S* values, int64_t channels)
      : scale(values), shift(values + channels), mean(values + 2 * channels), inverse(values + 3 * channels) {}

  // From the batch's moments, which the running statistics take in.
  void set(const std::vector<double>& m, const std::vector<double>& v, int64_t rows, const S* gamma, const S* beta,
           S* running_mean, S* running_var, double momentum, double eps) {
    for (size_t c = 0; c < m.size(); ++c) {
      inverse[c] = S(1 / std::sqrt(v[c] + eps));
      mean[c] = S(m[c]);
      scale[c] = gamma[c] * inverse[c];
      shift[c] = S(beta[c] - m[c] * scale[c]);
      running_mean[c] += S(momentum * (m[c] - running_mean[c]));
      running_var[c] += S(momentum * (v[c] * rows / (rows - 1) - running_var[c]));
    }
  }
};

// The gradient of x is scale · g + along · x + across: of all rows together, for batch norm's statistics are.
template <typename S>
struct Slopes {
  std::vector<S> along, across;
  // From the sums over the rows of g and of g times x's distance from its mean; writes the gradients of γ and β.
  Slopes(const std::vector<double>& sum_g, const std::vector<double>& sum_gx, int64_t rows, const Affine<S>& affine,
         S* gamma_gradient, S* beta_gradient)
      : along(sum_g.size()), across(sum_g.size()) {
    for (size_t c = 0; c < sum_g.size(); ++c) {
      const auto& [scale, shift, mean, inverse] = affine;
      gamma_gradient[c] = S(sum_gx[c] * inverse[c]);
      beta_gradient[c] = S(sum_g[c]);
      const double slope = -scale[c] * sum_gx[c] * inverse[c] * inverse[c] / rows;
      along[c] = S(slope);
      across[c] = S(-scale[c] * sum_g[c] / rows - slope * mean[c]);
    }
  }
};

// ------------------------------------------------------------------------------------ the four passes

// Mean and (biased) variance of each channel, by sums of distances from the first row, which cancel less.
template <typename T>
void moments(const T* x, int64_t rows, int64_t channels, std::vector<double>& mean, std::vector<double>& var) {
  using S = Scalar<T>;
  BlockSums<S> sums(blocks_of(rows), channels);
  std::vector<S> origin(channels);
  for (int64_t c = 0; c < channels; c += kLanes) store(&origin[c], load(x + c));
  for_tiles(rows, channels, [&](int64_t block, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const PerChannel<S, V> o(origin.data(), c);
    PerChannel<S, V> sum, squares;
    for (int64_t start = first; start < last; start += kRun) {
      PerChannel<S, V> s, q;
      for (int64_t r = start; r < std::min(last, start + kRun); ++r)
        for (int i = 0; i < V; ++i) {
          const auto distance = load(x + r * channels + c + i * kLanes) - o.v[i];
          s.v[i] += distance;
          q.v[i] += distance * distance;
        }
      sum.add(s);
      squares.add(q);
    }
    sum.copy_to(sums.at(block, 0, c));
    squares.copy_to(sums.at(block, 1, c));
  });
  sums.add_up(mean, var);
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] /= rows;
    var[c] = std::max(var[c] / rows - mean[c] * mean[c], 0.0);
    mean[c] += origin[c];
  }
}

// y = relu(x · scale + shift + add).
template <typename T, bool Add, bool Relu>
void normalise(const T* x, const T* add, T* y, int64_t rows, int64_t channels, const Scalar<T>* scale,
               const Scalar<T>* shift) {
  for_tiles(rows, channels, [&](int64_t, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const PerChannel<Scalar<T>, V> a(scale, c), b(shift, c);
    for (int64_t r = first; r < last; ++r)
      for (int i = 0; i < V; ++i) {
        const int64_t at = r * channels + c + i * kLanes;
        auto value = load(x + at) * a.v[i] + b.v[i];
        if (Add) value += load(add + at);
        if (Relu) value = relu(value);
        store(y + at, value);
      }
  });
}

// to = a + b, which may be where one of them is.
template <typename T>
void add(const T* a, const T* b, T* to, int64_t rows, int64_t channels) {
  for_tiles(rows, channels, [&](int64_t, int64_t first, int64_t last, int64_t c, auto vectors) {
    for (int64_t r = first; r < last; ++r)
      for (int i = 0; i < vectors; ++i) {
        const int64_t at = r * channels + c + i * kLanes;
        store(to + at, load(a + at) + load(b + at));
      }
  });
}

// Sums over the rows of g, the gradient that passes the ReLU, and of g times the distance of x from its mean.
// g is gy where the output was positive. With an addition that is read off y, and g is written to `g`, being the
// gradient of the addition too; without one the output has the sign of x · scale + shift, and y is not needed.
template <typename T, bool Add, bool Relu>
void gradient_sums(const T* gy, const T* x, const T* y, T* g, int64_t rows, int64_t channels, const Scalar<T>* scale,
                   const Scalar<T>* shift, const Scalar<T>* mean, std::vector<double>& sum_g,
                   std::vector<double>& sum_gx) {
  using S = Scalar<T>;
  BlockSums<S> sums(blocks_of(rows), channels);
  for_tiles(rows, channels, [&](int64_t block, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const PerChannel<S, V> a(scale, c), b(shift, c), m(mean, c);
    PerChannel<S, V> sum, products;
    for (int64_t start = first; start < last; start += kRun) {
      PerChannel<S, V> s, p;
      for (int64_t r = start; r < std::min(last, start + kRun); ++r)
        for (int i = 0; i < V; ++i) {
          const int64_t at = r * channels + c + i * kLanes;
          const auto value = load(x + at);
          const auto passed = [&] {
            if constexpr (Add && Relu) return copy_where_positive(gy + at, y + at, g + at);
            if constexpr (Relu) return masked(load(gy + at), value * a.v[i] + b.v[i] > 0);
            return load(gy + at);
          }();
          s.v[i] += passed;
          p.v[i] += passed * (value - m.v[i]);
        }
      sum.add(s);
      products.add(p);
    }
    sum.copy_to(sums.at(block, 0, c));
    products.copy_to(sums.at(block, 1, c));
  });
  sums.add_up(sum_g, sum_gx);
}

// gx = scale · g + along · x + across; Relu: g has not yet passed the ReLU, whose sign is that of x · scale + shift.
template <typename T, bool Relu>
void gradient(const T* g, const T* x, T* gx, int64_t rows, int64_t channels, const Scalar<T>* scale,
              const Scalar<T>* shift, const Scalar<T>* along, const Scalar<T>* across) {
  for_tiles(rows, channels, [&](int64_t, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const PerChannel<Scalar<T>, V> a(scale, c), b(shift, c), k(along, c), d(across, c);
    for (int64_t r = first; r < last; ++r)
      for (int i = 0; i < V; ++i) {
        const int64_t at = r * channels + c + i * kLanes;
        const auto value = load(x + at);
        auto passed = load(g + at);
        if (Relu) passed = masked(passed, value * a.v[i] + b.v[i] > 0);
        store(gx + at, a.v[i] * passed + k.v[i] * value + d.v[i]);
      }
  });
}

}  // namespace bnlib
