"""Programs of unCLIP for `train-jax plan --what=imagine`: sampling from prior, decoder and upsampler, of their configs."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from clip_jax.flops import forward_flops
from dalle_jax.unclip import decoder_task, prior_model
from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip.context import ContextEncoder
from dalle_jax.unclip.decoder import Decoder, Upsampler
from dalle_jax.unclip.decoder_stage import DecoderStage
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.flops import context_flops, unet_flops
from dalle_jax.unclip.frozen_clip import open_clip
from dalle_jax.unclip.options import DecoderModelOptions, PriorModelOptions, UNetOptions
from dalle_jax.unclip.prior import Prior
from dalle_jax.unclip.prior_stage import PriorStage
from dalle_jax.unclip.samplers import make_steps
from dalle_jax.unclip.unet import UNet
from dalle_jax.unclip.upsampler_stage import UpsamplerStage
from train_jax import config as config_lib
from train_jax import config_file
from train_jax.compute import Compute, TransformerCompute
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.plan.program import Program, bytes_per_device, check_rows, place, rounded, trace_program

_STEPS = "number of sampling steps of the "


@dataclasses.dataclass(frozen=True)
class ImaginingOptions(Options):
    """Options `--imagine.…`. The precision is that of the decoder's config."""

    images: int = option(1, "images of a batch, over all devices", least=1)
    guided: bool = option(True, "classifier-free guidance of prior and decoder, which doubles their rows")
    steps: int = option(25, f"{_STEPS}decoder", least=2)
    prior: str = option("unclip/karlo_prior", "config of the prior, a file or a name; empty: none")
    prior_steps: int = option(25, f"{_STEPS}prior", least=2)
    candidates: int = option(2, "embeddings of each image, of which one is decoded", least=1)
    upsampler: str = option("unclip/karlo_upsampler", "config of the upsampler, a file or a name; empty: none")
    upsampler_steps: int = option(7, f"{_STEPS}upsampler", least=2)
    offload: bool = option(False, "weights of the networks that do not run are in host memory")
    last: bool = option(True, "whether the last of these steps has a network of its own, as karlo's has")


OPTIONS = ImaginingOptions


def make(config: ConfigDict, folder: Path, mesh: Mesh, options: ImaginingOptions) -> list[Program]:
    """Traces sampling of a batch of images, a program for each network. All weights stay in memory, unless offloaded."""
    check_rows(mesh, "imagine.images", options.images)
    compute = dataclasses.replace(Compute.parse(config.compute, "compute"), remat="none")  # as of loaded models
    frozen = open_clip(config.clip.path, folder)
    tower = frozen.tower.clone(compute=dataclasses.replace(frozen.tower.compute, dtype=compute.dtype))
    parts = _Parts(mesh, options, tower, frozen.tokenizer, compute, frozen.abstract_text_params)
    programs = [
        *([parts.trace_prior(_load(options, "prior"))] if options.prior else []),
        parts.trace_decoder(config),
        *([parts.trace_upsampler(_load(options, "upsampler"), config.model.size)] if options.upsampler else []),
    ]
    if options.offload:
        return programs
    total = sum(map(bytes_per_device, parts.weights.values()))

    def with_other_weights(program: Program) -> Program:
        others = total - program.parts["weights"]
        parts = {"weights": program.parts["weights"], "weights of the others": others} | dict(program.parts)
        return dataclasses.replace(program, parts=parts, held=program.held + others)

    return list(map(with_other_weights, programs))


def _load(options: ImaginingOptions, name: str) -> ConfigDict:
    """Loads the config that the option `name` names, of a task of this name."""
    value = getattr(options, name)
    config, task = config_file.load(value), f"dalle_jax.unclip.{name}_task"
    if config.get("task") != task:
        raise ConfigError(f"--imagine.{name}={value} is the config of a {config.get('task')}; it must be that of a {task}")
    return config_lib.resolve(config)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Traces the programs of the parts, and collects their weights in `weights`, those of the text tower once."""

    mesh: Mesh
    options: ImaginingOptions
    tower: Any
    tokenizer: Any
    compute: Compute
    text_params: Any
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._hold("text", self.text_params)

    def trace_prior(self, config: ConfigDict) -> Program:
        options, clip = self.options, self.tower.options
        compute = TransformerCompute.parse(config.compute, "compute")
        compute = dataclasses.replace(compute, dtype=self.compute.dtype, remat="none", float8=False)
        model_options = prior_lib.complete_options(PriorModelOptions.parse(config.model, "model"), clip)
        model = prior_model.build(model_options, Diffusion.parse(config.diffusion, "diffusion"), compute)
        stage = PriorStage(self.tower, model)
        self._hold("prior", prior_model.abstract_params(model, clip.text.width))
        statistics = prior_model.unit_statistics(model, clip.embed_dim)
        self._hold("statistics", jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), statistics))
        variables = {"text": self.weights["text"], "prior": self.weights["prior"], **self.weights["statistics"]}
        candidates = 1 if model.is_deterministic else options.candidates
        steps = 1 if model.timesteps is None else options.prior_steps
        rows = options.images * candidates * (1 + options.guided)
        return self._trace(
            "prior",
            Prior(stage, variables, self.tokenizer, "placeholder").program,
            {
                "weights": variables,
                "batch": (self._ids(), self._seeds()),
                "empty text": self._null_ids,
                "steps": model.make_steps(options.prior_steps),
                "guidance": np.float32(1),
            },
            {"guided": options.guided, "candidates": candidates},
            steps,
            steps * rows * model.flops(clip.text.width) + self._text_flops(),
        )

    def trace_decoder(self, config: ConfigDict) -> Program:
        options, clip = self.options, self.tower.options
        model = decoder_task.complete_options(DecoderModelOptions.parse(config.model, "model"), clip)
        diffusion = Diffusion.parse(config.diffusion, "diffusion")
        unet = UNet(model, output_channels(diffusion), self.compute)
        stage = DecoderStage(self.tower, ContextEncoder(model, self.compute), unet, diffusion)
        self._hold("decoder", stage.abstract_params())
        variables = {name: self.weights[name] for name in ("text", "decoder")}
        embedding = self._rows(clip.embed_dim, dtype=jnp.float32)
        flops = context_flops(model, clip.text) + options.steps * unet_flops(model, unet.out_channels, 3, clip)
        return self._trace(
            "decoder",
            Decoder(stage, variables, self.tokenizer).decode_program,
            {
                "weights": variables,
                "batch": {"embedding": embedding, "ids": self._ids(), "seeds": self._seeds()},
                "empty text": self._null_ids,
                "steps": make_steps(diffusion, options.steps),
                "guidance": np.float32(1),
                "eta": np.float32(0),
            },
            {"guided": options.guided, "ancestral": True},
            options.steps,
            options.images * (1 + options.guided) * flops + self._text_flops(),
        )

    def trace_upsampler(self, config: ConfigDict, small: int) -> Program:
        options, size = self.options, small * config.factor
        model = UNetOptions.parse({**config.model, "size": size}, "model")
        diffusion = Diffusion.parse(config.diffusion, "diffusion")
        unet = UNet(model, output_channels(diffusion), self.compute)
        stage = UpsamplerStage(unet, diffusion, size, has_last=options.last)
        names, params = ("upsampler", "last") if options.last else ("upsampler",), stage.abstract_params()
        for name in names:
            self._hold(name, params)
        variables = {name: self.weights[name] for name in names}
        batch = {"pixels": self._rows(small, small, 3, dtype=jnp.float32), "seeds": self._seeds()}
        arguments = {"weights": variables, "batch": batch, "steps": make_steps(diffusion, options.upsampler_steps)}
        flops = options.images * options.upsampler_steps * unet_flops(model, unet.out_channels, 6)
        passes = 0 if options.last else options.upsampler_steps  # each of two networks has its own number
        program = Upsampler(stage, variables, options.upsampler_steps).upsample_program
        return self._trace("upsampler", program, arguments, {}, passes, flops)

    def _hold(self, name: str, params: Any) -> None:
        """Keeps the weights of a part as loaded models have them."""
        self.weights[name] = place(rounded(params, self.compute.array_dtype), self.mesh, P())

    def _trace(self, name: str, program: Any, arguments: dict, static: dict, passes: int, flops: int) -> Program:
        count = self.options.images
        fields = {"unit": "images", "units": count, "passes": passes, "flops": float(flops)}
        return trace_program(name, program, self.mesh, arguments, static, **fields)

    def _rows(self, *shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return place(jax.ShapeDtypeStruct((self.options.images, *shape), dtype), self.mesh, P("batch"))

    def _ids(self) -> jax.ShapeDtypeStruct:
        return self._rows(self.tower.options.text.context_length, dtype=jnp.int32)

    def _seeds(self) -> jax.ShapeDtypeStruct:
        return self._rows(3, dtype=jnp.uint32)

    @property
    def _null_ids(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.tower.options.text.context_length,), jnp.int32)

    def _text_flops(self) -> int:
        return (self.options.images + self.options.guided) * forward_flops(self.tower.options)[1]
