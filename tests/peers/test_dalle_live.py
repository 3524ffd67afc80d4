"""transformers' own T5 beside us, whose features LlamaGen reads (`make test-peers`)."""

import numpy as np
import pytest
import tokenizers

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dalle_jax.features import FeatureCaptions  # noqa: E402 (what is not installed is skipped first)


def test_texts_have_the_features_that_the_peer_computes_of_padded_ones(tmp_path):
    """LlamaGen pads texts to the length, with a mask, and shifts their tokens to the end."""
    special = ["<pad>", "</s>", "<unk>"]
    words = [(name, 0.0) for name in special] + [(x, -2.0 - i) for i, x in enumerate(["▁a", "b", "c", "red", "cat", "▁"])]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, **names)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(words), d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=2)
    peer = transformers.T5EncoderModel(config).eval()
    peer.save_pretrained(tmp_path)

    texts, length = ["a red cat", " A RED cat a", "cat cab a a a a a a a red"], 9
    clean, padded = [text.lower().strip() for text in texts], {"padding": "max_length", "truncation": True}
    inputs = tokenizer(clean, max_length=length, return_tensors="pt", **padded)
    with torch.no_grad():
        features = peer(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state.numpy()
    counts = inputs["attention_mask"].numpy().sum(axis=1)
    assert len(set(counts)) == 3
    rows = FeatureCaptions(length, 12, t5=str(tmp_path)).encode(texts)
    for row, x, count in zip(rows, features, counts, strict=True):
        np.testing.assert_array_equal(row[:, -1], np.arange(length) >= length - count)
        np.testing.assert_allclose(row[-count:, :-1], x[:count], atol=1e-5)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no T5 of transformers"):
        FeatureCaptions(length, 12, t5=str(tmp_path) + "/").encode(["a"])
