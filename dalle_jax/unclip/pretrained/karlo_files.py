"""Directories of karlo's own files (kakaobrain/karlo), as its trainer writes them: state dicts without configurations.

There is one such model. Sizes are read from the shapes of its tensors; what shapes do not tell is in karlo's `configs/`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from clip_jax.pretrained import open_checkpoint, text_tower
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.pretrained.checkpoint import UnclipCheckpoint
from dalle_jax.unclip.pretrained.karlo import list_entries
from train_jax.errors import LoadError
from train_jax.weights.layout import from_peer
from train_jax.weights.tensors import Tensor, open_tensors
from train_jax.weights.wrappers import unwrap
from vqgan_jax.pretrained.checkpoint import convert_errors

FILES = {
    "prior": "prior-ckpt-*.ckpt",
    "decoder": "decoder-ckpt-*.ckpt",
    "super_res": "improved-sr-ckpt-*.ckpt",
    "statistics": "*_stats.th",
    "clip": "ViT-L-14.pt",
}
HEAD_DIM, GROUPS, SIZES = 64, 32, (64, 256)  # karlo's configs/*.yaml; sides of the images of decoder and super resolution
_PRIOR_RANGE = 10.0  # karlo's prior_model.py; diffusers has 5
Tensors = dict[str, Tensor]


def open_directory(path: Path) -> UnclipCheckpoint | None:
    """Opens a directory of karlo's files. Returns None if it has none of the networks' files.

    Raises LoadError if one of the files is missing or not unique.
    """
    found = {name: sorted(path.glob(pattern)) for name, pattern in FILES.items()}
    if not (found["prior"] or found["decoder"] or found["super_res"]):
        return None
    for name, files in found.items():
        if len(files) != 1:
            held = f"holds {len(files)}" if files else "lacks karlo's"
            raise LoadError(f"{path} {held} {FILES[name]}: an unCLIP is one of each of {', '.join(FILES.values())}")
    files = {name: files[0] for name, files in found.items()}
    prior_tensors, decoder_tensors, super_res_tensors = (
        unwrap(open_tensors(files[name]), anchor, str(files[name]))
        for name, anchor in (
            ("prior", "model.clip_img_proj.weight"),
            ("decoder", "model.input_blocks.0.0.weight"),
            ("super_res", "model_first_steps.input_blocks.0.0.weight"),
        )
    )
    with convert_errors(path):
        tensors = {
            "prior": _rename_prior(_below(prior_tensors, "model.")) | _open_statistics(files["statistics"]),
            **_rename_decoder(_below(decoder_tensors, "model.")),
            "super_res_first": _rename_unet(_below(super_res_tensors, "model_first_steps.")),
            "super_res_last": _rename_unet(_below(super_res_tensors, "model_last_step.")),
        }
        prior, decoder = _infer_prior(tensors["prior"]), _infer_decoder(tensors["decoder"], tensors["context"])
        super_res = UNetOptions.parse(_infer_unet(tensors["super_res_first"], SIZES[1]), "super_res")
        tables = list_entries(prior, decoder, super_res)
    text = text_tower.from_clip(open_checkpoint(files["clip"]))

    def read(part: str) -> dict[str, np.ndarray]:
        return text.read() if part == "text_encoder" else from_peer(tensors[part], tables[part], f"{path}: {part}")

    diffusions = (Diffusion(prediction="x0", x0_range=_PRIOR_RANGE), Diffusion(learned_variance=True), Diffusion())
    return UnclipCheckpoint(str(path), text, prior, decoder, super_res, *diffusions, read)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _open_statistics(file: Path) -> Tensors:
    """Opens the pair of mean and standard deviation, by diffusers' names."""
    tensors = open_tensors(file)
    if sorted(tensors) != ["0", "1"]:
        raise LoadError(f"{file} holds {', '.join(tensors) or 'nothing'}; it must be the pair of mean and deviation")
    names = {"0": "clip_mean", "1": "clip_std"}
    return {names[key]: _reshape(x, (1, *x.shape)) for key, x in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' names


def _reshape(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, lambda: tensor.load().reshape(shape))


def _split(tensor: Tensor, parts: int, index: int) -> Tensor:
    """Returns queries, keys or values, whose rows in `tensor` alternate by head; of 1 x 1 convolutions, as a matrix."""
    shape = (tensor.shape[0] // parts, *tensor.shape[1:2])
    return Tensor(shape, lambda: tensor.load().reshape(-1, parts, HEAD_DIM, *shape[1:])[:, index].reshape(shape))


def _rename(tensors: Tensors, rules: Mapping[str, str]) -> Tensors:
    """Replaces the beginnings of names by the first rule whose pattern matches; other names are unchanged."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules.items():
            new, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                name = new
                break
        renamed[name] = tensor
    return renamed


def _split_attentions(tensors: Tensors, splits: Mapping[str, tuple[str, ...]]) -> Tensors:
    """Replaces layers by the layers that they hold, of the names in `splits`; `to_out.0` becomes a matrix."""
    separate = {}
    for name, tensor in tensors.items():
        *_, layer, kind = ["", *name.split(".")]
        if layer in splits:
            prefix = name.removesuffix(f"{layer}.{kind}")
            for index, part in enumerate(splits[layer]):
                separate[f"{prefix}{part}.{kind}"] = _split(tensor, len(splits[layer]), index)
        elif name.endswith("to_out.0.weight") and len(tensor.shape) == 3:
            separate[name] = _reshape(tensor, tensor.shape[:2])
        else:
            separate[name] = tensor
    return separate


_TIME = {r"time_embed\.0": "time_embedding.linear_1", r"time_embed\.2": "time_embedding.linear_2"}
_QKV = ("to_q", "to_k", "to_v")


def _rename_prior(tensors: Tensors) -> Tensors:
    block = r"transformer\.resblocks\.(\d+)\."
    rules = _TIME | {
        "clip_img_proj": "proj_in",
        "text_emb_proj": "embedding_proj",
        "text_enc_proj": "encoder_hidden_states_proj",
        "prd_emb": "prd_embedding",
        "final_ln": "norm_out",
        "out_proj": "proj_to_clip_embeddings",
        f"{block}ln_1": r"transformer_blocks.\1.norm1",
        f"{block}ln_2": r"transformer_blocks.\1.norm3",
        rf"{block}attn\.c_qkv": r"transformer_blocks.\1.attn1.c_qkv",
        rf"{block}attn\.c_proj": r"transformer_blocks.\1.attn1.to_out.0",
        rf"{block}mlp\.c_fc": r"transformer_blocks.\1.ff.net.0.proj",
        rf"{block}mlp\.c_proj": r"transformer_blocks.\1.ff.net.2",
    }
    return _split_attentions(_rename(tensors, rules), {"c_qkv": _QKV})


def _rename_decoder(tensors: Tensors) -> dict[str, Tensors]:
    """Separates the U-Net from the layers that make its context."""
    rules = {
        r"text_seq_proj\.0": "encoder_hidden_states_proj",
        r"text_seq_proj\.1": "text_encoder_hidden_states_norm",
        "clip_tok_proj": "clip_extra_context_tokens_proj",
        "text_feat_proj": "embedding_proj",
        "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
        "cf_param": "learned_classifier_free_guidance_embeddings",
    }
    context = {name for name in tensors if any(re.match(f"{pattern}(\\.|$)", name) for pattern in rules)}
    unet = _rename_unet({name: x for name, x in tensors.items() if name not in context})
    return {"context": _rename({name: tensors[name] for name in context}, rules), "decoder": unet}


def _rename_unet(tensors: Tensors) -> Tensors:
    layers = {
        r"in_layers\.0": "norm1", r"in_layers\.2": "conv1", r"emb_layers\.1": "time_emb_proj", r"out_layers\.0": "norm2",
        r"out_layers\.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0",
    }  # fmt: skip
    places = dict(_places(tensors))
    rules = _TIME | {r"input_blocks\.0\.0": "conv_in", r"out\.0": "conv_norm_out", r"out\.2": "conv_out"}
    named = {}
    for name, tensor in _rename(tensors, rules).items():
        place = re.match(r"(input_blocks\.\d+\.\d+|output_blocks\.\d+\.\d+|middle_block\.\d+)\.(.*)$", name)
        if place:
            layer = next(iter(_rename({place[2]: tensor}, {f"{pattern}(?=\\.)": new for pattern, new in layers.items()})))
            name = f"{places[place[1]]}.{layer}"
        named[name] = tensor
    return _split_attentions(named, {"qkv": _QKV, "encoder_kv": ("add_k_proj", "add_v_proj")})


def _places(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Yields the names of karlo's blocks and those of diffusers.

    A level has `blocks` residual blocks, each with attention or not, and one that resizes: its own block on the way down,
    and the end of the last of `blocks + 1` on the way up.
    """
    residual, attention = (
        {name.removesuffix(end) for name in tensors if name.endswith(end)} for end in (".in_layers.0.weight", ".qkv.weight")
    )
    resizes = {name for name in residual if name.startswith("output_blocks.") and not name.endswith(".0")}
    per_level = 1 + min(int(name.split(".")[1]) for name in resizes)
    for module in residual | attention:
        side, *numbers = module.split(".")
        kind = "resnets" if module in residual else "attentions"
        if side == "middle_block":
            is_last = int(numbers[0]) > 0 and module in residual
            yield module, f"mid_block.{kind}.{int(is_last)}"
            continue
        index = int(numbers[0]) - (side == "input_blocks")  # its block 0 is the first convolution
        level, position = divmod(index, per_level)
        if side == "input_blocks":
            is_resize = position == per_level - 1
            yield module, f"down_blocks.{level}." + ("downsamplers.0" if is_resize else f"{kind}.{position}")
        else:
            yield module, f"up_blocks.{level}." + ("upsamplers.0" if module in resizes else f"{kind}.{position}")


# ---------------------------------------------------------------------------------------------------------------------
# Options from shapes


def _count(tensors: Tensors, pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _infer_prior(tensors: Tensors) -> PriorOptions:
    width, embed_dim = tensors["proj_in.weight"].shape
    options = {
        "embed_dim": embed_dim,
        "text_length": tensors["positional_embedding"].shape[1] - 4,  # other tokens than the text's
        "width": width,
        "depth": _count(tensors, r"transformer_blocks\.(\d+)\."),
        "heads": width // HEAD_DIM,
    }
    return PriorOptions.parse(options, "prior")


def _infer_unet(tensors: Tensors, size: int) -> dict:
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    channels = tuple(tensors[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels))
    return {
        "size": size,
        "channels": channels,
        "blocks": _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "groups": GROUPS,
        "scale_shift": tensors["down_blocks.0.resnets.0.time_emb_proj.bias"].shape == (2 * channels[0],),
    }


def _infer_decoder(tensors: Tensors, context: Tensors) -> DecoderOptions:
    context_dim, embed_dim = context["encoder_hidden_states_proj.weight"].shape
    levels = {int(match[1]) for name in tensors if (match := re.match(r"down_blocks\.(\d+)\.attentions", name))}
    options = {
        "attention": tuple(sorted(levels)),
        "head_dim": HEAD_DIM,
        "embed_dim": embed_dim,
        "context_dim": context_dim,
        "image_tokens": context["clip_extra_context_tokens_proj.bias"].shape[0] // context_dim,
    }
    return DecoderOptions.parse(_infer_unet(tensors, SIZES[0]) | options, "decoder")
