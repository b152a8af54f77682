// relu(batch_norm(x) + add) and its gradient for channels-last tensors on a CPU: two passes forward, two backward.
//
// A tensor (N, C, H, W) in channels-last order is a matrix of N·H·W rows and C columns. Each loop below walks down the
// rows of a block with 8 to 64 channels in registers. bfloat16 is read and written as shifted integers; sums are taken
// in float over a block and then block by block, in order and in double, so that the result does not depend on the
// number of threads. Batch norm: Ioffe & Szegedy 2015, Algorithm 1; its gradient: ibid., Sec. 3.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace {

using namespace bnlib;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ------------------------------------------------------------------------------------ blocks of rows and columns

constexpr int64_t kRows = 256;  // a block: its data stays in the cache
constexpr int64_t kRun = 16;    // rows added up before they join the block's sums: the error grows with both, not their product
int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

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
struct Columns {
  Vector<S> v[V];
  Columns() : v{} {}
  Columns(const S* values, int64_t c) {
    for (int i = 0; i < V; ++i) v[i] = load(values + c + i * kLanes);
  }
  void add(const Columns& other) {
    for (int i = 0; i < V; ++i) v[i] += other.v[i];
  }
  void copy_to(S* values) const {
    for (int i = 0; i < V; ++i) store(values + i * kLanes, v[i]);
  }
};

// Two sums of each channel over each block, and both added up over the blocks.
template <typename S>
struct BlockSums {
  int64_t rows, channels;
  std::vector<S> sums;
  BlockSums(int64_t rows, int64_t channels)
      : rows(rows), channels(channels), sums(2 * blocks_of(rows) * channels) {}
  S* at(int64_t block, int which, int64_t c) { return &sums[(2 * block + which) * channels + c]; }
  void add_up(std::vector<double>& a, std::vector<double>& b) {
    for (int64_t block = 0; block < blocks_of(rows); ++block)
      for (int64_t c = 0; c < channels; ++c) {
        a[c] += *at(block, 0, c);
        b[c] += *at(block, 1, c);
      }
  }
};

// ------------------------------------------------------------------------------------ the four passes

// Mean and (biased) variance of each channel, by sums of distances from the first row, which cancel less.
template <typename T>
void moments(const T* x, int64_t rows, int64_t channels, std::vector<double>& mean, std::vector<double>& var) {
  using S = Scalar<T>;
  BlockSums<S> sums(rows, channels);
  std::vector<S> origin(channels);
  for (int64_t c = 0; c < channels; c += kLanes) store(&origin[c], load(x + c));
  for_tiles(rows, channels, [&](int64_t block, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const Columns<S, V> o(origin.data(), c);
    Columns<S, V> sum, squares;
    for (int64_t start = first; start < last; start += kRun) {
      Columns<S, V> s, q;
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
    var[c] = std::max(0.0, var[c] / rows - mean[c] * mean[c]);
    mean[c] += origin[c];
  }
}

// y = relu(x · scale + shift + add); a NaN stays one, so that a run that diverges is seen to.
template <typename T, bool Add, bool Relu>
void normalise(const T* x, const T* add, T* y, int64_t rows, int64_t channels, const Scalar<T>* scale,
               const Scalar<T>* shift) {
  for_tiles(rows, channels, [&](int64_t, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const Columns<Scalar<T>, V> a(scale, c), b(shift, c);
    for (int64_t r = first; r < last; ++r)
      for (int i = 0; i < V; ++i) {
        const int64_t at = r * channels + c + i * kLanes;
        auto value = load(x + at) * a.v[i] + b.v[i];
        if (Add) value += load(add + at);
        if (Relu) value = masked(value, ~(value < 0));
        store(y + at, value);
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
  BlockSums<S> sums(rows, channels);
  for_tiles(rows, channels, [&](int64_t block, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const Columns<S, V> a(scale, c), b(shift, c), m(mean, c);
    Columns<S, V> sum, products;
    for (int64_t start = first; start < last; start += kRun) {
      Columns<S, V> s, p;
      for (int64_t r = start; r < std::min(last, start + kRun); ++r)
        for (int i = 0; i < V; ++i) {
          const int64_t at = r * channels + c + i * kLanes;
          const auto value = load(x + at);
          auto passed = load(gy + at);
          if (Relu) passed = masked(passed, (Add ? load(y + at) : value * a.v[i] + b.v[i]) > 0);
          if (Add && Relu) store(g + at, passed);
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
    const Columns<Scalar<T>, V> a(scale, c), b(shift, c), k(along, c), d(across, c);
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

// ------------------------------------------------------------------------------------ the operation, for autograd

// Calls body(an element's type, whether there is an addition, whether there is a ReLU), all known to the compiler.
template <typename Body>
void specialise(const Tensor& x, bool add, bool relu, const Body& body) {
  with_element(x, [&](auto element) {
    if (add && relu) return body(element, std::true_type(), std::true_type());
    if (add) return body(element, std::true_type(), std::false_type());
    if (relu) return body(element, std::false_type(), std::true_type());
    return body(element, std::false_type(), std::false_type());
  });
}

struct BatchNormReLU : torch::autograd::Function<BatchNormReLU> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& add, const Tensor& gamma,
                        const Tensor& beta, const Tensor& running_mean, const Tensor& running_var, double momentum,
                        double eps, bool relu) {
    const int64_t C = x.size(1), rows = x.numel() / C;
    TORCH_CHECK_VALUE(rows > 1, "Expected more than 1 value per channel when training, got input size ", x.sizes());
    const Tensor y = at::empty_like(x), sum = add.value_or(Tensor()), saved = at::empty({4, C}, gamma.options());
    specialise(x, add.has_value(), relu, [&](auto element, auto adds, auto relus) {
      using T = decltype(element);
      using S = Scalar<T>;
      S *scale = data<S>(saved), *shift = scale + C, *mean = scale + 2 * C, *inverse = scale + 3 * C;
      const S *g = data<S>(gamma), *b = data<S>(beta);
      S *running_m = data<S>(running_mean), *running_v = data<S>(running_var);
      std::vector<double> m(C), v(C);
      moments(data<T>(x), rows, C, m, v);
      for (int64_t c = 0; c < C; ++c) {
        inverse[c] = S(1 / std::sqrt(v[c] + eps));
        mean[c] = S(m[c]);
        scale[c] = g[c] * inverse[c];
        shift[c] = S(b[c] - m[c] * scale[c]);
        running_m[c] += S(momentum * (m[c] - running_m[c]));
        running_v[c] += S(momentum * (v[c] * rows / (rows - 1) - running_v[c]));
      }
      normalise<T, adds.value, relus.value>(data<T>(x), data<T>(sum), data<T>(y), rows, C, scale, shift);
    });
    ctx->save_for_backward({x, add && relu ? y : Tensor(), saved});
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["add"] = add.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "bn_relu has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &y = kept[1], &saved = kept[2];
    const int64_t C = x.size(1), rows = x.numel() / C;
    const bool add = ctx->saved_data["add"].toBool(), relu = ctx->saved_data["relu"].toBool();
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    output_gradients.clear();
    const Tensor ggamma = at::empty({C}, saved.options()), gbeta = at::empty({C}, saved.options());
    // A gradient that nobody else holds is written over: its memory is in the cache, new memory is not.
    const bool free = gy.use_count() == 1 && gy.storage().use_count() == 1;
    const auto reuse = [&] { return free ? gy : at::empty_like(x); };
    const Tensor g = add && relu ? reuse() : gy;
    const bool wanted = ctx->needs_input_grad(0);  // not behind a frozen first layer
    const Tensor gx = !wanted ? Tensor() : add ? at::empty_like(x) : reuse();
    specialise(x, add, relu, [&](auto element, auto adds, auto relus) {
      using T = decltype(element);
      using S = Scalar<T>;
      const S *scale = data<S>(saved), *shift = scale + C, *mean = scale + 2 * C, *inverse = scale + 3 * C;
      std::vector<double> sum_g(C), sum_gx(C);
      std::vector<S> along(C), across(C);
      gradient_sums<T, adds.value, relus.value>(data<T>(gy), data<T>(x), data<T>(y), data<T>(g), rows, C, scale, shift,
                                                mean, sum_g, sum_gx);
      for (int64_t c = 0; c < C; ++c) {
        data<S>(ggamma)[c] = S(sum_gx[c] * inverse[c]);
        data<S>(gbeta)[c] = S(sum_g[c]);
        const double slope = -scale[c] * sum_gx[c] * inverse[c] * inverse[c] / rows;
        along[c] = S(slope);
        across[c] = S(-scale[c] * sum_g[c] / rows - slope * mean[c]);
      }
      if (wanted)
        gradient<T, relus.value && !adds.value>(data<T>(g), data<T>(x), data<T>(gx), rows, C, scale, shift,
                                                along.data(), across.data());
    });
    return {gx, add ? g : Tensor(), ggamma, gbeta, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor train(const Tensor& x, const std::optional<Tensor>& add, const Tensor& gamma, const Tensor& beta,
             const Tensor& running_mean, const Tensor& running_var, double momentum, double eps, bool relu) {
  return BatchNormReLU::apply(x, add, gamma, beta, running_mean, running_var, momentum, eps, relu);
}

// Evaluation, without a gradient: γ, β and the running statistics folded into one scale and shift.
Tensor evaluate(const Tensor& x, const std::optional<Tensor>& add, const Tensor& gamma, const Tensor& beta,
                const Tensor& running_mean, const Tensor& running_var, double eps, bool relu) {
  const int64_t C = x.size(1), rows = x.numel() / C;
  const Tensor y = at::empty_like(x), sum = add.value_or(Tensor());
  specialise(x, add.has_value(), relu, [&](auto element, auto adds, auto relus) {
    using T = decltype(element);
    using S = Scalar<T>;
    const S *g = data<S>(gamma), *b = data<S>(beta), *m = data<S>(running_mean), *v = data<S>(running_var);
    std::vector<S> scale(C), shift(C);
    for (int64_t c = 0; c < C; ++c) {
      scale[c] = S(g[c] / std::sqrt(v[c] + eps));
      shift[c] = S(b[c] - double(m[c]) * scale[c]);
    }
    normalise<T, adds.value, relus.value>(data<T>(x), data<T>(sum), data<T>(y), rows, C, scale.data(), shift.data());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bnlib, library) {
  library.def("bn_relu_train", &train);
  library.def("bn_relu_evaluate", &evaluate);
}
