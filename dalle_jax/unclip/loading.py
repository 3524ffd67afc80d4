"""Loading of unCLIP: from run directories of `train-jax`, or from karlo's formats."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.clip import Clip
from clip_jax.clip import load as load_clip
from clip_jax.pretrained.checkpoint import check_shapes
from dalle_jax.unclip import decoder_task, pretrained, prior_model
from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip.context import ContextEncoder
from dalle_jax.unclip.decoder import Decoder, Upsampler
from dalle_jax.unclip.decoder_stage import DecoderStage
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.frozen_clip import CLIP, text_tower
from dalle_jax.unclip.options import DecoderModelOptions, UNetOptions
from dalle_jax.unclip.pretrained import UnclipCheckpoint
from dalle_jax.unclip.prior import PRIOR, Prior
from dalle_jax.unclip.prior_stage import PriorStage
from dalle_jax.unclip.unclip import Unclip
from dalle_jax.unclip.unet import UNet
from dalle_jax.unclip.upsampler_stage import UpsamplerStage
from nn_jax.mixed_precision import round_weights
from train_jax import inference, run_directory
from train_jax.compute import Compute, TransformerCompute, inference_dtype
from train_jax.errors import LoadError
from train_jax.weights import hub
from train_jax.weights.layout import flatten
from vqgan_jax.pretrained.checkpoint import convert_errors

_UPSAMPLING_STEPS = 25
_KARLO_UPSAMPLING_STEPS = 7  # six of the first network, one of the last: they were trained for no other number
_SAME_TEXT = 0.02  # largest mean difference of equal parameters that were rounded, relative to their mean magnitude


def load_unclip(
    path: str | Path,
    *,
    prior: str | Path | None = None,
    upsampler: str | Path | None = None,
    clip: Clip | str | Path | None = None,
    step: int | None = None,
    dtype: str | None = "auto",
    offload: bool = False,
) -> Unclip:
    """Loads an unCLIP.

    Args:
      path: run directory of a decoder, which contains its CLIP and its prior; or a directory of karlo, in diffusers' or its
        own format, or "hf:kakaobrain/karlo-v1-alpha".
      prior: another prior for the same CLIP: a run directory or file of ours for a run; for karlo a directory such as
        "hf:ECLIPSE-Community/ECLIPSE_Karlo_Prior".
      upsampler: run directory of an upsampler, for a run; karlo has its own.
      clip: CLIP with karlo's text tower (OpenAI's ViT-L/14) or its path, for methods that need embeddings of images.
      step: step of the decoder's checkpoint; None: the newest readable one.
      dtype: precision, "float32" or "bfloat16"; "auto": bfloat16 on accelerators that have it, float32 on a CPU; None: that
        of the training. In bfloat16, kernels need half the memory.
      offload: keep the weights of prior, decoder and upsampler in host memory; each is on the devices only while it runs.
        Images are the same; a call is slower by the time of the copies.

    Raises LoadError for unknown formats, for damaged files, and for parts that do not belong together.
    """
    dtype = dtype and inference_dtype(dtype)
    path = pretrained.resolve(path)
    if run_directory.read_config(path) is not None:
        if clip is not None:
            raise LoadError(f"clip = {clip}: {path} is a run directory, which contains its CLIP; leave clip out")
        return _load_run(path, step, *map(_resolve, (prior, upsampler)), dtype, offload)
    if upsampler is not None:
        raise LoadError(f"upsampler = {upsampler}: {path} is no run directory, and karlo has an upsampler of its own")
    if step is not None:
        raise LoadError(f"step = {step}: {path} is no run directory of train-jax, so it has no checkpoints by step")
    checkpoint = pretrained.open_checkpoint(path)
    checkpoint = checkpoint if prior is None else pretrained.replace_prior(checkpoint, prior)
    return _load_karlo(checkpoint, clip, dtype or "float32", offload)


# ---------------------------------------------------------------------------------------------------------------------
# Run directories


def _load_run(
    path: Path, step: int | None, prior: Path | None, upsampler: Path | None, dtype: str | None, offload: bool
) -> Unclip:
    config = run_directory.open_config(path, "dalle_jax.unclip.decoder_task", "a decoder of unCLIP", (CLIP,))
    clip = load_clip(path / CLIP, dtype=dtype)
    tower, text = text_tower(clip.module), clip.variables["params"]["text"]
    with convert_errors(path):
        model = DecoderModelOptions.parse(config["model"], "model")
        options = decoder_task.complete_options(model, clip.module.options)
        diffusion = Diffusion.parse(config["diffusion"], "diffusion")
        compute = _for_inference(Compute.parse(config["compute"], "compute"), dtype)
    params, extra, name = run_directory.load_weights(path, step)
    params = jax.tree.map(np.asarray, params["decoder"])
    unet = UNet(options, output_channels(diffusion), compute)
    stage = DecoderStage(tower, ContextEncoder(options, compute), unet, diffusion)
    check_shapes(params, stage.abstract_params(), str(path))
    params = round_weights(params, compute.array_dtype)
    decoder = Decoder(stage, inference.on_devices({"text": text, "decoder": params}, offload=offload), clip.tokenizer)
    source = prior or (path / PRIOR if (path / PRIOR).is_file() else None)
    loaded_prior = None
    if source is not None:
        checkpoint = prior_lib.open_checkpoint(source)
        if checkpoint.clip != clip.fingerprint:
            raise LoadError(f"{source} is a prior for another CLIP than that of {path}: name a prior for the same CLIP")
        loaded_prior = checkpoint.load(tower, text, clip.tokenizer, dtype, offload=offload)
    return Unclip(
        tokenizer=clip.tokenizer,
        prior=loaded_prior,
        decoder=decoder,
        upsampler=None if upsampler is None else _load_upsampler(upsampler, options.size, dtype, offload),
        clip=clip,
        moments=(np.asarray(extra["mean"]), np.asarray(extra["covariance"])),
        dtype=compute.dtype,
        name=name,
    )


def _resolve(part: str | Path | None) -> Path | None:
    """Returns the path of a prior or an upsampler of ours, after downloading it if it is a name of the hub."""
    return None if part is None else hub.resolve(part, ("config.json", "*.safetensors"))


def _load_upsampler(path: Path, size: int, dtype: str | None, offload: bool) -> Upsampler:
    """Loads the upsampler of a run, for images of `size` pixels."""
    config = run_directory.open_config(path, "dalle_jax.unclip.upsampler_task", "an upsampler of unCLIP")
    if config is None:
        raise LoadError(f"upsampler = {path} is no run directory: it has no config.json with a task")
    with convert_errors(path):
        options = UNetOptions.parse(config["model"], "model")
        diffusion = Diffusion.parse(config["diffusion"], "diffusion")
        compute = _for_inference(Compute.parse(config["compute"], "compute"), dtype)
        target = size * config["factor"]
    divisor = 2 ** (len(options.channels) - 1)
    if target % divisor:
        raise LoadError(f"upsampler = {path}: images of {target} pixels, whose sides must be divisible by {divisor}")
    stage = UpsamplerStage(UNet(options, output_channels(diffusion), compute), diffusion, target)
    params = jax.tree.map(np.asarray, run_directory.load_weights(path)[0]["upsampler"])
    check_shapes(params, stage.abstract_params(), str(path))
    variables = inference.on_devices({"upsampler": round_weights(params, compute.array_dtype)}, offload=offload)
    return Upsampler(stage, variables, min(_UPSAMPLING_STEPS, diffusion.timesteps))


def _for_inference(compute: Compute, dtype: str | None) -> Compute:
    return dataclasses.replace(compute, remat="none", **({"dtype": dtype} if dtype else {}))


# ---------------------------------------------------------------------------------------------------------------------
# karlo


def _load_karlo(checkpoint: UnclipCheckpoint, clip: Clip | str | Path | None, dtype: str, offload: bool) -> Unclip:
    compute = TransformerCompute(dtype=dtype, scan=False)
    clip = load_clip(clip, dtype=dtype) if isinstance(clip, str | Path) else clip

    def read(part: str) -> Any:
        return inference.on_devices(round_weights(checkpoint.params(part, compute), compute.array_dtype), offload=offload)

    tower, tokenizer = checkpoint.module("text_encoder", compute), checkpoint.text.tokenizer
    text = read("text_encoder")
    if clip is not None:
        _check_same_text_tower(clip, text, checkpoint.name)
    statistics = inference.on_devices(dataclasses.asdict(checkpoint.statistics()), offload=offload)
    variables = {"text": text, "prior": read("prior"), **statistics}
    prior_stage = PriorStage(tower, prior_model.build(checkpoint.prior, checkpoint.prior_diffusion, compute))
    prior = Prior(prior_stage, variables, tokenizer, checkpoint.name)
    decoder_stage = DecoderStage(
        tower, checkpoint.module("context", compute), checkpoint.module("decoder", compute), checkpoint.decoder_diffusion
    )
    weights = {"text": text, "decoder": {"context": read("context"), "unet": read("decoder")}}
    decoder = Decoder(decoder_stage, weights, tokenizer)
    super_res, size = checkpoint.module("super_res_first", compute), checkpoint.super_res.size
    upsampler = Upsampler(
        UpsamplerStage(super_res, checkpoint.super_res_diffusion, size, has_last=True),
        {"upsampler": read("super_res_first"), "last": read("super_res_last")},
        _KARLO_UPSAMPLING_STEPS,
    )
    return Unclip(tokenizer, prior, decoder, upsampler, clip, None, dtype, checkpoint.name)


def _check_same_text_tower(clip: Clip, text: Any, name: str) -> None:
    """Raises LoadError unless the text tower of a CLIP has these parameters, up to rounding."""
    theirs, ours = flatten(clip.variables["params"]["text"]), flatten(text)
    differs = {key: x.shape for key, x in theirs.items()} != {key: x.shape for key, x in ours.items()}
    for key in () if differs else ours:
        a, b = (np.asarray(x[key], np.float32) for x in (theirs, ours))
        differs = differs or bool(np.mean(np.abs(a - b)) > _SAME_TEXT * np.mean(np.abs(b)) + 1e-6)
    if differs:
        raise LoadError(
            f"clip = {clip.name} has another text tower than {name}, so that its embeddings of images mean something else: "
            "name the CLIP that it was trained with (for karlo, OpenAI's ViT-L/14)"
        )
