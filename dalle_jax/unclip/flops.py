"""FLOP counts of the decoder of unCLIP, computed from its options: products of the forward pass for one example."""

from clip_jax.options import CLIPOptions, TextOptions
from dalle_jax.unclip.options import DecoderOptions, UNetOptions
from train_jax.profiling import conv_flops, dense_flops


def context_flops(options: DecoderOptions, text: TextOptions) -> int:
    """Counts the FLOPs of the context encoder."""
    dim, width = options.embed_dim, options.context_dim
    image = dense_flops(1, dim, width * options.image_tokens)
    return 2 * dense_flops(1, dim, 4 * options.channels[0]) + image + dense_flops(text.context_length, text.width, width)


def unet_flops(options: UNetOptions, out_channels: int, in_channels: int, clip: CLIPOptions | None = None) -> int:
    """Counts the FLOPs of a U-Net.

    Args:
      clip: options of the CLIP of a decoder, whose texts are a part of the context.
    """
    channels, blocks = options.channels, options.blocks
    embed = 4 * channels[0]
    tokens = clip.text.context_length + options.image_tokens if clip else 0

    def block(side: int, inputs: int, outputs: int) -> int:
        flops = conv_flops(side, side, 3, inputs, outputs) + conv_flops(side, side, 3, outputs, outputs)
        flops += conv_flops(side, side, 1, inputs, outputs) * (inputs != outputs)
        return flops + dense_flops(1, embed, (1 + options.scale_shift) * outputs)

    def attention(side: int, width: int) -> int:
        pixels = side**2
        flops = dense_flops(pixels, width, 4 * width) + 2 * dense_flops(tokens, options.context_dim, width)
        return flops + 2 * dense_flops(pixels, width, pixels + tokens)

    side, pixels = options.size // options.patch, options.patch**2
    total = conv_flops(side, side, 3, in_channels * pixels, channels[0])
    total += dense_flops(1, channels[0], embed) + dense_flops(1, embed, embed)
    skips, width = [channels[0]], channels[0]
    for level, outputs in enumerate(channels):
        for _ in range(blocks):
            total += block(side, width, outputs) + (attention(side, outputs) if level in options.attention else 0)
            width = outputs
            skips.append(width)
        if level + 1 < len(channels):
            side //= 2
            total += block(side, width, width)
            skips.append(width)
    total += 2 * block(side, width, width) + (attention(side, width) if options.attention else 0)
    for level in reversed(range(len(channels))):
        outputs = channels[level]
        for _ in range(blocks + 1):
            total += block(side, width + skips.pop(), outputs)
            total += attention(side, outputs) if level in options.attention else 0
            width = outputs
        if level:
            side *= 2
            total += block(side, width, width)
    return total + conv_flops(side, side, 3, width, out_channels * pixels)
