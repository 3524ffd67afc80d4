"""Training task of the decoder of unCLIP (arXiv 2204.06125, section 2.1), a diffusion model of images.

Batches: `image` uint8 [B, size, size, 3], `embedding` float32 [B, dim] (computed once and stored on disk), `text` int32
[B, length], `truncated` bool [B]. The text tower runs in every update. The run directory contains copies of the CLIP,
`clip.safetensors`, and of the prior, `prior.safetensors`, and does not depend on the originals.
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
from dalle_jax.unclip import decoder_evaluators
from dalle_jax.unclip import diffusion as diffusion_lib
from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip.context import Context, ContextEncoder, make_inputs
from dalle_jax.unclip.decoder_stage import DecoderStage, to_signed
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.example import EmbeddingExample
from dalle_jax.unclip.flops import context_flops, unet_flops
from dalle_jax.unclip.frozen_clip import CLIP, ClipPathOptions, EmbeddingsOptions, FrozenClip, open_clip
from dalle_jax.unclip.options import DecoderModelOptions, DecoderOptions
from dalle_jax.unclip.placeholders import make_embedding_record, write_clip
from dalle_jax.unclip.prior import PRIOR, PriorCheckpoint
from dalle_jax.unclip.text_features import encode_text
from dalle_jax.unclip.unet import UNet
from train_jax.compute import Compute
from train_jax.data import images, sources
from train_jax.data.captions import CaptionChoice
from train_jax.data.options import AugmentOptions
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.profiling import BACKWARD
from train_jax.task import Task


@dataclasses.dataclass(frozen=True)
class PriorPathOptions(Options):
    """Options of the prior, which evaluators and the loaded model sample from."""

    path: str = option("", "run of a prior for the same CLIP; empty: none")


@dataclasses.dataclass(frozen=True)
class DecoderDiffusion(Diffusion):
    """Diffusion of pixels."""

    learned_variance: bool = option(
        True, "whether the network also predicts a variance of each value (arXiv 2102.09672, section 3.1)"
    )


@dataclasses.dataclass(frozen=True)
class DecoderTaskOptions(Options):
    """Options of the decoder's task."""

    clip: ClipPathOptions = ClipPathOptions()
    prior: PriorPathOptions = PriorPathOptions()
    embeddings: EmbeddingsOptions = EmbeddingsOptions()
    model: DecoderModelOptions = DecoderModelOptions()
    diffusion: DecoderDiffusion = DecoderDiffusion()
    augment: AugmentOptions = AugmentOptions()
    compute: Compute = Compute()
    min_snr: float = option(
        0.0, "clipping of the loss weight by the signal-to-noise ratio (arXiv 2303.09556); 0: none", least=0
    )
    dropout: float = option(0.0, "dropout rate in residual blocks; 0.1 in the paper", least=0, below=1)
    image_dropout: float = option(
        0.1, "probability of dropping the image embedding, for classifier-free guidance", least=0, below=1
    )
    caption_dropout: float = option(0.5, "probability of replacing the text by the empty text", least=0, below=1)

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {"model": self.model.identity(), "diffusion": self.diffusion.identity()}


OPTIONS, EVALUATORS, CARD = DecoderTaskOptions, decoder_evaluators.EVALUATORS, card.UNCLIP
PROGRAMS = {"imagine": "dalle_jax.unclip.plan"}


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Replaces a CLIP that is named by its config by a placeholder in `folder`; see `train_jax.task`.

    There is no prior, which evaluators alone sample from.
    """
    config.prior.path = ""
    return config, make_embedding_record(write_clip(config, folder))


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config.

    Raises ConfigError for invalid options, LoadError if CLIP or prior cannot be loaded.
    """
    frozen = open_clip(config.clip.path, workdir)
    prior, prior_file = _open_prior(config.prior.path, workdir, frozen)
    clip, tower, null_ids = frozen.module.options, frozen.tower, jnp.asarray(frozen.null_ids)
    options = complete_options(DecoderModelOptions.parse(config.model, "model"), clip)
    diffusion = DecoderDiffusion.parse(config.diffusion, "diffusion")
    compute = Compute.parse(config.compute, "compute")
    context_encoder, unet = ContextEncoder(options, compute), UNet(options, output_channels(diffusion), compute)
    training_unet = unet.clone(dropout=config.dropout)
    records = make_records(lambda: frozen.clip, config.embeddings.dir, workdir, with_image=True)
    augment = AugmentOptions.parse(config.augment, "augment").make(images.Preprocess(options.size))
    choose = CaptionChoice(config.data.leading_prob, config.data.leading_captions)
    model = decoder_evaluators.EvaluatedDecoder(
        DecoderStage(tower, context_encoder, unet, diffusion), frozen, prior, records
    )

    def init(rng, batch):
        context_key, unet_key = jax.random.split(rng)
        inputs = make_inputs(options, clip.text)
        context, variables = context_encoder.init_with_output(context_key, *inputs)
        x = jnp.zeros((1, options.size, options.size, 3))
        unet_params = unet.init(unet_key, x, jnp.zeros(1, jnp.int32), Context(*context))["params"]
        text = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), frozen.abstract_text_params)
        zeros = jnp.zeros(options.embed_dim)
        extra = {"text": text, "mean": zeros, "covariance": jnp.zeros((options.embed_dim, options.embed_dim))}
        return {"decoder": {"context": variables["params"], "unet": unet_params}}, extra

    def load_frozen():
        mean, covariance = mean_and_covariance(records(sources.from_config(config.data)))
        return {}, {"text": frozen.text_params, "mean": mean, "covariance": covariance}

    def loss(params, extra, batch, rng, step):
        image_key, caption_key, t_key, noise_key, dropout_key = jax.random.split(rng, 5)
        count, params = len(batch["text"]), params["decoder"]
        image_is_dropped = jax.random.bernoulli(image_key, config.image_dropout, (count,))
        caption_is_dropped = jax.random.bernoulli(caption_key, config.caption_dropout, (count,))
        ids = jnp.where(caption_is_dropped[:, None], null_ids[None], batch["text"])
        text = encode_text(tower, extra["text"], ids)
        context = context_encoder.apply({"params": params["context"]}, batch["embedding"], *text, image_is_dropped)
        x0 = to_signed(batch["image"])
        t = jax.random.randint(t_key, (count,), 0, diffusion.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        x = diffusion_lib.add_noise(diffusion, x0, noise, t)
        output = training_unet.apply({"params": params["unet"]}, x, t, context, False, rngs={"dropout": dropout_key})
        terms = diffusion_lib.losses(diffusion, output, x0, noise, t, config.min_snr or None)
        metrics = {name: jnp.mean(term) for name, term in terms.items()}
        truncated = jnp.mean(batch["truncated"].astype(jnp.float32))
        return sum(metrics.values()), (metrics | {"truncated": truncated}, {})

    flops = context_flops(options, clip.text) + unet_flops(options, unet.out_channels, 3, clip)
    return Task(
        init=init,
        loss=loss,
        example=EmbeddingExample(frozen.tokenizer, choose, augment),
        evaluators=decoder_evaluators.make_factories(model),
        artifacts={CLIP: frozen.content} | ({PRIOR: prior_file} if prior_file else {}),
        records=records,
        pretrained=load_frozen,
        mean_over_examples=True,
        flops=float(BACKWARD * flops + forward_flops(clip)[1]),
    )


def complete_options(model: DecoderModelOptions, clip: Any) -> DecoderOptions:
    """Completes the options of a decoder with those of its CLIP, `clip_jax.options.CLIPOptions`."""
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return DecoderOptions(**values, embed_dim=clip.embed_dim)


def _open_prior(path: str, workdir: Path | None, frozen: FrozenClip) -> tuple[PriorCheckpoint | None, bytes]:
    """Opens the prior of the run directory, or for a new run the one at `path`; also returns the content of its file."""
    copy = workdir / PRIOR if workdir else None
    if copy is not None and copy.is_file():
        return prior_lib.open_checkpoint(copy), copy.read_bytes()
    if not path:
        return None, b""
    checkpoint = prior_lib.open_checkpoint(path)
    if checkpoint.clip != frozen.clip.fingerprint:
        raise ConfigError(
            f"config.prior.path = {path!r} is a prior for another CLIP than config.clip.path (fingerprints "
            f"{checkpoint.clip[:12]}… and {frozen.clip.fingerprint[:12]}…): name the CLIP of its run, or train a prior for "
            "this one"
        )
    return checkpoint, prior_lib.to_bytes(checkpoint)
