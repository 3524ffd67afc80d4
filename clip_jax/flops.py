"""FLOP counts of CLIP, computed from the model options."""

from collections.abc import Collection

from clip_jax.mci import DESIGNS
from clip_jax.options import CLIPOptions, ImageOptions
from train_jax.profiling import BACKWARD, conv_flops, dense_flops, transformer_flops


def forward_flops(options: CLIPOptions, max_patches: int = 0) -> tuple[int, int]:
    """Counts the FLOPs of the forward pass for one image and for one text.

    Args:
      max_patches: number of patches of an image of native aspect ratio, with its padding; 0: those of a square.
    """
    if options.image.tower == "vit":
        image = _vit_flops(options, max_patches=max_patches)
    else:
        image = {"resnet": _resnet_flops, "convnext": _convnext_flops, "mci": _mci_flops}[options.image.tower](options)
    tower = options.text
    tokens = tower.context_length + (tower.pool == "cls")
    text = transformer_flops(tokens, tower.width, tower.depth, tower.mlp_ratio)
    head = _projection_flops(tower.width, tower.proj_hidden, options.embed_dim) if tower.proj else 0
    return image, text + head


def training_flops(
    options: CLIPOptions,
    patch_dropout: float = 0.0,
    texts: int = 1,
    frozen: Collection[str] = (),
    max_patches: int = 0,
) -> float:
    """Counts the FLOPs of both towers' forward and backward pass for one image and its texts, without the logits.

    Args:
      frozen: "vision" or "text" for a tower that is not trained: it has no backward pass and drops no patches.
      max_patches: see `forward_flops`.
    """
    image, text = forward_flops(options, max_patches)
    if patch_dropout and "vision" not in frozen:
        image = _vit_flops(options, patch_dropout)
    passes = {tower: 1 if tower in frozen else BACKWARD for tower in ("vision", "text")}
    return float(passes["vision"] * image + passes["text"] * texts * text)


def _vit_flops(options: CLIPOptions, patch_dropout: float = 0.0, max_patches: int = 0) -> int:
    image = options.image
    grid = image.size // image.patch
    tokens = int((1 - patch_dropout) * (max_patches or grid**2)) + image.num_prefix
    if image.stem == "conv":
        stem, side, channels = 0, image.size, 3
        while side > grid:
            side //= 2
            out_channels = image.width * grid // side
            stem += conv_flops(side, side, 3, channels, out_channels)
            channels = out_channels
        stem += conv_flops(grid, grid, 1, channels, image.width)
    elif image.stem == "hmlp":
        hidden = image.width // 4
        stem = conv_flops(4 * grid, 4 * grid, 4, 3, hidden) + conv_flops(2 * grid, 2 * grid, 2, hidden, hidden)
        stem += conv_flops(grid, grid, 2, hidden, image.width)
    elif image.stem == "mbconv":
        stem = _mbconv_flops(image)
    else:
        stem = dense_flops(max_patches or grid**2, 3 * image.patch**2, image.width)
    body = transformer_flops(tokens, image.width, image.depth, image.mlp_ratio, image.gated)
    pooled = options.embed_dim if image.pool == "query" else image.width
    head = _projection_flops(pooled, image.proj_hidden, options.embed_dim) if image.proj else 0
    if image.pool == "query":
        head += _single_query_attention_flops(tokens, image.width, options.embed_dim, options.embed_dim)
    if image.pool == "map":
        hidden = round((image.pool_mlp_ratio or image.mlp_ratio) * image.width)
        head += _single_query_attention_flops(tokens, image.width, image.width) + 2 * dense_flops(
            1, image.width, hidden
        )
    return stem + body + head


def _mbconv_flops(image: ImageOptions) -> int:
    side, channels = image.size // 2, image.stem_channels
    total = conv_flops(side, side, 3, 3, channels) + conv_flops(side, side, 3, channels, channels)
    for stage, blocks in enumerate(image.stem_layers):
        features = image.stem_channels * 2**stage
        for block in range(blocks):
            total += dense_flops(side**2, channels, 4 * features)
            side = side if block else side // 2
            total += conv_flops(side, side, 3, 1, 4 * features) + dense_flops(side**2, 4 * features, features)
            total += dense_flops(side**2, channels, features) if channels != features else 0
            channels = features
    return total + conv_flops(side // 2, side // 2, 3, channels, image.width)


def _resnet_flops(options: CLIPOptions) -> int:
    image = options.image
    side = image.size // 2
    half = image.width // 2
    total = conv_flops(side, side, 3, 3, half) + conv_flops(side, side, 3, half, half)
    total += conv_flops(side, side, 3, half, image.width)
    side, channels = side // 2, image.width
    for stage, blocks in enumerate(image.layers):
        width = image.width * 2**stage
        for block in range(blocks):
            out_side = side // 2 if stage and not block else side
            total += conv_flops(side, side, 1, channels, width) + conv_flops(side, side, 3, width, width)
            total += conv_flops(out_side, out_side, 1, width, 4 * width)
            if not block:
                total += conv_flops(out_side, out_side, 1, channels, 4 * width)
            side, channels = out_side, 4 * width
    return total + _single_query_attention_flops(side**2 + 1, channels, options.embed_dim)


def _convnext_flops(options: CLIPOptions) -> int:
    image = options.image
    side, width = image.size // 4, image.width
    total = conv_flops(side, side, 4, 3, width)
    for stage, blocks in enumerate(image.layers):
        if stage:
            side, width = side // 2, 2 * width
            total += conv_flops(side, side, 2, width // 2, width)
        total += blocks * (conv_flops(side, side, 7, 1, width) + 2 * dense_flops(side**2, width, 4 * width))
    return total + _projection_flops(width, image.proj_hidden, options.embed_dim)


def _mci_flops(options: CLIPOptions) -> int:
    image, stages = options.image, len(options.image.layers)
    side, width, design = image.size // 4, image.width, DESIGNS[stages]
    total = conv_flops(2 * side, 2 * side, 3, 3, width) + conv_flops(side, side, 3, 1, width)
    total += dense_flops(side**2, width, width)
    for stage, blocks in enumerate(image.layers):
        if stage:
            side, width = side // 2, 2 * width
            total += conv_flops(side, side, 7, 1, width) + dense_flops(side**2, width, width)
            total += 2 * dense_flops(1, width, width // 4) if stage >= stages - design.exciting else 0
        mixer = conv_flops(side, side, 3, 1, width)
        if stage >= stages - design.attending:
            total += conv_flops(side, side, 7, 1, width)
            mixer = transformer_flops(side**2, width, 1, 0.0)
        mlp = 2 * dense_flops(side**2, width, design.mlp_ratio * width)
        total += blocks * (mixer + conv_flops(side, side, 7, 1, width) + mlp)
    total += conv_flops(side, side, 3, 1, 2 * width) + 2 * dense_flops(1, 2 * width, width // 8)
    return total + dense_flops(1, 2 * width, options.embed_dim)


def _projection_flops(width: int, hidden: int, embed_dim: int) -> int:
    return dense_flops(1, width, hidden) + dense_flops(1, hidden, embed_dim) if hidden else dense_flops(1, width, embed_dim)


def _single_query_attention_flops(tokens: int, width: int, features: int, query_width: int | None = None) -> int:
    """Counts the FLOPs of cross-attention from one query of `query_width` (None: `width`) to `tokens` keys."""
    inner = query_width or width
    projections = dense_flops(1, inner, inner) + dense_flops(tokens, width, 2 * inner)
    return projections + 2 * dense_flops(tokens, inner, 1) + dense_flops(1, inner, features)
