"""Layers with `forward` and `backward` in plain NumPy; images are (N, C, H, W), float32 or float64.

`forward` keeps what `backward` needs until the next one. `backward` takes the gradient of a loss with respect to the
output, returns that with respect to the input, and sets `.grad` of each parameter that trains; it does not add to it.
Both raise InputError for an array that does not fit, with the shape or type that was expected and the one given.
"""

from collections.abc import Iterator

import numpy as np

from bnlib.names import InputError

FLOATS = (np.float32, np.float64)


class Parameter:
    """An array that an optimizer may change; `grad` has its shape once a backward pass has set it."""

    def __init__(self, value: np.ndarray):
        self.value = value
        self.grad: np.ndarray | None = None
        self.requires_grad = True            # False: frozen; no gradient is computed


class Layer:
    """What all layers have: a name for messages, their state under torch's names, and checks of shapes."""

    training = True                          # batch norm: this batch's statistics; False: the running ones
    buffers: tuple[str, ...] = ()            # arrays of the state that no optimizer changes
    out_shape: tuple[int, ...] | None = None

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output; shapes are those in the layer's own docstring."""
        raise NotImplementedError

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """Gradient of the loss with respect to the output, in its shape → the same of the input."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return type(self).__name__

    # ---- the tree of layers: a layer that is an attribute is a child, under that attribute's name

    def children(self) -> list["Layer"]:
        """The layers directly inside this one, in the order in which they were defined."""
        return [child for child in vars(self).values() if isinstance(child, Layer)]

    def walk(self, prefix: str = "") -> Iterator[tuple[str, "Layer"]]:
        """(prefix of its names, layer) for this one and all inside it."""
        yield prefix, self
        for name, child in vars(self).items():
            if isinstance(child, Layer):
                yield from child.walk(f"{prefix}{name}.")

    def parameters(self) -> dict[str, Parameter]:
        """All parameters by their names in torch, first layer first."""
        return {prefix + name: part for prefix, layer in self.walk() for name, part in vars(layer).items()
                if isinstance(part, Parameter)}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and running statistics, and nothing of a forward pass, as torch names and orders them.

        The arrays are the network's own; `safetensors.numpy.save_file` writes them as they are.
        """
        return {prefix + name: part.value if isinstance(part, Parameter) else part
                for prefix, layer in self.walk() for name, part in vars(layer).items()
                if isinstance(part, Parameter) or name in layer.buffers}

    def load_state_dict(self, state: dict) -> "Layer":
        """Copies the arrays (or torch tensors) in, cast to this network's dtype; returns the network.

        Raises InputError, before anything is copied, unless names and shapes are those of `state_dict`.
        """
        own = self.state_dict()
        try:                                 # torch has its own reasons: bfloat16, a GPU, a gradient
            state = {name: np.asarray(array) for name, array in state.items()}
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{self}: expected arrays, or tensors that NumPy can read: {error}") from None
        for what, names in (("lacks", own.keys() - state.keys()), ("has the unknown", state.keys() - own.keys())):
            if names:
                raise InputError(f"{self}: the state {what} {', '.join(sorted(names)[:3])} ({len(names)} in all); "
                                 f"expected {len(own)} names, given {len(state)}")
        for name, array in state.items():
            if array.shape != own[name].shape:
                raise InputError(f"{self}: {name}: expected shape {own[name].shape}, given {array.shape}")
            if array.dtype.kind not in ("iu" if own[name].dtype.kind == "i" else "fiu"):
                raise InputError(f"{self}: {name}: expected numbers as of {own[name].dtype}, given {array.dtype}")
        for name, array in state.items():
            own[name][...] = array
        return self

    def astype(self, dtype) -> "Layer":
        """Casts parameters and running statistics to float32 or float64; returns the network.

        Raises InputError for another dtype.
        """
        if np.dtype(dtype) not in FLOATS:
            raise InputError(f"{self}: expected float32 or float64, given {np.dtype(dtype)}")
        for _, layer in self.walk():
            for name, part in vars(layer).items():
                if isinstance(part, Parameter):
                    part.value, part.grad = part.value.astype(dtype), None
                elif name in layer.buffers and part.dtype.kind == "f":
                    setattr(layer, name, part.astype(dtype))
        return self

    def train(self, mode: bool = True) -> "Layer":
        """Training or, with False, evaluation mode for this layer and all inside it; returns the network."""
        for _, layer in self.walk():
            layer.training = mode
        return self

    # ---- shapes

    def _expect_array(self, x: np.ndarray) -> None:
        """InputError unless `x` is an array of float32 or float64 with a value in it."""
        if not isinstance(x, np.ndarray):
            raise InputError(f"{self}: expected a NumPy array, given {type(x).__module__}.{type(x).__name__}")
        if x.dtype not in FLOATS:
            raise InputError(f"{self}: expected float32 or float64, given {x.dtype}")
        if x.size == 0 or x.ndim == 0:
            raise InputError(f"{self}: expected lengths of at least 1, given {x.shape}")

    def _expect(self, x: np.ndarray, *shape) -> None:
        """InputError unless `x` is such an array of this shape; a text stands for any length from 1 on and names it."""
        self._expect_array(x)
        if x.ndim != len(shape) or any(n != m and not isinstance(m, str) for n, m in zip(x.shape, shape, strict=True)):
            raise InputError(f"{self}: expected an input ({', '.join(map(str, shape))}), given {x.shape}")

    def _expect_gradient(self, gradient: np.ndarray) -> None:
        """InputError unless `gradient` is an array of the shape of the last output."""
        self._expect_array(gradient)
        if gradient.shape != self.out_shape:
            raise InputError(f"{self}: expected a gradient {self.out_shape or 'after a forward pass'}, given "
                             f"{gradient.shape}")


def whole(layer: str, least: int = 1, **numbers) -> None:
    """InputError unless each of the numbers that a layer is made with is a whole one, and at least so large."""
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < least:
            raise InputError(f"{layer}: expected {name} as a whole number of at least {least}, given {number!r}")


class Identity(Layer):
    """x, as it is."""

    def forward(self, x):
        return x

    def backward(self, gradient):
        return gradient


class Linear(Layer):
    """x·Wᵀ + b; (N, inputs) → (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        whole("Linear", inputs=inputs, outputs=outputs)
        self.weight = Parameter(np.zeros((outputs, inputs), np.float32))
        self.bias = Parameter(np.zeros(outputs, np.float32)) if bias else None

    def __repr__(self):
        outputs, inputs = self.weight.value.shape
        return f"Linear({inputs}, {outputs})"

    def forward(self, x):
        outputs, inputs = self.weight.value.shape
        self._expect(x, "N", inputs)
        self.x, self.out_shape = x, (len(x), outputs)
        y = x @ self.weight.value.T
        return y if self.bias is None else y + self.bias.value

    def backward(self, gradient):
        self._expect_gradient(gradient)
        if self.weight.requires_grad:
            self.weight.grad = gradient.T @ self.x
        if self.bias is not None and self.bias.requires_grad:
            self.bias.grad = gradient.sum(0)
        return gradient @ self.weight.value


class BatchNorm2d(Layer):
    """γ·(x − μ)/√(σ² + eps) + β, channel by channel (Ioffe & Szegedy 2015, Alg. 1); (N, C, H, W) → the same.

    In training μ and σ² are the batch's, and the running ones move towards them by `momentum` (None: their mean over
    all batches), towards the unbiased σ² as in torch; in evaluation they are the running ones.
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1):
        whole("BatchNorm2d", channels=channels)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(channels, np.float32))           # γ
        self.bias = Parameter(np.zeros(channels, np.float32))            # β
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)
        self.num_batches_tracked = np.array(0)

    def __repr__(self):
        return f"BatchNorm2d({len(self.running_mean)})"

    def forward(self, x):
        self._expect(x, "N", len(self.running_mean), "H", "W")
        count = x.size // x.shape[1]
        if self.training:
            if count < 2:
                raise InputError(f"{self}: expected more than 1 value a channel in training, given {x.shape}")
            mean = x.mean((0, 2, 3))
            centred = x - _per_channel(mean)
            var = np.square(centred).mean((0, 2, 3))
            self._track(mean, var * (count / (count - 1)))
        else:
            centred, var = x - _per_channel(self.running_mean), self.running_var
        self.inverse = 1 / np.sqrt(var + self.eps)
        self.normed = centred * _per_channel(self.inverse)
        self.from_batch, self.out_shape = self.training, x.shape
        return self.normed * _per_channel(self.weight.value) + _per_channel(self.bias.value)

    def _track(self, mean: np.ndarray, var: np.ndarray) -> None:
        self.num_batches_tracked += 1
        step = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean += step * (mean - self.running_mean)
        self.running_var += step * (var - self.running_var)

    def backward(self, gradient):
        self._expect_gradient(gradient)
        beta_grad = gradient.sum((0, 2, 3))
        gamma_grad = (gradient * self.normed).sum((0, 2, 3))
        if self.weight.requires_grad:
            self.weight.grad = gamma_grad
        if self.bias.requires_grad:
            self.bias.grad = beta_grad
        if self.from_batch:            # μ and σ² are functions of x too: what they pass on of the gradient
            count = gradient.size // gradient.shape[1]
            gradient = gradient - (_per_channel(beta_grad) + self.normed * _per_channel(gamma_grad)) / count
        return gradient * _per_channel(self.weight.value * self.inverse)


def _per_channel(values: np.ndarray) -> np.ndarray:
    """(C,) → (C, 1, 1), which broadcasts over images and pixels."""
    return values[:, None, None]


class ReLU(Layer):
    """max(x, 0); its gradient at 0 is 0, as in torch. Any shape."""

    def forward(self, x):
        self._expect_array(x)
        self.positive, self.out_shape = x > 0, x.shape
        return np.maximum(x, 0)

    def backward(self, gradient):
        self._expect_gradient(gradient)
        return gradient * self.positive


class Sigmoid(Layer):
    """1/(1 + e⁻ˣ), without overflow at either end. Any shape."""

    def forward(self, x):
        self._expect_array(x)
        small = np.exp(-np.abs(x))
        self.y, self.out_shape = np.where(x >= 0, 1, small) / (1 + small), x.shape
        return self.y

    def backward(self, gradient):
        self._expect_gradient(gradient)
        return gradient * self.y * (1 - self.y)


class MaxPool2d(Layer):
    """The largest value under each kernel; padding never wins. Of equal values the first one gets the gradient.

    (N, C, H, W) → (N, C, H', W') with H' = ⌊(H + 2·padding − kernel)/stride⌋ + 1, W' likewise.
    """

    def __init__(self, kernel: int, stride: int | None = None, padding: int = 0):
        self.kernel, self.stride, self.padding = kernel, kernel if stride is None else stride, padding
        whole("MaxPool2d", kernel=kernel, stride=self.stride)
        whole("MaxPool2d", least=0, padding=padding)
        if 2 * padding > kernel:
            raise InputError(f"{self}: expected a padding from 0 to half the kernel, given {padding}")

    def __repr__(self):
        return f"MaxPool2d({self.kernel})"

    def forward(self, x):
        self._expect(x, "N", "C", "H", "W")
        n, c, *size = x.shape
        rows, columns = output_size(self, size)
        p = self.padding
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=-np.inf)
        inside = np.pad(np.ones(size, bool), p)              # an image may hold −∞ itself
        y, self.winner = np.full((n, c, rows, columns), -np.inf, x.dtype), np.full((n, c, rows, columns), -1, np.int32)
        views = (windows(each, self.kernel, self.stride, rows, columns) for each in (padded, inside))
        for place, (window, is_inside) in enumerate(zip(*views, strict=True)):
            first = is_inside & (self.winner < 0)
            self.winner[first | (window > y) | np.isnan(window)] = place
            np.maximum(y, window, out=y)                     # of which NaN wins, as in torch
        self.padded_shape, self.size, self.out_shape = padded.shape, size, y.shape
        return y

    def backward(self, gradient):
        self._expect_gradient(gradient)
        spread, p = np.zeros(self.padded_shape, gradient.dtype), self.padding
        for place, window in enumerate(windows(spread, self.kernel, self.stride, *self.out_shape[2:])):
            window += gradient * (self.winner == place)
        return spread[:, :, p:p + self.size[0], p:p + self.size[1]]


def windows(padded: np.ndarray, kernel: int, stride: int, rows: int, columns: int) -> Iterator[np.ndarray]:
    """For each place in the kernel, row by row, a view of what lies under it at every output: (…, rows, columns)."""
    for i in range(kernel):
        for j in range(kernel):
            yield padded[..., i:i + stride * rows:stride, j:j + stride * columns:stride]


def output_size(layer, size) -> tuple[int, int]:
    """(H', W') of a convolution or pooling of images of `size`. Raises InputError where the kernel is the larger."""
    height, width = (n + 2 * layer.padding - layer.kernel for n in size)
    if height < 0 or width < 0:
        raise InputError(f"{layer}: expected images of at least {max(1, layer.kernel - 2 * layer.padding)} pixels a "
                         f"side (kernel {layer.kernel}, padding {layer.padding}), given {size[0]}×{size[1]}")
    return height // layer.stride + 1, width // layer.stride + 1


class GlobalAvgPool2d(Layer):
    """The mean over all pixels; (N, C, H, W) → (N, C, 1, 1)."""

    def forward(self, x):
        self._expect(x, "N", "C", "H", "W")
        self.in_shape, self.out_shape = x.shape, (*x.shape[:2], 1, 1)
        return x.mean((2, 3), keepdims=True)

    def backward(self, gradient):
        self._expect_gradient(gradient)
        return np.broadcast_to(gradient / (self.in_shape[2] * self.in_shape[3]), self.in_shape)


class Flatten(Layer):
    """(N, …) → (N, product of the rest)."""

    def forward(self, x):
        self._expect_array(x)
        self.in_shape, self.out_shape = x.shape, (len(x), x[0].size)
        return x.reshape(self.out_shape)

    def backward(self, gradient):
        self._expect_gradient(gradient)
        return gradient.reshape(self.in_shape)


class Sequential(Layer):
    """One layer after another: those given, under the names 0, 1, …, or those that a subclass defines, by its names.

    Raises InputError for what is no layer, and for one that is there twice, at whatever depth: it would keep what
    `backward` needs of one of them.
    """

    def __init__(self, *layers: Layer):
        strangers = [layer for layer in layers if not isinstance(layer, Layer)]
        inside = [] if strangers else [id(one) for layer in layers for _, one in layer.walk()]
        if strangers or len(set(inside)) < len(inside):
            raise InputError(f"{self}: expected layers, each once, given {', '.join(map(repr, layers))}")
        for number, layer in enumerate(layers):
            setattr(self, str(number), layer)

    def forward(self, x):
        for layer in self.children():
            x = layer.forward(x)
        return x

    def backward(self, gradient):
        for layer in reversed(self.children()):
            gradient = layer.backward(gradient)
        return gradient


class Residual(Sequential):
    """last(path(x) + shortcut(x)) (He et al. 2015, Fig. 2): of the layers defined, the last (a ReLU) follows the sum,
    the last but one is the shortcut, those before are the path."""

    def __init__(self, *layers: Layer):
        if len(layers) < 3:
            raise InputError(f"{self}: expected a path, a shortcut and a last layer, given {len(layers)} layers")
        super().__init__(*layers)

    def forward(self, x):
        *path, shortcut, last = self.children()
        y = x
        for layer in path:
            y = layer.forward(y)
        around = shortcut.forward(x)
        if around.shape != y.shape:
            raise InputError(f"{self}: expected a shortcut {y.shape}, as the path gives, given {around.shape}")
        return last.forward(y + around)

    def backward(self, gradient):
        *path, shortcut, last = self.children()
        gradient = last.backward(gradient)
        around = shortcut.backward(gradient)
        for layer in reversed(path):
            gradient = layer.backward(gradient)
        return gradient + around


class CrossEntropy(Layer):
    """The mean over a batch of −log softmax(logits)[label]; logits (N, classes), labels (N,) of whole numbers."""

    gradient: np.ndarray | None = None

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> float:
        self._expect(logits, "N", "classes")
        labels = np.asarray(labels)
        if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(f"{self}: expected {len(logits)} whole numbers as labels, given {labels.dtype} "
                             f"{labels.shape}")
        if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < logits.shape[1]:
            raise InputError(f"{self}: expected labels from 0 to {logits.shape[1] - 1}, given "
                             + (f"{labels.min()} to {labels.max()}" if len(labels) else "none"))
        shifted = logits - logits.max(1, keepdims=True)               # or e to the power of it could overflow
        log_sum = np.log(np.exp(shifted).sum(1))
        each = np.arange(len(labels))
        self.gradient = np.exp(shifted - log_sum[:, None])
        self.gradient[each, labels] -= 1
        self.gradient /= len(labels)
        return float((log_sum - shifted[each, labels]).mean())

    def backward(self) -> np.ndarray:
        """The gradient with respect to the logits, (N, classes)."""
        if self.gradient is None:
            raise InputError(f"{self}: expected a forward pass before the backward one")
        return self.gradient
