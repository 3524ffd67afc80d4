"""Model options of CLIP. The defaults are OpenAI's ViT-B/32 (arXiv 2103.00020, table 20)."""

import dataclasses
import math
from typing import Any

from nn_jax.layers import ACTIVATIONS
from nn_jax.transformer import BRANCH_NORMS
from train_jax.compute import TransformerCompute
from train_jax.errors import ConfigError
from train_jax.options import Options, option

STEM_STRIDE = 16  # pixels per position of the stems mbconv and hmlp
STRIDE = 32  # pixels per position of the last feature map of a tower that is no ViT
# Options of towers that are no ViT, which has all but the layers.
_OPTIONS = {
    "resnet": ("tower", "size", "width", "heads", "layers"),
    "convnext": ("tower", "size", "width", "layers", "proj_bias", "proj_hidden"),
    "mci": ("tower", "size", "width", "layers"),
}
# What a ViT of images of native aspect ratio must have.
_NATIVE = {
    "stem": ("patch",), "pool": ("map", "mean"), "rope": ("none",), "class_token": (False,), "learned_positions": (True,),
    "drop_margin": (False,), "registers": (0,),
}  # fmt: skip


def _check_heads(width: int, heads: int, path: str) -> None:
    if width % heads:
        raise ConfigError(f"config.{path}.heads = {heads} does not divide width = {width}")


@dataclasses.dataclass(frozen=True)
class ImageOptions(Options):
    """Options of the image tower: `config.model.image`."""

    added = (
        "pool_heads", "pool_mlp_ratio", "rope", "rope_offset", "rope_grid", "gated", "branch_norms", "key_bias",
        "class_token", "norm_after_pool", "proj_bias", "drop_margin", "proj_hidden", "stem_channels", "stem_layers",
        "learned_positions", "native", "qk_norm", "registers",
    )  # fmt: skip

    tower: str = option(
        "vit",
        "a ViT, OpenAI's ResNet with attention pooling, a ConvNeXt, or MobileCLIP's MCi, without the norms of its training",
        choices=("vit", "resnet", "convnext", "mci"),
    )
    size: int = option(224, "side of the images, in pixels", least=1)
    patch: int = option(32, "side of a ViT's patch, in pixels", least=1)
    width: int = option(768, "width of the residual stream; of a tower that is no ViT: of the first stage", least=1)
    depth: int = option(12, "number of blocks of a ViT", least=1)
    heads: int = option(12, "number of attention heads; of a ResNet: of the pooling", least=1)
    mlp_ratio: float = option(4.0, "width of the MLPs, in widths", above=0)
    stem: str = option(
        "patch",
        "patch embedding, several early convolutions (arXiv 2106.14881), two stages of inverted bottlenecks (ViTamin's), or "
        "three convolutions without overlap, with batch norms (hMLP, MobileCLIP-B's)",
        choices=("patch", "conv", "mbconv", "hmlp"),
    )
    stem_channels: int = option(64, "channels of the first stage of the stem mbconv, half of the second's", least=1)
    stem_layers: tuple[int, ...] = option((2, 4), "number of blocks in both stages of the stem mbconv", least=1)
    learned_positions: bool = option(True, "whether there are learned embeddings of positions")
    stem_bias: bool = option(False, "whether the patch embedding has a bias")
    pool: str = option(
        "cls",
        "pooling: class token, mean over patches, attention pooling with an MLP (map), or CoCa's without (query)",
        choices=("cls", "mean", "map", "query"),
    )
    pre_norm: bool = option(True, "whether there is a layer norm before the blocks")
    proj: bool = option(True, "whether there is a final linear projection; without it embed_dim must equal width")
    layers: tuple[int, ...] = option(
        (3, 4, 6, 3), "blocks of each stage of a tower that is no ViT: four stages, or five of an mci", least=1
    )
    pool_heads: int = option(0, "number of heads of the pools map and query; 0: heads", least=0)
    pool_mlp_ratio: float = option(0.0, "width of the MLP of the pool map, in widths; 0: mlp_ratio", least=0)
    rope: str = option(
        "none",
        "rotary embedding of patches, also besides learned positions: which coordinate turns the first half of a head",
        choices=("none", "rows_first", "columns_first"),
    )
    rope_offset: float = option(0.0, "coordinate of the first row and column of patches, for rope")
    rope_grid: int = option(0, "side of the grid whose coordinates are those of the patches, for rope; 0: theirs", least=0)
    gated: bool = option(False, "whether MLPs have a gate, with the activation silu SwiGLU (arXiv 2002.05202)")
    branch_norms: str = option("none", "further layer norms of blocks; see `nn_jax.transformer`", choices=BRANCH_NORMS)
    key_bias: bool = option(True, "whether the keys of the blocks have a bias")
    qk_norm: bool = option(False, "whether queries and keys of each head have layer norms (arXiv 2302.05442)")
    registers: int = option(
        0, "number of learned tokens beside the patches that no pool reads (registers, arXiv 2309.16588)", least=0
    )
    class_token: bool = option(False, "whether there is a class token beside the patches also with another pool than cls")
    norm_after_pool: bool = option(False, "whether the last layer norm follows the pooling, instead of preceding it")
    proj_bias: bool = option(False, "whether the final projection has a bias")
    proj_hidden: int = option(0, "width of a hidden layer with GELU in the final projection; 0: it is linear", least=0)
    drop_margin: bool = option(
        False, "whether pixels right of and below the last whole patch are dropped; otherwise patch must divide size"
    )

    native: bool = option(
        False,
        "whether images may keep their aspect ratio (NaFlex, arXiv 2502.14786): patches fill a budget, and positions of a "
        "square of size are resized to each image's grid",
    )

    @property
    def has_batch_norms(self) -> bool:
        """Whether the tower has batch norms, with running statistics: those of a ResNet or of the stem hmlp."""
        return self.tower == "resnet" or (self.tower == "vit" and self.stem == "hmlp")

    @property
    def has_class_token(self) -> bool:
        """Whether a class token precedes the patches."""
        return self.class_token or self.pool == "cls"

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches: registers and the class token."""
        return self.has_class_token + self.registers

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        options = _OPTIONS.get(self.tower)
        return {
            name: value
            for name, value in super().identity().items()
            if (name in options if options else name != "layers")
        }

    def check_in(self, path: str, embed_dim: int) -> None:
        """Raises ConfigError if the options are inconsistent, or cannot produce embeddings of `embed_dim`."""
        if self.tower == "vit":
            self._check_vit(path, embed_dim)
        else:
            self._check_stages(path)

    def _check_vit(self, path: str, embed_dim: int) -> None:
        _check_heads(self.width, self.heads, path)
        if self.size % self.patch and (not self.drop_margin or self.size < self.patch or self.stem == "conv"):
            raise ConfigError(f"config.{path}.patch = {self.patch} does not divide size = {self.size}")
        if self.stem == "conv":
            if self.patch & (self.patch - 1) or self.patch < 2:
                raise ConfigError(f"config.{path}.patch = {self.patch} must be a power of two with the conv stem")
            if self.width % (4 * self.patch):  # the first convolution has 2 * width / patch channels, in 8 groups
                raise ConfigError(
                    f"config.{path}.width = {self.width} must be a multiple of 4 * patch = {4 * self.patch} "
                    "with the conv stem"
                )
        stride = STEM_STRIDE
        if self.stem == "hmlp" and (self.patch != stride or self.size % stride or self.width % 4):
            raise ConfigError(
                f"config.{path}.stem = 'hmlp' needs patch = {stride}, a size that it divides and a width that 4 divides: "
                f"they are {self.patch}, {self.size} and {self.width}"
            )
        if self.stem == "mbconv" and (self.patch != stride or self.size % stride or len(self.stem_layers) != 2):
            raise ConfigError(
                f"config.{path}.stem = 'mbconv' needs patch = {stride}, a size of a multiple of it and two stem_layers: "
                f"they are {self.patch}, {self.size} and {self.stem_layers}"
            )
        if self.native:
            for name, allowed in _NATIVE.items():
                if getattr(self, name) not in allowed:
                    raise ConfigError(f"config.{path}.{name} = {getattr(self, name)!r} must be {allowed[0]!r} with native")
        if self.rope == "none" and (self.rope_offset or self.rope_grid):
            raise ConfigError(f"config.{path}.rope_offset and rope_grid have no meaning with config.{path}.rope = 'none'")
        if self.rope != "none" and self.width // self.heads % 4:
            raise ConfigError(
                f"config.{path}.heads = {self.heads} makes heads of {self.width // self.heads}; rope needs a multiple of 4"
            )
        pooled = embed_dim if self.pool == "query" else self.width
        if self.pool in ("map", "query") and pooled % (self.pool_heads or self.heads):
            raise ConfigError(
                f"config.{path}.pool_heads = {self.pool_heads or self.heads} does not divide {pooled}, the width of the pool"
            )
        if self.norm_after_pool and self.pool in ("map", "query"):
            raise ConfigError(f"config.{path}.norm_after_pool = True with pool = {self.pool!r}, whose norms have one place")
        if (self.proj_bias or self.proj_hidden) and not self.proj:
            raise ConfigError(f"config.{path}.proj_bias and proj_hidden need config.{path}.proj = True")
        if not self.proj and self.width != embed_dim:
            raise ConfigError(
                f"config.{path}.proj = False, so embed_dim = {embed_dim} must be image.width = {self.width}"
            )

    def _check_stages(self, path: str) -> None:
        stages = {4: "four", 5: "five"} if self.tower == "mci" else {4: "four"}
        if len(self.layers) not in stages:
            raise ConfigError(
                f"config.{path}.layers = {self.layers}; tower = {self.tower!r} has {' or '.join(stages.values())} stages "
                "of at least one block"
            )
        stride = STRIDE * 2 ** (len(self.layers) - 4)
        if self.size % stride:
            raise ConfigError(
                f"config.{path}.size = {self.size} must be a multiple of {stride} with the {len(self.layers)} stages of "
                f"tower = {self.tower!r}"
            )
        if self.tower == "convnext":
            return
        if self.tower == "mci":
            divisor = 8 if len(self.layers) == 4 else 4
            if self.width % divisor:
                raise ConfigError(f"config.{path}.width = {self.width} must be a multiple of {divisor} with an mci")
            return
        if self.width % 2 or (self.width * STRIDE) % self.heads:
            raise ConfigError(
                f"config.{path}.heads = {self.heads} must divide 32 * image.width = {STRIDE * self.width}"
            )


@dataclasses.dataclass(frozen=True)
class TextOptions(Options):
    """Options of the text tower: `config.model.text`."""

    added = ("proj", "activation", "eps", "branch_norms", "pad_id", "proj_hidden", "qk_norm")

    context_length: int = option(77, "number of tokens per text, including special tokens and padding", least=3)
    vocab_size: int = option(0, "number of rows of the token embedding; 0: vocabulary size of the tokenizer", least=0)
    width: int = option(512, "width of the residual stream", least=1)
    depth: int = option(12, "number of blocks", least=1)
    heads: int = option(8, "number of attention heads", least=1)
    mlp_ratio: float = option(4.0, "width of the MLPs, in widths", above=0)
    causal: bool = option(True, "whether attention is causal: tokens attend only to themselves and earlier tokens")
    pool: str = option(
        "eos",
        "pooled token: the end token, the token with the largest id (OpenAI's rule), the first or last position, or a class "
        "token after the text (CoCa's); or the mean over all tokens but pad_id",
        choices=("eos", "argmax", "first", "last", "cls", "mean"),
    )
    proj_bias: bool = option(False, "whether the final projection has a bias")
    proj: bool = option(True, "whether there is a final linear projection; without it embed_dim must equal width")
    activation: str = option("", "activation function of the MLPs; empty: that of the model", choices=("", *ACTIVATIONS))
    eps: float = option(0.0, "epsilon of the layer norms; 0: that of the model", least=0)
    branch_norms: str = option(
        "none",
        "further or other layer norms of blocks, see `nn_jax.transformer`; with post, as in BERT, there is also one of the "
        "embeddings, and none after the blocks",
        choices=BRANCH_NORMS,
    )
    qk_norm: bool = option(False, "whether queries and keys of each head have layer norms (arXiv 2302.05442)")
    pad_id: int = option(-1, "id of the padding, which is not attended to; -1: all tokens are attended to", least=-1)
    proj_hidden: int = option(
        0, "width of a hidden layer with GELU, without bias, in the final projection; 0: it is linear", least=0
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        _check_heads(self.width, self.heads, path)
        if self.pool == "last" and self.causal:
            raise ConfigError(f"config.{path}.pool = 'last' reads the padding: it needs config.{path}.causal = False")
        if self.pool == "first" and self.causal:
            raise ConfigError(f"config.{path}.pool = 'first' reads the first token: it needs config.{path}.causal = False")
        if self.pool in ("cls", "last") and self.pad_id >= 0:
            raise ConfigError(f"config.{path}.pad_id = {self.pad_id} must be -1 with config.{path}.pool = {self.pool!r}")


@dataclasses.dataclass(frozen=True)
class CLIPOptions(Options):
    """Options of the model: `config.model`."""

    embed_dim: int = option(512, "dimension of the embeddings of images and texts", least=1)
    image: ImageOptions = ImageOptions()
    text: TextOptions = TextOptions()
    activation: str = option("quick_gelu", "activation function of the MLPs", choices=ACTIVATIONS)
    eps: float = option(1e-5, "epsilon of all layer norms", above=0)
    loss: str = option(
        "softmax", "contrastive loss; with sigmoid (SigLIP) the logits have a bias", choices=("softmax", "sigmoid")
    )
    init_logit_scale: float = option(math.log(1 / 0.07), "initial log of the scale; SigLIP: log 10", identity=False)
    init_logit_bias: float = option(-10.0, "initial logit bias of the sigmoid loss", identity=False)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.image.check_in(f"{path}.image", self.embed_dim)
        if not self.text.proj and (self.text.width != self.embed_dim or self.text.proj_bias or self.text.proj_hidden):
            raise ConfigError(
                f"config.{path}.text.proj = False, so embed_dim = {self.embed_dim} must be text.width = {self.text.width}, "
                "text.proj_bias False and text.proj_hidden 0"
            )


@dataclasses.dataclass(frozen=True)
class CLIPCompute(TransformerCompute):
    """Options of the computation of the towers: `config.compute`."""

    micro_batch: int = option(
        0, "maximum number of examples per device that a tower encodes at a time; 0: all", least=0
    )
    text_lengths: tuple[int, ...] = option(
        (), "lengths to which micro-batches of shorter texts are cut, such as 16, 32; for causal towers", least=1
    )
