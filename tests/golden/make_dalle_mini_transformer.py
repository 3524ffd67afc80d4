"""Makes `tests/golden/dalle/dalle-mini…`: tiny random models, and what borisdayma's own code computes with them.

python tests/golden/make_dalle_mini_transformer.py DALLE_MINI           (with the `peers` and `dalle-mini` extras, einops)

DALLE_MINI is a checkout of borisdayma/dalle-mini, whose model, tokenizer and text normaliser run unchanged; wandb is a stub.
Their VQGAN is `tests/golden/vqgan/dalle-mini`. Only numbers are stored.
"""

import importlib
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from stubs import stub
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent / "dalle"
TEXT, SIDE, CODES, PADDED = 8, 4, 24, 27
WORDS = ["the", "red", "circle", "a", "blue", "star", "photo", "of", "is", "cat", "s", "cats", "and", "2", "22"]
PROMPTS = ["A red circle", "a photo of a blue star, above the large red circle of a cat", "", "blue-ish #bluestar"]
TEXTS = [
    "A photo of the cat's 1,234,567 stars (3.5 km/h), 1/2 \\ price!!!!", "#bluestar and #the2cats22 #RedCircle's",
    "see http://x.org/a?b ... <b>bold</b> &amp; ok & co", "[12] wiki [3] ref [4]", "<person>, <person> and <person> walk",
    'soooooo "quoted" `words` 100% $5 *', ", , leading, and trailing ,", "U.S.A. #U.S", "it'll don't 'tis rock'n'roll",
    "under_score #_x", "",
]  # fmt: skip
FOREIGN = ["Ein Käse – größer als 5 €", "привет, мир", "a 😀 face", "naïve café"]
COMMON = {
    "d_model": 16, "encoder_vocab_size": 300, "image_vocab_size": PADDED, "image_length": SIDE * SIDE,
    "max_text_length": TEXT, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "gradient_checkpointing": False,
    "decoder_start_token_id": CODES, "bos_token_id": CODES + 1, "eos_token_id": CODES + 1, "pad_token_id": CODES + 1,
    "normalize_text": True,
}  # fmt: skip
MODELS = {
    "dalle-mini": {},
    "dalle-mini-cogview": {
        "ln_positions": "cogview", "use_glu": False, "use_bias": True, "use_scan": False, "activation_function": "gelu_new",
        "normalize_text": False,
    },
    "dalle-mini-preln": {"ln_positions": "preln", "force_ln_scale": True, "activation_function": "silu"},
}  # fmt: skip


def open_peer(checkout: str):
    """The peer's modules for the model and for texts."""
    jnp.DeviceArray = jax.Array  # the name in the JAX of its time
    stub("wandb")
    for name in ("dalle_mini", "dalle_mini.model"):
        stub(name)
        sys.modules[name].__path__ = [str(Path(checkout, "src", *name.split(".")))]
    return [importlib.import_module(f"dalle_mini.model.{name}") for name in ("modeling", "configuration", "text")]


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE with BART's special tokens, in the layout of its `tokenizer.json`."""
    bpe = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([f" {text}" for text in (*PROMPTS, *WORDS)] * 3, trainer)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False)
    bpe.save(str(folder / "tokenizer.json"))


def main() -> None:
    modeling, configuration, text = open_peer(sys.argv[1])
    from transformers import BartTokenizerFast
    from transformers.generation import FlaxLogitsProcessorList

    for name, changes in MODELS.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_tokenizer(folder)
        config = configuration.DalleBartConfig(**COMMON | changes)
        model = modeling.DalleBart(config, seed=0)
        rng = np.random.default_rng(0)

        def draw(path, p, rng=rng):
            std = 0.6 if path[-1].key == "embedding" else 0.3
            return np.asarray(float(path[-1].key == "scale") + std * rng.standard_normal(p.shape), np.float16)

        params = jax.tree_util.tree_map_with_path(draw, jax.tree.map(np.asarray, dict(model.params)))
        model.save_pretrained(folder, params=params)
        params = jax.tree.map(lambda p: p.astype(np.float32), params)
        tokenizer = BartTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        prompts = PROMPTS
        if config.normalize_text:
            (folder / "enwiki-words-frequency.txt").write_text("".join(f"{word} {9 - i}\n" for i, word in enumerate(WORDS)))
            text.hf_hub_download = lambda *_, folder=folder, **__: str(folder / "enwiki-words-frequency.txt")
            normalize = text.TextNormalizer()
            prompts = [normalize(prompt) if prompt else prompt for prompt in PROMPTS]
        options = {"padding": "max_length", "truncation": True, "max_length": TEXT, "return_tensors": "np"}
        tokens = tokenizer(prompts, **options)
        nothing = tokenizer([""] * len(PROMPTS), **options)
        codes = rng.integers(0, CODES, (len(PROMPTS), SIDE * SIDE)).astype(np.int32)
        inputs = np.concatenate([np.full_like(codes[:, :1], CODES), codes[:, :-1]], axis=1)

        def logits(condition, model=model, params=params, inputs=inputs):
            outputs = model(**condition, decoder_input_ids=inputs, params=params)
            return np.asarray(outputs.logits)

        scale = 3.0
        outputs = {"prompts": PROMPTS, "text": tokens["input_ids"], "codes": codes, "logits": logits(tokens)}
        outputs["logits_without_text"] = logits(nothing)
        if name == "dalle-mini":
            # transformers 4.57 names filters otherwise: there are none here.
            no_filters = FlaxLogitsProcessorList()
            model._get_logits_warper = model._get_logits_processor = lambda *_, filters=no_filters, **__: filters
            # Super conditioning, with the likeliest of the codes that the VQGAN has, whatever the random numbers are.
            modeling.jax.random.categorical = lambda key, x, axis: jnp.argmax(x[:, :CODES], axis=axis)
            sampled = model.generate(
                tokens["input_ids"], tokens["attention_mask"], params=params, condition_scale=scale, do_sample=True,
                input_ids_uncond=nothing["input_ids"], attention_mask_uncond=nothing["attention_mask"],
            )  # fmt: skip
            outputs |= {"guidance": scale, "sampled": np.asarray(sampled.sequences)[:, 1:].astype(np.int32)}
            outputs |= {"texts": TEXTS, "normalized": [normalize(t) for t in TEXTS]}
            outputs |= {"foreign": FOREIGN, "normalized_foreign": [normalize(t) for t in FOREIGN]}
        np.savez_compressed(folder / "outputs.npz", **{key: np.asarray(value) for key, value in outputs.items()})
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
