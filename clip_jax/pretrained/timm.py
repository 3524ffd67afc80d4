"""Image towers of timm in open_clip directories: options by the name of the trunk, and names of parameters.

The file of open_clip only names a trunk. Its sizes, activation and norms are those that timm 1.0 builds for the name. Of
SigLIP's trunks (`vit_*_siglip_*`) these are the tanh approximation of GELU for `base_patch32`, `large` at 512 pixels,
`so400m_patch16` and `giantopt`, and exact GELU for all others, although big_vision trained each with the approximation.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_jax.options import CLIPOptions, ImageOptions
from clip_jax.pretrained import mci
from clip_jax.pretrained.openai import batch_norm_entries, linear_entries, norm_entries
from train_jax.errors import ConfigError, LoadError
from train_jax.weights.layout import Entry
from train_jax.weights.tensors import Tensor

TRUNK = "visual.trunk"
_BACKBONE = f"{TRUNK}.patch_embed.backbone"  # of ViTamin and MobileCLIP
# One of these is present in every trunk that is supported; identifies the format.
ANCHORS = (
    f"{TRUNK}.patch_embed.proj.weight", f"{TRUNK}.stem.0.weight", f"{_BACKBONE}.stem.conv1.weight",
    f"{_BACKBONE}.0.conv.weight", f"{TRUNK}.final_conv.se.fc1.weight",
)  # fmt: skip
_POSITIONS = f"{TRUNK}.pos_embed"
_NAMES = (
    re.compile(r"vit_(?P<scale>[a-z0-9]+)_patch(?P<patch>\d+)_(?P<family>siglip|clip)_(?P<quick>quickgelu_)?(?P<size>\d+)"),
    re.compile(r"vit_(?P<family>pe_core)_(?P<scale>[a-z]+)_patch(?P<patch>\d+)_(?P<size>\d+)"),
    re.compile(r"(?P<family>eva02)_(?P<scale>[a-z]+)_patch(?P<patch>\d+)_clip_(?P<size>\d+)"),
    re.compile(r"(?P<family>eva)_(?P<scale>giant)_patch(?P<patch>14)_(?P<size>224)"),
    re.compile(r"vit_(?P<scale>base)_(?P<family>mci)_(?P<size>224)"),
    re.compile(r"(?P<family>fastvit)_(?P<scale>mci\d)"),
    re.compile(r"(?P<family>convnext)_(?P<scale>[a-z]+)"),
    re.compile(r"(?P<family>vitamin)_(?P<scale>[a-z]+2?)_(?P<size>\d+)"),
)
# What timm 1.0 has of these, by the name without size or scale: what can be written.
_NAMED = {
    "vit_base_patch16_siglip": (224, 256, 384, 512), "vit_base_patch32_siglip": (256,),
    "vit_large_patch16_siglip": (256, 384, 512), "vit_so400m_patch14_siglip": (224, 378, 384),
    "vit_so400m_patch16_siglip": (256, 384, 512), "vit_giantopt_patch16_siglip": (256, 384),
    "vit_base_patch16_clip": (224, 384, "quickgelu_224"), "vit_base_patch32_clip": (224, 256, 384, 448, "quickgelu_224"),
    "vit_large_patch14_clip": (224, 336, "quickgelu_224", "quickgelu_336"), "vit_pe_core_tiny_patch16": (384,),
    "vit_pe_core_small_patch16": (384,), "vit_pe_core_base_patch16": (224,), "vit_pe_core_large_patch14": (336,),
    "vit_pe_core_gigantic_patch14": (448,), "eva02_base_patch16_clip": (224,), "eva02_large_patch14_clip": (224, 336),
    "eva02_enormous_patch14_clip": (224,), "eva_giant_patch14": (224,), "vit_base_mci": (224,),
    "convnext": ("tiny", "small", "base", "large", "xlarge", "xxlarge"), "vitamin_small": (224,), "vitamin_base": (224,),
    "vitamin_large": (224, 256, 336, 384), "vitamin_xlarge": (256, 336, 384),
}  # fmt: skip
TRUNKS = tuple(f"{name}_{size}" for name, sizes in _NAMED.items() for size in sizes)
_VIT = {"base": (768, 12, 12, 4.0), "large": (1024, 24, 16, 4.0)}
# Width, depth, heads, and ratio of the MLP's width, by family and scale.
_SCALES = {
    "siglip": _VIT | {"so400m": (1152, 27, 16, 3.7362), "giantopt": (1536, 40, 16, 4.0)},
    "clip": _VIT,
    "mci": _VIT,
    "pe_core": _VIT | {"tiny": (192, 12, 3, 4.0), "small": (384, 12, 6, 4.0), "gigantic": (1536, 50, 16, 8960 / 1536)},
    "eva02": {"base": (768, 12, 12, 8 / 3), "large": (1024, 24, 16, 8 / 3), "enormous": (1792, 64, 16, 15360 / 1792)},
    "eva": {"giant": (1408, 40, 16, 6144 / 1408)},
}
# Width of the first stage, blocks of the stages and eps, by scale.
CONVNEXT = {
    "tiny": (96, (3, 3, 9, 3), 1e-6), "small": (96, (3, 3, 27, 3), 1e-6), "base": (128, (3, 3, 27, 3), 1e-6),
    "large": (192, (3, 3, 27, 3), 1e-6), "xlarge": (256, (3, 3, 27, 3), 1e-6), "xxlarge": (384, (3, 4, 30, 3), 1e-5),
}  # fmt: skip
# Channels and blocks of the stem, width, depth and heads.
VITAMIN = {
    "small": (64, (2, 4), 384, 14, 6), "base": (128, (2, 4), 768, 14, 12), "large": (160, (2, 4), 1024, 31, 16),
    "large2": (160, (2, 4), 1024, 31, 16), "xlarge": (192, (2, 4), 1152, 32, 16),
}  # fmt: skip
_SCALES |= {"convnext": CONVNEXT, "vitamin": VITAMIN, "fastvit": mci.MCI}
_TANH = re.compile(r"vit_(base_patch32_siglip|large_patch16_siglip_512|so400m_patch16|giantopt)")
_POOLS = {"siglip": "map", "pe_core": "map"}  # of the others: token
_PROJECTIONS = {"siglip": ("none",)}  # the others have the trunk's own
_EVA02_GRID = 16  # on whose coordinates its rotary positions are, at any size
_KWARGS = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "mlp_ratio": "mlp_ratio", "patch_size": "patch"}
_KWARGS |= {"img_size": "size"}


def match_name(name: str) -> re.Match | None:
    """Matches the name of a supported trunk: its scale, patch, family (of `_SCALES`) and size."""
    match = next((match for pattern in _NAMES if (match := pattern.fullmatch(name))), None)
    return match if match and match["scale"] in _SCALES[match["family"]] else None


def convert_options(config: Mapping, embed_dim: int, file: Path) -> dict:
    """Converts `vision_cfg` with a trunk of timm to the options of `ImageOptions`, with `activation` and `eps`.

    Raises LoadError for other trunks, and for another pooling, projection or image size than the trunk's.
    """
    name = config["timm_model_name"]
    match = match_name(str(name))
    if match is None:
        raise LoadError(
            f"{file}: vision_cfg.timm_model_name = {name!r}: this trunk of timm is not supported; supported are "
            "vit_SCALE_patchP_siglip_SIZE, vit_SCALE_patchP_clip_SIZE, vit_pe_core_SCALE_patchP_SIZE, "
            "eva02_SCALE_patchP_clip_SIZE, eva_giant_patch14_224, vit_base_mci_224, fastvit_mci0 to 4, convnext_SCALE and "
            "vitamin_SCALE_SIZE"
        )
    family = match["family"]
    if family == "convnext":
        return _convert_convnext(config, match["scale"], embed_dim, file)
    if family == "vitamin":
        return _convert_vitamin(config, match, embed_dim, file)
    if family == "fastvit":
        return _convert_mci(config, match["scale"], file)
    width, depth, heads, mlp_ratio = _SCALES[family][match["scale"]]
    sizes = {"size": int(match["size"]), "patch": 16 if family == "mci" else int(match["patch"])}
    sizes |= {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
    sizes |= _read_kwargs(config, _KWARGS, file)
    sizes["mlp_ratio"] = int(sizes["mlp_ratio"] * sizes["width"]) / sizes["width"]  # timm rounds down
    for key, allowed in (
        ("timm_pool", (_POOLS.get(family, "token"),)),
        ("timm_proj", _PROJECTIONS.get(family, (None, ""))),
        ("image_size", (sizes["size"],)),
    ):
        if config.get(key) not in allowed:
            raise LoadError(f"{file}: vision_cfg.{key} = {config.get(key)!r}; {name} has {allowed[0]!r}")
    if sizes["size"] % sizes["patch"]:
        sizes["drop_margin"] = True
    if family == "siglip":
        activation = "gelu_tanh" if _TANH.match(name) else "gelu"
        options = {"stem_bias": True, "pool": "map", "pre_norm": False, "proj": False}
        return {"tower": "vit", **sizes, **options, "activation": activation, "eps": 1e-6}
    if family == "pe_core":
        is_gigantic = match["scale"] == "gigantic"
        options = {"pool": "map", "pool_heads": 8, "pool_mlp_ratio": 4.0, "class_token": not is_gigantic, "proj_bias": True}
        options |= {"rope": "columns_first", "rope_offset": 0.0 if is_gigantic else 1.0}
        options |= {"rope_grid": int(match["size"]) // int(match["patch"])}
        return {"tower": "vit", **sizes, **options, "activation": "gelu", "eps": 1e-5}
    if family in ("eva", "eva02"):
        options = {"stem_bias": True, "pre_norm": False, "proj_bias": True, "key_bias": False}
        if family == "eva" or match["scale"] == "enormous":
            options |= {"branch_norms": "output"} if family == "eva02" else {}
            return {"tower": "vit", **sizes, **options, "activation": "gelu", "eps": 1e-6}
        options |= {"rope": "rows_first", "rope_grid": _EVA02_GRID, "gated": True, "branch_norms": "inner"}
        return {"tower": "vit", **sizes, **options, "activation": "silu", "eps": 1e-6}
    if family == "mci":
        options = {"stem": "hmlp", "pre_norm": False, "proj_bias": True}
        return {"tower": "vit", **sizes, **options, "activation": "gelu", "eps": 1e-6}
    activation = "quick_gelu" if match["quick"] else "gelu"
    return {"tower": "vit", **sizes, "proj_bias": True, "activation": activation, "eps": 1e-5}


def _convert_convnext(config: Mapping, scale: str, embed_dim: int, file: Path) -> dict:
    width, layers, eps = CONVNEXT[scale]
    kwargs = _read_kwargs(config, {"dims": "dims", "depths": "layers"}, file)
    if "dims" in kwargs:
        width = _check_doubled(kwargs["dims"], "dims", file)
    projection = _check_projection(config, embed_dim, file)
    layers = tuple(kwargs.get("layers", layers))
    options = {"size": config["image_size"], "width": width, "layers": layers, **projection}
    return {"tower": "convnext", **options, "activation": "gelu", "eps": eps}


def _check_doubled(widths: Sequence[int], key: str, file: Path) -> int:
    """Returns the width of the first stage. Raises LoadError unless each has twice that of the last."""
    width = widths[0]
    if list(widths) != [width * 2**stage for stage in range(len(widths))]:
        raise LoadError(f"{file}: vision_cfg.timm_model_kwargs.{key} = {widths!r}; each must be twice the last")
    return width


def _convert_mci(config: Mapping, scale: str, file: Path) -> dict:
    for key, value in (("timm_pool", "avg"), ("timm_proj", None)):
        if config.get(key) != value:
            raise LoadError(f"{file}: vision_cfg.{key} = {config.get(key)!r}; {config['timm_model_name']} has {value!r}")
    width, layers = mci.MCI[scale]
    kwargs = _read_kwargs(config, {"embed_dims": "widths", "layers": "layers"}, file)
    if "widths" in kwargs:
        width = _check_doubled(kwargs["widths"], "embed_dims", file)
    stages, layers = len(layers), tuple(kwargs.get("layers", layers))
    if len(layers) != stages or len(kwargs.get("widths", layers)) != stages:
        kwargs = config["timm_model_kwargs"]
        raise LoadError(f"{file}: vision_cfg.timm_model_kwargs = {kwargs!r}; fastvit_{scale} has {stages} stages")
    options = {"size": config["image_size"], "width": width, "layers": layers}
    return {"tower": "mci", **options, "activation": "gelu", "eps": 1e-5}


def _convert_vitamin(config: Mapping, match: re.Match, embed_dim: int, file: Path) -> dict:
    channels, layers, width, depth, heads = VITAMIN[match["scale"]]
    size = _read_kwargs(config, {"img_size": "size"}, file).get("size", int(match["size"]))
    has_positions = match["scale"] != "xlarge"
    if has_positions and config["image_size"] != size:
        raise LoadError(f"{file}: vision_cfg.image_size = {config['image_size']!r}; {match[0]} has {size}")
    options = {"size": config["image_size"], "patch": 16, "width": width, "depth": depth, "heads": heads, "mlp_ratio": 2.0}
    options |= {"stem": "mbconv", "stem_channels": channels, "stem_layers": layers, "learned_positions": has_positions}
    options |= {"pool": "mean", "norm_after_pool": True, "pre_norm": False, "gated": True, "branch_norms": "double"}
    return {"tower": "vit", **options, **_check_projection(config, embed_dim, file), "activation": "gelu", "eps": 1e-6}


def _check_projection(config: Mapping, embed_dim: int, file: Path) -> dict:
    """Converts the options of a pooled trunk whose projection is open_clip's: linear, or with a hidden layer."""
    for key, allowed in (("timm_pool", ("", None, "avg")), ("timm_proj", ("linear", "mlp"))):
        if config.get(key) not in allowed:
            raise LoadError(
                f"{file}: vision_cfg.{key} = {config.get(key)!r}; {config['timm_model_name']} has one of {allowed}"
            )
    options = {"proj_hidden": 2 * embed_dim} if config["timm_proj"] == "mlp" else {}
    return options | ({"proj_bias": True} if config.get("timm_proj_bias") else {})


def _read_kwargs(config: Mapping, names: Mapping[str, str], file: Path) -> dict:
    """Reads the arguments of a trunk by our `names`. Raises LoadError for others."""
    kwargs = config.get("timm_model_kwargs") or {}
    for key in kwargs:
        if key not in names:
            raise LoadError(f"{file}: vision_cfg.timm_model_kwargs.{key} is not supported; supported: {', '.join(names)}")
    return {names[key]: value for key, value in kwargs.items()}


def find_config(options: CLIPOptions) -> dict | None:
    """Finds the `vision_cfg` with a trunk of timm that is the image tower of a model. Returns None if there is none.

    Sizes that no name has are arguments of the trunk, which open_clip hands on from version 4.
    """
    image = options.image
    if image.tower not in ("vit", "convnext"):
        return None
    for has_kwargs in (False, True):
        for name in TRUNKS:
            if not has_kwargs and match_name(name).groupdict().get("size") not in (None, str(image.size)):
                continue
            config = _make_config(name, image) | ({"timm_model_kwargs": _make_kwargs(name, image)} if has_kwargs else {})
            with contextlib.suppress(LoadError, ConfigError):
                tower = convert_options(config, options.embed_dim, Path(name))
                layers = tower.pop("activation"), tower.pop("eps")
                if (ImageOptions.parse(tower, "image"), *layers) == (image, options.activation, options.eps):
                    return config
    return None


def _make_config(name: str, image: ImageOptions) -> dict:
    family = match_name(name)["family"]
    config = {"timm_model_name": name, "image_size": image.size, "timm_pool": _POOLS.get(family, "token")}
    if family in ("convnext", "vitamin"):
        projection = {"timm_proj": "mlp" if image.proj_hidden else "linear", "timm_proj_bias": image.proj_bias}
        return config | {"timm_pool": ""} | projection
    return config | {"timm_proj": _PROJECTIONS.get(family, (None,))[0]}


def _make_kwargs(name: str, image: ImageOptions) -> dict:
    family = match_name(name)["family"]
    if family == "convnext":
        return {"dims": [image.width * 2**i for i in range(4)], "depths": list(image.layers)}
    if family == "vitamin":
        return {"img_size": image.size}
    # timm rounds the width of MLPs down.
    sizes = dataclasses.asdict(image) | {"mlp_ratio": (round(image.mlp_ratio * image.width) + 0.5) / image.width}
    return {theirs: sizes[ours] for theirs, ours in _KWARGS.items() if (family, ours) != ("mci", "patch")}


def list_entries(image: Mapping) -> Iterator[Entry]:
    """Lists the parameters of an image tower with their names in timm. `image` has the options of `ImageOptions`."""
    entries = {"convnext": _convnext_entries, "mci": mci.list_entries}.get(image["tower"], _vit_entries)
    yield from entries(image)


def add_class_position(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the class token of MobileCLIP, which has no position, one of zeros before those of the patches."""
    if _POSITIONS not in tensors:
        return dict(tensors)  # the table names what is missing
    positions = tensors[_POSITIONS]
    _, length, width = positions.shape

    def load() -> np.ndarray:
        return np.pad(np.asarray(positions, np.float32), ((0, 0), (1, 0), (0, 0)))

    return {**tensors, _POSITIONS: Tensor((1, length + 1, width), load)}


def fold_class_position(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the position of MobileCLIP's class token to the token: the inverse of `add_class_position`."""
    positions = params["vision/positions"]
    return {**params, "vision/cls": params["vision/cls"] + positions[0], "vision/positions": positions[1:]}


def _convnext_entries(image: Mapping) -> Iterator[Entry]:
    yield from linear_entries("vision/stem", f"{TRUNK}.stem.0", "conv")
    yield from norm_entries("vision/norm_stem", f"{TRUNK}.stem.1")
    for stage, blocks in enumerate(image["layers"]):
        theirs = f"{TRUNK}.stages.{stage}"
        if stage:
            yield from norm_entries(f"vision/norm{stage + 1}", f"{theirs}.downsample.0")
            yield from linear_entries(f"vision/downsample{stage + 1}", f"{theirs}.downsample.1", "conv")
        for index in range(blocks):
            mine, block = f"vision/stage{stage + 1}_{index}", f"{theirs}.blocks.{index}"
            yield from linear_entries(f"{mine}/conv", f"{block}.conv_dw", "conv")
            yield from norm_entries(f"{mine}/norm", f"{block}.norm")
            yield from linear_entries(f"{mine}/mlp_in", f"{block}.mlp.fc1")
            yield from linear_entries(f"{mine}/mlp_out", f"{block}.mlp.fc2")
            yield Entry(f"{mine}/layer_scale", (f"{block}.gamma",))
    yield from norm_entries("vision/norm_post", f"{TRUNK}.head.norm")
    yield from _projection_entries(image)


def _projection_entries(image: Mapping) -> Iterator[Entry]:
    bias = image.get("proj_bias", False)
    if image.get("proj_hidden"):
        yield from linear_entries("vision/proj_hidden", "visual.head.mlp.fc1")
        yield from linear_entries("vision/proj", "visual.head.mlp.fc2", bias=bias)
    else:
        yield from linear_entries("vision/proj", "visual.head.proj", bias=bias)


def _vit_entries(image: Mapping) -> Iterator[Entry]:
    heads = image["heads"]
    is_vitamin = image.get("stem") == "mbconv"
    if is_vitamin:
        yield from _mbconv_entries(image)
    elif image.get("stem") == "hmlp":
        yield from _hmlp_entries()
    else:
        yield from linear_entries("vision/stem", f"{TRUNK}.patch_embed.proj", "conv", bias=image.get("stem_bias", False))
    if image.get("class_token", image.get("pool", "cls") == "cls"):
        yield Entry("vision/cls", (f"{TRUNK}.cls_token",), "vector")
    if image.get("learned_positions", True):
        yield Entry("vision/positions", (_POSITIONS,), "rows")
    if image.get("pre_norm", True):
        yield from norm_entries("vision/norm_pre", f"{TRUNK}.norm_pre")
    for index in range(image["depth"]):
        yield from _block_entries(f"vision/transformer/block_{index}", f"{TRUNK}.blocks.{index}", image)
    yield from norm_entries("vision/norm_post", f"{TRUNK}.{'fc_norm' if image.get('norm_after_pool') else 'norm'}")
    if image.get("pool") == "map":
        yield from _attention_pool_entries("vision/head", f"{TRUNK}.attn_pool", image.get("pool_heads", heads))
    if is_vitamin:
        yield from _projection_entries(image)
    elif image.get("proj", True):
        yield from linear_entries("vision/proj", f"{TRUNK}.head")


def _mbconv_entries(image: Mapping) -> Iterator[Entry]:
    ours, theirs, channels = "vision/stem", _BACKBONE, image["stem_channels"]
    for name in ("conv1", "conv2"):
        yield from linear_entries(f"{ours}/{name}", f"{theirs}.stem.{name}", "conv")
    yield from norm_entries(f"{ours}/norm1", f"{theirs}.stem.norm1")
    for stage, blocks in enumerate(image["stem_layers"]):
        features = image["stem_channels"] * 2**stage
        for index in range(blocks):
            mine, block = f"{ours}/stage{stage + 1}_{index}", f"{theirs}.stages.{stage}.{index}"
            yield from norm_entries(f"{mine}/norm", f"{block}.pre_norm")
            yield from linear_entries(f"{mine}/expand", f"{block}.conv1_1x1", "conv1x1_to_linear")
            yield from linear_entries(f"{mine}/conv", f"{block}.conv2_kxk", "conv")
            yield from linear_entries(f"{mine}/project", f"{block}.conv3_1x1", "conv1x1_to_linear")
            if channels != features:
                yield from linear_entries(f"{mine}/shortcut", f"{block}.shortcut.expand", "conv1x1_to_linear")
            channels = features
    yield from norm_entries(f"{ours}/norm", f"{theirs}.pool.norm")
    yield from linear_entries(f"{ours}/proj", f"{theirs}.pool.proj", "conv")


def _hmlp_entries() -> Iterator[Entry]:
    for index in range(2):
        yield from linear_entries(f"vision/stem/conv{index + 1}", f"{_BACKBONE}.{index}.conv", "conv", bias=False)
        yield from batch_norm_entries(f"vision/stem/norm{index + 1}", f"{_BACKBONE}.{index}.bn")
    yield from linear_entries("vision/stem/proj", f"{_BACKBONE}.2.conv", "conv")


def _block_entries(ours: str, theirs: str, image: Mapping) -> Iterator[Entry]:
    heads, attention, has_norms = image["heads"], f"{theirs}.attn", image.get("branch_norms") == "inner"
    is_double = image.get("branch_norms") == "double"
    yield from norm_entries(f"{ours}/norm1", f"{theirs}.norm1")
    yield from norm_entries(f"{ours}/norm2", f"{theirs}.norm2")
    is_joint = not has_norms  # EVA-02 has three products
    qkv = (f"{attention}.qkv.weight",) if is_joint else tuple(f"{attention}.{part}_proj.weight" for part in "qkv")
    yield Entry(f"{ours}/attention/qkv/kernel", qkv, "qkv", heads)
    if image.get("key_bias", True):
        yield Entry(f"{ours}/attention/qkv/bias", (f"{attention}.qkv.bias",), "qkv_bias", heads)
    else:
        biases = tuple(f"{attention}.{part}_bias" if is_joint else f"{attention}.{part}_proj.bias" for part in "qv")
        yield Entry(f"{ours}/attention/qv_bias", biases, "qv_bias", heads)
    yield from linear_entries(f"{ours}/attention/out", f"{attention}.proj", "merge_heads", heads)
    if has_norms:
        yield from norm_entries(f"{ours}/attention/norm", f"{attention}.norm")
    if has_norms or is_double:
        yield from norm_entries(f"{ours}/mlp_norm", f"{theirs}.mlp.norm")
    gate, entry, out = ("w0", "w1", "w2") if is_double else ("fc1_g", "fc1_x" if image.get("gated") else "fc1", "fc2")
    if image.get("gated"):
        yield from linear_entries(f"{ours}/mlp_gate", f"{theirs}.mlp.{gate}")
    yield from linear_entries(f"{ours}/mlp_in", f"{theirs}.mlp.{entry}")
    yield from linear_entries(f"{ours}/mlp_out", f"{theirs}.mlp.{out}")


def _attention_pool_entries(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    yield Entry(f"{ours}/probe", (f"{theirs}.latent",), "row")
    yield Entry(f"{ours}/attention/q/kernel", (f"{theirs}.q.weight",), "split_heads", heads)
    yield Entry(f"{ours}/attention/q/bias", (f"{theirs}.q.bias",), "heads_bias", heads)
    for index, name in enumerate("kv"):
        yield Entry(f"{ours}/attention/{name}/kernel", (f"{theirs}.kv.weight",), "split_heads", heads, index, 2)
        yield Entry(f"{ours}/attention/{name}/bias", (f"{theirs}.kv.bias",), "heads_bias", heads, index, 2)
    yield from linear_entries(f"{ours}/attention/out", f"{theirs}.proj", "merge_heads", heads)
    yield from norm_entries(f"{ours}/norm", f"{theirs}.norm")
    yield from linear_entries(f"{ours}/mlp_in", f"{theirs}.mlp.fc1")
    yield from linear_entries(f"{ours}/mlp_out", f"{theirs}.mlp.fc2")
