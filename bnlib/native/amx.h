// 3×3 convolution with stride 1 and a border of one zero, and the gradient of its images, in bfloat16 by AMX: Intel's
// Software Developer's Manual, vol. 1, ch. 18.
//
// AMX multiplies tiles: (16 rows × 32 values in bfloat16) · (32 × 16), summed up in float32. An image is copied with a
// border of zeros, through batch norm where asked, into memory that stays in the cache. In channels-last order the three
// pixels beside each other that a row of the kernel takes then are 3·C consecutive values, for 16 neighbouring outputs 16
// such rows that overlap; a convolution is three products of matrices, and nothing is copied into another order. Each
// image is a block, whose sums are taken in one order, whatever the number of threads.

#pragma once

#ifdef __AMX_BF16__

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "through.h"

namespace bnlib {

using at::Tensor;

// Linux lends the tiles' registers to processes that ask.
inline bool has_tiles() {
  constexpr int kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
  return granted;
}

// The images of a batch, each of which is a block.
struct Images {
  int64_t count, height, width, pitch;  // pitch: from a row to the next, in pixels; one zero stands between two rows
  explicit Images(const Tensor& x) : count(x.size(0)), height(x.size(2)), width(x.size(3)), pitch(width + 1) {}
  int64_t blocks() const { return count; }
  int64_t pixels(int64_t) const { return height * width; }
};

constexpr int64_t kTile = 16, kDepth = 32;  // rows and outputs of a tile, values that a product sums up
constexpr int64_t kTilesAtOnce = 4;         // of outputs: as many as registers hold

// The registers, by number: 0 to 3 sums; 4 and 5 pixels, 6 and 7 weights: the first for kDepth values, the other for half
// as many, which are left where there are 16 channels.
struct TileRegisters {
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 32, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 8};
    } shapes;
    _tile_loadconfig(&shapes);
  }
  ~TileRegisters() { _tile_release(); }
};

// sums (16 · Tiles, 16) = for each of three rows of pixels, `row` values apart, (16 · Tiles, 3 · channels) · weights.
template <int Tiles>
inline void multiply(const BFloat16* pixels, int64_t row, int64_t channels, const BFloat16* weights, float* sums) {
  const int64_t depth = 3 * channels, tile = kTile * channels, bytes = 2 * channels;
  _tile_zero(0);
  if constexpr (Tiles > 1) _tile_zero(1);
  if constexpr (Tiles > 2) _tile_zero(2);
  if constexpr (Tiles > 3) _tile_zero(3);
  for (int64_t dy = 0; dy < 3; ++dy, pixels += row) {
    int64_t k = 0;
#define BNLIB_ADD(sum, a, b)                                   \
  if constexpr (Tiles > sum) {                                 \
    _tile_loadd(a, pixels + sum * tile + k, bytes);            \
    _tile_dpbf16ps(sum, a, b);                                 \
  }
    for (; k + kDepth <= depth; k += kDepth, weights += kDepth * kTile) {
      _tile_loadd(6, weights, 64);
      BNLIB_ADD(0, 4, 6)
      BNLIB_ADD(1, 4, 6)
      BNLIB_ADD(2, 4, 6)
      BNLIB_ADD(3, 4, 6)
    }
    if (k < depth) {
      _tile_loadd(7, weights, 64);
      weights += kDepth / 2 * kTile;
      BNLIB_ADD(0, 5, 7)
      BNLIB_ADD(1, 5, 7)
      BNLIB_ADD(2, 5, 7)
      BNLIB_ADD(3, 5, 7)
    }
#undef BNLIB_ADD
  }
  _tile_stored(0, sums, 64);
  if constexpr (Tiles > 1) _tile_stored(1, sums + kTile * kTile, 64);
  if constexpr (Tiles > 2) _tile_stored(2, sums + 2 * kTile * kTile, 64);
  if constexpr (Tiles > 3) _tile_stored(3, sums + 3 * kTile * kTile, 64);
}

// Weights (outputs, inputs, 3, 3), channels-last, as tiles take them: for every 16 outputs and each row of the kernel
// 3 · inputs values by twos, (3 · inputs / 2, 16, 2). Mirrored: those of the convolution that gives the gradient of the
// images, whose outputs are the inputs.
template <bool mirrored>
Tensor in_tiles(const Tensor& weight) {
  const int64_t K = weight.size(0), C = weight.size(1), outputs = mirrored ? C : K, inputs = mirrored ? K : C;
  const Tensor result = at::empty({outputs / kTile, 3, 3 * inputs / 2, kTile, 2}, weight.options());
  const auto* from = data<BFloat16>(weight);
  auto* to = data<BFloat16>(result);
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < outputs / kTile * 3; ++part) {
    const int64_t first = part / 3 * kTile, dy = part % 3;
    for (int64_t k = 0; k < 3 * inputs; ++k)
      for (int64_t o = first; o < first + kTile; ++o) {
        const int64_t dx = k / inputs, i = k % inputs;
        to[((part * 3 * inputs / 2 + k / 2) * kTile + o - first) * 2 + k % 2] =
            mirrored ? from[((i * 3 + 2 - dy) * 3 + 2 - dx) * C + o] : from[((o * 3 + dy) * 3 + dx) * C + i];
      }
  }
  return result;
}

// An image's pixels among zeros, as `read` gives them: the pixel (y, x) at (y + 1) · pitch + x + 1.
template <typename R>
inline void copy_image(const R& read, int64_t image, const Images& images, int64_t channels, BFloat16* to) {
  for (int64_t y = 0; y < images.height; ++y)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const auto value = read.of(c);
      const int64_t from = (image * images.height + y) * images.width * channels + c;
      BFloat16* row = to + ((y + 1) * images.pitch + 1) * channels + c;
      for (int64_t x = 0; x < images.width; ++x) store(row + x * channels, value(from + x * channels));
    }
}

// Writes the convolution of what is read; weights: (C', C, 3, 3), bfloat16, channels-last.
template <bool mirrored, typename S, typename R, typename W>
void convolve(const R& read, const Tensor& weight, const W& write, const Images& images) {
  static_assert(kLanes == kTile);
  const int64_t outputs = weight.size(mirrored ? 1 : 0), inputs = weight.size(mirrored ? 0 : 1);
  const int64_t places = images.height * images.pitch, tiles = (places + kTile - 1) / kTile;  // one in a row is no pixel
  const int64_t padded = (tiles * kTile + 2 * images.pitch + 2) * inputs;
  const Tensor weights = in_tiles<mirrored>(weight);
  const Tensor memory = at::zeros({omp_get_max_threads(), padded}, weight.options());
#pragma omp parallel
  {
    const TileRegisters registers;
    auto* image = data<BFloat16>(memory) + omp_get_thread_num() * padded;
    alignas(64) float sums[kTilesAtOnce * kTile * kTile];
#pragma omp for schedule(static)
    for (int64_t n = 0; n < images.count; ++n) {
      copy_image(read, n, images, inputs, image);
      for (int64_t k = 0; k < outputs; k += kTile) {
        const auto* these = data<BFloat16>(weights) + k * 9 * inputs;
        const auto multiply_from = [&](int64_t tile) {
          const auto* pixels = image + tile * kTile * inputs;
          const int64_t row = images.pitch * inputs;
          switch (std::min(kTilesAtOnce, tiles - tile)) {
            case 1: return multiply<1>(pixels, row, inputs, these, sums);
            case 2: return multiply<2>(pixels, row, inputs, these, sums);
            case 3: return multiply<3>(pixels, row, inputs, these, sums);
            default: return multiply<4>(pixels, row, inputs, these, sums);
          }
        };
        multiply_from(0);
        const Floats origin = load(sums);
        const auto put = write.of(k, origin);
        Floats a = {}, b = {};
        int64_t x = 0, at = n * images.height * images.width * outputs + k;
        for (int64_t tile = 0; tile < tiles; tile += kTilesAtOnce) {
          if (tile) multiply_from(tile);
          const int64_t end = std::min(kTilesAtOnce * kTile, places - tile * kTile);
          for (int64_t start = 0; start < end; start += kTile) {
            Floats a_of_tile = {}, b_of_tile = {};  // not one by one: the error grows with the number of additions
            for (int64_t place = start; place < std::min(end, start + kTile); ++place) {
              if (x++ == images.width) {
                x = 0;
                continue;
              }
              put(at, load(sums + place * kTile), a_of_tile, b_of_tile);
              at += outputs;
            }
            a += a_of_tile;
            b += b_of_tile;
          }
        }
        if (write.sums) {
          const Floats found[] = {a, b, origin};
          for (int which = 0; which < 3; ++which) store(write.sums->at(n, which, k), found[which]);
        }
      }
    }
  }
}

}  // namespace bnlib

#endif
