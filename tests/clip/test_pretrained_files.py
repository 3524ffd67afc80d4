"""Weight files with another configuration, wrapped by trainers, in 8 bits, damaged, or without weights.

Each is opened with the peer's outputs, or raises a LoadError that names the defect.
"""

import contextlib
import json
import logging
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.pretrained import LoadError, open_checkpoint
from train_jax.data.sentencepiece import SentencePiece

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"
OPEN_CLIP, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden folder, for changes."""
    return lambda kind: Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))


def edit(file: Path, *path, **changes) -> None:
    content = json.loads(file.read_text())
    part = content
    for key in path:
        part = part[key]
    part.update(changes)
    file.write_text(json.dumps(content))


def rename(file: Path, pattern: str, target: str | None = None, **more) -> Path:
    """Writes the tensors of a safetensors file under other names to the file `target`."""
    tensors = {pattern.format(name): x for name, x in load_file(file).items()}
    save_file(tensors | more, file.with_name(target or file.name))
    return file.with_name(target or file.name)


def assert_peers_numbers(path: Path, kind: str) -> None:
    expected = np.load(GOLDEN / kind / "expected.npz")
    embeddings = clip_jax.load(path).encode_image(sorted((GOLDEN / kind / "pictures").iterdir()))
    np.testing.assert_allclose(embeddings, expected["image"], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# A file and the configuration beside it


@pytest.mark.parametrize(
    "kind, file, config",
    [
        ("open-clip", WEIGHTS, OPEN_CLIP),
        ("open-clip-quick", "open_clip_pytorch_model.bin", OPEN_CLIP),
        ("open-clip-training", "epoch_3.pt", OPEN_CLIP),
        ("hf-clip-legacy", "model.safetensors", "config.json"),
    ],
)
def test_a_weight_file_is_opened_with_the_configuration_in_its_directory(kind, file, config, copy):
    folder = copy(kind)
    in_folder = open_checkpoint(folder) if kind != "open-clip-training" else open_checkpoint(folder / file)
    checkpoint = open_checkpoint(folder / file)
    for attribute in ("kind", "model", "preprocess"):
        assert getattr(checkpoint, attribute) == getattr(in_folder, attribute)
    (folder / config).unlink()
    with pytest.raises(LoadError, match=f"{file} does not record activation|{config} is missing"):
        open_checkpoint(folder / file)


def test_a_file_of_open_clip_has_the_numbers_of_open_clip():
    assert_peers_numbers(GOLDEN / "open-clip" / WEIGHTS, "open-clip")


def test_a_configuration_as_open_clip_ships_them_will_do(copy):
    folder = copy("open-clip")
    config = json.loads((folder / OPEN_CLIP).read_text())["model_cfg"]
    (folder / OPEN_CLIP).write_text(json.dumps(config))
    assert open_checkpoint(folder / WEIGHTS).model == open_checkpoint(GOLDEN / "open-clip").model


@pytest.mark.parametrize("kind, file", [("openai-vit", "ViT-tiny.pt"), ("openai-resnet", "RN-tiny.pt")])
def test_openais_files_ignore_other_configurations_in_their_directory(kind, file, copy):
    folder = copy(kind)
    shutil.copy(GOLDEN / "open-clip" / OPEN_CLIP, folder)
    checkpoint = open_checkpoint(folder / file)
    assert checkpoint.kind == "OpenAI" and checkpoint.model["activation"] == "quick_gelu"


def test_a_directory_of_two_configurations_logs_which_is_used(copy, caplog):
    caplog.set_level(logging.WARNING)
    folder = copy("hf-clip")
    for file in (OPEN_CLIP, WEIGHTS):
        shutil.copy(GOLDEN / "open-clip" / file, folder)
    assert open_checkpoint(folder).kind == "Hugging Face clip" and not caplog.records  # they agree
    edit(folder / OPEN_CLIP, "preprocess_cfg", resize_mode="squash")
    assert open_checkpoint(folder).preprocess.mode == "crop_floor"
    (record,) = caplog.records
    assert "two configurations have different image preprocessing" in record.getMessage()
    assert open_checkpoint(folder / WEIGHTS).preprocess.mode == "squash"
    caplog.clear()
    (folder / "model.safetensors").unlink()  # what is left is open_clip's
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.kind, checkpoint.preprocess.mode, len(caplog.records)) == ("open_clip", "squash", 1)


def test_one_of_two_configurations_may_be_unsupported(copy, caplog):
    caplog.set_level(logging.WARNING)
    folder = copy("hf-clip")
    shutil.copy(GOLDEN / "open-clip" / OPEN_CLIP, folder)
    edit(folder / OPEN_CLIP, "preprocess_cfg", resize_mode="longest")
    open_checkpoint(folder)
    assert "resize_mode = 'longest' is not supported" in caplog.records[0].getMessage()


def test_the_older_configuration_overrides(copy):
    """As in transformers' CLIPConfig: what text_config_dict leaves out has its default there, whatever text_config says."""
    folder = copy("hf-clip-legacy")
    sizes = json.loads((folder / "config.json").read_text())["text_config"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "vocab_size")
    older = {name: sizes[name] for name in names} | {"num_attention_heads": 2, "eos_token_id": 2}
    edit(folder / "config.json", text_config_dict=older, vision_config_dict=None)
    edit(folder / "config.json", "vision_config", hidden_act="quick_gelu")
    model = open_checkpoint(folder).model
    assert (model["activation"], model["text"]["heads"], model["image"]["heads"]) == ("quick_gelu", 2, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Wrappers of trainers, other precisions


@pytest.mark.parametrize("pattern", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "state_dict.model.{}"])
@pytest.mark.parametrize("kind, file", [("hf-clip", "model.safetensors"), ("open-clip", WEIGHTS)])
def test_prefixes_of_trainers_are_stripped(kind, file, pattern, copy):
    folder = copy(kind)
    more = {} if pattern.startswith("_orig_mod") else {"optimizer": np.zeros(3)}  # left out with the model's own names
    rename(folder / file, pattern, **more)
    original = open_checkpoint(GOLDEN / kind).read()[0]
    for name, x in open_checkpoint(folder).read()[0].items():
        np.testing.assert_array_equal(x, original[name], err_msg=name)


def test_prefixes_of_separately_compiled_modules_are_stripped(copy):
    folder = copy("open-clip")
    tensors = load_file(folder / WEIGHTS)
    compiled = {name.replace("visual.", "visual._orig_mod.", 1): x for name, x in tensors.items()}
    save_file(compiled, folder / WEIGHTS)
    assert open_checkpoint(folder).read()[0].keys() == open_checkpoint(GOLDEN / "open-clip").read()[0].keys()


def test_two_models_in_a_file_are_refused(copy):
    folder = copy("open-clip")
    average = {f"ema.{name}": x for name, x in load_file(folder / WEIGHTS).items()}
    rename(folder / WEIGHTS, "model.{}", **average)
    with pytest.raises(LoadError, match=r"holds 2 models, under 'ema\.', 'model\.'"):
        open_checkpoint(folder)


def test_half_precision_by_its_name(copy):
    folder = copy("hf-clip")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert open_checkpoint(folder).files.startswith("model.fp16.safetensors")


def eight_bits(file: Path, dtype, name: str, **more) -> None:
    """Writes the file again in 8 bits, by hand, as safetensors' NumPy side cannot: the header's length, the header, data."""
    arrays = {key: (name, x.astype(dtype)) if x.ndim else ("F32", x) for key, x in load_file(file).items()}
    header, data = {}, b""
    for key, (kind, x) in (arrays | more).items():
        content = np.ascontiguousarray(x).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[key], data = {"dtype": kind, "shape": list(x.shape), "data_offsets": offsets}, data + content
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_weights_of_integers_are_refused(copy):
    folder = copy("hf-clip")
    file, name = folder / "model.safetensors", "visual_projection.weight"
    weights = load_file(file)
    save_file({**weights, name: weights[name].astype(np.int8)}, file)
    with pytest.raises(LoadError, match="visual_projection.weight is int8; quantised weights are not supported"):
        clip_jax.load(folder)


@pytest.mark.parametrize("dtype, name", [(ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2")])
def test_weights_of_eight_bits(dtype, name, copy):
    folder = copy("hf-clip")
    eight_bits(folder / "model.safetensors", dtype, name)
    original = open_checkpoint(GOLDEN / "hf-clip").read()[0]
    for key, x in open_checkpoint(folder).read()[0].items():
        expected = original[key].astype(dtype if x.ndim else np.float32).astype(np.float32)
        np.testing.assert_array_equal(x, expected, err_msg=key)
    scale = {"visual_projection.weight_scale": ("F32", np.ones(1, np.float32))}
    shutil.copy(GOLDEN / "hf-clip" / "model.safetensors", folder)
    eight_bits(folder / "model.safetensors", dtype, name, **scale)
    with pytest.raises(LoadError, match="8-bit floats with separate scales .*visual_projection.weight_scale"):
        open_checkpoint(folder)


# ---------------------------------------------------------------------------------------------------------------------
# SigLIP


@pytest.mark.parametrize("name", ["Siglip2Tokenizer", "GemmaTokenizerFast", "TokenizersBackend", None])
def test_siglip_2_keeps_punctuation(name, tmp_path):
    """Whatever the version of transformers calls the tokenizer: its vocabulary is Gemma's, a BPE."""
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<pad>", "<eos>", "<unk>"], show_progress=False
    )
    pieces.train_from_iterator(["a cat, a dog! who's there? (nobody)"], trainer)
    pieces.save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": "<pad>"} | ({"tokenizer_class": name} if name else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ids = SentencePiece.load(tmp_path, 24).encode(["A cat, a DOG!"])[0]
    expected = pieces.encode("a cat, a dog!").ids
    assert ids[: len(expected)].tolist() == expected != pieces.encode("a cat a dog").ids


@pytest.mark.parametrize("name", ["SiglipTokenizer", "TokenizersBackend"])
def test_siglip_1_drops_punctuation(name, copy):
    folder = copy("hf-siglip")
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    with_it, without = SentencePiece.load(folder, 16).encode(["A cat, a DOG!", "a cat a dog"])
    np.testing.assert_array_equal(with_it, without)


def test_stacked_blocks_of_big_vision(copy):
    folder = copy("big-vision")
    tensors = {}
    blocks: dict[str, list] = {}
    for name, x in sorted(np.load(folder / "siglip.npz").items()):
        head, mark, tail = name.partition("/encoderblock_")
        if mark:  # sorted: block 0 before block 1
            blocks.setdefault(f"{head}/encoderblock/{tail.partition('/')[2]}", []).append(x)
        else:
            tensors[name] = x
    np.savez(folder / "siglip.npz", **tensors, **{name: np.stack(parts) for name, parts in blocks.items()})
    assert_peers_numbers(folder / "siglip.npz", "big-vision")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"params/img/embedding/kernel": np.zeros((192, 32))}, "not those of a square grid"),
        ({"params/img/pos_embedding": np.zeros((1, 8, 32))}, "not those of a square grid"),
        ({"params/img/pos_embedding": np.zeros((3, 3, 32))}, "not those of a square grid"),
        ({"params/img/head/kernel": np.zeros((32, 32))}, "parts that are not understood: .*params/img/head/kernel"),
    ],
)
def test_other_models_of_big_vision_are_named(changes, words, copy):
    folder = copy("big-vision")
    np.savez(folder / "siglip.npz", **dict(np.load(folder / "siglip.npz")) | changes)
    with pytest.raises(LoadError, match=words):
        open_checkpoint(folder / "siglip.npz").read()


@pytest.mark.parametrize(
    "kind, file, part, changes, words",
    [
        ("hf-siglip", "config.json", (), {"model_type": "siglip2"}, "SiglipImageProcessor is not known .* Siglip2Image"),
        ("hf-naflex", "config.json", ("vision_config",), {"num_patches": 8}, "num_patches = 8; it must be a square number"),
        ("hf-naflex", "preprocessor_config.json", (), {"patch_size": 16}, "patch_size = 16 is not supported: .* 8 pixels"),
        ("hf-naflex", "preprocessor_config.json", (), {"do_center_crop": True}, "do_center_crop = True is not supported"),
        ("hf-naflex", "preprocessor_config.json", (), {"max_num_patches": 0}, "max_patches .8, 0. must be"),
    ],
)
def test_other_models_of_native_aspect_ratio_are_named(kind, file, part, changes, words, copy):
    folder = copy(kind)
    edit(folder / file, *part, **changes)
    with pytest.raises(LoadError, match=words):
        open_checkpoint(folder)


def test_the_vocabulary_of_chinese_clip_is_that_of_bert(copy):
    folder = copy("hf-chinese-clip")
    tokenizer = open_checkpoint(folder).tokenizer
    # [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, "cat" 7; each Chinese character is a word.
    assert tokenizer.encode(["Cat猫狗"]).tolist() == [[2, 7, 14, 1, 3] + [0] * 11]
    edit(folder / "config.json", "text_config", pad_token_id=1)
    with pytest.raises(LoadError, match="the tokenizer pads with 0, but config.json has pad_token_id 1"):
        open_checkpoint(folder)
    edit(folder / "config.json", "text_config", pad_token_id=0, position_embedding_type="relative_key")
    with pytest.raises(LoadError, match="position_embedding_type = 'relative_key' is not supported"):
        open_checkpoint(folder)
    edit(folder / "config.json", "text_config", position_embedding_type="absolute")
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(LoadError, match=r"vocab.txt has no \[UNK\]"):
        open_checkpoint(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Files that cannot be a model


def test_heads_wider_than_a_tower(copy):
    folder = copy("open-clip")
    edit(folder / OPEN_CLIP, "model_cfg", "vision_cfg", head_width=64)
    with pytest.raises(LoadError, match="width of 32 cannot be split into heads of 64"):
        open_checkpoint(folder)
    marks = {name: np.zeros((), np.int64) for name in ("input_resolution", "context_length", "vocab_size")}
    with pytest.raises(LoadError, match="width of 32 cannot be split into heads of 64"):
        open_checkpoint(rename(folder / WEIGHTS, "{}", "openai.safetensors", **marks))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors", ".npz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"PK\x03\x04 and no more"],
)
def test_files_without_weights_are_named(content, suffix, tmp_path):
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(LoadError, match=f"model{suffix}"):
        open_checkpoint(tmp_path / f"model{suffix}")


def test_weights_of_another_kind(tmp_path):
    save_file({"decoder.conv_in.weight": np.zeros((4, 4), np.float32)}, tmp_path / "vae.safetensors")
    with pytest.raises(LoadError, match=r"vae.safetensors holds no CLIP: neither visual\.conv1\.weight nor text_model"):
        open_checkpoint(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("name", ["none", "none.pt", "none.npz", "notes.txt"])
def test_missing_and_unknown_files_are_named(name, tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(LoadError, match=f"{name}: no such file|{name} is not a model"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"weight_map": {"a": "part-1.safetensors"}}', "'part-1.safetensors', which does not exist"),
        ('{"weight_map": {"a": "../config.json"}}', "'../config.json', which does not exist"),
        ('{"weight_map": []}', "weight_map = .* must be an object"),
        ("{", "is not JSON"),
    ],
)
def test_an_index_of_parts_that_is_wrong(content, words, copy):
    folder = copy("hf-clip")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LoadError, match=words):
        open_checkpoint(folder)


def leaves(content, path=()):
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, file",
    [
        ("hf-clip", "config.json"),
        ("hf-clip", "preprocessor_config.json"),
        ("open-clip", OPEN_CLIP),
    ],
)
def test_values_of_any_kind_in_a_configuration(kind, file, copy):
    """Removes and replaces each value of a file: a model can be built, or a LoadError is raised."""
    folder = copy(kind)
    original = (folder / file).read_text()
    for path in leaves(json.loads(original)):
        for value in (None, "x", 0, -1, 7.5, [], {}, [1, 2], "left out"):
            content = json.loads(original)
            part = content
            for key in path[:-1]:
                part = part[key]
            part.pop(path[-1]) if value == "left out" else part.update({path[-1]: value})
            (folder / file).write_text(json.dumps(content))
            with contextlib.suppress(LoadError):
                open_checkpoint(folder).module()
