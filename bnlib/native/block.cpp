// A block of a residual network and its gradient as one operation, for channels-last tensors on a CPU:
//
//     y = relu(bn2(conv2(relu(bn1(conv1(x))))) + x)             He et al. 2015, Fig. 2, with as many outputs as inputs
//
// Batch norm needs the whole batch's statistics, and a batch fits no cache: what counts is how often it is gone over. The
// convolutions take the statistics as they write, normalise as they read, and backward they do the same with the sums
// that batch norm's gradient is made of. Only the last sum and ReLU are passes of their own.

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "amx.h"
#include "winograd.h"

namespace {

using namespace bnlib;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A convolution and its batch norm.
struct Layer {
  Tensor weight, gamma, beta, running_mean, running_var;
};

// As `with_element`; bfloat16 by AMX alone, for with Winograd's convolutions a block in one operation gains nothing in it.
template <typename Body>
void with_type(const Tensor& x, const Body& body) {
#ifdef __AMX_BF16__
  if (x.scalar_type() == at::kBFloat16) return body(BFloat16(), Images(x));
#endif
  if (x.scalar_type() == at::kDouble) return body(double(), Strips(x));
  body(float(), Strips(x));
}

// Whether blocks in bfloat16 are one operation here.
bool has_amx() {
#ifdef __AMX_BF16__
  return has_tiles();
#else
  return false;
#endif
}

// Writes x, the convolution of what is read, and takes the batch's statistics of it.
template <typename T, typename R, typename B>
void convolve_and_take_moments(const R& read, const Layer& layer, const Tensor& weight, const Tensor& x,
                               const Tensor& kept, const B& blocks, double momentum, double eps) {
  using S = Scalar<T>;
  const int64_t C = x.size(1), rows = x.numel() / C;
  std::vector<double> mean(C), var(C);
  BlockSums<S> sums(blocks.blocks(), C);
  convolve<false, S>(read, weight, WriteWithMoments<T>{data<T>(x), &sums}, blocks);
  moments_of(sums, [&](int64_t block) { return blocks.pixels(block); }, mean, var);
  Affine<S>(data<S>(kept), C).set(mean, var, rows, data<S>(layer.gamma), data<S>(layer.beta),
                                  data<S>(layer.running_mean), data<S>(layer.running_var), momentum, eps);
}

struct BasicBlock : torch::autograd::Function<BasicBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight1, const Tensor& gamma1,
                        const Tensor& beta1, const Tensor& running_mean1, const Tensor& running_var1,
                        const Tensor& weight2, const Tensor& gamma2, const Tensor& beta2, const Tensor& running_mean2,
                        const Tensor& running_var2, double momentum, double eps) {
    TORCH_CHECK(x.dim() == 4 && x.is_cpu() && x.is_contiguous(at::MemoryFormat::ChannelsLast) && x.size(1) > 0 &&
                    x.size(1) % kColumns == 0 &&
                    (x.scalar_type() == at::kDouble || x.scalar_type() == at::kFloat ||
                     (x.scalar_type() == at::kBFloat16 && has_amx())),
                "basic_block: takes channels-last images (N, C, H, W) in double or float, with AMX also in bfloat16, on a "
                "CPU, C a multiple of ", kColumns);
    const int64_t C = x.size(1), rows = x.numel() / C;
    TORCH_CHECK_VALUE(rows > 1, "Expected more than 1 value per channel when training, got input size ", x.sizes());
    const Layer first{weight1, gamma1, beta1, running_mean1, running_var1};
    const Layer second{weight2, gamma2, beta2, running_mean2, running_var2};
    const bool is_bf16 = x.scalar_type() == at::kBFloat16;
    const at::ScalarType computed_in = is_bf16 ? at::kFloat : x.scalar_type();
    const auto is = [&](const Tensor& each, at::IntArrayRef sizes, at::ScalarType type) {
      return each.is_cpu() && each.sizes() == sizes && each.scalar_type() == type;
    };
    for (const Layer& layer : {first, second}) {
      TORCH_CHECK(is(layer.weight, {C, C, 3, 3}, x.scalar_type()) || is(layer.weight, {C, C, 3, 3}, computed_in),
                  "basic_block: takes weights (C, C, 3, 3) of the images' type, beside bfloat16 also float");
      for (const Tensor& each : {layer.gamma, layer.beta, layer.running_mean, layer.running_var})
        TORCH_CHECK(is(each, {C}, computed_in) && each.is_contiguous(),
                    "basic_block: takes γ, β and running statistics (C,) of the images' type, float beside bfloat16");
    }
    const auto laid_out = [&](const Tensor& weight) {
      return weight.detach().to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    };
    const Tensor w1 = laid_out(weight1), w2 = laid_out(weight2), x1 = at::empty_like(x), x2 = at::empty_like(x),
                 y = at::empty_like(x), kept1 = at::empty({4, C}, gamma1.options()),
                 kept2 = at::empty({4, C}, gamma2.options());
    with_type(x, [&](auto element, const auto& blocks) {
      using T = decltype(element);
      using S = Scalar<T>;
      const Affine<S> affine1(data<S>(kept1), C), affine2(data<S>(kept2), C);
      convolve_and_take_moments<T>(Read<T>{data<T>(x)}, first, w1, x1, kept1, blocks, momentum, eps);
      convolve_and_take_moments<T>(ReadNormalised<T>{data<T>(x1), affine1}, second, w2, x2, kept2, blocks, momentum, eps);
      normalise<T, true, true>(data<T>(x2), data<T>(x), data<T>(y), rows, C, affine2.scale, affine2.shift);
    });
    ctx->save_for_backward({weight1.requires_grad() ? x : Tensor(), x1, x2, y, w1, w2, kept1, kept2});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "basic_block has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &x1 = kept[1], &x2 = kept[2], &y = kept[3], &w1 = kept[4], &w2 = kept[5],
                 &kept1 = kept[6], &kept2 = kept[7];
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    output_gradients.clear();
    const int64_t C = y.size(1), rows = y.numel() / C;
    const bool wanted = ctx->needs_input_grad(0);
    const Tensor g = is_free(gy) ? gy : at::empty_like(y), g1 = at::empty_like(y);
    const auto like = [&](const Tensor& kept) { return at::empty({C}, kept.options()); };
    const Tensor ggamma1 = like(kept1), gbeta1 = like(kept1), ggamma2 = like(kept2), gbeta2 = like(kept2);
    const auto if_wanted = [&](int input, const Tensor& weight) {  // in the type that is computed in
      return ctx->needs_input_grad(input) ? at::empty_like(weight, kept1.options()) : Tensor();
    };
    const Tensor gw1 = if_wanted(1, w1), gw2 = if_wanted(6, w2);
    with_type(y, [&](auto element, const auto& blocks) {
      using T = decltype(element);
      using S = Scalar<T>;
      const Affine<S> affine1(data<S>(kept1), C), affine2(data<S>(kept2), C);
      std::vector<double> sum_g(C), sum_gx(C);
      gradient_sums<T, true, true>(data<T>(gy), data<T>(x2), data<T>(y), data<T>(g), rows, C, affine2.scale,
                                   affine2.shift, affine2.mean, sum_g, sum_gx);
      const Slopes<S> slopes2(sum_g, sum_gx, rows, affine2, data<S>(ggamma2), data<S>(gbeta2));
      const ReadGradient<T> gradient2{data<T>(g), data<T>(x2), affine2, slopes2};

      BlockSums<S> sums(blocks.blocks(), C);
      convolve<true, S>(gradient2, w2, WritePassed<T>{data<T>(g1), data<T>(x1), affine1, &sums}, blocks);
      if (gw2.defined())
        weight_gradient(ReadNormalised<T>{data<T>(x1), affine1}, gradient2, w2, data<S>(gw2), blocks);
      std::fill(sum_g.begin(), sum_g.end(), 0);
      std::fill(sum_gx.begin(), sum_gx.end(), 0);
      sums.add_up(sum_g, sum_gx);
      const Slopes<S> slopes1(sum_g, sum_gx, rows, affine1, data<S>(ggamma1), data<S>(gbeta1));
      const ReadGradient<T> gradient1{data<T>(g1), data<T>(x1), affine1, slopes1};

      if (gw1.defined()) weight_gradient(Read<T>{data<T>(x)}, gradient1, w1, data<S>(gw1), blocks);
      if (wanted) convolve<true, S>(gradient1, w1, AddTo<T>{data<T>(g)}, blocks);  // to that of the shortcut
    });
    return {wanted ? g : Tensor(), gw1, ggamma1, gbeta1, Tensor(), Tensor(), gw2, ggamma2, gbeta2, Tensor(),
            Tensor(), Tensor(), Tensor()};
  }
};

Tensor basic_block(const Tensor& x, const Tensor& weight1, const Tensor& gamma1, const Tensor& beta1,
                   const Tensor& running_mean1, const Tensor& running_var1, const Tensor& weight2, const Tensor& gamma2,
                   const Tensor& beta2, const Tensor& running_mean2, const Tensor& running_var2, double momentum,
                   double eps) {
  return BasicBlock::apply(x, weight1, gamma1, beta1, running_mean1, running_var1, weight2, gamma2, beta2,
                           running_mean2, running_var2, momentum, eps);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bnlib, library) {
  library.def("basic_block", &basic_block);
  library.def("has_amx", &has_amx);
}
