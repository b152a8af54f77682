"""Convolution as a matrix product, and by loops as the definition says, to check it with."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from bnlib.numpy_nn.layers import Layer, Parameter, output_size, whole

SCRATCH = 1 << 22      # bytes of columns at a time: few enough for a cache, enough for BLAS to share out


class Conv2d(Layer):
    """Cross-correlation with square kernels (im2col); (N, C, H, W) → (N, C', H', W').

    H' = ⌊(H + 2·padding − kernel)/stride⌋ + 1, W' likewise. Columns are made for a few images at a time, in scratch
    memory, and made again in `backward`: what is kept is the input alone, not k² times as much. Layers share the
    scratch memory, so one thread at a time.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True):
        whole("Conv2d", inputs=inputs, outputs=outputs, kernel=kernel, stride=stride)
        whole("Conv2d", least=0, padding=padding)
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = Parameter(np.zeros((outputs, inputs, kernel, kernel), np.float32))
        self.bias = Parameter(np.zeros(outputs, np.float32)) if bias else None

    def __repr__(self):
        outputs, inputs = self.weight.value.shape[:2]
        return f"{type(self).__name__}({inputs}, {outputs}, {self.kernel})"

    def forward(self, x):
        self._remember(x)
        rows = self.weight.value.reshape(len(self.weight.value), -1)
        y = np.empty(self.out_shape, self.dtype)
        for images, scratch in self._parts():
            scratch.fill_columns(x[images])
            np.matmul(rows, scratch.columns, out=scratch.outputs)
            if self.bias is not None:
                scratch.outputs += self.bias.value[:, None]
            y[images] = scratch.image_outputs
        return y

    def backward(self, gradient):
        self._expect_gradient(gradient)
        rows = self.weight.value.reshape(len(self.weight.value), -1)
        wanted, weight_grad, bias_grad = self.weight.requires_grad, 0, 0
        x_grad = np.empty(self.x.shape, self.dtype)
        for images, scratch in self._parts():
            scratch.fill_outputs(gradient[images])
            if wanted:
                scratch.fill_columns(self.x[images])
                weight_grad += scratch.outputs @ scratch.columns.T
            if self.bias is not None:
                bias_grad += scratch.outputs.sum(1)
            np.matmul(rows.T, scratch.outputs, out=scratch.columns)
            x_grad[images] = scratch.sum_columns()
        if wanted:
            self.weight.grad = weight_grad.reshape(self.weight.value.shape)
        if self.bias is not None and self.bias.requires_grad:
            self.bias.grad = bias_grad
        return x_grad

    def _remember(self, x: np.ndarray) -> None:
        outputs, inputs = self.weight.value.shape[:2]
        self._expect(x, "N", inputs, "H", "W")
        self.x, self.out_shape = x, (len(x), outputs, *output_size(self, x.shape[2:]))
        self.dtype = np.result_type(x, self.weight.value)

    def _parts(self) -> Iterator[tuple[slice, "Scratch"]]:
        """The batch, a few images at a time, with the scratch memory for as many."""
        n, *image = self.x.shape
        size = image[0] * self.kernel**2 * self.out_shape[2] * self.out_shape[3] * self.dtype.itemsize
        step = min(n, max(1, SCRATCH // size))
        for first in range(0, n, step):
            images = min(step, n - first)
            shapes = (images, *image), (images, *self.out_shape[1:])
            yield (slice(first, first + images),
                   scratch_for(*shapes, self.kernel, self.stride, self.padding, self.dtype))


class Scratch:
    """Memory for the columns of n images, (C·k·k, n·H'·R), and for their outputs, (C', n·H'·R).

    R is W', or, where the stride is 1 and it costs little, the length of a padded row: then whole images are copied
    at once instead of row by row. The last R − W' outputs of a row are then no outputs: not read, their gradient 0.
    """

    def __init__(self, shape: tuple, out_shape: tuple, kernel: int, stride: int, padding: int, dtype: np.dtype):
        (n, c, height, width), (_, outputs, rows, columns), self.kernel = shape, out_shape, kernel
        padded_height, padded_width = height + 2 * padding, width + 2 * padding
        length = padded_width if stride == 1 and padded_width <= 1.25 * columns else columns

        def padded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """Memory for n padded images, and two views of it: the images, and every patch of them."""
            memory = np.zeros(c * n * padded_height * padded_width + kernel - 1, dtype)   # the last patches reach over
            images = memory[:len(memory) - kernel + 1].reshape(c, n, padded_height, padded_width)
            channel, image, row, pixel = images.strides
            patches = as_strided(memory, (c, kernel, kernel, n, rows, length),
                                 (channel, row, pixel, image, stride * row, stride * pixel))
            inside = images[:, :, padding:padding + height, padding:padding + width]
            return memory, inside.transpose(1, 0, 2, 3), patches

        _, self.images, self.patches = padded()
        self.sums, self.image_sums, self.patch_sums = padded()
        self.patch_columns = np.empty(self.patches.shape, dtype)
        self.columns = self.patch_columns.reshape(c * kernel**2, -1)
        spaced = np.zeros((outputs, n, rows, length), dtype)
        self.outputs = spaced.reshape(outputs, -1)
        self.image_outputs = spaced[..., :columns].transpose(1, 0, 2, 3)
        self.between = spaced[..., columns:]

    def fill_columns(self, images: np.ndarray) -> None:
        """Every patch of the images (n, C, H, W) as a column."""
        self.images[...] = images
        np.copyto(self.patch_columns, self.patches)

    def fill_outputs(self, gradient: np.ndarray) -> None:
        """The gradient (n, C', H', W') in the place of the outputs."""
        self.between[...] = 0
        self.image_outputs[...] = gradient

    def sum_columns(self) -> np.ndarray:
        """What `fill_columns` copied, the other way: each pixel the sum of its copies, (n, C, H, W), a view."""
        self.sums.fill(0)
        for i in range(self.kernel):
            for j in range(self.kernel):
                self.patch_sums[:, i, j] += self.patch_columns[:, i, j]
        return self.image_sums


#: Of one geometry there is one, made once and kept: some hundred MB after a large network; `scratch_for.cache_clear()`
#: gives that back.
scratch_for = lru_cache(maxsize=32)(Scratch)


class LoopConv2d(Conv2d):
    """The same by loops over images, channels and pixels, as the definition says: slow, and easy to believe."""

    def forward(self, x):
        self._remember(x)
        y = np.empty(self.out_shape, self.dtype)
        self.padded = np.pad(x, ((0, 0), (0, 0), *2 * ((self.padding, self.padding),)))
        for at, patch in self._patches():
            y[at] = (self.padded[patch] * self.weight.value[at[1]]).sum()
            if self.bias is not None:
                y[at] += self.bias.value[at[1]]
        return y

    def backward(self, gradient):
        self._expect_gradient(gradient)
        spread = np.zeros(self.padded.shape, self.dtype)
        trained = [part for part in (self.weight, self.bias) if part is not None and part.requires_grad]
        for part in trained:
            part.grad = np.zeros_like(part.value)
        for at, patch in self._patches():
            spread[patch] += gradient[at] * self.weight.value[at[1]]
            for part in trained:
                part.grad[at[1]] += gradient[at] * (self.padded[patch] if part is self.weight else 1)
        p, (height, width) = self.padding, self.x.shape[2:]
        return spread[:, :, p:p + height, p:p + width]

    def _patches(self) -> Iterator[tuple[tuple, tuple]]:
        """(index of an output, index of the patch of the padded images that it is computed from)."""
        k, s = self.kernel, self.stride
        for n, channel, i, j in np.ndindex(self.out_shape):
            yield (n, channel, i, j), (n, slice(None), slice(i * s, i * s + k), slice(j * s, j * s + k))
