"""Convolutions on feature maps [B, H, W, C], and blocks of convolutional autoencoders (arXiv 2012.09841, DDPM).

In mixed precision, a float32 kernel is rounded to bfloat16 for the convolution, but its gradient is accumulated in float32
over examples and devices (see `nn_jax.mixed_precision`).
"""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from nn_jax.attention import attend, platform
from nn_jax.layers import add_parameter, group_norm, with_axis_names
from nn_jax.mixed_precision import dot, save_only_inputs

# JAX computes the gradient with respect to the input with dimension numbers that swap the kernel's channels. XLA's CPU
# compiler optimises such convolutions only in the outermost computation; in the body of a `scan` it falls back to loops
# that are five times slower. So on a CPU the tangent uses swapped channels, and its transpose, the gradient, uses the
# standard order. On GPUs and TPUs the standard rule of `lax` is used.
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_SWAPPED_DIMENSIONS = ("NHWC", "HWOI", "NHWC")
# The gradient with respect to the kernel is a convolution whose window is the whole map and batch, for which XLA's CPU code
# is slow: a sixth of the speed of the forward pass at 256 x 256. So on a CPU it is computed by matrix products, one for each
# position of the kernel, on tiles of 1,024 pixels that stay in the cache (`benchmarks.convolutions`).
_TILE_SIDE = 32
_MAX_PRODUCTS = 64  # for larger kernels, such as of patches, XLA's own gradient is used
_FEW_CHANNELS = 16  # too few for a product: few outputs are joined over positions; of few inputs, XLA's own gradient is used
_Padding = tuple[tuple[int, int], tuple[int, int]]
_Strides = tuple[int, int]


def convolve(
    x: jax.Array, kernel: ArrayLike, strides: _Strides, padding: str | _Padding, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Convolves `x` [b, h, w, c] with a kernel [kh, kw, c, d], which is cast to the dtype of `x`.

    If the kernel's sides are the strides, as in the patch embedding of a ViT, it is a matrix product of patches.

    Args:
      padding: zeros before and after rows and columns, or "SAME" or "VALID".
      out_dtype: dtype of the output; None: that of `x`.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    fits = not any(size % stride for size, stride in zip(x.shape[1:3], strides, strict=True))
    if kernel.shape[:2] == strides != (1, 1) and fits and not any(map(any, padding)):
        return _multiply_patches(x, kernel, out_dtype)
    return _mixed_convolution(x, kernel, strides, padding, jnp.dtype(out_dtype or x.dtype))


def _multiply_patches(x, kernel, out_dtype):
    """Multiplies patches of the sides of the kernel with it. XLA's gradient of such a convolution is much slower."""
    (b, h, w, c), (rows, columns, *_) = x.shape, kernel.shape
    patches = x.reshape(b, h // rows, rows, w // columns, columns, c).swapaxes(2, 3)
    return dot(patches, kernel, 3, out_dtype)


def _convolution(x, kernel, strides: _Strides, padding: _Padding, out_dtype, dimensions=_DIMENSIONS):
    """Convolves `x` with a kernel of the same dtype."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=dimensions, preferred_element_type=out_dtype
    )


def _rounded_convolution(x, kernel, strides: _Strides, padding: _Padding, out_dtype):
    """Convolves `x` with a kernel cast to the dtype of `x`."""
    return _convolution(x, jnp.asarray(kernel, x.dtype), strides, padding, out_dtype)


def _convolution_by_products(x, kernel, strides: _Strides, padding: _Padding, out_dtype):
    """Convolves `x` with a kernel of the same dtype by matrix products, as the gradient with respect to the kernel does."""
    (n, *sizes, c), (*window, _, d) = x.shape, kernel.shape
    if math.prod(window) > _MAX_PRODUCTS or c <= _FEW_CHANNELS:
        return _convolution(x, kernel, strides, padding, out_dtype)
    positions = list(itertools.product(*map(range, window)))

    def shift(x, position, sides):
        """Slices the inputs of `sides` outputs at a position of the kernel."""
        row, column = (slice(i, i + (side - 1) * s + 1, s) for i, side, s in zip(position, sides, strides, strict=True))
        return x[:, row, column]

    out = [(size + sum(p) - k) // s + 1 for size, p, k, s in zip(sizes, padding, window, strides, strict=True)]
    counts = [-(-size // _TILE_SIDE) for size in out]  # of tiles in a column and in a row
    sides = [-(-size // count) for size, count in zip(out, counts, strict=True)]
    steps = [side * s for side, s in zip(sides, strides, strict=True)]
    spans = [(side - 1) * s + k for side, s, k in zip(sides, strides, window, strict=True)]
    margins = [
        (low, (count - 1) * step + span - low - size, 0)
        for (low, _), count, step, span, size in zip(padding, counts, steps, spans, sizes, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *margins, (0, 0, 0)))
    if d <= _FEW_CHANNELS:
        products = lax.dot_general(x, kernel.transpose(2, 0, 1, 3).reshape(c, -1), (((3,), (0,)), ((), ())))
        parts = lax.split(products, [d] * len(positions), axis=3)
        return sum(shift(part, position, out) for part, position in zip(parts, positions, strict=True))
    examples = max(i for i in range(1, n + 1) if n % i == 0 and (i == 1 or i * math.prod(sides) <= _TILE_SIDE**2))
    counts = (n // examples, *counts)
    # The transposes of these products multiply tiles as they are, [examples, h, w, channels], without transposed copies.
    kernels = list(kernel.swapaxes(2, 3).reshape(-1, d, c))

    @save_only_inputs
    def convolve_tile(index):
        i, row, column = jnp.unravel_index(index, counts)
        start = (i * examples, row * steps[0], column * steps[1], 0)
        tile = lax.dynamic_slice(x, start, (examples, *spans, c))
        parts = (shift(tile, position, sides) for position in positions)
        return sum(lax.dot_general(a, b, (((3,), (1,)), ((), ()))) for a, b in zip(parts, kernels, strict=True))

    y = lax.map(convolve_tile, jnp.arange(math.prod(counts))).reshape(*counts, examples, *sides, d)
    y = y.transpose(0, 3, 1, 4, 2, 5, 6).reshape(n, counts[1] * sides[0], counts[2] * sides[1], d)
    return y[:, : out[0], : out[1]]


_mixed_convolution = jax.custom_jvp(_rounded_convolution, nondiff_argnums=(2, 3, 4))


def _mixed_convolution_jvp(strides, padding, out_dtype, primals, tangents):
    """Computes the JVP; the kernel's tangent is convolved in float32."""
    (x, kernel), (dx, dkernel) = primals, tangents

    def in_float32(convolution):
        def apply(x, kernel):
            x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
            return convolution(x, kernel, strides, padding, jnp.float32).astype(out_dtype)

        return save_only_inputs(apply)

    terms = []
    if type(dx) is not SymbolicZero:

        def on_cpu(dx, kernel):
            return _convolution(dx, kernel.swapaxes(2, 3), strides, padding, out_dtype, _SWAPPED_DIMENSIONS)

        def elsewhere(dx, kernel):
            return _convolution(dx, kernel, strides, padding, out_dtype)

        # The transpose of a convolution needs operands of equal dtype, the dtype of the output.
        dx, rounded = dx.astype(out_dtype), kernel.astype(x.dtype).astype(out_dtype)
        if strides == (1, 1):
            terms.append(lax.platform_dependent(dx, rounded, cpu=on_cpu, default=elsewhere))
        else:
            terms.append(elsewhere(dx, rounded))
    if type(dkernel) is not SymbolicZero:
        is_one_device = jax.sharding.get_abstract_mesh().size <= 1
        convolution = in_float32(_convolution)
        if x.dtype == kernel.dtype:
            convolution = functools.partial(_convolution, strides=strides, padding=padding, out_dtype=out_dtype)
        elif platform() in ("gpu", "cuda") and is_one_device:
            # cuDNN has no kernel gradient of bfloat16 numbers with a float32 result: one that is summed in float32 and
            # rounded once, as no other device adds to it, is four times as fast as TF32.
            convolution = functools.partial(_rounded_convolution, strides=strides, padding=padding, out_dtype=out_dtype)
        # With several devices, a tile of examples of one of them would be sent to all.
        on_cpu = in_float32(_convolution_by_products) if is_one_device else convolution
        terms.append(lax.platform_dependent(x, dkernel, cpu=on_cpu, default=convolution))
    # As in `nn_jax.mixed_precision.dot`: visible to rematerialisation policies, unlike a custom_jvp.
    return _rounded_convolution(x, kernel, strides, padding, out_dtype), sum(terms[1:], terms[0])


_mixed_convolution.defjvp(_mixed_convolution_jvp, symbolic_zeros=True)


class Conv(nn.Module):
    """2D convolution [b, h, w, c] -> [b, h2, w2, features]. Parameters: `kernel` and `bias`.

    Attributes:
      window: side of the kernel.
      padding: zeros on every side; None: SAME, or VALID if the stride equals the window (patchify).
      std: standard deviation of the normal initialisation of the kernel; None: PyTorch's default variance, 1 / (3 fan_in);
        "he": He initialisation (arXiv 1502.01852).
      axes: logical names of the kernel's input and output channels.
      out_dtype: dtype of the output; see `nn_jax.layers.Dense`.
    """

    features: int
    window: int
    dtype: DTypeLike
    stride: int = 1
    padding: int | None = None
    bias: bool = True
    std: float | str | None = None
    axes: tuple[str, str] = ("channels_in", "channels_out")
    out_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Convolves `x`."""
        shape = (self.window, self.window, x.shape[-1], self.features)
        std = (3 * self.window**2 * x.shape[-1]) ** -0.5 if self.std is None else self.std
        init = nn.initializers.he_normal() if std == "he" else nn.initializers.normal(std)
        kernel = self.param("kernel", with_axis_names(init, "patch", "patch", *self.axes), shape)
        padding = ((self.padding,) * 2,) * 2
        if self.padding is None:
            padding = "VALID" if self.stride == self.window else "SAME"
        y = convolve(jnp.asarray(x, self.dtype), kernel, (self.stride, self.stride), padding, self.out_dtype)
        if not self.bias:
            return y
        return add_parameter(y, self.param("bias", with_axis_names(nn.initializers.zeros_init(), "norm"), (self.features,)))


class DepthwiseConv(nn.Module):
    """2D convolution of each channel by itself: [b, h, w, c] -> [b, h / stride, w / stride, c]. Parameters as `Conv`'s.

    The window has an odd side, with zeros on every side that keep the size if `stride` is 1.

    Attributes:
      std: standard deviation of the normal initialisation of the kernel; None: PyTorch's default variance.
    """

    window: int
    dtype: DTypeLike
    stride: int = 1
    std: float | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolves each channel of `x`."""
        std = 3**-0.5 / self.window if self.std is None else self.std
        init = with_axis_names(nn.initializers.normal(std), "patch", "patch", "channels_in", "channels_out")
        kernel = self.param("kernel", init, (self.window, self.window, 1, x.shape[-1]))
        by_channel = _sum_over_window if platform() == "cpu" else _convolve_by_channel
        y = by_channel(jnp.asarray(x, self.dtype), kernel, self.stride)
        return add_parameter(y, self.param("bias", with_axis_names(nn.initializers.zeros_init(), "norm"), x.shape[-1:]))


def _convolve_by_channel(x, kernel, stride: int):
    margins = ((kernel.shape[0] // 2,) * 2,) * 2
    options = {"dimension_numbers": _DIMENSIONS, "feature_group_count": x.shape[-1]}
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), margins, **options)


def _sum_over_window(x, kernel, stride: int):
    """Adds up the shifted map times the kernel at each position: ten times as fast on a CPU as XLA's convolution."""
    side, (height, width) = kernel.shape[0], ((n - 1) // stride + 1 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *((side // 2, side // 2),) * 2, (0, 0)))

    @save_only_inputs
    def add_row(padded, row, index):
        lines = lax.dynamic_slice_in_dim(padded, index, (height - 1) * stride + 1, axis=1)[:, ::stride]
        columns = (lines[:, :, i : i + (width - 1) * stride + 1 : stride] for i in range(side))
        return sum(column * row[i][None, None] for i, column in enumerate(columns))

    def step(total, inputs):
        return total + add_row(padded, *inputs), None

    start = jnp.zeros((x.shape[0], height, width, x.shape[-1]), jnp.float32)
    return lax.scan(step, start, (kernel.astype(jnp.float32), jnp.arange(side)))[0].astype(x.dtype)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by nearest-neighbour interpolation."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _is_convolution(primitive, *operands, **parameters) -> bool:
    del operands, parameters
    return primitive is lax.conv_general_dilated_p


# Rematerialisation policies of blocks, by the names of `nn_jax.transformer.REMAT`; "dots" saves convolutions.
REMAT = {"none": None, "full": jax.checkpoint_policies.nothing_saveable, "dots": _is_convolution}


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted at each position by a map `z` of fewer pixels (arXiv 2209.09002, section 3.2)."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], z: Float[Array, "b h2 w2 z"]) -> Float[Array, "b h w c"]:
        """Normalises `x`; `z` has its positions or fewer."""
        y = group_norm(self.groups, self.dtype, "norm")(x)
        # As 1 x 1 convolutions and nearest-neighbour interpolation commute, the smaller map is convolved.
        scale, shift = (Conv(x.shape[-1], 1, self.dtype, name=name)(z) for name in ("scale", "shift"))
        return y * _resize_nearest(scale, x) + _resize_nearest(shift, x)


def _resize_nearest(z: jax.Array, x: jax.Array) -> jax.Array:
    """Resizes a map to the height and width of `x`, which are multiples of its own."""
    return z.repeat(x.shape[1] // z.shape[1], axis=1).repeat(x.shape[2] // z.shape[2], axis=2)


def normalize(x: jax.Array, z: jax.Array | None, groups: int, dtype: DTypeLike, name: str) -> jax.Array:
    """Applies a group norm, which is a `SpatialNorm` if there is a map `z`."""
    return group_norm(groups, dtype, name)(x) if z is None else SpatialNorm(groups, dtype, name=name)(x, z)


class AdaptiveNorm(nn.Module):
    """Group norm, scaled and shifted per image by the deviation and the mean of a map `z` over its positions.

    The adaptive group norm of MAGVIT-v2's decoder (arXiv 2310.05737, section 3.2) as in Open-MAGVIT2. `z` must have at least
    two positions, since its variance is the unbiased one.
    """

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], z: Float[Array, "b h2 w2 z"]) -> Float[Array, "b h w c"]:
        """Normalises `x`; `z` may have any number of positions."""
        mean, variance = jnp.mean(z, axis=(1, 2), keepdims=True), jnp.var(z, axis=(1, 2), keepdims=True, ddof=1)
        scale = Conv(x.shape[-1], 1, self.dtype, name="scale")(jnp.sqrt(variance + 1e-6))
        options = {"epsilon": 1e-6, "dtype": self.dtype, "use_fast_variance": False}
        y = nn.GroupNorm(self.groups, use_bias=False, use_scale=False, **options)(x)
        return scale * y + Conv(x.shape[-1], 1, self.dtype, name="shift")(mean)


class ResidualBlock(nn.Module):
    """Residual block: x + conv(swish(norm(conv(swish(norm(x)))))), with norms conditioned on the map `z` if there is one.

    The shortcut is a 1 x 1 convolution if the number of channels changes.

    Attributes:
      bias: whether convolutions have a bias.
      late_shortcut: whether the shortcut's convolution is applied to the output of the other branch instead of `x`, as in
        MaskGIT's code.
    """

    features: int
    groups: int
    dropout: float
    dtype: DTypeLike
    bias: bool = True
    late_shortcut: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], deterministic: bool = True, z: Float[Array, "b h2 w2 z"] | None = None
    ) -> Float[Array, "b h w d"]:
        """Applies the block; `deterministic`: without dropout."""
        y = nn.swish(normalize(x, z, self.groups, self.dtype, "norm1"))
        y = Conv(self.features, 3, self.dtype, bias=self.bias, name="conv1")(y)
        y = nn.swish(normalize(y, z, self.groups, self.dtype, "norm2"))
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        y = Conv(self.features, 3, self.dtype, bias=self.bias, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, bias=self.bias, name="shortcut")(y if self.late_shortcut else x)
        return x + y


class AttentionBlock(nn.Module):
    """Residual attention block: x + attention(norm(x)) over all positions, with a single head; `z` as in `ResidualBlock`."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], z: Float[Array, "b h2 w2 z"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the block; sizes are kept."""
        b, h, w, c = x.shape
        y = normalize(x, z, self.groups, self.dtype, "norm")
        q, k, v = (Conv(c, 1, self.dtype, name=name)(y).reshape(b, h * w, 1, c) for name in "qkv")
        return x + Conv(c, 1, self.dtype, name="out")(attend(q, k, v).reshape(b, h, w, c))


class Downsample(nn.Module):
    """Downsampling by 2 by a 3 x 3 convolution of stride 2 with zero padding: at the bottom and right, or on all sides."""

    dtype: DTypeLike
    symmetric: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Halves the sides."""
        margins = (int(self.symmetric), 1)
        x = jnp.pad(x, ((0, 0), margins, margins, (0, 0)))
        return Conv(x.shape[-1], 3, self.dtype, stride=2, padding=0, name="conv")(x)


class Upsample(nn.Module):
    """Upsampling by 2: nearest-neighbour interpolation, then a 3 x 3 convolution."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Doubles the sides."""
        return Conv(x.shape[-1], 3, self.dtype, name="conv")(upsample_nearest(x))


class DepthToSpace(nn.Module):
    """Upsampling by 2: a 3 x 3 convolution to the channels of 2 x 2 pixels, ordered by row, column and channel."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Doubles the sides."""
        b, h, w, c = x.shape
        y = Conv(4 * c, 3, self.dtype, name="conv")(x).reshape(b, h, w, 2, 2, c)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)
