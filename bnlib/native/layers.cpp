// Layers for channels-last tensors on a CPU, each an operation of autograd: relu(batch_norm(x) + add), a 3×3 convolution
// with a quarter of the multiplications, and what a block's shortcut begins with. Also, without a gradient, the images of a
// batch as the first layer takes them. In one file, for torch's headers take half of the build.

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/slice.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "winograd.h"

namespace {

using namespace bnlib;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ------------------------------------------------------------------------------------ batch norm, a sum and ReLU

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

// Refuses what would be read or written wrongly.
void check(const Tensor& x, const std::optional<Tensor>& add, const Tensor& gamma, const Tensor& beta,
           const Tensor& running_mean, const Tensor& running_var) {
  TORCH_CHECK(is_images(x, kLanes) && has_element(x) &&
                  (!add || (is_images(*add) && add->sizes() == x.sizes() && add->scalar_type() == x.scalar_type())),
              "bn_relu: takes channels-last images (N, C, H, W) in double, float or bfloat16 on a CPU, C a multiple of ",
              kLanes, ", and others like them to add");
  check_affine("bn_relu", x, x.size(1), {gamma, beta, running_mean, running_var});
}

struct BatchNormReLU : torch::autograd::Function<BatchNormReLU> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& add, const Tensor& gamma,
                        const Tensor& beta, const Tensor& running_mean, const Tensor& running_var, double momentum,
                        double eps, bool relu) {
    check(x, add, gamma, beta, running_mean, running_var);
    const int64_t C = x.size(1), rows = x.numel() / C;
    TORCH_CHECK_VALUE(rows > 1, "Expected more than 1 value per channel when training, got input size ", x.sizes());
    const Tensor y = at::empty_like(x), sum = add.value_or(Tensor()), saved = at::empty({4, C}, gamma.options());
    specialise(x, add.has_value(), relu, [&](auto element, auto adds, auto relus) {
      using T = decltype(element);
      using S = Scalar<T>;
      Affine<S> affine(data<S>(saved), C);
      std::vector<double> mean(C), var(C);
      moments(data<T>(x), rows, C, mean, var);
      affine.set(mean, var, rows, data<S>(gamma), data<S>(beta), data<S>(running_mean), data<S>(running_var), momentum,
                 eps);
      normalise<T, adds.value, relus.value>(data<T>(x), data<T>(sum), data<T>(y), rows, C, affine.scale, affine.shift);
    });
    ctx->save_for_backward({x, add && relu ? y : Tensor(), saved});
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["add"] = add.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "bn_relu has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = laid_out_again(ctx->get_saved_variables());
    const Tensor &x = kept[0], &y = kept[1], &saved = kept[2];
    const int64_t C = x.size(1), rows = x.numel() / C;
    const bool add = ctx->saved_data["add"].toBool(), relu = ctx->saved_data["relu"].toBool();
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    output_gradients.clear();
    const Tensor ggamma = at::empty({C}, saved.options()), gbeta = at::empty({C}, saved.options());
    const bool free = is_free(gy);
    const auto reuse = [&] { return free ? gy : at::empty_like(x); };
    const Tensor g = add && relu ? reuse() : gy;
    const bool wanted = ctx->needs_input_grad(0);  // not behind a frozen first layer
    const Tensor gx = !wanted ? Tensor() : add ? at::empty_like(x) : reuse();
    specialise(x, add, relu, [&](auto element, auto adds, auto relus) {
      using T = decltype(element);
      using S = Scalar<T>;
      const Affine<S> affine(data<S>(saved), C);
      std::vector<double> sum_g(C), sum_gx(C);
      gradient_sums<T, adds.value, relus.value>(data<T>(gy), data<T>(x), data<T>(y), data<T>(g), rows, C, affine.scale,
                                                affine.shift, affine.mean, sum_g, sum_gx);
      const Slopes<S> slopes(sum_g, sum_gx, rows, affine, data<S>(ggamma), data<S>(gbeta));
      if (wanted)
        gradient<T, relus.value && !adds.value>(data<T>(g), data<T>(x), data<T>(gx), rows, C, affine.scale,
                                                affine.shift, slopes.along.data(), slopes.across.data());
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
  check(x, add, gamma, beta, running_mean, running_var);
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

// ------------------------------------------------------------------------------------ a block's two ways

// x and x; its gradient is the sum of theirs, which torch takes at less than half of the speed.
struct Fork : torch::autograd::Function<Fork> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x) {
    TORCH_CHECK(is_images(x, kLanes) && has_element(x),
                "fork: takes channels-last images (N, C, H, W) in double, float or bfloat16 on a CPU, C a multiple of ",
                kLanes);
    ctx->set_materialize_grads(false);
    return {x.view_as(x), x.view_as(x)};
  }

  static variable_list backward(AutogradContext*, variable_list& output_gradients) {
    const Tensor &a = output_gradients[0], &b = output_gradients[1];
    if (!a.defined() || !b.defined()) return {a.defined() ? a : b};
    const auto is_laid_out = [](const Tensor& g) { return g.is_contiguous(at::MemoryFormat::ChannelsLast); };
    if (at::GradMode::is_enabled() || !is_laid_out(a) || !is_laid_out(b)) return {at::add(a, b)};
    const Tensor sum = is_free(a) ? a : is_free(b) ? b : at::empty_like(a);
    with_element(a, [&](auto element) {
      using T = decltype(element);
      add(data<T>(a), data<T>(b), data<T>(sum), a.numel() / a.size(1), a.size(1));
    });
    return {sum};
  }
};

std::tuple<Tensor, Tensor> fork_images(const Tensor& x) {
  const auto both = Fork::apply(x);
  return {both[0], both[1]};
}

// Of x the first pixel of every `down` rows and `across` columns; the gradient of the others is zero.
struct Skip : torch::autograd::Function<Skip> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t down, int64_t across) {
    TORCH_CHECK(is_images(x) && x.numel() > 0 && down > 0 && across > 0,
                "skip: takes channels-last images (N, C, H, W) on a CPU, and steps of one pixel or more");
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["down"] = down;
    ctx->saved_data["across"] = across;
    const Tensor y = at::empty({x.size(0), x.size(1), (x.size(2) - 1) / down + 1, (x.size(3) - 1) / across + 1},
                               x.options(), at::MemoryFormat::ChannelsLast);
    const int64_t pixel = x.size(1) * x.element_size(), width = y.size(3);
    const char* from = data<char>(x);
    char* to = data<char>(y);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < y.size(0) * y.size(2); ++row) {
      const int64_t above = row / y.size(2) * x.size(2) + row % y.size(2) * down;
      for (int64_t i = 0; i < width; ++i)
        std::memcpy(to + (row * width + i) * pixel, from + (above * x.size(3) + i * across) * pixel, pixel);
    }
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const int64_t down = ctx->saved_data["down"].toInt(), across = ctx->saved_data["across"].toInt();
    if (at::GradMode::is_enabled()) {  // by torch, for a second derivative
      const Tensor all = at::zeros(sizes, output_gradients[0].options());
      at::slice(at::slice(all, 2, {}, {}, down), 3, {}, {}, across).copy_(output_gradients[0]);
      return {all, Tensor(), Tensor()};
    }
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    const Tensor gx = at::empty(sizes, gy.options(), at::MemoryFormat::ChannelsLast);
    const int64_t pixel = gy.size(1) * gy.element_size(), height = sizes[2], width = sizes[3];
    const char* from = data<char>(gy);
    char* to = data<char>(gx);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < sizes[0] * height; ++row) {
      const int64_t y = row % height, above = row / height * gy.size(2) + y / down;
      std::memset(to + row * width * pixel, 0, width * pixel);
      for (int64_t i = 0; y % down == 0 && i < gy.size(3); ++i)
        std::memcpy(to + (row * width + i * across) * pixel, from + (above * gy.size(3) + i) * pixel, pixel);
    }
    return {gx, Tensor(), Tensor()};
  }
};

Tensor skip(const Tensor& x, int64_t down, int64_t across) { return Skip::apply(x, down, across); }

// ------------------------------------------------------------------------------------ the convolution

template <bool mirrored>
Tensor convolution(const Tensor& x, const Tensor& weight) {
  const Tensor y = at::empty({x.size(0), weight.size(mirrored ? 1 : 0), x.size(2), x.size(3)}, x.options(),
                             at::MemoryFormat::ChannelsLast);
  with_element(x, [&](auto element) {
    using T = decltype(element);
    convolve<mirrored, Scalar<T>>(Read<T>{data<T>(x)}, weight, Write<T>{data<T>(y)}, Strips(x));
  });
  return y;
}

struct Convolution : torch::autograd::Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight) {
    TORCH_CHECK(is_images(x, kColumns) && has_element(x) && weight.dim() == 4 && weight.is_cpu() &&
                    weight.sizes().slice(1) == at::IntArrayRef({x.size(1), 3, 3}) && weight.size(0) > 0 &&
                    weight.size(0) % kColumns == 0,
                "convolve_3x3: takes channels-last images (N, C, H, W) in double, float or bfloat16 and weights "
                "(C', C, 3, 3) on a CPU, C and C' multiples of ", kColumns);
    const Tensor weights = weight.detach().to(computed_in(x)).contiguous(at::MemoryFormat::ChannelsLast);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weights});
    return convolution<false>(x, weights);
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "convolve_3x3 has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = laid_out_again(ctx->get_saved_variables());
    const Tensor &x = kept[0], &weights = kept[1];
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    Tensor gx, gweight;
    if (ctx->needs_input_grad(0)) gx = convolution<true>(gy, weights);
    if (ctx->needs_input_grad(1)) {
      gweight = at::empty_like(weights);
      with_element(x, [&](auto element) {
        using T = decltype(element);
        weight_gradient(Read<T>{data<T>(x)}, Read<T>{data<T>(gy)}, weights, data<Scalar<T>>(gweight), Strips(x));
      });
    }
    return {gx, gweight};
  }
};

Tensor convolve_3x3(const Tensor& x, const Tensor& weight) { return Convolution::apply(x, weight); }

// ------------------------------------------------------------------------------------ the images of a batch

// Takes images (M, H, W, C) in uint8, C 1 or 3, and gives those at `index`, (N,), as (N, 3, H, W), channels-last, of this
// type: among `border` zeros on each side, cut to H×W from row `top` and column `left` on, mirrored where `flip`, times scale
// plus shift, (C,); grey ones three times.
Tensor augment(const Tensor& images, const Tensor& index, const Tensor& top, const Tensor& left, const Tensor& flip,
               int64_t border, const Tensor& scale, const Tensor& shift, at::ScalarType type) {
  const auto is_line = [](const Tensor& t, at::ScalarType of, int64_t size) {
    return t.is_cpu() && t.is_contiguous() && t.scalar_type() == of && t.dim() == 1 && t.size(0) == size;
  };
  TORCH_CHECK(images.dim() == 4 && images.is_cpu() && images.is_contiguous() && images.scalar_type() == at::kByte &&
                  (images.size(3) == 1 || images.size(3) == 3) && (type == at::kFloat || type == at::kBFloat16) &&
                  is_line(scale, at::kFloat, images.size(3)) && is_line(shift, at::kFloat, images.size(3)),
              "augment: takes images (M, H, W, 1 or 3) in uint8, contiguous on a CPU, a scale and a shift in float for each "
              "of their channels, and gives float or bfloat16");
  const int64_t N = index.numel(), H = images.size(1), W = images.size(2), C = images.size(3);
  TORCH_CHECK(is_line(index, at::kLong, N) && is_line(top, at::kLong, N) && is_line(left, at::kLong, N) &&
                  is_line(flip, at::kBool, N) && 0 <= border && border <= std::max(H, W),
              "augment: takes index, top and left in int64, and flip in bool, contiguous on a CPU and one for each image, and "
              "a border no wider than the images");
  const int64_t *which = data<int64_t>(index), *tops = data<int64_t>(top), *lefts = data<int64_t>(left);
  const bool* flips = data<bool>(flip);
  const uint8_t* pixels = data<uint8_t>(images);
  const auto all_within = [&](const int64_t* numbers, int64_t end) {
    return std::all_of(numbers, numbers + N, [&](int64_t number) { return 0 <= number && number < end; });
  };
  TORCH_CHECK_INDEX(all_within(which, images.size(0)) && all_within(tops, 2 * border + 1) && all_within(lefts, 2 * border + 1),
                    "augment: an index is beyond the images, or a cut beyond the border of ", border);
  const int64_t values = 3 * W;
  std::vector<float> scales(values + kLanes), shifts(values + kLanes);
  for (int64_t i = 0; i < values; ++i) {
    scales[i] = data<float>(scale)[i % 3 % C];
    shifts[i] = data<float>(shift)[i % 3 % C];
  }
  const Tensor result = at::empty({N, 3, H, W}, images.options().dtype(type), at::MemoryFormat::ChannelsLast);
  const auto fill = [&](auto element) {
    using T = decltype(element);
#pragma omp parallel
    {
      std::vector<uint8_t> padded(values + 6 * border + kLanes), mirrored(values + kLanes);
      std::vector<T> whole(values + kLanes);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < N * H; ++row) {
        const int64_t n = row / H, y = row % H + tops[n] - border;
        uint8_t* inner = padded.data() + 3 * border;
        const int64_t from = (which[n] * H + y) * W * C;
        if (y < 0 || y >= H)
          std::memset(inner, 0, values);
        else if (C == 3)
          std::memcpy(inner, pixels + from, values);
        else
          for (int64_t x = 0; x < W; ++x) std::memset(inner + 3 * x, pixels[from + x], 3);
        const uint8_t* cut = padded.data() + 3 * lefts[n];
        if (flips[n]) {
          for (int64_t x = 0; x < W; ++x) std::memcpy(&mirrored[3 * x], cut + 3 * (W - 1 - x), 3);
          cut = mirrored.data();
        }
        for (int64_t i = 0; i < values; i += kLanes)  // rounded once, as by torch's addcmul: GCC fuses the two
          store(whole.data() + i, load(cut + i) * load(&scales[i]) + load(&shifts[i]));
        std::memcpy(data<T>(result) + row * values, whole.data(), values * sizeof(T));
      }
    }
  };
  type == at::kFloat ? fill(float()) : fill(BFloat16());
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bnlib, library) {
  library.def("augment", &augment);
  library.def("bn_relu_train", &train);
  library.def("bn_relu_evaluate", &evaluate);
  library.def("fork", &fork_images);
  library.def("skip", &skip);
  library.def("convolve_3x3", &convolve_3x3);
}
