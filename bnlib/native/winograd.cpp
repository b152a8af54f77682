// 3×3 convolution with a quarter of the multiplications, and its gradients, as one operation of autograd.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "winograd.h"

namespace {

using namespace bnlib;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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
    const auto computed_in = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor weights = weight.detach().to(computed_in).contiguous(at::MemoryFormat::ChannelsLast);
    TORCH_CHECK(x.dim() == 4 && x.is_cpu() && x.is_contiguous(at::MemoryFormat::ChannelsLast) && weight.is_cpu() &&
                    weight.sizes().slice(1) == at::IntArrayRef({x.size(1), 3, 3}) && x.size(1) % kColumns == 0 &&
                    weight.size(0) % kColumns == 0 && (computed_in == at::kDouble || x.scalar_type() == at::kFloat ||
                                                       x.scalar_type() == at::kBFloat16),
                "convolve_3x3: takes channels-last images (N, C, H, W) in double, float or bfloat16 and weights "
                "(C', C, 3, 3) on a CPU, C and C' multiples of ", kColumns);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weights});
    return convolution<false>(x, weights);
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "convolve_3x3 has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = ctx->get_saved_variables();
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(bnlib, library) { library.def("convolve_3x3", &convolve_3x3); }
