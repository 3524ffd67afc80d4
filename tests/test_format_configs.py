"""Fuzz of public configurations: every value changed in turn is refused by name, or honoured, or known to be irrelevant."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import clip_jax.pretrained
import dalle_jax.pretrained
import vqgan_jax.pretrained
from dalle_jax.unclip import pretrained as unclip_pretrained
from tests import formats
from tests.formats import GOLDEN, VQGAN, Format
from train_jax.compute import TransformerCompute
from train_jax.errors import LoadError
from vqgan_jax.prior import prior

CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json", "scheduler_config.json", "model_index.json")


def config_files(row: Format) -> list[Path]:
    """Lists the configurations of a golden, relative to its folder."""
    folder = GOLDEN / row.folder
    files = [file for file in folder.rglob("*") if file.name in CONFIGS or file.suffix in (".yaml", ".yml")]
    own = [file for file in files if row.path.is_file() and file.stem == row.path.stem]
    return sorted(file.relative_to(folder) for file in own or files)


ROWS = {row.golden: row for row in formats.FORMATS if config_files(row)}
# Golden, file and key, as `golden:file:key`, of what does not change the computation, and why.
IRRELEVANT = {
    r"(clip.*preprocessor_config|unclip.*:(?!text_encoder)[\w/]+)\.json:":
        "image processors, and diffusers' classes of the parts of an unCLIP, which list all that they know",
    r".*\.yaml:(|model|model\.(params|init_args))": "options of training, which differ between taming's derivatives",
    r"vqgan/(gumbel/stage2|taming-maps).*:model\.params\.(first_stage_config|transformer_config|cond_stage_config)":
        "a target and its params",
    r"vqgan/(gumbel/stage2|taming-maps).*:model\.params\.(first_stage_config|cond_stage_config)\.params":
        "options of training, too",
    r"vqgan/(gumbel/stage2|taming-maps).*:model\.params\.(cond_stage_key|.*temperature_scheduler_config.*)":
        "of training data and of training",
    r"vqgan/taming-maps.*:model\.params\.cond_stage_config\.params\.(n_labels|ddconfig\.out_ch)":
        "of colours and of the decoder, which are not read",
    r".*:open_clip_config\.json:(|preprocess_cfg)": "open_clip reads only what it knows",
    r".*:.*(_version|(^|\W)dtype|architectures\.\d|model_type|description)": "what wrote the file, and for which class",
    r".*:.*(dropout|drop|drop_path|pdrop|dropout_prob|gradient_checkpointing)": "of training",
    r".*:.*(initializer_factor|initializer_range|init_std|logit_scale_init_value|init_logit_\w+)": "initial values",
    r".*:.*(learning_rate|lossconfig.*|temperature_scheduler_config.*|beta|use_ema|\w*entropy\w*|\w+ization_weight|monitor)":
        "of training",
    r"clip.*:config\.json:(text|vision)_config\.(projection_dim|bos_token_id|eos_token_id|pad_token_id)":
        "the model's projection_dim counts, and the tokenizer's files tell its tokens",
    r"clip.*preprocessor_config\.json:do_convert_rgb": "images are always converted",
    r"clip/hf-chinese-clip:preprocessor_config\.json:(do_center_crop|crop_size(\.\w+)?)": "a crop of a square's size",
    r"clip/hf-chinese-clip:config\.json:text_config\.(type_vocab_size|use_cache)":
        "all tokens are of the first type; a cache is of decoders",
    r"clip.*:open_clip_config\.json:model_cfg\.(vision|text|multimodal)_cfg\.(timm|hf|attn_pooler)_\w+":
        "of parts that the model has not",
    r"clip.*:open_clip_config\.json:model_cfg\.\w+\.(output_tokens|pad_id|eos_id|tokenizer_kwargs|final_ln_after_pool)":
        "of outputs, tokenizers and poolings that the model has not",
    r"clip.*:open_clip_config\.json:model_cfg\.(custom_text|multimodal_cfg.*)":
        "the weights tell their names; captioning is left out",
    r"clip/open-clip-roberta:open_clip_config\.json:model_cfg\.text_cfg\.(vocab_size|width|heads|layers)":
        "the tower of hf_model_name has sizes of its own",
    r"vqgan.*:config\.json:(force_upcast|lookup_from_codebook|scaling_factor|num_resolutions)":
        "of 16 bits, of pipelines; derived",
    r"vqgan.*:config\.json:sample_size": "a size that the levels do not divide is a default, not the training's",
    r"dalle/dalle-mini.*:config\.json:(bos_token_id|eos_token_id|pad_token_id|do_sample|min_length|max_length|use_cache)":
        "of its sampler",
    r"dalle/dalle-mini.*:config\.json:(use_scan|use_subln_init|tau_init)": "of layout, initial values, cosine attention",
    r"dalle/dalle-mini.*:config\.json:image_vocab_size": "padding of the codes before decoder_start_token_id",
    r"dalle/rudalle.*:config\.json:model_params\.cogview_pb_relax": "the range of scores in 16 bits",
    r"dalle/llamagen-t2i:config\.json:num_classes": "of the models of classes",
    r"unclip/karlo:model_index\.json:\w+\.\d": "the folders' own configurations tell their classes",
    r".*:text_encoder/config\.json:(bos|pad)_token_id": "the tokenizer's files tell its tokens",
    r"unclip/karlo:super_res_last/config\.json:sample_size": "the size of the first network is that of both",
    r"unclip/karlo:(decoder|super_res_\w+)/config\.json:(downsample_\w+|upsample_type|num_train_timesteps|upcast_attention|"
    r"addition_\w+|use_linear_projection|\w*transformer_layers_per_block|projection_class\w+|attn_norm\w+)":
        "of blocks and embeddings that karlo has not",
    r"unclip/karlo:super_res_\w+/config\.json:attention_head_dim": "super resolution has no attention",
}  # fmt: skip
# What a refusal names instead of the key: a tensor, an option or a class that depends on it.
OTHER_NAMES = {"text_seq_length": "row_mask", "block_out_channels": "time_embed_dim", "target": "Net2NetTransformer"}
QUICK = ("clip/hf-clip", "clip/open-clip-training/epoch_3.pt", "vqgan/diffusers", "vqgan/taming/last.ckpt", "dalle/mindalle")


def walk(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of every leaf and of every mapping."""
    if isinstance(value, dict):
        yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from walk(value[key], (*path, key))
    else:
        yield path


def change(value: Any) -> Any:
    """Changes a value: a number is increased by 1, a boolean flipped, a string replaced, null set; a mapping gets a key."""
    if isinstance(value, dict):
        return value | {"unheard_of": 1}
    if isinstance(value, bool):
        return not value
    return 1 if value is None else value + 1 if isinstance(value, (int, float)) else "unheard_of"


def describe(row: Format, folder: Path) -> tuple[str, Any]:
    """Opens a copy of a golden. Returns what its computation is determined by, and a function that reads the weights."""
    path, family = folder / Path(row.golden).relative_to(row.folder), formats._family(row)
    if family is formats._Clip:
        checkpoint = clip_jax.pretrained.open_checkpoint(path)
        module = checkpoint.module()
        parts = (module.options, checkpoint.preprocess, checkpoint.tokenizer.fingerprint, checkpoint.tokenizer.eos_id)
        return repr(parts), lambda: checkpoint.variables(module)
    if family is formats._Vqgan:
        checkpoint = vqgan_jax.pretrained.open_checkpoint(path)
        module = checkpoint.module()
        return repr(module), lambda: checkpoint.variables(module)
    if family in (formats._Prior, formats._Dalle):
        vqgan = None if path.is_file() or "mindalle" in row.golden else VQGAN
        opened = (prior if family is formats._Prior else dalle_jax.pretrained).open_checkpoint(path, vqgan=vqgan)
        condition = {name: x for name, x in vars(opened.condition).items() if isinstance(x, (int, str, bool, tuple))}
        parts = (opened.options, condition, opened.condition.fingerprint, opened.size, opened.first_stage.module())
        cls = prior.Prior if family is formats._Prior else dalle_jax.Dalle
        return repr(parts), lambda: opened.load(cls, "float32")
    if row.golden == "unclip/eclipse":
        checkpoint = unclip_pretrained.replace_prior(unclip_pretrained.open_checkpoint(GOLDEN / "unclip" / "karlo"), path)
        read = ("prior",)
    else:
        checkpoint, read = unclip_pretrained.open_checkpoint(path), unclip_pretrained.checkpoint.PARTS
    names = ("prior", "decoder", "super_res", "prior_diffusion", "decoder_diffusion", "super_res_diffusion")
    parts = [getattr(checkpoint, name) for name in names] + [checkpoint.text.options, checkpoint.text.tokenizer.fingerprint]
    return repr(parts), lambda: [checkpoint.params(part, TransformerCompute()) for part in read]


def is_named(message: str, key: str, changed: Any) -> bool:
    """Returns whether a refusal names the key, the value, the option that it became, or a tensor with its shape."""
    seen = "unheard_of" if isinstance(changed, (str, dict)) else str(changed)
    names = (key, seen, "config.", "tensor(s)", " has shape ", " expected (", OTHER_NAMES.get(key, key))
    return any(name in message for name in names)


def fuzz(row: Format, folder: Path) -> Iterator[str]:
    """Changes every value of a golden's configurations in turn. Yields what is neither refused by name nor honoured."""
    original = describe(row, folder)[0]
    for file in config_files(row):
        text = (folder / file).read_text()
        read_text = json.loads if file.suffix == ".json" else yaml.safe_load
        for path in walk(read_text(text)):
            config = {"root": read_text(text)}
            section, keys = config, ("root", *path)
            for key in keys[:-1]:
                section = section[key]
            section[keys[-1]] = change(section[keys[-1]])
            (folder / file).write_text(json.dumps(config["root"]))
            place = f"{row.golden}:{file}:{'.'.join(map(str, path))}"
            key = next(key for key in reversed(keys) if isinstance(key, str))
            try:
                description, read = describe(row, folder)
                read()
                if description == original and not any(re.fullmatch(pattern, place) for pattern in IRRELEVANT):
                    yield f"{place} has no effect"
            except LoadError as error:
                if not is_named(str(error), key, section[keys[-1]]):
                    yield f"{place} is not named: {error}"
        (folder / file).write_text(text)


@pytest.mark.parametrize("golden", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in ROWS])
def test_every_value_of_a_configuration_is_refused_by_name_or_honoured(golden, tmp_path):
    row, folder = ROWS[golden], tmp_path / "golden"
    shutil.copytree(GOLDEN / row.folder, folder)
    with formats.TINY_ROBERTA:
        assert list(fuzz(row, folder)) == []
