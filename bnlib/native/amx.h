// 3×3 convolutions with a border of one zero, strided ones too, and their gradients, in bfloat16 by AMX: Intel's Software
// Developer's Manual, vol. 1, ch. 18.
//
// AMX multiplies tiles: (16 rows × 32 values in bfloat16) · (32 × 16), summed up in float32. An image is copied with a
// border of zeros, through batch norm where asked, into memory that stays in the cache. In channels-last order the three
// pixels beside each other that a row of the kernel takes then are 3·C consecutive values, for 16 neighbouring outputs 16
// such rows that overlap; a convolution is three products of matrices. Each image is a block. Every sum is taken in one
// order, whatever the number of threads.

#pragma once

#ifdef __AMX_BF16__

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "through.h"

namespace bnlib {

using at::Tensor;

// Linux lends the tiles' registers to processes that ask.
inline bool has_tiles() {
  constexpr int kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
  return granted;
}

// The images of a batch, each of which is a block, and where a copy has their pixels; of those that are written a place is
// a pixel or the zero behind a row.
struct Images {
  int64_t count, height, width, pitch;  // pitch: from a row to the next, in pixels; one zero stands between two rows
  explicit Images(const Tensor& x) : count(x.size(0)), height(x.size(2)), width(x.size(3)), pitch(width + 1) {}
  int64_t blocks() const { return count; }
  int64_t pixels(int64_t) const { return height * width; }
  int64_t places() const { return height * pitch; }
  int64_t start(int64_t y) const { return (y + 1) * pitch + 1; }  // of a row
};

// Where a copy has the pixels of images twice as high and wide as those that a strided convolution writes: the even rows,
// one of zeros, and the odd rows, so that from a place to the next it is two pixels everywhere.
struct EvenThenOdd {
  int64_t height, width, pitch;
  explicit EvenThenOdd(const Images& written)
      : height(2 * written.height), width(2 * written.width), pitch(2 * written.pitch) {}
  int64_t start(int64_t y) const { return (y / 2 + y % 2 * (height / 2 + 1)) * pitch + 1; }
};

constexpr int64_t kTile = 16, kDepth = 32;  // rows and outputs of a tile, values that a product sums up
constexpr int64_t kSums = 4;                // tiles of outputs that registers hold at once
inline int64_t tiles_of(int64_t places) { return (places + kTile - 1) / kTile; }

// The registers, by number: 0 to 3 sums; 4 and 5 pixels, 6 and 7 weights. Where 3 · channels is no multiple of kDepth, 5
// and 7 are for the half of it that is left.
struct TileRegisters {
  explicit TileRegisters(bool half = false) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    if (half) {
      shapes.bytes[5] = 32;
      shapes.rows[7] = 8;
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes));  // GCC's own says that it reads 8 of the 64 bytes
  }
  ~TileRegisters() { _tile_release(); }
};

// GCC's loads of tiles do not say that they read memory: what has been stored before must be there.
inline void stored() { asm volatile("" ::: "memory"); }

// Pixels side by side, of each of which all values are summed up: the first of them for an image's first place.
struct Run {
  int64_t first, count;
};

// Sums (Columns, Rows, 16, 16) of Rows tiles of places and Columns of outputs: of each run (16, count · channels) · weights,
// those of the second column `column` values further on. step: from a place to the next, in pixels.
template <int Rows, int Columns>
inline void multiply(const BFloat16* image, const std::vector<Run>& runs, int64_t channels, int64_t step,
                     const BFloat16* weights, int64_t column, float* sums) {
  const int64_t tile = kTile * step * channels, bytes = 2 * step * channels;
  constexpr int all = Rows * Columns;
#define BNLIB_FOR_SUMS(what)        \
  {                                 \
    what(0);                        \
    if constexpr (all > 1) what(1); \
    if constexpr (all > 2) what(2); \
    if constexpr (all > 3) what(3); \
  }
  stored();
  BNLIB_FOR_SUMS(_tile_zero)
  for (const Run& run : runs) {
    const auto* pixels = image + run.first * channels;
    const int64_t depth = run.count * channels;
    int64_t k = 0;
    for (; k + kDepth <= depth; k += kDepth, weights += kDepth * kTile) {
      _tile_loadd(6, weights, 64);
      if constexpr (Columns == 2) {
        _tile_loadd(7, weights + column, 64);
        _tile_loadd(4, pixels + k, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Rows == 2) {
          _tile_loadd(5, pixels + tile + k, bytes);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      } else {
#define BNLIB_ADD(sum)                             \
  _tile_loadd(4, pixels + sum * tile + k, bytes);  \
  _tile_dpbf16ps(sum, 4, 6)
        BNLIB_FOR_SUMS(BNLIB_ADD)
      }
    }
    if (Columns == 1 && k < depth) {
      _tile_loadd(7, weights, 64);
      weights += kDepth / 2 * kTile;
#define BNLIB_ADD_HALF(sum)                        \
  _tile_loadd(5, pixels + sum * tile + k, bytes);  \
  _tile_dpbf16ps(sum, 5, 7)
      BNLIB_FOR_SUMS(BNLIB_ADD_HALF)
    }
  }
#define BNLIB_STORE(sum) _tile_stored(sum, sums + (sum % Columns * Rows + sum / Columns) * kTile * kTile, 64)
  BNLIB_FOR_SUMS(BNLIB_STORE)
#undef BNLIB_FOR_SUMS
#undef BNLIB_ADD
#undef BNLIB_ADD_HALF
#undef BNLIB_STORE
}

// A pixel that an output takes, that of an image's first place, and the matrix that it is multiplied with: from an input's
// weight to the next's, and from an output's.
struct Tap {
  int64_t pixel;
  const BFloat16* weights;
  int64_t input, output;
};

// What each place of an image sums up, and where that is written: place (y, x) to pixel first + y · down + x · across of as
// many as `pixels` an image.
template <typename W>
struct Product {
  W write;
  int64_t pixels, first, down, across;
  std::vector<Tap> taps = {};

  std::vector<Run> runs() const {
    std::vector<Run> all;
    for (const Tap& tap : taps)
      if (!all.empty() && tap.pixel == all.back().first + all.back().count)
        ++all.back().count;
      else
        all.push_back({tap.pixel, 1});
    return all;
  }
};

template <typename W>
Product<W> to_every_pixel(const Images& images, const W& write) {
  return {write, images.height * images.width, 0, images.width, 1};
}

// To one of every four pixels, of images twice as high and wide.
template <typename W>
Product<W> to_every_fourth(const Images& images, int64_t y, int64_t x, const W& write) {
  const int64_t width = 2 * images.width;
  return {write, 2 * images.height * width, y * width + x, 2 * width, 2};
}

// Two values in a word for each of 16 channels: a before b.
inline Words pair(const BFloat16* a, const BFloat16* b) {
  Halves first, second;
  std::memcpy(&first, a, sizeof first);
  std::memcpy(&second, b, sizeof second);
  return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
}

// The matrix (16, 16) with its rows as columns.
inline void transpose(Words rows[kTile]) {
  const auto exchange = [&](int distance, const auto& low, const auto& high) {
    for (int r = 0; r < kTile; ++r)
      if (!(r & distance)) {
        const Words a = rows[r], b = rows[r + distance];
        rows[r] = __builtin_shuffle(a, b, low);
        rows[r + distance] = __builtin_shuffle(a, b, high);
      }
  };
  exchange(1, Words{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
           Words{1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
  exchange(2, Words{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
           Words{2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31});
  exchange(4, Words{0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
           Words{4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31});
  exchange(8, Words{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
           Words{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
}

// The taps' weights as tiles take them: for every 16 outputs the inputs of one tap after the other by twos,
// (taps · inputs / 2, 16, 2). Either the inputs' weights lie side by side or, in a gradient of the images, the outputs'.
inline Tensor in_tiles(const std::vector<Tap>& taps, int64_t inputs, int64_t outputs, const at::TensorOptions& options) {
  const int64_t count = taps.size();
  const Tensor result = at::empty({outputs / kTile, count * inputs / 2, kTile, 2}, options);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t k = 0; k < outputs; k += kTile)
    for (int64_t t = 0; t < count; ++t) {
      const auto& [pixel, weights, input, output] = taps[t];
      auto* to = reinterpret_cast<uint32_t*>(data<BFloat16>(result) + (k * count + t * kTile) * inputs);
      if (output == 1)
        for (int64_t i = 0; i < inputs; i += 2, to += kTile)
          store(to, pair(weights + i * input + k, weights + (i + 1) * input + k));
      else
        for (int64_t i = 0; i < inputs; i += kDepth) {
          const int64_t words = std::min(kDepth, inputs - i) / 2;
          Words rows[kTile] = {};  // of 16 inputs a half stays zero
          for (int64_t o = 0; o < kTile; ++o) std::memcpy(&rows[o], weights + i + (k + o) * output, 4 * words);
          transpose(rows);
          for (int64_t w = 0; w < words; ++w, to += kTile) store(to, rows[w]);
        }
    }
  return result;
}

// Some of an image's channels among zeros, as `read` gives them.
template <typename R, typename Layout>
inline void copy_image(const R& read, int64_t image, const Layout& images, int64_t channels, int64_t first,
                       int64_t columns, BFloat16* to) {
  if constexpr (std::is_same_v<R, Read<BFloat16>>)
    if (columns == channels) {  // whole rows as they are
      const int64_t row = images.width * channels;
      for (int64_t y = 0; y < images.height; ++y)
        std::memcpy(to + images.start(y) * channels, read.x + (image * images.height + y) * row, row * sizeof *to);
      return;
    }
  for (int64_t y = 0; y < images.height; ++y)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const auto value = read.of(first + c);
      const int64_t from = (image * images.height + y) * images.width * channels + first + c;
      BFloat16* row = to + images.start(y) * columns + c;
      for (int64_t x = 0; x < images.width; ++x) store(row + x * columns, value(from + x * channels));
    }
}

// Writes Columns · 16 outputs of all places of an image from channel k on. sums_from(tile, sums): takes the sums of a tile of
// places and some further ones, and returns of how many.
template <int Columns, typename S, typename W>
inline void write_outputs(const S& sums_from, const Product<W>& product, const Images& images, int64_t n, int64_t outputs,
                          int64_t k) {
  constexpr int64_t tile_sums = kTile * kTile;
  const int64_t places = images.places();  // one in a row is no pixel
  alignas(64) float sums[kSums * tile_sums];
  int64_t rows = sums_from(0, sums);
  const W& write = product.write;
  const Floats origins[] = {load(sums), load(sums + (Columns - 1) * rows * tile_sums)};
  const decltype(write.of(k, origins[0])) put[] = {write.of(k, origins[0]),
                                                   write.of(k + (Columns - 1) * kTile, origins[1])};
  Floats a[Columns] = {}, b[Columns] = {};
  int64_t y = 0, x = 0;
  for (int64_t first = 0; first < places; first += rows * kTile) {
    if (first) rows = sums_from(first / kTile, sums);
    const int64_t end = std::min(rows * kTile, places - first);
    for (int64_t place = 0; place < end;) {
      const int64_t count = std::min(end - place, images.width - x);
      for (int c = 0; c < Columns; ++c) {
        const int64_t pixel = n * product.pixels + product.first + y * product.down + x * product.across;
        const float* from = sums + c * rows * tile_sums + place * kTile;
        Floats a_here = {}, b_here = {};  // not one by one: the error grows with the number of additions
        for (int64_t i = 0; i < count; ++i)
          put[c]((pixel + i * product.across) * outputs + k + c * kTile, load(from + i * kTile), a_here, b_here);
        a[c] += a_here;
        b[c] += b_here;
      }
      place += count;
      x += count;
      if (x == images.width && place < end) {
        ++place;
        ++y;
        x = 0;
      }
    }
  }
  if (write.sums)
    for (int c = 0; c < Columns; ++c) {
      const Floats found[] = {a[c], b[c], origins[c]};
      for (int which = 0; which < 3; ++which) store(write.sums->at(n, which, k + c * kTile), found[which]);
    }
}

// Writes the products, Columns · 16 outputs at a time. copy(image, to): writes what the taps take, `size` pixels,
// zeros among them.
template <int Columns, typename C, typename W>
void write_products_by(const C& copy, int64_t size, const std::vector<Product<W>>& products, const Images& images,
                       int64_t inputs, int64_t outputs, int64_t step, const at::TensorOptions& options) {
  constexpr int64_t at_once = kSums / Columns;
  const int64_t tiles = tiles_of(images.places());
  const Tensor memory = at::empty({omp_get_max_threads(), size * inputs}, options);
  std::vector<Tensor> weights;
  std::vector<std::vector<Run>> runs;
  for (const auto& product : products) {
    weights.push_back(in_tiles(product.taps, inputs, outputs, options));
    runs.push_back(product.runs());
  }
#pragma omp parallel
  {
    const TileRegisters registers(inputs % kDepth);
    auto* image = data<BFloat16>(memory) + omp_get_thread_num() * memory.size(1);
    std::fill_n(image, memory.size(1), BFloat16());  // the borders, which no copy writes
#pragma omp for schedule(static)
    for (int64_t n = 0; n < images.count; ++n) {
      copy(n, image);
      for (size_t p = 0; p < products.size(); ++p)
        for (int64_t k = 0; k < outputs; k += Columns * kTile) {
          const int64_t column = kTile * products[p].taps.size() * inputs;
          const auto* these = data<BFloat16>(weights[p]) + k / kTile * column;
          const auto sums_from = [&](int64_t tile, float* sums) {
            const auto* from = image + tile * kTile * step * inputs;
            const int64_t rows = std::min(at_once, tiles - tile);
            if (rows == 1) multiply<1, Columns>(from, runs[p], inputs, step, these, column, sums);
            if (rows == 2) multiply<2, Columns>(from, runs[p], inputs, step, these, column, sums);
            if constexpr (Columns == 1) {
              if (rows == 3) multiply<3, 1>(from, runs[p], inputs, step, these, column, sums);
              if (rows == 4) multiply<4, 1>(from, runs[p], inputs, step, these, column, sums);
            }
            return rows;
          };
          write_outputs<Columns>(sums_from, products[p], images, n, outputs, k);
        }
    }
  }
}

template <typename C, typename W>
void write_products(const C& copy, int64_t size, const std::vector<Product<W>>& products, const Images& images,
                    int64_t inputs, int64_t outputs, int64_t step, const at::TensorOptions& options) {
  static_assert(kLanes == kTile);
  if (inputs % kDepth == 0 && outputs % kDepth == 0)
    return write_products_by<2>(copy, size, products, images, inputs, outputs, step, options);
  write_products_by<1>(copy, size, products, images, inputs, outputs, step, options);
}

// Pixels of a copy that tiles of places read, those behind the last place too.
inline int64_t size_of_copy(const Images& images) {
  return tiles_of(images.places()) * kTile + images.start(1) + 1;
}

// Writes the convolution of what is read; weights: (C', C, 3, 3), bfloat16, channels-last. Mirrored: the gradient of the
// images, whose outputs are the inputs.
template <bool mirrored, typename S, typename R, typename W>
void convolve(const R& read, const Tensor& weight, const W& write, const Images& images) {
  const int64_t C = weight.size(1), inputs = mirrored ? weight.size(0) : C, outputs = mirrored ? C : weight.size(0);
  auto product = to_every_pixel(images, write);
  for (int64_t tap = 0; tap < 9; ++tap)
    product.taps.push_back({tap / 3 * images.pitch + tap % 3, data<BFloat16>(weight) + (mirrored ? 8 - tap : tap) * C,
                            mirrored ? 9 * C : 1, mirrored ? 1 : 9 * C});
  const auto copy = [&](int64_t n, BFloat16* to) { copy_image(read, n, images, inputs, 0, inputs, to); };
  write_products(copy, size_of_copy(images), std::vector{product}, images, inputs, outputs, 1, weight.options());
}

// Writes two strided convolutions of what is read, 3×3 and 1×1; weights: (C', C, 3, 3) and (C', C, 1, 1). images: those
// written.
template <typename R, typename W>
void convolve_halving(const R& read, const Tensor& weight, const Tensor& shortcut, const W& write,
                      const W& write_shortcut, const Images& images) {
  const EvenThenOdd layout(images);
  const int64_t C = weight.size(1);
  const int64_t above = images.height * layout.pitch, below = layout.start(1) - 1;  // the row of zeros, the first odd row
  std::vector<Product<W>> both = {to_every_pixel(images, write), to_every_pixel(images, write_shortcut)};
  for (int64_t tap = 0; tap < 9; ++tap) {
    const int64_t row = tap < 3 ? above : tap < 6 ? 0 : below;
    both[0].taps.push_back({row + tap % 3, data<BFloat16>(weight) + tap * C, 1, 9 * C});
  }
  both[1].taps.push_back({layout.start(0), data<BFloat16>(shortcut), 1, C});
  const int64_t size = 2 * tiles_of(images.places()) * kTile + below + 1;
  const auto copy = [&](int64_t n, BFloat16* to) { copy_image(read, n, layout, C, 0, C, to); };
  write_products(copy, size, both, images, C, weight.size(0), 2, weight.options());
}

// Writes the gradient of what `convolve_halving` reads, from those of what it writes. Of a pixel in an even row and column
// the middle of the 3×3 kernel has taken part, and the shortcut; if one of them is odd, two of the kernel's sides; if both,
// its four corners.
template <typename R, typename W>
void halving_gradient(const R& read, const R& read_shortcut, const Tensor& weight, const Tensor& shortcut, const W& write,
                      const Images& images) {
  const int64_t C = weight.size(1), inputs = weight.size(0), size = size_of_copy(images);
  std::vector<Product<W>> four;
  for (int64_t odd_y = 0; odd_y < 2; ++odd_y)
    for (int64_t odd_x = 0; odd_x < 2; ++odd_x) {
      auto product = to_every_fourth(images, odd_y, odd_x, write);
      for (int64_t down = 0; down <= odd_y; ++down)
        for (int64_t right = 0; right <= odd_x; ++right) {
          const int64_t tap = 3 * (1 + odd_y - 2 * down) + 1 + odd_x - 2 * right;
          product.taps.push_back({images.start(down) + right, data<BFloat16>(weight) + tap * C, 9 * C, 1});
        }
      four.push_back(product);
    }
  four[0].taps.push_back({size + images.start(0), data<BFloat16>(shortcut), C, 1});
  const auto copy = [&](int64_t n, BFloat16* both) {
    copy_image(read, n, images, inputs, 0, inputs, both);
    copy_image(read_shortcut, n, images, inputs, 0, inputs, both + size * inputs);
  };
  write_products(copy, 2 * size, four, images, inputs, C, 1, weight.options());
}

// ------------------------------------------------------------------------------------ the gradient of the weights

// A product sums up over 32 places of pixels. Its left side takes the gradient of the outputs, (16 outputs, 32 places), its
// right side pixels by twos, (places / 2, 16 inputs, 2): for every other tap those of which the second comes first.

// Pixels by twos, to (channels / 16, pairs, 16): of channel c (from[2 p][c], from[2 p + 1][c]).
inline void by_twos(const BFloat16* from, int64_t pairs, int64_t channels, uint32_t* to) {
  for (int64_t c = 0; c < channels; c += kTile)
    for (int64_t p = 0; p < pairs; ++p, to += kTile)
      store(to, pair(from + 2 * p * channels + c, from + (2 * p + 1) * channels + c));
}

// Places by 32, a multiple of which there are, to (channels / 16, places / 32, 16 channels, 16 pairs of places).
inline void channels_first(const BFloat16* from, int64_t places, int64_t channels, uint32_t* to) {
  for (int64_t c = 0; c < channels; c += kTile)
    for (int64_t p = 0; p < places; p += kDepth) {
      Words rows[kTile];
      for (int64_t r = 0; r < kTile; ++r) {
        const BFloat16* here = from + (p + 2 * r) * channels + c;
        rows[r] = pair(here, here + channels);
      }
      transpose(rows);
      for (int64_t r = 0; r < kTile; ++r, to += kTile) store(to, rows[r]);
    }
}

// sums (3, 16, 16) += left (16, places) · right (places / 2, 16, 2), for each of three taps.
inline void add_products(const uint32_t* left, const uint32_t* const right[3], int64_t places, float* sums) {
  constexpr int64_t tile = kTile * kTile;
  stored();
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + tile, 64);
  _tile_loadd(2, sums + 2 * tile, 64);
  for (int64_t at = 0; at < places / kDepth * tile; at += tile) {
    _tile_loadd(4, left + at, 64);
    _tile_loadd(5, right[0] + at, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, right[1] + at, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, right[2] + at, 64);
    _tile_dpbf16ps(2, 4, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + tile, 64);
  _tile_stored(2, sums + 2 * tile, 64);
}

// Writes the gradient of the weights, (C', C, 3, 3) in float32, channels-last. A task is a part of the batch and a range of
// the outputs; it goes over a few images at a time, one after the other among zeros.
template <typename R, typename G>
void weight_gradient(const R& read, const G& read_gradient, const Tensor& weight, float* gradient, const Images& images) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), size = 9 * inputs * outputs, tile = kTile * kTile;
  const int64_t ranges = (outputs + kRange - 1) / kRange, most = std::min(kRange, outputs);
  const int64_t parts = std::max<int64_t>(1, std::min(kTasks / ranges, images.count));
  const int64_t apart = (images.height + 1) * images.pitch;  // from an image to the next
  const int64_t at_once = std::max<int64_t>(1, 512 / apart);
  const int64_t places = (at_once * apart + kDepth - 1) / kDepth * kDepth, border = images.pitch + 1;
  const int64_t padded = (places + 2 * images.pitch + 4) / 2 * 2, pairs = padded / 2 - 1;
  const Tensor all = at::zeros({parts, size}, weight.options().dtype(at::kFloat));
  const int64_t threads = omp_get_max_threads();
  const Tensor of_pixels = at::zeros({threads, padded * inputs}, weight.options());
  const Tensor of_outputs = at::zeros({threads, padded * most}, weight.options());
  const Tensor words = at::empty({threads, 2 * pairs * inputs + places / 2 * most}, weight.options().dtype(at::kInt));
#pragma omp parallel
  {
    const TileRegisters registers;
    const int64_t thread = omp_get_thread_num();
    auto *pixels = data<BFloat16>(of_pixels) + thread * of_pixels.size(1);
    auto* slopes = data<BFloat16>(of_outputs) + thread * of_outputs.size(1);
    auto *even = data<uint32_t>(words) + thread * words.size(1), *odd = even + pairs * inputs, *left = odd + pairs * inputs;
#pragma omp for schedule(static) collapse(2)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t range = 0; range < ranges; ++range) {
        const int64_t k0 = range * kRange, columns = std::min(kRange, outputs - k0);
        const int64_t begin = part * images.count / parts, end = (part + 1) * images.count / parts;
        for (int64_t n = begin; n < end; n += at_once) {
          if (n == begin || n + at_once > end) {  // where other places were zeros, or more were not
            std::fill_n(pixels, padded * inputs, BFloat16());
            std::fill_n(slopes, padded * most, BFloat16());
          }
          for (int64_t i = 0; i < std::min(at_once, end - n); ++i) {
            copy_image(read, n + i, images, inputs, 0, inputs, pixels + i * apart * inputs);
            copy_image(read_gradient, n + i, images, outputs, k0, columns, slopes + i * apart * columns);
          }
          by_twos(pixels, pairs, inputs, even);
          by_twos(pixels + inputs, pairs, inputs, odd);
          channels_first(slopes + border * columns, places, columns, left);
          for (int64_t k = 0; k < columns; k += kTile)
            for (int64_t c = 0; c < inputs; c += kTile)
              for (int64_t dy = 0; dy < 3; ++dy) {
                const uint32_t* right[3];
                for (int64_t dx = 0; dx < 3; ++dx) {
                  const int64_t ahead = dy * images.pitch + dx;
                  right[dx] = (ahead % 2 ? odd : even) + c * pairs + ahead / 2 * kTile;
                }
                add_products(left + k * (places / 2), right, places,
                             data<float>(all) + part * size + (((k0 + k) * inputs + c * kTile) * 3 + dy * tile) * 3);
              }
        }
      }
  }
  const float* sums = data<float>(all);
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t c = 0; c < inputs; c += kTile) {
        Floats sum = {};
        for (int64_t part = 0; part < parts; ++part)
          sum += load(sums + part * size + (k / kTile * kTile * inputs + c * kTile) * 9 + tap * tile + k % kTile * kTile);
        store(gradient + (k * 9 + tap) * inputs + c, sum);
      }
}

}  // namespace bnlib

#endif
