"""Training task of the prior of unCLIP (arXiv 2204.06125, section 2.2) on captions and embeddings of a frozen CLIP.

Batches: `embedding` float32 [B, dim] (computed once and stored on disk), `text` int32 [B, length], `truncated` bool [B]. The
text tower runs in every update. The run directory contains a copy of the CLIP, `clip.safetensors`, and does not depend on
the original.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clip_jax.embeddings import make_records, mean_and_covariance
from clip_jax.flops import forward_flops
from dalle_jax import card
from dalle_jax.unclip import prior_evaluators, prior_model
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.example import EmbeddingExample
from dalle_jax.unclip.frozen_clip import CLIP, ClipPathOptions, EmbeddingsOptions, open_clip
from dalle_jax.unclip.options import PriorModelOptions
from dalle_jax.unclip.placeholders import make_embedding_record, write_clip
from dalle_jax.unclip.prior import complete_options
from dalle_jax.unclip.prior_stage import PriorStage
from dalle_jax.unclip.text_features import encode_text
from train_jax.compute import TransformerCompute
from train_jax.data import sources
from train_jax.data.captions import CaptionChoice
from train_jax.options import Options, option
from train_jax.profiling import BACKWARD
from train_jax.task import Task


@dataclasses.dataclass(frozen=True)
class PriorDiffusion(Diffusion):
    """Diffusion of standardised embeddings."""

    prediction: str = option("x0", "output of the network", choices=("x0", "epsilon", "v"))
    x0_range: float = option(
        5.0, "largest magnitude of standardised embeddings, to which the sampler clips predictions", above=0, identity=False
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        super().check(path)
        self.require(not self.learned_variance, path, "learned_variance", "False for a prior")


@dataclasses.dataclass(frozen=True)
class PriorTaskOptions(Options):
    """Options of the prior's task."""

    clip: ClipPathOptions = ClipPathOptions()
    embeddings: EmbeddingsOptions = EmbeddingsOptions()
    model: PriorModelOptions = PriorModelOptions()
    diffusion: PriorDiffusion = PriorDiffusion()
    compute: TransformerCompute = TransformerCompute()
    dropout: float = option(0.0, "dropout rate in the blocks", least=0, below=1)
    condition_dropout: float = option(
        0.1, "probability of replacing the text by the empty text, for classifier-free guidance", least=0, below=1
    )

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {"model": self.model.identity(), "diffusion": self.diffusion.identity()}

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        is_possible = self.model.type == "diffusion" or self.diffusion == PriorDiffusion()
        self.require(is_possible, path, "model.type", "'diffusion' where config.diffusion is not left at its defaults")


OPTIONS, EVALUATORS, CARD = PriorTaskOptions, prior_evaluators.EVALUATORS, card.PRIOR


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a CLIP that is named by its config by a placeholder in `folder`; see `train_jax.task`."""
    return config, make_embedding_record(write_clip(config, folder))


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config. Raises ConfigError for invalid options, LoadError without a CLIP."""
    frozen = open_clip(config.clip.path, workdir)
    clip, tower, null_ids = frozen.module.options, frozen.tower, jnp.asarray(frozen.null_ids)
    options = complete_options(PriorModelOptions.parse(config.model, "model"), clip)
    diffusion = PriorDiffusion.parse(config.diffusion, "diffusion")
    compute = TransformerCompute.parse(config.compute, "compute")
    model = prior_model.build(options, diffusion, compute, config.dropout)
    records = make_records(lambda: frozen.clip, config.embeddings.dir, workdir)
    text_width = clip.text.width
    inference_compute = dataclasses.replace(compute, float8=False)
    stage = PriorStage(tower, prior_model.build(options, diffusion, inference_compute))

    def init(rng, batch):
        text = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), frozen.abstract_text_params)
        statistics = jax.tree.map(jnp.asarray, prior_model.unit_statistics(model, options.embed_dim))
        return {"prior": model.init(rng, text_width)}, {"text": text, **statistics}

    def load_frozen():
        moments = mean_and_covariance(records(sources.from_config(config.data)))
        return {}, {"text": frozen.text_params, **model.measure(*moments)}

    def loss(params, extra, batch, rng, step):
        drop_key, loss_key = jax.random.split(rng)
        is_dropped = jax.random.bernoulli(drop_key, config.condition_dropout, (len(batch["text"]),))
        text = encode_text(tower, extra["text"], batch["text"])
        null = encode_text(tower, extra["text"], null_ids[None])
        x = model.encode(extra, batch["embedding"], text.embedding)
        text = jax.tree.map(lambda x, null: jax.vmap(jnp.where, (0, None, 0))(is_dropped, null[0], x), text, null)
        value, metrics = model.loss(params["prior"], x, text, loss_key)
        truncated = jnp.mean(batch["truncated"].astype(jnp.float32))
        return value, (metrics | {"truncated": truncated}, {})

    choose = CaptionChoice(config.data.leading_prob, config.data.leading_captions)
    return Task(
        init=init,
        loss=loss,
        example=EmbeddingExample(frozen.tokenizer, choose),
        evaluators=prior_evaluators.make_factories(stage, frozen.tokenizer, records),
        artifacts={CLIP: frozen.content},
        records=records,
        pretrained=load_frozen,
        mean_over_examples=True,
        flops=float(BACKWARD * model.flops(text_width) + forward_flops(clip)[1]),
    )
