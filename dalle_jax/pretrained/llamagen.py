"""Text-conditional LlamaGen (FoundationVision/LlamaGen, arXiv 2406.06525): the files of `vqgan_jax.prior.llamagen`.

Texts are features of a T5, which is the folder `t5` beside the weights or stays elsewhere (`dalle_jax.features`).
"""

from pathlib import Path

from dalle_jax.features import T5, FeatureCaptions
from dalle_jax.options import DALLEOptions
from train_jax.weights.layout import Entry
from vqgan_jax.pretrained.checkpoint import convert_errors
from vqgan_jax.prior import llamagen
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint

_VQGAN = "vq_ds16_t2i.pt"
_CONDITION = (
    Entry("condition/null", ("cls_embedding.uncond_embedding",)),
    Entry("condition/fc1/kernel", ("cls_embedding.cap_proj.fc1.weight",), "linear"),
    Entry("condition/fc2/kernel", ("cls_embedding.cap_proj.fc2.weight",), "linear"),
)


def open_directory(path: Path, vqgan: str | Path | None) -> Stage2Checkpoint | None:
    """Opens a directory of LlamaGen. Returns None if it has no `config.json` of one.

    Args:
      vqgan: path of the VQGAN; None: the folder `vqgan`.
    """
    config = llamagen.open_config(path, "t2i")
    if config is None:
        return None
    length = config["cls_token_num"]
    with convert_errors(path / llamagen.CONFIG):
        captions = FeatureCaptions(length, config["caption_dim"], config["class_dropout_prob"] > 0, str(path / T5))
        options = DALLEOptions.parse(llamagen.convert_options(config) | {"text_length": length}, "model")
        return llamagen.make_checkpoint(path, config, options, captions, _CONDITION, vqgan, _VQGAN)
