// What a convolution reads and what it writes: a tensor, or one seen through batch norm, which so needs no pass of its own.
//
// Each is a struct whose of(c) gives a function of an offset in the images, for kLanes channels from c on; batch norm's
// coefficients of these channels then are in registers.

#pragma once

#include "batchnorm.h"

namespace bnlib {

constexpr int64_t kTasks = 8, kRange = 64;  // of the gradient of the weights: about so many; outputs of each, at most

// Reads x.
template <typename T>
struct Read {
  const T* x;
  auto of(int64_t) const {
    return [x = x](int64_t at) { return load(x + at); };
  }
};

// Reads relu(batch_norm(x)).
template <typename T>
struct ReadNormalised {
  const T* x;
  Affine<Scalar<T>> affine;
  auto of(int64_t c) const {
    return [x = x, scale = load(affine.scale + c), shift = load(affine.shift + c)](int64_t at) {
      const auto value = load(x + at) * scale + shift;
      return relu(value);
    };
  }
};

// Reads the gradient of x, batch norm's input, from g, that of its output.
template <typename T>
struct ReadGradient {
  const T *g, *x;
  Affine<Scalar<T>> affine;
  const Slopes<Scalar<T>>& slopes;
  auto of(int64_t c) const {
    return [g = g, x = x, scale = load(affine.scale + c), along = load(&slopes.along[c]),
            across = load(&slopes.across[c])](int64_t at) { return scale * load(g + at) + along * load(x + at) + across; };
  }
};

// Writes y, in float32 past the cache, which holds no batch. Those that have `sums`, not null, add up in `a` and `b` what
// goes there for each block; of(c, first) then has also the block's first values.
template <typename T>
struct Write {
  T* y;
  BlockSums<Scalar<T>>* sums = nullptr;
  auto of(int64_t, Vector<T>) const {
    return [y = y](int64_t at, Vector<T> value, Vector<T>&, Vector<T>&) { stream(y + at, value); };
  }
};

// Writes y, and adds up distances from the first values and their squares, of which batch norm's statistics are made: of
// what is written, for so it is read.
template <typename T>
struct WriteWithMoments {
  T* y;
  BlockSums<Scalar<T>>* sums;
  auto of(int64_t, Vector<T> first) const {
    return [y = y, origin = first](int64_t at, Vector<T> value, Vector<T>& a, Vector<T>& b) {
      const auto distance = stream_rounded(y + at, value) - origin;
      a += distance;
      b += distance * distance;
    };
  }
};

// Writes g, what of a gradient passes relu(batch_norm(x)), and adds up g, and g times x's distance from its mean.
template <typename T>
struct WritePassed {
  T* g;
  const T* x;
  Affine<Scalar<T>> affine;
  BlockSums<Scalar<T>>* sums;
  auto of(int64_t c, Vector<T>) const {
    return [g = g, x = x, scale = load(affine.scale + c), shift = load(affine.shift + c),
            mean = load(affine.mean + c)](int64_t at, Vector<T> value, Vector<T>& a, Vector<T>& b) {
      const auto before = load(x + at);
      value = stream_rounded(g + at, masked(value, before * scale + shift > 0));
      a += value;
      b += value * (before - mean);
    };
  }
};

// Adds to y, which is in the cache once it has been read.
template <typename T>
struct AddTo {
  T* y;
  BlockSums<Scalar<T>>* sums = nullptr;
  auto of(int64_t, Vector<T>) const {
    return [y = y](int64_t at, Vector<T> value, Vector<T>&, Vector<T>&) { store(y + at, value + load(y + at)); };
  }
};

}  // namespace bnlib
