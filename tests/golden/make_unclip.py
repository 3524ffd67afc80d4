"""Makes `tests/golden/unclip`: tiny random models of unCLIP, and what the peers' own code computes with them.

python tests/golden/make_unclip.py [KARLO IDDPM ECLIPSE]           (with the `peers` extra)

The arguments are checkouts of kakaobrain/karlo, openai/improved-diffusion and eclipse-t2i/eclipse-inference, whose files run
unchanged; without them only what diffusers computes is made. Only their numbers are stored.

schedulers.npz  steps of diffusers' UnCLIPScheduler, DDIMScheduler and DDIMInverseScheduler, with tables in float64
losses.npz      IDDPM's hybrid loss, and its gradient
karlo/          diffusers' UnCLIPPipeline as its `save_pretrained` writes it, in float16; `outputs.npz`: parts, pictures
karlo-files/    the same parts, of another model, as karlo's own trainer writes them; `outputs.npz`: prior and decoder
eclipse/        ECLIPSE's prior as its `save_pretrained` writes it, in float16; `outputs.npz`: an embedding
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    PriorTransformer,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.unclip import UnCLIPTextProjModel
from diffusers.schedulers import scheduling_unclip
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "unclip"
PROMPTS = ["a small red circle above a large blue star", "a green ring"]
DIM, TEXT, SIZE, LARGE = 12, 16, 16, 32
STEPS = (5, 4, 3)  # of prior, decoder, upsampler
GUIDANCE = (2.0, 3.0)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def last(x: torch.Tensor) -> np.ndarray:
    """Channels last, where there are pixels; float32."""
    x = x.detach().float().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that make every part matter, and that float16 holds."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim >= 2 and "embedding" not in name.split(".")[-1] and not name.startswith("clip_"):
            p.data.normal_(0, p[0].numel() ** -0.5)
        else:
            p.data = 0.3 * torch.randn_like(p) + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if name == "clip_std":
            p.data = p.data.abs() + 0.5
    model.half().float().eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Schedulers and losses


def exact_betas() -> torch.Tensor:
    """The cosine schedule before diffusers rounds it to float32."""
    alpha_bar = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def in_float64(scheduler):
    scheduler.betas = exact_betas()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    return scheduler


def schedulers() -> None:
    """Chains of steps with given outputs of the network and given noise: arrays [steps, 2, 4, 4, channels]."""
    made = {}
    shape = (2, 3, 4, 4)

    def record(name: str, timesteps, channels: int, step) -> None:
        outputs, noises = draw(1, len(timesteps), 2, channels, 4, 4), draw(2, len(timesteps), *shape)
        x, chain = 1.5 * draw(3, *shape).double(), []
        made[f"{name}/start"] = last(x)
        for i, t in enumerate(timesteps):
            x = step(outputs[i].double(), int(t), x, noises[i].double(), i)
            chain.append(last(x))
        made[f"{name}/x"], made[f"{name}/t"] = np.stack(chain), np.asarray(timesteps).astype(np.int32)
        made[f"{name}/outputs"] = np.stack([last(x) for x in outputs])
        made[f"{name}/noises"] = np.stack([last(x) for x in noises])

    unclip = {
        "fixed": {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 1.2},
        "learned": {"variance_type": "learned_range", "prediction_type": "epsilon"},
    }
    for name, options in unclip.items():
        scheduler = in_float64(UnCLIPScheduler(**options))
        scheduler.set_timesteps(7)
        timesteps = scheduler.timesteps.tolist()

        def step(output, t, x, noise, i, scheduler=scheduler, timesteps=timesteps):
            scheduling_unclip.randn_tensor = lambda *_, **__: noise
            following = timesteps[i + 1] if i + 1 < len(timesteps) else None
            return scheduler.step(output, t, x, prev_timestep=following).prev_sample

        record(name, timesteps, 6 if name == "learned" else 3, step)

    timesteps = np.arange(999, -1, -111)  # both ends included, as UnCLIPScheduler has it
    ddim = {
        "ddim-epsilon": ({"prediction_type": "epsilon"}, 0.0),
        "ddim-v": ({"prediction_type": "v_prediction"}, 0.6),
        "ddim-x0": ({"prediction_type": "sample", "clip_sample_range": 0.9}, 1.0),
        "ddim-threshold": (
            {"prediction_type": "sample", "thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 99.0},
            0.0,
        ),
    }
    for name, (options, eta) in ddim.items():
        scheduler = in_float64(DDIMScheduler(beta_schedule="squaredcos_cap_v2", **options))
        scheduler.num_inference_steps = 9  # 1000 // 9 = 111, the distance of its timesteps

        def step(output, t, x, noise, i, scheduler=scheduler, eta=eta):
            options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": noise}
            return scheduler.step(output, t, x, **options).prev_sample

        record(name, timesteps, 3, step)
    inverse = in_float64(DDIMInverseScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False))
    inverse.num_inference_steps = 9
    record("inverse", timesteps[::-1], 3, lambda output, t, x, _, __: inverse.step(output, t, x).prev_sample)
    np.savez_compressed(HERE / "schedulers.npz", **made)


def losses(checkout: str) -> None:
    sys.path.insert(0, checkout)
    gd = importlib.import_module("improved_diffusion.gaussian_diffusion")
    kinds = {"epsilon": gd.ModelMeanType.EPSILON, "x0": gd.ModelMeanType.START_X}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3))
    pixels[:, 0, 0] = [0, 255, 128]
    x0 = torch.from_numpy((pixels / 127.5 - 1).astype(np.float32)).permute(0, 3, 1, 2)
    t, noise = torch.tensor([0, 0, 1, 500, 999]), draw(1, 5, 3, 4, 4)
    made = {"x0": last(x0), "noise": last(noise), "t": t.numpy().astype(np.int32)}
    for name, kind in kinds.items():
        betas = gd.get_named_beta_schedule("cosine", 1000)
        options = {"model_var_type": gd.ModelVarType.LEARNED_RANGE, "loss_type": gd.LossType.RESCALED_MSE}
        diffusion = gd.GaussianDiffusion(betas=betas, model_mean_type=kind, **options)
        exact = {"epsilon": noise, "x0": x0}[name]
        # Small errors: far from a pixel, a probability is a difference of numbers near 1.
        error = {"epsilon": 0.02, "x0": 0.002}[name] * draw(2, 5, 3, 4, 4)
        output = torch.cat([exact + error, 0.5 * draw(3, 5, 3, 4, 4)], 1).requires_grad_()
        terms = diffusion.training_losses(lambda *_, output=output: output, x0, t, noise=noise)
        terms["loss"].sum().backward()
        made |= {f"{name}/output": last(output), f"{name}/gradient": last(output.grad)}
        made |= {f"{name}/mse": last(terms["mse"]), f"{name}/bound": last(terms["vb"])}
    np.savez_compressed(HERE / "losses.npz", **made)


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' UnCLIPPipeline


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer of a small vocabulary."""
    sys.path.insert(0, str(ROOT))
    from train_jax.data.text import Tokenizer

    content = json.loads(Tokenizer.train([*PROMPTS, "a large green star below a blue ring"], 560).to_json())["model"]
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps(content["vocab"], ensure_ascii=False))
    merges.write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in content["merges"]))
    made = CLIPTokenizer(str(vocab), str(merges), pad_token="<|endoftext|>", model_max_length=TEXT)
    vocab.unlink()
    merges.unlink()
    return made


def pipeline(folder: Path) -> UnCLIPPipeline:
    text = tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(text), hidden_size=DIM, intermediate_size=2 * DIM, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TEXT, projection_dim=DIM, eos_token_id=2,
        bos_token_id=text.bos_token_id, pad_token_id=text.pad_token_id,
    )  # fmt: skip
    upsampler = {
        "in_channels": 6, "out_channels": 3, "layers_per_block": 1, "add_attention": False,
        "block_out_channels": (8, 16), "norm_num_groups": 4,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    }  # fmt: skip
    parts = {
        "prior": PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=DIM, num_embeddings=TEXT
        ),
        "decoder": UNet2DConditionModel(
            sample_size=SIZE, in_channels=3, out_channels=6, layers_per_block=2, cross_attention_dim=20,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(16, 24), norm_num_groups=8, attention_head_dim=8,
            class_embed_type="identity", resnet_time_scale_shift="scale_shift",
        ),
        "text_proj": UnCLIPTextProjModel(clip_embeddings_dim=DIM, time_embed_dim=64, cross_attention_dim=20),
        "text_encoder": CLIPTextModelWithProjection(config),
        "super_res_first": UNet2DModel(sample_size=LARGE, **upsampler),
        "super_res_last": UNet2DModel(**upsampler),
    }  # fmt: skip
    for seed, model in enumerate(parts.values()):
        randomise(model, seed)
    return UnCLIPPipeline(
        **parts,
        tokenizer=text,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )


def outputs_of_parts(pipe: UnCLIPPipeline) -> dict[str, np.ndarray]:
    """What each network computes, for rows [empty text, empty text, prompts], as the pipeline has them."""
    embeds, states, mask = pipe._encode_prompt(PROMPTS, "cpu", 1, True)
    ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=TEXT, truncation=True).input_ids
    made = {"prompts": np.array(PROMPTS), "ids": np.array(ids, np.int32), "text_mask": mask.numpy()}
    made |= {"text_embedding": last(embeds), "text_states": last(states)}
    t, x = torch.tensor([0, 7, 500, 999]), draw(5, 4, DIM)
    made |= {"t": t.numpy().astype(np.int32), "prior_x": last(x)}
    prior = pipe.prior(x, timestep=t, proj_embedding=embeds, encoder_hidden_states=states, attention_mask=mask)
    made["prior"] = last(prior.predicted_image_embedding)
    image = pipe.prior.post_process_latents(draw(6, 2, DIM))
    context, embedding = pipe.text_proj(
        image_embeddings=image, prompt_embeds=embeds, text_encoder_hidden_states=states, do_classifier_free_guidance=True
    )
    made |= {"image_embedding": last(image), "context_tokens": last(context), "context_embedding": last(embedding)}
    context_mask = torch.nn.functional.pad(mask, (4, 0), value=True)
    x = draw(7, 4, 3, SIZE, SIZE)
    decoder = pipe.decoder(x, t, context, class_labels=embedding, attention_mask=context_mask)
    made |= {"decoder_x": last(x), "decoder": last(decoder.sample)}
    x = draw(8, 2, 6, LARGE, LARGE)
    made["super_res_x"] = last(x)
    for name in ("super_res_first", "super_res_last"):
        made[name] = last(getattr(pipe, name)(x, t[1:3]).sample)
    return made


def pictures(pipe: UnCLIPPipeline) -> dict[str, np.ndarray]:
    """The whole pipeline with recorded noise, and results of its stages.

    Tables are in float64, as in karlo's own code: those of diffusers are in float32, where 1 - alpha_bar at t = 0 is wrong
    by 6e-4, and so are pictures.
    """
    for name in ("prior", "decoder", "super_res"):
        in_float64(getattr(pipe, f"{name}_scheduler"))
    latents = {"prior": draw(10, 2, DIM), "decoder": draw(11, 2, 3, SIZE, SIZE), "super_res": draw(12, 2, 3, LARGE, LARGE)}
    made = {f"pipeline/{name}_start": last(x) for name, x in latents.items()}
    noises = []

    def randn_tensor(shape, **_):
        noises.append(draw(20 + len(noises), *shape))
        return noises[-1]

    def keep_embedding(x, restore=pipe.prior.post_process_latents):
        made["pipeline/image_embedding"] = last(restore(x))
        return restore(x)

    def keep_upscaled(sample, timestep, forward=pipe.super_res_first.forward):
        made["pipeline/upscaled"] = last(sample[:, 3:])
        return forward(sample, timestep)

    scheduling_unclip.randn_tensor = randn_tensor
    pipe.prior.post_process_latents, pipe.super_res_first.forward = keep_embedding, keep_upscaled
    pipe.set_progress_bar_config(disable=True)
    steps = dict(zip((f"{name}_num_inference_steps" for name in latents), STEPS, strict=True))
    guidance = dict(zip(("prior_guidance_scale", "decoder_guidance_scale"), GUIDANCE, strict=True))
    starts = {f"{name}_latents": x for name, x in latents.items()}
    images = pipe(PROMPTS, output_type="np", **steps, **guidance, **starts).images
    del pipe.prior.post_process_latents, pipe.super_res_first.forward
    for name, count in zip(latents, STEPS, strict=True):
        made[f"pipeline/{name}_noises"] = np.stack([last(x) for x in noises[: count - 1]])
        noises = noises[count - 1 :]
    return made | {"pipeline/images": images}


def karlo() -> None:
    folder = HERE / "karlo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pipe = pipeline(folder)
    with torch.no_grad():
        made = outputs_of_parts(pipe) | pictures(pipe)
    pipe.to(torch.float16).save_pretrained(folder)
    np.savez_compressed(folder / "outputs.npz", **made)


# ---------------------------------------------------------------------------------------------------------------------
# karlo's own files


def karlo_files(checkout: str) -> None:
    """Parts as karlo's trainer saves them; its group norms of 32 groups have 8, for fewer channels."""
    sys.path.insert(0, checkout)
    from karlo.modules import nn as karlo_nn
    from karlo.modules import unet, xf

    unet.normalization = lambda channels, swish=0.0: karlo_nn.GroupNorm32(8, channels, swish)
    folder = HERE / "karlo-files"
    folder.mkdir(parents=True, exist_ok=True)
    prior = xf.PriorTransformer(TEXT, 16, 2, 2, True, DIM)
    shared = {"in_channels": 3, "num_res_blocks": 1, "resblock_updown": True}
    decoder = unet.PLMImUNet(
        TEXT, 20, out_channels=6, model_channels=16, channel_mult=(1, 1.5), attention_resolutions=(2,), num_head_channels=8,
        clip_dim=DIM, clip_emb_mult=4, clip_emb_drop=0.1, use_scale_shift_norm=True, **shared,
    )  # fmt: skip
    upsamplers = torch.nn.ModuleDict(
        {
            name: unet.SuperResUNetModel(
                out_channels=3, model_channels=8, channel_mult=(1, 2), attention_resolutions=(), use_middle_attention=False,
                **shared,
            )
            for name in ("model_first_steps", "model_last_step")
        }
    )  # fmt: skip
    models = {"prior-ckpt-step=01000000-of-01000000.ckpt": torch.nn.ModuleDict({"model": prior})}
    models["decoder-ckpt-step=01000000-of-01000000.ckpt"] = torch.nn.ModuleDict({"model": decoder})
    models["improved-sr-ckpt-step=1.2M.ckpt"] = upsamplers
    for seed, (name, model) in enumerate(models.items(), 100):
        randomise(model, seed)
        torch.save({"state_dict": {key: x.half() for key, x in model.state_dict().items()}}, folder / name)
    statistics = (draw(1, DIM), draw(2, DIM).abs() + 0.5)
    torch.save(statistics, folder / "ViT-L-14_stats.th")
    t, mask = torch.tensor([0, 7, 999]), torch.arange(TEXT)[None] < torch.tensor([[2], [9], [TEXT]])
    embeds, states, image = draw(3, 3, DIM), draw(4, 3, TEXT, DIM), draw(5, 3, DIM)
    x, pixels = draw(6, 3, DIM), draw(7, 3, 3, SIZE, SIZE)
    causal = torch.full((1, TEXT + 4, TEXT + 4), float("-inf")).triu(1)
    with torch.no_grad():
        made = {
            "prior": last(prior(x, t, embeds, states, mask, causal)),
            "decoder": last(decoder(pixels, t, embeds, states, mask, image)),
            "super_res_last": last(unet.UNetModel.forward(upsamplers["model_last_step"], torch.cat([pixels] * 2, 1), t)),
        }
    made |= {"t": t.numpy().astype(np.int32), "text_mask": mask.numpy(), "text_embedding": last(embeds)}
    made |= {"text_states": last(states), "image_embedding": last(image), "prior_x": last(x), "decoder_x": last(pixels)}
    made |= dict(zip(("mean", "std"), (last(part) for part in statistics), strict=True))
    np.savez_compressed(folder / "outputs.npz", **made)


def eclipse(checkout: str) -> None:
    """A prior of one step, for the text tower of karlo/."""
    sys.path.insert(0, checkout)
    from src.priors.prior_transformer import PriorTransformer

    folder = HERE / "eclipse"
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=DIM, num_embeddings=TEXT
    )
    randomise(prior, 200)
    with np.load(HERE / "karlo" / "outputs.npz") as file:
        embeds, states, mask = (torch.from_numpy(file[name]) for name in ("text_embedding", "text_states", "text_mask"))
    x = draw(1, 4, DIM)
    made = prior(x, embeds, states, mask).predicted_image_embedding
    prior.half().save_pretrained(folder)
    np.savez_compressed(folder / "outputs.npz", x=last(x), image_embedding=last(made))


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    schedulers()
    karlo()
    if sys.argv[1:]:
        karlo_files(sys.argv[1])
        losses(sys.argv[2])
        eclipse(sys.argv[3])
