"""Makes `tests/golden/clip/`: tiny random models of every kind, saved by the peers, and what the peers compute with them.

    python tests/golden/make_clip.py          (in an environment with the `peers` extra, and once with transformers 5)

Each folder holds a model as its users would find it, `pictures/*.png`, and `expected.npz`: `ids`, `image` and `text`
features of unit norm, `logits` [images, texts]. Beside the folders, `clip_pixels.npz` holds what transformers' image
processors make of pictures. The tests of `tests/clip/` need none of the peers.
"""

import functools
import json
import shutil
import sys
import types
import unittest.mock
from dataclasses import asdict
from pathlib import Path

import numpy as np
import packaging.version
import sentencepiece
import tokenizers
import torch
import transformers
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).resolve().parent / "clip"
TEXTS = [
    "a photo of a cat.",
    "Two DOGS  and a red ball",
    "the sea at night, with many, many, many ships far away",
    "42",
]
LENGTH = 16


def tokenizer_files(folder: Path) -> int:
    """vocab.json and merges.txt of a small vocabulary in CLIP's layout; returns its size."""
    sys.path.insert(0, str(ROOT))
    from train_jax.data.text import Tokenizer

    content = json.loads(Tokenizer.train([*TEXTS, "a dog", "a red cat", "the red ship"], 600).to_json())["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return len(content["vocab"])


def clip_tokenizer(folder: Path) -> transformers.CLIPTokenizerFast:
    folder.mkdir(exist_ok=True)
    tokenizer_files(folder)
    options = {"pad_token": "<|endoftext|>", "model_max_length": LENGTH}
    tokenizer = transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


def pictures(folder: Path) -> list[Image.Image]:
    (folder / "pictures").mkdir(parents=True)
    images = []
    for index, (width, height) in enumerate(((40, 31), (24, 37), (32, 32))):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        images.append(small.resize((width, height), Image.Resampling.BICUBIC))
        images[-1].save(folder / "pictures" / f"{index}.png")
    return images


def new_folder(name: str) -> Path:
    shutil.rmtree(OUT / name, ignore_errors=True)
    (OUT / name).mkdir(parents=True)
    return OUT / name


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that make every part matter: norms and biases that are not ones and zeros, attention that is not flat."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, 2.0 / p[0].numel() ** 0.5)
            elif name.endswith("logit_scale"):
                p.fill_(2.5)
            elif name.endswith("logit_bias"):
                p.fill_(-1.5)
            else:
                p.copy_(torch.randn_like(p) * 0.3 + (1.0 if name.endswith("weight") else 0.0))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_(0, 0.3)
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2.0)


def expected(folder: Path, ids, image, text, logits) -> None:
    unit = [torch.nn.functional.normalize(x.detach().float(), dim=-1).numpy() for x in (image, text)]
    np.savez(
        folder / "expected.npz",
        ids=np.asarray(ids),
        image=unit[0],
        text=unit[1],
        logits=logits.detach().float().numpy(),
    )


TOWER = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}


def hf_clip(name: str, eos_token_id: int | None, activation: str, seed: int) -> None:
    folder = new_folder(name)
    tokenizer = clip_tokenizer(folder)
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    shared = {"hidden_act": activation, "layer_norm_eps": 1e-5}
    config = transformers.CLIPConfig(
        text_config=TOWER | shared | {
            "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "eos_token_id": eos, "bos_token_id": 0,
        },
        vision_config=TOWER | shared | {"image_size": 24, "patch_size": 8},
        projection_dim=20,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(folder)
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=pixels)
    expected(folder, batch["input_ids"], out.image_embeds, out.text_embeds, out.logits_per_image)


def hf_halves(name: str, seed: int) -> None:
    """Both halves of a CLIP in folders of their own, as in pipelines of diffusers."""
    folder = new_folder(name)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    shared = TOWER | {"hidden_act": "quick_gelu", "projection_dim": 20}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "eos_token_id": 2, "bos_token_id": 0}
    text = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**shared, **sizes)).eval()
    sizes = {"image_size": 24, "patch_size": 8}
    image = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**shared, **sizes)).eval()
    for index, (model, part) in enumerate(((text, "text_encoder"), (image, "image_encoder"))):
        randomise(model, seed + index)
        model.save_pretrained(folder / part)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(folder / "feature_extractor")
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    features = image(pixels).image_embeds, text(**batch).text_embeds
    units = [torch.nn.functional.normalize(x, dim=-1) for x in features]
    expected(folder, batch["input_ids"], *features, 100 * units[0] @ units[1].T)


def hf_chinese_clip(name: str, seed: int) -> None:
    """BERT as text tower, with a vocabulary of characters in `vocab.txt` alone."""
    folder = new_folder(name)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "cat", ".", "two", "dog", "##s", "4", "##2", "猫"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=LENGTH)
    config = transformers.ChineseCLIPConfig(
        text_config=TOWER | {"vocab_size": 30, "max_position_embeddings": LENGTH},
        vision_config=TOWER | {"image_size": 24, "patch_size": 8},
        projection_dim=20,
    )
    model = transformers.ChineseCLIPModel(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    sides = {"height": 24, "width": 24}
    processor = transformers.ChineseCLIPImageProcessor(size=sides, crop_size=sides, do_center_crop=False)
    processor.save_pretrained(folder)
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    out = model(**batch, pixel_values=pixels)
    expected(folder, batch["input_ids"], out.image_embeds, out.text_embeds, out.logits_per_image)


SIGLIP_IDS = {"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 2, "control_symbols": ["<pad>"]}


def sentencepiece_file(folder: Path, ids: dict = SIGLIP_IDS) -> Path:
    """A small unigram vocabulary, by default of the layout of SigLIP's: </s> is 1, <unk> 2."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([t.lower() for t in TEXTS] * 20 + ["a dog and a cat", "the red ship at night"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=60, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, **ids,
    )  # fmt: skip
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def t5_tokenizer(folder: Path) -> None:
    """SigLIP's vocabulary as open_clip's directories hold it: tokenizer.json of T5's class."""
    file = sentencepiece_file(folder)
    tokenizer = transformers.T5TokenizerFast(str(file), extra_ids=0, pad_token="</s>", model_max_length=LENGTH)
    file.unlink()
    tokenizer.save_pretrained(folder)
    (folder / "spiece.model").unlink(missing_ok=True)


def xlm_tokenizer(folder: Path) -> transformers.XLMRobertaTokenizerFast:
    """MetaCLIP 2's kind of vocabulary: <s> is 0, <pad> 1, </s> 2."""
    file = sentencepiece_file(folder, {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1})
    tokenizer = transformers.XLMRobertaTokenizerFast(str(file), model_max_length=LENGTH)
    file.unlink()
    tokenizer.save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").unlink(missing_ok=True)
    return tokenizer


def roberta_tokenizer(folder: Path) -> transformers.RobertaTokenizerFast:
    """RoBERTa's kind of vocabulary: bytes, with <s> 0, <pad> 1, </s> 2."""
    pieces = tokenizers.ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXTS, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    files = pieces.save_model(str(folder))
    tokenizer = transformers.RobertaTokenizerFast(*files, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert_tokenizer(folder: Path) -> None:
    """CLIPA's kind of vocabulary: WordPiece, with [PAD] 0."""
    pieces = ["a", "photo", "of", "cat", ".", ",", "two", "dog", "##s", "and", "red", "ball", "the", "sea", "ship", "4"]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=LENGTH).save_pretrained(folder)


def hf_metaclip2(name: str, seed: int) -> None:
    folder = new_folder(name)
    tokenizer = xlm_tokenizer(folder)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "eos_token_id": 2, "bos_token_id": 0}
    config = transformers.MetaClip2Config(
        text_config=TOWER | sizes, vision_config=TOWER | {"image_size": 24, "patch_size": 8}, projection_dim=20
    )
    model = transformers.MetaClip2Model(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(folder)
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    out = model(input_ids=ids, pixel_values=pixels)
    expected(folder, ids, out.image_embeds, out.text_embeds, out.logits_per_image)


def hf_siglip(name: str, seed: int) -> tuple[Path, transformers.SiglipModel]:
    folder = new_folder(name)
    tokenizer = transformers.SiglipTokenizer(str(sentencepiece_file(folder)), model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    shared = {"layer_norm_eps": 1e-6}
    config = transformers.SiglipConfig(
        text_config=TOWER | shared | {"vocab_size": 80, "max_position_embeddings": LENGTH, "projection_size": 32},
        vision_config=TOWER | shared | {"image_size": 24, "patch_size": 8},
    )
    model = transformers.SiglipModel(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    processor = transformers.SiglipImageProcessor(size={"height": 24, "width": 24}, resample=3)
    processor.save_pretrained(folder)
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    out = model(input_ids=batch["input_ids"], pixel_values=pixels)
    expected(folder, batch["input_ids"], out.image_embeds, out.text_embeds, out.logits_per_image)
    return folder, model


def hf_siglip2(name: str, seed: int) -> None:
    """SigLIP 2 of a fixed size as transformers 5 saves it: Gemma's vocabulary in its class Siglip2Tokenizer."""
    folder = new_folder(name)
    characters = dict.fromkeys("▁" + "".join(sorted({*" ".join(TEXTS).lower()} - {" "})))
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    merges = [("a", "t"), ("c", "at"), ("t", "h"), ("th", "e"), ("▁", "the"), ("m", "a"), ("▁", "cat")]
    pieces = [*special, *characters, *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # Google's files pad on the right; the class alone would on the left.
    tokenizer = transformers.Siglip2Tokenizer(vocabulary, merges, padding_side="right", model_max_length=LENGTH)
    tokenizer._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)
    text = TOWER | {"vocab_size": 80, "max_position_embeddings": LENGTH, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 24, "patch_size": 8})
    model = transformers.SiglipModel(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    processor = transformers.SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=2)
    processor.save_pretrained(folder)
    pixels = processor(pictures(folder), return_tensors="pt")["pixel_values"]
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    out = model(input_ids=ids, pixel_values=pixels)
    expected(folder, ids, out.image_embeds, out.text_embeds, out.logits_per_image)


def hf_naflex(name: str, seed: int) -> tuple[Path, transformers.Siglip2Model]:
    """SigLIP 2 of native aspect ratio, with the tokenizer of `hf-siglip2`, which lowers texts."""
    folder = new_folder(name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(__file__).resolve().parent / "clip" / "hf-siglip2" / file, folder / file)
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    config = transformers.Siglip2Config(
        text_config=TOWER | {"vocab_size": 80, "max_position_embeddings": LENGTH, "projection_size": 32},
        vision_config=TOWER | {"num_patches": 16, "patch_size": 8},
    )
    model = transformers.Siglip2Model(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=13)
    processor.save_pretrained(folder)
    texts = [text.lower() for text in TEXTS]
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    out = model(input_ids=ids, **processor(pictures(folder), return_tensors="pt"))
    expected(folder, ids, out.image_embeds, out.text_embeds, out.logits_per_image)
    return folder, model


def big_vision(name: str, origin: Path, model: transformers.PreTrainedModel) -> None:
    """The same model under big_vision's names, which transformers' own conversion script reads.

    The pictures of a fixed size are those that big_vision's own code has resized (`make_resize.py`).
    """
    folder = new_folder(name)
    for file in {"spiece.model", "tokenizer.json", "tokenizer_config.json"} & {file.name for file in origin.iterdir()}:
        shutil.copy(origin / file, folder / file)
    shutil.copytree(origin / "pictures", folder / "pictures")
    is_native = isinstance(model, transformers.Siglip2Model)
    if is_native:
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
        images = processor([Image.open(file) for file in sorted((folder / "pictures").iterdir())], return_tensors="pt")
    else:
        resized = np.load(OUT.parent / "resize.npz")
        images = torch.from_numpy(np.stack([resized[f"clip_{index}"] for index in range(3)])).permute(0, 3, 1, 2)
        images = {"pixel_values": images.float() / 127.5 - 1}
    ids = torch.from_numpy(np.load(origin / "expected.npz")["ids"])
    out = model(input_ids=ids, **images)
    expected(folder, ids, out.image_embeds, out.text_embeds, out.logits_per_image)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    heads, tensors = TOWER["num_attention_heads"], {}

    def attention(theirs: str, parts: dict[str, tuple[np.ndarray, np.ndarray]], out: str) -> None:
        for part, (weight, bias) in parts.items():
            tensors[f"{theirs}/{part}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
            tensors[f"{theirs}/{part}/bias"] = bias.reshape(heads, -1)
        tensors[f"{theirs}/out/kernel"] = state[f"{out}.weight"].T.reshape(heads, -1, state[f"{out}.weight"].shape[0])
        tensors[f"{theirs}/out/bias"] = state[f"{out}.bias"]

    def plain(theirs: str, ours: str, weight: str = "kernel") -> None:
        value = state[f"{ours}.weight"]
        tensors[f"{theirs}/{weight}"] = value.T if weight == "kernel" else value
        tensors[f"{theirs}/bias"] = state[f"{ours}.bias"]

    for theirs, ours in (("params/img/Transformer", "vision_model"), ("params/txt/Encoder_0", "text_model")):
        for index in range(TOWER["num_hidden_layers"]):
            block, layer = f"{theirs}/encoderblock_{index}", f"{ours}.encoder.layers.{index}"
            plain(f"{block}/LayerNorm_0", f"{layer}.layer_norm1", "scale")
            plain(f"{block}/LayerNorm_1", f"{layer}.layer_norm2", "scale")
            plain(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1")
            plain(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2")
            parts = {
                part: tuple(state[f"{layer}.self_attn.{part[0]}_proj.{kind}"] for kind in ("weight", "bias"))
                for part in ("query", "key", "value")
            }
            attention(f"{block}/MultiHeadDotProductAttention_0", parts, f"{layer}.self_attn.out_proj")
    plain("params/img/Transformer/encoder_norm", "vision_model.post_layernorm", "scale")
    plain("params/txt/Encoder_0/encoder_norm", "text_model.final_layer_norm", "scale")
    head, pool = "vision_model.head", "params/img/MAPHead_0"
    weights = np.split(state[f"{head}.attention.in_proj_weight"], 3)
    biases = np.split(state[f"{head}.attention.in_proj_bias"], 3)
    parts = dict(zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True))
    attention(f"{pool}/MultiHeadDotProductAttention_0", parts, f"{head}.attention.out_proj")
    tensors[f"{pool}/probe"] = state[f"{head}.probe"]
    plain(f"{pool}/LayerNorm_0", f"{head}.layernorm", "scale")
    plain(f"{pool}/MlpBlock_0/Dense_0", f"{head}.mlp.fc1")
    plain(f"{pool}/MlpBlock_0/Dense_1", f"{head}.mlp.fc2")
    embedding = "vision_model.embeddings.patch_embedding"
    positions = state["vision_model.embeddings.position_embedding.weight"]
    if is_native:
        plain("params/img/embedding", embedding)
        tensors["params/img/pos_embedding"] = positions.reshape(4, 4, -1)
    else:
        tensors["params/img/embedding/kernel"] = state[f"{embedding}.weight"].transpose(2, 3, 1, 0)
        tensors["params/img/embedding/bias"] = state[f"{embedding}.bias"]
        tensors["params/img/pos_embedding"] = positions[None]
    tensors["params/txt/Embed_0/embedding"] = state["text_model.embeddings.token_embedding.weight"]
    tensors["params/txt/pos_embedding"] = state["text_model.embeddings.position_embedding.weight"][None]
    plain("params/txt/head", "text_model.head")
    tensors["params/t"], tensors["params/b"] = state["logit_scale"], state["logit_bias"]
    np.savez(folder / "siglip.npz", **tensors)


def without_torchvision() -> None:
    """open_clip and OpenAI's CLIP import torchvision for their own preprocessing, which is not what is compared here."""

    class Named(type):
        def __getattr__(cls, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return f"{cls.__name__}.{name}"

    class Anything(types.ModuleType):
        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return Named(name, (), {"__init__": lambda self, *_, **__: None})

    names = ["torchvision"]
    names += [f"torchvision.{name}" for name in ("transforms", "ops", "datasets", "utils", "models")]
    names += ["torchvision.transforms.functional", "torchvision.ops.misc", "torchvision.models.feature_extraction"]
    for name in names:
        module = sys.modules[name] = Anything(name)
        module.__path__ = []
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules["pkg_resources"] = Anything("pkg_resources")  # of which OpenAI's package compares versions
    sys.modules["pkg_resources"].packaging = packaging


def pixels_of(folder: Path, size: int, squash: bool = False) -> torch.Tensor:
    if squash:
        processor = transformers.SiglipImageProcessor(size={"height": size, "width": size}, resample=3)
        return processor(pictures(folder), return_tensors="pt")["pixel_values"]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return processor(pictures(folder), return_tensors="pt")["pixel_values"]


def zero_padded(tokenizer) -> torch.Tensor:
    """As OpenAI and open_clip pad."""
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return batch["input_ids"] * batch["attention_mask"]


def open_clip_directory(
    name: str, vision: dict, seed: int, training: bool = False, text: dict | None = None, tokenizer=clip_tokenizer, **options
) -> None:
    """A directory of open_clip.

    Args:
      text: changes of the text tower; with `hf_tokenizer_name`, open_clip's own wrapper tokenizes the texts.
      tokenizer: function that writes the tokenizer's files into a folder.
    """
    import open_clip
    import timm
    from safetensors.torch import save_file

    folder = new_folder(name)
    tokenizer = tokenizer(folder)
    if text and "hf_tokenizer_name" in text:
        tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), LENGTH, **text.get("tokenizer_kwargs", {}))
        ids, size = tokenizer(TEXTS), len(tokenizer.tokenizer)
    else:
        ids, size = zero_padded(tokenizer), len(tokenizer)
    text = {"context_length": LENGTH, "vocab_size": size, "width": 32, "heads": 4, "layers": 2} | (text or {})
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text} | options
    kind = open_clip.model.CustomTextCLIP if options.pop("custom_text", False) else open_clip.model.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in config else kind
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    # open_clip 3 has no `timm_model_kwargs`, which open_clip 4 hands on like this.
    kwargs = {"timm_model_kwargs": vision.get("timm_model_kwargs", {})}
    arguments["vision_cfg"] = {key: value for key, value in vision.items() if key not in kwargs}
    create = functools.partial(timm.create_model, **kwargs["timm_model_kwargs"])
    with unittest.mock.patch.object(open_clip.timm_model.timm, "create_model", create):
        model = kind(**arguments).eval()
    randomise(model, seed)
    is_siglip = options.get("init_logit_bias") is not None and "timm_model_name" in vision
    mean, std = open_clip.constants.OPENAI_DATASET_MEAN, open_clip.constants.OPENAI_DATASET_STD
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    if is_siglip:
        preprocess |= {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if training:  # a checkpoint of open_clip's trainer, and a config in which every default is written out
        config["vision_cfg"] = asdict(open_clip.CLIPVisionCfg(**vision))
        config["text_cfg"] = asdict(open_clip.CLIPTextCfg(**text))
        optimizer = torch.optim.SGD(model.parameters(), 0.1).state_dict()
        state = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}, folder / "epoch_3.pt")
    elif seed % 2:
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    )
    pixels = pixels_of(folder, vision["image_size"], squash=is_siglip)
    image, text = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    logits = model.logit_scale.exp() * image @ text.T
    if getattr(model, "logit_bias", None) is not None:
        logits = logits + model.logit_bias
    expected(folder, ids, image, text, logits)


VIT = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.5}
# Trunks of timm, small.
TRUNK = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
MCI = {"embed_dims": [8, 16, 32, 64], "layers": [1, 1, 2, 1]}
MCI_DEEP = {"embed_dims": [4, 8, 16, 32, 64], "layers": [1, 1, 2, 1, 2]}
SIGLIP = {"image_size": 24, "timm_pool": "map", "timm_proj": "none", "timm_model_kwargs": TRUNK}
SIGLIP_TEXT = {
    "hf_tokenizer_name": "timm/SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True,
    "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip


def open_clip_siglip(name: str, trunk: str, seed: int, **text) -> None:
    """SigLIP (`act_kwargs` is absent) or SigLIP 2 (`act_kwargs={"approximate": "tanh"}`) as open_clip has them."""
    vision = SIGLIP | {"timm_model_name": trunk}
    options = {"embed_dim": 32, "custom_text": True, "init_logit_bias": -10}
    open_clip_directory(name, vision, seed, text=SIGLIP_TEXT | text, tokenizer=t5_tokenizer, **options)


def open_clip_metaclip2(name: str, seed: int) -> None:
    text = {"hf_tokenizer_name": "facebook/xlm-v-base", "pool_type": "eos", "eos_id": 2}
    open_clip_directory(name, VIT, seed, text=text, tokenizer=xlm_tokenizer, quick_gelu=True)


def open_clip_clipa(name: str, seed: int, **vision) -> None:
    vision = VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True} | vision
    text = {
        "hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}, "pool_type": "last",
        "no_causal_mask": True,
    }  # fmt: skip
    open_clip_directory(name, vision, seed, text=text, tokenizer=bert_tokenizer)


def open_clip_coca(name: str, seed: int) -> None:
    vision = VIT | {"attentional_pool": True, "attn_pooler_heads": 5, "output_tokens": True}
    text = {"embed_cls": True, "output_tokens": True}
    decoder = {"context_length": LENGTH, "vocab_size": 600, "width": 20, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
    open_clip_directory(name, vision, seed, text=text, multimodal_cfg=decoder, custom_text=True)


def long_clip(name: str, seed: int) -> None:
    """Long-CLIP's file, from a checkout of beichenzbc/Long-CLIP; its context is always 248."""
    from model.model_longclip import CLIP

    folder = new_folder(name)
    tokenizer = clip_tokenizer(folder)
    model = CLIP(20, 24, 1, 64, 8, 248, len(tokenizer), 64, 1, 1, load_from_clip=False).eval()
    randomise(model, seed)
    model.half().float()
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=248, return_tensors="pt")
    ids, pixels = batch["input_ids"] * batch["attention_mask"], pixels_of(folder, 24)
    image, text = model.encode_image(pixels), model.encode_text(ids)
    torch.save({key: value.half() for key, value in model.state_dict().items()}, folder / "longclip-tiny.pt")
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
    expected(folder, ids, image, text, model.logit_scale.exp() * unit[0] @ unit[1].T)


def open_clip_trunk(name: str, trunk: str, pool: str, seed: int) -> None:
    """Perception Encoder, or EVA: positions turn queries and keys, on the coordinates of another grid."""
    vision = {"image_size": 24, "timm_model_name": trunk, "timm_pool": pool, "timm_proj": None, "timm_model_kwargs": TRUNK}
    open_clip_directory(name, vision, seed, custom_text=True)


def open_clip_convnext(name: str, trunk: str, proj: str, seed: int) -> None:
    vision = {"image_size": 64, "timm_model_name": trunk, "timm_pool": "", "timm_proj": proj}
    vision |= {"timm_drop": 0.0, "timm_model_kwargs": {"dims": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}}
    open_clip_directory(name, vision, seed)


def open_clip_vitamin(name: str, trunk: str, proj: str, seed: int) -> None:
    """ViTamin with small stages, whose sizes no argument of timm changes: (8, (1, 2), 32, 2, 4) in `VITAMIN` of
    `clip_jax.pretrained.timm`."""
    from timm.models import vitamin

    def create(variant, embed_cfg, create=vitamin._create_vitamin, **kwargs):
        stages = vitamin.VitCfg(embed_dim=(8, 16, 32), depths=(1, 2, 1), stem_width=8)
        return create(variant, embed_cfg=stages, **kwargs | {"embed_dim": 32, "depth": 2, "num_heads": 4})

    vision = {"image_size": 32, "timm_model_name": trunk, "timm_pool": "", "timm_proj": proj}
    with unittest.mock.patch.object(vitamin, "_create_vitamin", create):
        open_clip_directory(name, vision | {"timm_model_kwargs": {"img_size": 32}}, seed, custom_text=True)


def open_clip_mobile(name: str, seed: int) -> None:
    """MobileCLIP-B, whose stem has the width of the tower; no argument of timm changes its channels."""
    from timm.models import vision_transformer_hybrid as hybrid

    def stem(channels, make=hybrid.ConvStem, **kwargs):
        return make(channels=(8, 8, 32), **kwargs)

    kwargs = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}
    vision = {"image_size": 32, "timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None}
    with unittest.mock.patch.object(hybrid, "ConvStem", stem):
        open_clip_directory(name, vision | {"timm_model_kwargs": kwargs}, seed, custom_text=True)


def open_clip_mci(name: str, trunk: str, seed: int, size: int = 64, stages=MCI) -> None:
    """MobileCLIP-S. Its batch norms have seen images: otherwise features of random weights grow from block to block."""

    def randomise_mci(model, seed, randomise=randomise):
        randomise(model, seed)
        for key, p in model.named_parameters():
            p.data *= 0.2 if key.endswith("gamma") else 1
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.9
        model.train()
        model.encode_image(torch.rand(8, 3, size, size))
        model.eval()

    vision = {"image_size": size, "timm_model_name": trunk, "timm_pool": "avg", "timm_proj": None}
    vision["timm_model_kwargs"] = stages
    with unittest.mock.patch.multiple(sys.modules[__name__], randomise=randomise_mci):
        open_clip_directory(name, vision, seed, text={"no_causal_mask": True}, custom_text=True)


# Width, depth, heads, width of the MLP, rows of the token embedding; see `clip_jax.pretrained.bert.MODELS`.
TINY_ROBERTA = {"tiny-roberta": (32, 2, 4, 48, 320)}


def roberta_config(name: str, sizes: dict) -> transformers.RobertaConfig:
    """The configuration that transformers would download."""
    width, depth, heads, mlp_dim, vocab_size = sizes[name]
    kind = transformers.XLMRobertaConfig if name.startswith("xlm") else transformers.RobertaConfig
    return kind(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp_dim,
        vocab_size=vocab_size, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
    )  # fmt: skip


def open_clip_roberta(name: str, tokenizer, seed: int, **text) -> None:
    text = {"hf_model_name": "tiny-roberta", "hf_tokenizer_name": "roberta-base", "hf_model_pretrained": False} | text
    config = functools.partial(roberta_config, sizes=TINY_ROBERTA)
    with unittest.mock.patch.object(transformers.AutoConfig, "from_pretrained", config):
        open_clip_directory(name, VIT, seed, text=text, tokenizer=tokenizer, custom_text=True, quick_gelu=True)


def openai_file(name: str, vision_layers, vision_width: int, seed: int, script: bool) -> None:
    from clip.model import CLIP

    folder = new_folder(name)
    tokenizer = clip_tokenizer(folder)
    size, patch = (24, 8) if isinstance(vision_layers, int) else (32, None)
    model = CLIP(20, size, vision_layers, vision_width, patch, LENGTH, len(tokenizer), 64, 1, 1).eval()
    randomise(model, seed)
    model.half().float()  # what is left of the weights in half precision
    ids, pixels = zero_padded(tokenizer), pixels_of(folder, size)
    image, text = model.encode_image(pixels), model.encode_text(ids)
    logits = model(pixels, ids)[0]
    if script:
        with torch.no_grad():
            torch.jit.save(torch.jit.trace(model, (pixels, ids), check_trace=False), folder / "ViT-tiny.pt")
    else:
        sizes = {"input_resolution": size, "context_length": LENGTH, "vocab_size": len(tokenizer)}
        state = {key: value.half() for key, value in model.state_dict().items()}
        torch.save(state | {key: torch.tensor(value) for key, value in sizes.items()}, folder / "RN-tiny.pt")
    expected(folder, ids, image, text, logits)


# What may stand in a preprocessor_config.json, beside transformers' defaults for 24 pixels.
CROP, SQUARE = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, {"height": 24, "width": 24}
PROCESSORS = {
    "crop": ("CLIP", CROP),
    "numbers": ("CLIP", {"size": 24, "crop_size": 24}),
    "signed": ("CLIP", CROP | {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
    "bytes": ("CLIP", CROP | {"do_rescale": False}),
    "plain": ("CLIP", CROP | {"do_normalize": False}),
    "whole": ("CLIP", {"size": SQUARE, "do_center_crop": False}),
    "bilinear": ("CLIP", CROP | {"resample": 2, "do_convert_rgb": False}),
    "lanczos": ("CLIP", CROP | {"resample": 1}),
    "nearest": ("CLIP", CROP | {"resample": 0}),
    "siglip": ("Siglip", {"size": SQUARE}),
    "siglip2": ("Siglip", {"size": SQUARE, "resample": 2}),
}


def image_processors() -> None:
    """`clip_pixels.npz`: of each of PROCESSORS the file that it saves (`NAME_config`), and its pixels (`NAME_pixels`
    [3, 24, 24, 3]) of the pictures `picture_N`, uint8 [height, width, 3], whose odd margins show how a crop is rounded."""
    sizes = ((40, 31), (31, 24), (24, 35))
    images = [np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
    arrays = {f"picture_{index}": image for index, image in enumerate(images)}
    for name, (family, options) in PROCESSORS.items():
        processor = getattr(transformers, f"{family}ImageProcessor")(**options)
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
        arrays |= {f"{name}_config": processor.to_json_string(), f"{name}_pixels": pixels.transpose(0, 2, 3, 1)}
    np.savez_compressed(OUT.parent / "clip_pixels.npz", **arrays)


def main() -> None:
    if transformers.__version__.startswith("5."):  # whose files differ from those of version 4
        hf_siglip2("hf-siglip2", 14)
        return
    image_processors()
    hf_clip("hf-clip", None, "quick_gelu", 1)
    hf_clip("hf-clip-legacy", 2, "gelu", 2)
    hf_halves("hf-halves", 50)
    hf_metaclip2("hf-metaclip2", 4)
    hf_chinese_clip("hf-chinese-clip", 41)
    big_vision("big-vision", *hf_siglip("hf-siglip", 3))
    big_vision("big-vision-naflex", *hf_naflex("hf-naflex", 39))
    without_torchvision()
    open_clip_directory("open-clip", VIT, 5)
    open_clip_directory("open-clip-quick", VIT, 6, quick_gelu=True)
    open_clip_directory("open-clip-training", VIT, 8, training=True)
    open_clip_directory("open-clip-custom", VIT, 7, custom_text=True, init_logit_bias=-10.0)
    open_clip_directory("open-clip-resnet", {"image_size": 32, "layers": [1, 2, 1, 1], "width": 4, "head_width": 64}, 9)
    open_clip_siglip("open-clip-siglip2", "vit_base_patch16_siglip_224", 13, act_kwargs={"approximate": "tanh"})
    open_clip_metaclip2("open-clip-metaclip2", 17)
    open_clip_clipa("open-clip-clipa", 19)
    open_clip_coca("open-clip-coca", 27)
    open_clip_trunk("open-clip-pe", "vit_pe_core_base_patch16_224", "map", 29)
    open_clip_trunk("open-clip-eva02", "eva02_base_patch16_clip_224", "token", 31)
    open_clip_convnext("open-clip-convnext", "convnext_large", "mlp", 33)
    open_clip_roberta("open-clip-roberta", xlm_tokenizer, 35)
    open_clip_vitamin("open-clip-vitamin", "vitamin_small_224", "linear", 37)
    open_clip_mobile("open-clip-mobile", 43)
    open_clip_mci("open-clip-mci", "fastvit_mci1", 45)
    open_clip_mci("open-clip-mci-deep", "fastvit_mci3", 47, 128, MCI_DEEP)
    long_clip("long-clip", 12)
    openai_file("openai-vit", 1, 64, 10, script=True)
    openai_file("openai-resnet", (1, 1, 2, 1), 4, 11, script=False)


if __name__ == "__main__":
    main()
