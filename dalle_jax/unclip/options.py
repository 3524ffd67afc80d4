"""Model options of the networks of unCLIP. The defaults are those of karlo (kakaobrain/karlo)."""

import dataclasses

from train_jax.options import Options, option

PRIOR_TYPES = ("diffusion", "autoregressive", "linear")


@dataclasses.dataclass(frozen=True)
class PriorModelOptions(Options):
    """Options of the prior that do not follow from its CLIP (arXiv 2204.06125, section 2.2)."""

    type: str = option(
        "diffusion",
        "a diffusion model, an autoregressive model of quantised principal components, or a linear map of the text "
        "embedding as their baseline",
        choices=PRIOR_TYPES,
    )
    width: int = option(2048, "width of the residual stream", least=2)
    depth: int = option(20, "number of blocks", least=1)
    heads: int = option(32, "number of attention heads", least=1)
    components: int = option(
        319, "number of principal components of embeddings that an autoregressive prior models, from the largest", least=1
    )
    buckets: int = option(1024, "number of values to which an autoregressive prior quantises each component", least=2)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(self.width % 2 == 0, path, "width", "even: a sine and a cosine for each frequency of the timestep")
        self.require(self.width % self.heads == 0, path, "heads", f"a divisor of {path}.width = {self.width}")


@dataclasses.dataclass(frozen=True)
class PriorOptions(PriorModelOptions):
    """Options of the prior, with those that follow from its CLIP."""

    embed_dim: int = option(768, "dimension of CLIP's embeddings", least=1)
    text_length: int = option(77, "number of text tokens", least=1)
    time_token: bool = option(
        True, "whether the sequence has the timestep; False: one step from noise, no diffusion (ECLIPSE, arXiv 2312.04655)"
    )

    @property
    def length(self) -> int:
        """Number of tokens of `PriorTransformer`: of the text, text embedding, timestep, image embedding, final token."""
        return self.text_length + 3 + self.time_token

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        super().check(path)
        is_possible = self.type != "autoregressive" or self.components <= self.embed_dim
        self.require(is_possible, path, "components", f"in [1, {self.embed_dim}], the dimension of CLIP's embeddings")


@dataclasses.dataclass(frozen=True)
class UNetOptions(Options):
    """Options of a U-Net without attention: an upsampler (arXiv 2204.06125, section 2.1)."""

    added = ("patch",)
    size: int = option(256, "side of the images in pixels", least=1)
    patch: int = option(
        1, "side of the patches of pixels that are the positions of the highest resolution (arXiv 2301.11093)", least=1
    )
    channels: tuple[int, ...] = option((320, 640, 960, 1280), "channels of each level, from the highest resolution", least=2)
    blocks: int = option(3, "number of residual blocks of a level; on the way up, one more", least=1)
    groups: int = option(32, "number of groups of group norms", least=1)
    scale_shift: bool = option(
        False, "whether the timestep scales and shifts the normalised features, or is added before the norm"
    )

    @property
    def factor(self) -> int:
        """Side in pixels of a position of the lowest resolution."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def attention(self) -> tuple[int, ...]:
        """Levels with attention, 0 is the highest resolution."""
        return ()

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(bool(self.channels), path, "channels", "one or more numbers")
        self.require(self.channels[0] % 2 == 0, path, "channels", "even: sines and cosines of the timestep")
        is_divisible = all(channels % self.groups == 0 for channels in self.channels)
        self.require(is_divisible, path, "groups", f"a divisor of all {path}.channels = {self.channels}")
        levels = f"for {len(self.channels)} levels of patches of {self.patch}"
        self.require(self.size % self.factor == 0, path, "size", f"divisible by {self.factor}, {levels}")


@dataclasses.dataclass(frozen=True)
class DecoderModelOptions(UNetOptions):
    """Options of the decoder that do not follow from its CLIP: a U-Net with attention to a context, and its projections."""

    size: int = option(64, "side of the images in pixels", least=1)
    scale_shift: bool = option(
        True, "whether the timestep scales and shifts the normalised features, or is added before the norm"
    )
    attention: tuple[int, ...] = option(
        (1, 2, 3), "levels with attention, 0 is the highest resolution; the middle has it too", least=0
    )
    head_dim: int = option(64, "channels of an attention head", least=1)
    context_dim: int = option(1536, "width of the context's tokens", least=1)
    image_tokens: int = option(4, "number of context tokens that are made of the image embedding", least=1)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        super().check(path)
        levels = tuple(range(len(self.channels)))
        is_known = bool(self.attention) and set(self.attention) <= set(levels)
        self.require(is_known, path, "attention", f"one or more of the levels {levels}")
        widths = [self.channels[level] for level in {*self.attention, levels[-1]}]
        self.require(
            all(width % self.head_dim == 0 for width in widths), path, "head_dim", f"a divisor of the channels {widths}"
        )


@dataclasses.dataclass(frozen=True)
class DecoderOptions(DecoderModelOptions):
    """Options of the decoder, with those that follow from its CLIP."""

    embed_dim: int = option(768, "dimension of CLIP's embeddings", least=1)
