"""Batch norm, sum and ReLU on a GPU: two Triton kernels forward, two backward.

Like the passes in batchnorm.h: the first reads for the sums, the second for what they are needed for. Of a batch
nothing but x and, for the ReLU, y is kept between them. Sums are taken in an order that does not change, so that the
same batch gives the same bits.
"""

import torch
import triton
import triton.language as tl

TILE = 4096         # numbers that a program of a kernel holds at once


@triton.jit
def _tile(first, last, C: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of some pixels' channels, which of them lie inside the batch, and how many."""
    rows = first + tl.arange(0, ROWS)
    there = (rows < last)[:, None]
    at = rows.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    return at, there, tl.minimum(last - first, ROWS).to(tl.float32)


@triton.jit
def _moments(x, means, squares, R, SPAN, C: tl.constexpr, ROWS: tl.constexpr):
    """Of one group of pixels: each channel's mean, and the sum of its squared distances from it (Chan et al. 1983)."""
    group = tl.program_id(0)
    last = tl.minimum((group + 1) * SPAN, R)
    mean = tl.zeros([C], tl.float32)
    square = tl.zeros([C], tl.float32)
    seen = 0.0
    for first in range(group * SPAN, last, ROWS):
        at, there, n = _tile(first, last, C, ROWS)
        values = tl.load(x + at, mask=there, other=0).to(tl.float32)
        here = tl.sum(values, 0) / n
        apart = tl.where(there, values - here[None, :], 0.0)
        between = here - mean
        square += tl.sum(apart * apart, 0) + between * between * (seen * n / (seen + n))
        mean += between * (n / (seen + n))
        seen += n
    channels = tl.arange(0, C)
    tl.store(means + group * C + channels, mean)
    tl.store(squares + group * C + channels, square)


@triton.jit
def _normalise(x, add, y, means, squares, gamma, beta, running_mean, running_var, batches, mean_out, rstd_out, R, SPAN,
               momentum, eps, G: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
               RELU: tl.constexpr):
    """y = relu(γ·(x − mean)/√(var + ε) + β + add); the first program also keeps the moments and counts the batch."""
    tile, channels, group = tl.program_id(0), tl.arange(0, C), tl.arange(0, G)
    at = group[:, None] * C + channels[None, :]
    n = tl.maximum(tl.minimum(R - group * SPAN, SPAN), 0).to(tl.float32)[:, None]
    each = tl.load(means + at)
    mean = tl.sum(each * n, 0) / R
    between = each - mean[None, :]
    square = tl.sum(tl.load(squares + at) + between * between * n, 0)
    rstd = 1 / tl.sqrt_rn(square / R + eps)
    if tile == 0:
        tl.store(mean_out + channels, mean)
        tl.store(rstd_out + channels, rstd)
        before_mean, before_var = tl.load(running_mean + channels), tl.load(running_var + channels)
        tl.store(running_mean + channels, before_mean + momentum * (mean - before_mean))
        tl.store(running_var + channels, before_var + momentum * (square / (R - 1) - before_var))
        tl.store(batches, tl.load(batches) + 1)
    scale = tl.load(gamma + channels) * rstd
    shift = tl.load(beta + channels) - mean * scale
    at, there, _ = _tile(tile * ROWS, R, C, ROWS)
    value = tl.load(x + at, mask=there, other=0).to(tl.float32) * scale[None, :] + shift[None, :]
    if ADD:
        value += tl.load(add + at, mask=there, other=0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)              # NaN stays
    tl.store(y + at, value.to(y.dtype.element_ty), mask=there)


@triton.jit
def _sums(x, y, gradient, mean, rstd, sums, products, R, SPAN, C: tl.constexpr, ROWS: tl.constexpr, RELU: tl.constexpr):
    """Of one group of pixels: each channel's Σg and Σg·x̂, where g is the gradient past the ReLU."""
    group, channels = tl.program_id(0), tl.arange(0, C)
    last = tl.minimum((group + 1) * SPAN, R)
    centre, by = tl.load(mean + channels), tl.load(rstd + channels)
    total = tl.zeros([C], tl.float32)
    product = tl.zeros([C], tl.float32)
    for first in range(group * SPAN, last, ROWS):
        at, there, _ = _tile(first, last, C, ROWS)
        g = tl.load(gradient + at, mask=there, other=0).to(tl.float32)
        if RELU:
            g = tl.where(tl.load(y + at, mask=there, other=0).to(tl.float32) <= 0, 0.0, g)
        total += tl.sum(g, 0)
        product += tl.sum(g * (tl.load(x + at, mask=there, other=0).to(tl.float32) - centre[None, :]), 0)
    tl.store(sums + group * C + channels, total)
    tl.store(products + group * C + channels, product * by)


@triton.jit
def _gradients(x, y, gradient, mean, rstd, gamma, sums, products, to_x, to_add, to_gamma, to_beta, R, G: tl.constexpr,
               C: tl.constexpr, ROWS: tl.constexpr, RELU: tl.constexpr, TO_X: tl.constexpr,
               TO_ADD: tl.constexpr):
    """The gradients of γ, β, where asked of x, and of add where it is not y's (Ioffe & Szegedy 2015, Sec. 3)."""
    tile, channels = tl.program_id(0), tl.arange(0, C)
    at = tl.arange(0, G)[:, None] * C + channels[None, :]
    total, product = tl.sum(tl.load(sums + at), 0), tl.sum(tl.load(products + at), 0)
    if tile == 0:
        tl.store(to_beta + channels, total)
        tl.store(to_gamma + channels, product)
    centre, by = tl.load(mean + channels), tl.load(rstd + channels)
    at, there, _ = _tile(tile * ROWS, R, C, ROWS)
    g = tl.load(gradient + at, mask=there, other=0).to(tl.float32)
    if RELU:
        g = tl.where(tl.load(y + at, mask=there, other=0).to(tl.float32) <= 0, 0.0, g)
    if TO_ADD:
        tl.store(to_add + at, g.to(to_add.dtype.element_ty), mask=there)
    if TO_X:
        normal = (tl.load(x + at, mask=there, other=0).to(tl.float32) - centre[None, :]) * by[None, :]
        scale = tl.load(gamma + channels) * by
        to = scale[None, :] * (g - total[None, :] / R - normal * (product[None, :] / R))
        tl.store(to_x + at, to.to(to_x.dtype.element_ty), mask=there)


def layout(x: torch.Tensor) -> tuple[int, int, int, int]:
    """Pixels of the batch, pixels in a tile, groups for the sums, and pixels in a group: whole tiles."""
    channels = x.shape[1]
    pixels, rows = x.numel() // channels, max(1, TILE // channels)
    parts = min(128, max(32, TILE // channels))              # more for few channels, whose tiles are many
    return pixels, rows, parts, triton.cdiv(triton.cdiv(pixels, parts), rows) * rows


class BNReLU(torch.autograd.Function):
    """relu(batch_norm(x) + add) in training, without `relu` no ReLU; x, add and y channels-last, (N, C, H, W).

    There is no second derivative.
    """

    @staticmethod
    def forward(ctx, x, add, gamma, beta, running_mean, running_var, batches, momentum, eps, relu):
        channels, (pixels, rows, parts, span) = x.shape[1], layout(x)
        y = torch.empty_like(x)
        means, squares = x.new_empty((2, parts, channels), dtype=torch.float32)
        mean, rstd = x.new_empty((2, channels), dtype=torch.float32)
        _moments[(parts,)](x, means, squares, pixels, span, C=channels, ROWS=rows)
        _normalise[(triton.cdiv(pixels, rows),)](
            x, x if add is None else add, y, means, squares, gamma, beta, running_mean, running_var, batches, mean,
            rstd, pixels, span, momentum, eps, G=parts, C=channels, ROWS=rows, ADD=add is not None, RELU=relu)
        ctx.save_for_backward(x, y if relu else x, gamma, mean, rstd)
        ctx.relu = relu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, y, gamma, mean, rstd = ctx.saved_tensors
        x, y = (each.contiguous(memory_format=torch.channels_last) for each in (x, y))   # kept elsewhere, it may not be
        channels, (pixels, rows, parts, span) = x.shape[1], layout(x)
        for_x, for_add = ctx.needs_input_grad[:2]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sums, products = x.new_empty((2, parts, channels), dtype=torch.float32)
        to_gamma, to_beta = torch.empty_like(gamma), torch.empty_like(gamma)
        to_x = torch.empty_like(x) if for_x else None
        masked = torch.empty_like(gradient) if for_add and ctx.relu else None
        _sums[(parts,)](x, y, gradient, mean, rstd, sums, products, pixels, span, C=channels, ROWS=rows, RELU=ctx.relu)
        _gradients[(triton.cdiv(pixels, rows),)](
            x, y, gradient, mean, rstd, gamma, sums, products, to_x if for_x else x, gradient if masked is None
            else masked, to_gamma, to_beta, pixels, G=parts, C=channels, ROWS=rows, RELU=ctx.relu, TO_X=for_x,
            TO_ADD=masked is not None)
        to_add = masked if ctx.relu else gradient if for_add else None
        return to_x, to_add, to_gamma, to_beta, *6 * (None,)
