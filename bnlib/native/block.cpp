// A block of a residual network and its gradient as one operation, for channels-last tensors on a CPU:
//
//     y = relu(bn2(conv2(relu(bn1(conv1(x))))) + x)                  He et al. 2015, Fig. 2, with as many outputs as inputs
//     y = relu(bn2(conv2(relu(bn1(conv1(x))))) + bn3(conv3(x)))      where conv1 and conv3, 1×1, take every second pixel
//
// Batch norm needs the whole batch's statistics, and a batch fits no cache: what counts is how often it is gone over. The
// convolutions take the statistics as they write, normalise as they read, and backward they do the same with the sums
// that the first batch norm's gradient is made of. Passes of their own are the last sum and ReLU, and their gradient.

#include <ATen/ops/convolution_backward.h>
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

// A channel's statistics in the batch, of sums that have been taken of it; the running ones take them in.
template <typename T, typename B>
void take_moments(BlockSums<Scalar<T>>& sums, const Layer& layer, const Tensor& kept, const B& blocks, double momentum,
                  double eps) {
  using S = Scalar<T>;
  const int64_t C = sums.channels;
  int64_t rows = 0;
  for (int64_t block = 0; block < blocks.blocks(); ++block) rows += blocks.pixels(block);
  std::vector<double> mean(C), var(C);
  moments_of(sums, [&](int64_t block) { return blocks.pixels(block); }, mean, var);
  Affine<S>(data<S>(kept), C).set(mean, var, rows, data<S>(layer.gamma), data<S>(layer.beta),
                                  data<S>(layer.running_mean), data<S>(layer.running_var), momentum, eps);
}

// Writes x, the convolution of what is read, and takes the batch's statistics of it.
template <typename T, typename R, typename B>
void convolve_and_take_moments(const R& read, const Layer& layer, const Tensor& weight, const Tensor& x,
                               const Tensor& kept, const B& blocks, double momentum, double eps) {
  BlockSums<Scalar<T>> sums(blocks.blocks(), x.size(1));
  convolve<false, Scalar<T>>(read, weight, WriteWithMoments<T>{data<T>(x), &sums}, blocks);
  take_moments<T>(sums, layer, kept, blocks, momentum, eps);
}

// Refuses layers that are not of these sizes, or of types that do not go with the images'.
void check(const char* name, const Tensor& x, int64_t outputs, const std::vector<std::pair<Layer, at::IntArrayRef>>& layers) {
  for (const auto& [layer, sizes] : layers) {
    const at::ScalarType type = layer.weight.scalar_type();
    TORCH_CHECK(layer.weight.is_cpu() && layer.weight.sizes() == sizes && (type == x.scalar_type() || type == computed_in(x)),
                name, ": takes weights ", sizes, " of the images' type, beside bfloat16 also float");
    check_affine(name, x, outputs, {layer.gamma, layer.beta, layer.running_mean, layer.running_var});
  }
}

void clear(std::vector<double>& a, std::vector<double>& b) {
  std::fill(a.begin(), a.end(), 0);
  std::fill(b.begin(), b.end(), 0);
}

// The weights in the images' type, channels-last.
Tensor laid_out(const Tensor& weight, const Tensor& x) {
  return weight.detach().to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor per_channel(const Tensor& kept) { return at::empty({kept.size(1)}, kept.options()); }

// Memory for the gradient of weights, in the type that is computed in; none where nobody wants it.
Tensor like_if(bool wanted, const Tensor& weight, const Tensor& kept) {
  return wanted ? at::empty_like(weight, kept.options()) : Tensor();
}

// ------------------------------------------------------------------------------------ as many outputs as inputs

struct BasicBlock : torch::autograd::Function<BasicBlock> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight1, const Tensor& gamma1,
                        const Tensor& beta1, const Tensor& running_mean1, const Tensor& running_var1,
                        const Tensor& weight2, const Tensor& gamma2, const Tensor& beta2, const Tensor& running_mean2,
                        const Tensor& running_var2, double momentum, double eps) {
    TORCH_CHECK(is_images(x, kColumns) && has_element(x) && (x.scalar_type() != at::kBFloat16 || has_amx()),
                "basic_block: takes channels-last images (N, C, H, W) in double or float, with AMX also in bfloat16, on a "
                "CPU, C a multiple of ", kColumns);
    const int64_t C = x.size(1), rows = x.numel() / C;
    TORCH_CHECK_VALUE(rows > 1, "Expected more than 1 value per channel when training, got input size ", x.sizes());
    const Layer first{weight1, gamma1, beta1, running_mean1, running_var1};
    const Layer second{weight2, gamma2, beta2, running_mean2, running_var2};
    check("basic_block", x, C, {{first, {C, C, 3, 3}}, {second, {C, C, 3, 3}}});
    const Tensor w1 = laid_out(weight1, x), w2 = laid_out(weight2, x), x1 = at::empty_like(x), x2 = at::empty_like(x),
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
    const auto kept = laid_out_again(ctx->get_saved_variables());
    const Tensor &x = kept[0], &x1 = kept[1], &x2 = kept[2], &y = kept[3], &w1 = kept[4], &w2 = kept[5],
                 &kept1 = kept[6], &kept2 = kept[7];
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    output_gradients.clear();
    const int64_t C = y.size(1), rows = y.numel() / C;
    const bool wanted = ctx->needs_input_grad(0);
    const Tensor g = is_free(gy) ? gy : at::empty_like(y), g1 = at::empty_like(y);
    const Tensor ggamma1 = per_channel(kept1), gbeta1 = per_channel(kept1), ggamma2 = per_channel(kept2),
                 gbeta2 = per_channel(kept2);
    const Tensor gw1 = like_if(ctx->needs_input_grad(1), w1, kept1), gw2 = like_if(ctx->needs_input_grad(6), w2, kept2);
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
      clear(sum_g, sum_gx);
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

// ------------------------------------------------------------------------------------ half the height and width

#ifdef __AMX_BF16__

// y = relu(batch_norm(a) + batch_norm(b)).
void normalise_both(const BFloat16* a, const Affine<float>& of_a, const BFloat16* b, const Affine<float>& of_b,
                    BFloat16* y, int64_t rows, int64_t channels) {
  for_tiles(rows, channels, [&](int64_t, int64_t first, int64_t last, int64_t c, auto vectors) {
    constexpr int V = vectors;
    const PerChannel<float, V> scale_a(of_a.scale, c), shift_a(of_a.shift, c), scale_b(of_b.scale, c), shift_b(of_b.shift, c);
    for (int64_t r = first; r < last; ++r)
      for (int i = 0; i < V; ++i) {
        const int64_t at = r * channels + c + i * kLanes;
        const auto value = load(a + at) * scale_a.v[i] + shift_a.v[i] + (load(b + at) * scale_b.v[i] + shift_b.v[i]);
        store(y + at, relu(value));
      }
  });
}

struct HalvingBlock : torch::autograd::Function<HalvingBlock> {
  using T = BFloat16;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight1, const Tensor& gamma1,
                        const Tensor& beta1, const Tensor& running_mean1, const Tensor& running_var1,
                        const Tensor& weight2, const Tensor& gamma2, const Tensor& beta2, const Tensor& running_mean2,
                        const Tensor& running_var2, const Tensor& weight3, const Tensor& gamma3, const Tensor& beta3,
                        const Tensor& running_mean3, const Tensor& running_var3, double momentum, double eps) {
    TORCH_CHECK(is_images(x, kTile) && x.numel() > 0 && weight1.size(0) > 0 && weight1.size(0) % kTile == 0 &&
                    x.size(2) % 2 == 0 && x.size(3) % 2 == 0 && x.scalar_type() == at::kBFloat16 && has_amx(),
                "halving_block: takes channels-last images (N, C, H, W) in bfloat16 on a CPU with AMX, channels multiples "
                "of ", kTile, ", H and W even");
    const int64_t C = x.size(1), K = weight1.size(0), rows = x.numel() / C / 4;
    TORCH_CHECK_VALUE(rows > 1, "Expected more than 1 value per channel when training, got input size ",
                      at::IntArrayRef({x.size(0), K, x.size(2) / 2, x.size(3) / 2}));
    const Layer first{weight1, gamma1, beta1, running_mean1, running_var1};
    const Layer second{weight2, gamma2, beta2, running_mean2, running_var2};
    const Layer third{weight3, gamma3, beta3, running_mean3, running_var3};
    check("halving_block", x, K, {{first, {K, C, 3, 3}}, {second, {K, K, 3, 3}}, {third, {K, C, 1, 1}}});
    const Tensor w1 = laid_out(weight1, x), w2 = laid_out(weight2, x), w3 = laid_out(weight3, x);
    const Tensor x1 = at::empty({x.size(0), K, x.size(2) / 2, x.size(3) / 2}, x.options(), at::MemoryFormat::ChannelsLast);
    const Tensor x2 = at::empty_like(x1), x3 = at::empty_like(x1), y = at::empty_like(x1);
    const Tensor kept1 = at::empty({4, K}, gamma1.options()), kept2 = at::empty_like(kept1), kept3 = at::empty_like(kept1);
    const Affine<float> affine1(data<float>(kept1), K), affine2(data<float>(kept2), K), affine3(data<float>(kept3), K);
    const Images images(x1);
    BlockSums<float> sums1(images.blocks(), K), sums3(images.blocks(), K);
    convolve_halving(Read<T>{data<T>(x)}, w1, w3, WriteWithMoments<T>{data<T>(x1), &sums1},
                     WriteWithMoments<T>{data<T>(x3), &sums3}, images);
    take_moments<T>(sums1, first, kept1, images, momentum, eps);
    take_moments<T>(sums3, third, kept3, images, momentum, eps);
    convolve_and_take_moments<T>(ReadNormalised<T>{data<T>(x1), affine1}, second, w2, x2, kept2, images, momentum, eps);
    normalise_both(data<T>(x2), affine2, data<T>(x3), affine3, data<T>(y), rows, K);
    const bool trains = weight1.requires_grad() || weight3.requires_grad();
    ctx->save_for_backward({trains ? x : Tensor(), x1, x2, x3, y, w1, w2, w3, kept1, kept2, kept3});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list& output_gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "halving_block has no second derivative; torch's, with BNLIB_CPP=0, has");
    const auto kept = laid_out_again(ctx->get_saved_variables());
    const Tensor &x = kept[0], &x1 = kept[1], &x2 = kept[2], &x3 = kept[3], &y = kept[4], &w1 = kept[5], &w2 = kept[6],
                 &w3 = kept[7], &kept1 = kept[8], &kept2 = kept[9], &kept3 = kept[10];
    const Tensor gy = output_gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    output_gradients.clear();
    const int64_t K = y.size(1), rows = y.numel() / K;
    const Affine<float> affine1(data<float>(kept1), K), affine2(data<float>(kept2), K), affine3(data<float>(kept3), K);
    const Images images(y);
    const Tensor g = is_free(gy) ? gy : at::empty_like(y), g1 = at::empty_like(y);
    const Tensor ggamma1 = per_channel(kept1), gbeta1 = per_channel(kept1), ggamma2 = per_channel(kept2),
                 gbeta2 = per_channel(kept2), ggamma3 = per_channel(kept3), gbeta3 = per_channel(kept3);
    std::vector<double> sum_g(K), sum_gx(K);
    gradient_sums<T, true, true>(data<T>(gy), data<T>(x2), data<T>(y), data<T>(g), rows, K, affine2.scale, affine2.shift,
                                 affine2.mean, sum_g, sum_gx);
    const Slopes<float> slopes2(sum_g, sum_gx, rows, affine2, data<float>(ggamma2), data<float>(gbeta2));
    const ReadGradient<T> gradient2{data<T>(g), data<T>(x2), affine2, slopes2};
    clear(sum_g, sum_gx);
    gradient_sums<T, false, false>(data<T>(g), data<T>(x3), nullptr, nullptr, rows, K, affine3.scale, affine3.shift,
                                   affine3.mean, sum_g, sum_gx);
    const Slopes<float> slopes3(sum_g, sum_gx, rows, affine3, data<float>(ggamma3), data<float>(gbeta3));
    const ReadGradient<T> gradient3{data<T>(g), data<T>(x3), affine3, slopes3};

    BlockSums<float> sums(images.blocks(), K);
    convolve<true, float>(gradient2, w2, WritePassed<T>{data<T>(g1), data<T>(x1), affine1, &sums}, images);
    Tensor gx, gw1, gw3;
    const Tensor gw2 = like_if(ctx->needs_input_grad(6), w2, kept2);
    if (gw2.defined())
      weight_gradient(ReadNormalised<T>{data<T>(x1), affine1}, gradient2, w2, data<float>(gw2), images);
    clear(sum_g, sum_gx);
    sums.add_up(sum_g, sum_gx);
    const Slopes<float> slopes1(sum_g, sum_gx, rows, affine1, data<float>(ggamma1), data<float>(gbeta1));
    const ReadGradient<T> gradient1{data<T>(g1), data<T>(x1), affine1, slopes1};

    if (ctx->needs_input_grad(1)) gw1 = strided_weight_gradient(x, w1, 1, g1, x1, affine1, slopes1);
    if (ctx->needs_input_grad(11)) gw3 = strided_weight_gradient(x, w3, 0, g, x3, affine3, slopes3);
    if (ctx->needs_input_grad(0)) {
      gx = at::empty({y.size(0), w1.size(1), 2 * y.size(2), 2 * y.size(3)}, y.options(), at::MemoryFormat::ChannelsLast);
      halving_gradient(gradient1, gradient3, w1, w3, Write<T>{data<T>(gx)}, images);
    }
    return {gx, gw1, ggamma1, gbeta1, Tensor(), Tensor(), gw2, ggamma2, gbeta2, Tensor(), Tensor(),
            gw3, ggamma3, gbeta3, Tensor(), Tensor(), Tensor(), Tensor()};
  }

  // The gradient of a strided convolution's weights from g, that of its batch norm's output: by torch, which takes a
  // twentieth of ResNet-14's step for it, and in bfloat16, as where the parts go one after the other.
  static Tensor strided_weight_gradient(const Tensor& x, const Tensor& weight, int64_t border, const Tensor& g,
                                        const Tensor& before, const Affine<float>& affine,
                                        const Slopes<float>& slopes) {
    const Tensor gradient_before = at::empty_like(before);
    gradient<T, false>(data<T>(g), data<T>(before), data<T>(gradient_before), g.numel() / g.size(1), g.size(1),
                       affine.scale, affine.shift, slopes.along.data(), slopes.across.data());
    return std::get<1>(at::convolution_backward(gradient_before, x, weight, {}, {2, 2}, {border, border}, {1, 1}, false,
                                                {0, 0}, 1, {false, true, false}));
  }
};

#endif

Tensor halving_block(const Tensor& x, const Tensor& weight1, const Tensor& gamma1, const Tensor& beta1,
                     const Tensor& running_mean1, const Tensor& running_var1, const Tensor& weight2, const Tensor& gamma2,
                     const Tensor& beta2, const Tensor& running_mean2, const Tensor& running_var2, const Tensor& weight3,
                     const Tensor& gamma3, const Tensor& beta3, const Tensor& running_mean3, const Tensor& running_var3,
                     double momentum, double eps) {
#ifdef __AMX_BF16__
  return HalvingBlock::apply(x, weight1, gamma1, beta1, running_mean1, running_var1, weight2, gamma2, beta2, running_mean2,
                             running_var2, weight3, gamma3, beta3, running_mean3, running_var3, momentum, eps);
#else
  TORCH_CHECK(false, "halving_block: this processor has no AMX");
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bnlib, library) {
  library.def("basic_block", &basic_block);
  library.def("halving_block", &halving_block);
  library.def("has_amx", &has_amx);
}
