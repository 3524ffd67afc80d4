"""Makes folders of `tests/golden/vqgan`: tiny random models, and what the peers' own code computes.

python tests/golden/make_vqgan.py diffusers
python tests/golden/make_vqgan.py taming TAMING        (with the `peers` extra, omegaconf and einops)
python tests/golden/make_vqgan.py latent-diffusion TAMING LATENT_DIFFUSION
python tests/golden/make_vqgan.py llamagen LLAMAGEN
python tests/golden/make_vqgan.py seed-voken SEED_VOKEN
python tests/golden/make_vqgan.py movq KANDINSKY

The capitals are checkouts of CompVis/taming-transformers, CompVis/latent-diffusion, FoundationVision/LlamaGen,
TencentARC/SEED-Voken, ai-forever/Kandinsky-2 and google-research/maskgit. Their files run unchanged; PyTorch Lightning,
torchvision and `main` are stubs. Only their numbers are stored.

diffusers/   diffusers' VQModel as its `save_pretrained` writes it; `outputs.npz`: images, codes, reconstructions
amused/      the same, with aMUSEd's options, in float16 as a variant
taming/      taming's VQModel in a checkpoint as Lightning writes it: callbacks, options, counters, scalars of NumPy
gumbel/      taming's GumbelVQ, and its Net2NetTransformer by class, with that as its first stage
taming-maps/ its Net2NetTransformer by segmentations, by coordinates, and by the image itself at half its size
ldm/         latent diffusion's VQModel without attention, in a checkpoint whose callbacks have a class as key
llamagen/    LlamaGen's VQModel in a checkpoint as its training writes it, with its discriminator
ibq/         IBQ with moving averages of its weights; a loss, and its gradients to latents and codebook
magvit2/     Open-MAGVIT2's VQModel; the same loss
movq/        Kandinsky's MOVQ; kandinsky/ the same kind of model as diffusers' VQModel
maskgit/     MaskGIT's tokenizer, as its checkpoints are
"""

import argparse
import datetime
import functools
import importlib
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import VQModel
from stubs import stub

HERE = Path(__file__).resolve().parent / "vqgan"
SIZE = 32


def images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (2, SIZE, 2 * SIZE, 3), np.uint8)  # not square


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def shake(model: torch.nn.Module) -> None:
    """Norms and biases that are not the defaults; weights that float16 holds."""
    for name, p in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            p.data += 0.2 * torch.randn_like(p)
    model.half().float()


def spread(table: torch.Tensor, latents: torch.Tensor) -> None:
    """A codebook that the latents of a random model reach."""
    latents = latents.permute(0, 2, 3, 1).reshape(-1, table.shape[1])
    chosen = torch.from_numpy(np.random.default_rng(0).choice(len(latents), len(table), replace=False))
    table.data.copy_((latents[chosen] + 0.05 * torch.randn_like(table)).half())


def save_outputs(path: Path, pixels, latents, codes, reconstructions, **more) -> None:
    codes = codes.numpy().reshape(len(codes), *latents.shape[2:]).astype(np.int32)
    assert len(np.unique(codes)) > 8, "too few codes for a test"
    np.savez_compressed(
        path / "outputs.npz", images=pixels, latents=channels_last(latents), codes=codes,
        reconstructions=channels_last(reconstructions), **more,
    )  # fmt: skip


def save_yaml(path: Path, model: dict) -> None:
    path.write_text(yaml.safe_dump({"model": model}, sort_keys=False))


# ---------------------------------------------------------------------------------------------------------------------
# diffusers


def diffusers() -> None:
    vq_model(HERE / "diffusers")
    amused = {"block_out_channels": (8, 16, 24), "down_block_types": ("DownEncoderBlock2D",) * 3}
    amused |= {"up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 4, "vq_embed_dim": 4}
    vq_model(HERE / "amused", "fp16", mid_block_add_attention=False, lookup_from_codebook=True, **amused)


def vq_model(folder: Path, variant: str | None = None, **changes) -> None:
    options = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 1,
        "latent_channels": 8,
        "num_vq_embeddings": 32,
        "norm_num_groups": 4,
        "vq_embed_dim": 4,
        "sample_size": SIZE,
    }
    torch.manual_seed(0)
    model = VQModel(**options | changes).eval()
    shake(model)
    x = tensor(images())
    with torch.no_grad():
        latents = model.encode(x).latents
        spread(model.quantize.embedding.weight, latents)
        codes = model.quantize(latents)[2][2].reshape(len(x), -1)
        reconstructions = model(x).sample
    folder.mkdir(parents=True, exist_ok=True)
    (model.half() if variant else model).save_pretrained(folder, variant=variant)
    save_outputs(folder, images(), latents, codes, reconstructions)


# ---------------------------------------------------------------------------------------------------------------------
# taming-transformers


def open_taming(checkout: str) -> None:
    def instantiate_from_config(config):
        module, name = config["target"].rsplit(".", 1)
        return getattr(importlib.import_module(module), name)(**config.get("params", {}))

    sys.path.insert(0, checkout)
    stub("main", instantiate_from_config=instantiate_from_config)
    stub("torchvision", models=None)
    stub("pytorch_lightning", LightningModule=torch.nn.Module)
    stub("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=type("ModelCheckpoint", (), {}))
    stub("transformers", top_k_top_p_filtering=None)  # of older versions


def first_stage(target: str, codes: int, dim: int, attention: list[int], **more) -> tuple[torch.nn.Module, dict]:
    """A model of taming's, and the `model` part of its configuration."""
    dd = {"double_z": False, "z_channels": 8, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
    dd |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": attention, "dropout": 0.0}
    params = {"embed_dim": dim, "n_embed": codes, "ddconfig": dd, **more}
    config = {"base_learning_rate": 4.5e-6, "target": f"taming.models.vqgan.{target}", "params": params}
    params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    torch.manual_seed(0)
    model = sys.modules["main"].instantiate_from_config(config).eval()
    shake(model)
    return model, config


def half(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()}


def taming() -> None:
    from omegaconf import OmegaConf

    folder = HERE / "taming"
    folder.mkdir(parents=True, exist_ok=True)
    model, config = first_stage("VQModel", 24, 4, [16])
    x = tensor(images())
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(x))
        spread(model.quantize.embedding.weight, latents)
        quantized, _, (_, _, codes) = model.encode(x)
        reconstructions = model.decode(quantized)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions)
    save_yaml(folder / "last.yaml", config)

    state = half(model)
    state |= {f"loss.discriminator.main.{i}.weight": torch.zeros(4) for i in (0, 2)} | {"loss.logvar": torch.zeros(())}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.decoderconv_outbias": torch.zeros(3)}
    best = {"best_model_score": torch.tensor(0.1), "best_model_path": Path("checkpoints/last.ckpt")}
    best |= {"monitor": "val/rec_loss", "wait": np.float64(0.5), "scores": np.arange(3), "at": datetime.datetime(2021, 4, 1)}
    callback = sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint
    adam = {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float32(1e-4)}]}
    saved = {"epoch": 3, "global_step": np.int64(10), "pytorch-lightning_version": "1.0.8", "state_dict": state}
    saved |= {"callbacks": {callback: best}, "optimizer_states": [adam], "lr_schedulers": []}
    saved |= {"hparams": argparse.Namespace(lr=1e-4, gpus="0,"), "hyper_parameters": OmegaConf.create({"a": [1, {"b": 2}]})}
    torch.save(saved, folder / "last.ckpt")


def gumbel() -> None:
    folder = HERE / "gumbel"
    folder.mkdir(parents=True, exist_ok=True)
    ramp = {"warm_up_steps": 0, "max_decay_steps": 10, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 1e-6}
    scheduler = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": ramp}
    model, config = first_stage("GumbelVQ", 20, 8, [], temperature_scheduler_config=scheduler)
    pixels = images()[:, :, :SIZE]
    with torch.no_grad():
        latents = model.encode_to_prequant(tensor(pixels))
        # As many codes as can be: logits are centred for each code.
        model.quantize.proj.weight.data = torch.randn(20, 8, 1, 1).half().float()
        model.quantize.proj.bias.data -= model.quantize.proj(latents).mean((0, 2, 3))
        model.half().float()
        # The peer draws codes also in use; the most likely one is what is meant by "the code".
        codes = model.quantize.proj(latents).argmax(1)
        quantized = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 8))
        reconstructions = model.decode(quantized)
    save_yaml(folder / "stage1.yaml", config)
    torch.save({"state_dict": half(model)}, folder / "stage1.ckpt")

    side, vocab, classes = SIZE // 2, 24, 12
    size = {"vocab_size": vocab, "block_size": side * side, "n_layer": 2, "n_head": 2, "n_embd": 16}
    params = {"cond_stage_key": "class_label", "first_stage_config": config}
    params["transformer_config"] = {"target": "taming.modules.transformer.mingpt.GPT", "params": size}
    params["cond_stage_config"] = {"target": "taming.modules.util.Labelator", "params": {"n_classes": classes}}
    second = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}
    net = sys.modules["main"].instantiate_from_config(second).eval()
    net.first_stage_model.load_state_dict(model.state_dict())
    for p in net.transformer.parameters():
        p.data = (0.3 * torch.randn_like(p)).half().float()
    labels = torch.tensor([3, 11])
    with torch.no_grad():
        conditions = net.encode_to_c(labels)[1]
        logits = net.transformer(torch.cat([conditions, codes.reshape(2, -1)], 1)[:, :-1])[0]
    more = {"labels": labels.numpy(), "logits": logits[:, ::16].numpy()}
    save_outputs(folder, pixels, latents, codes, reconstructions, **more)
    save_yaml(folder / "stage2.yaml", second)
    state = {name: x[..., :4, :4] if name.endswith("attn.mask") else x for name, x in half(net).items()}  # smaller
    torch.save({"state_dict": state, "epoch": 1}, folder / "stage2.ckpt")


def taming_maps() -> None:
    """Second stages of 5 labels, whose codes are of a VQGAN of their own; of coordinates; of the image at half its size."""
    side, labels = 8, 5
    draw = np.random.default_rng(3)
    pixels = draw.integers(0, 256, (2, side, side, 3), np.uint8)
    segments = draw.integers(0, labels, (2, side, side))
    segments[0, :4, :4] = 2
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(segments), labels).permute(0, 3, 1, 2).float()
    ramps = np.stack([np.arange(side * side).reshape(side, side) / side**2, draw.random((side, side))]).astype(np.float32)
    image_model, image_config = small_stage("VQModel", 24, 3, tensor(pixels))
    map_model, map_config = small_stage("VQSegmentationModel", 20, labels, one_hot, n_labels=labels)
    coordinates = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 24, "down_factor": 2}}
    folder = HERE / "taming-maps"
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"images": pixels}
    for name, condition, values, maps, block_size, more in (
        ("segmentation", map_config, one_hot, segments, 32, {}),
        ("coordinates", coordinates, torch.from_numpy(ramps)[:, None], ramps, 31, {}),
        ("reduced", "__is_first_stage__", tensor(pixels), channels_last(tensor(pixels)), 20, {"downsample_cond_size": 4}),
    ):
        size = {"vocab_size": 24, "block_size": block_size, "n_layer": 2, "n_head": 2, "n_embd": 16}
        params = {"cond_stage_key": name, "first_stage_config": image_config, "cond_stage_config": condition, **more}
        params["transformer_config"] = {"target": "taming.modules.transformer.mingpt.GPT", "params": size}
        second = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}
        net = sys.modules["main"].instantiate_from_config(second).eval()
        net.first_stage_model.load_state_dict(image_model.state_dict())
        if name == "segmentation":
            net.cond_stage_model.load_state_dict(map_model.state_dict())
        for key, p in net.transformer.named_parameters():  # positions count, so that greedy codes differ
            p.data = ((2.0 if key == "pos_emb" else 0.4) * torch.randn_like(p)).half().float()
        with torch.no_grad():
            tokens = net.encode_to_c(values)[1].reshape(2, -1)
            codes = net.encode_to_z(tensor(pixels))[1]
            logits = net.transformer(torch.cat([tokens, codes], 1)[:, :-1])[0][:, tokens.shape[1] - 1 :]
            greedy = net.sample(codes[:, :0], tokens, codes.shape[1])
        values = {"maps": maps, "tokens": tokens, "logits": logits, "greedy": greedy}
        shared |= {f"{name}/{key}": np.asarray(value) for key, value in values.items()} | {"codes": codes.numpy()}
        save_yaml(folder / f"{name}.yaml", second)
        state = {name: x[..., :4, :4] if name.endswith("attn.mask") else x for name, x in half(net).items()}
        torch.save({"state_dict": state, "epoch": 1}, folder / f"{name}.ckpt")
        print(name, tokens[0].tolist(), greedy[0].tolist())
    np.savez_compressed(folder / "outputs.npz", **shared)


def small_stage(target: str, codes: int, channels: int, x: torch.Tensor, **more) -> tuple[torch.nn.Module, dict]:
    """A model of images of 8 pixels and `channels`, with a codebook that it reaches, and its configuration."""
    config = first_stage("VQModel", codes, 4, [])[1]
    changes = {"resolution": x.shape[-1], "in_channels": channels, "out_ch": channels}
    params = config["params"] | {"ddconfig": config["params"]["ddconfig"] | changes, **more}
    config |= {"target": f"taming.models.vqgan.{target}", "params": params}
    model = sys.modules["main"].instantiate_from_config(config).eval()
    shake(model)
    with torch.no_grad():
        spread(model.quantize.embedding.weight, model.quant_conv(model.encoder(x)))
    return model, config


# ---------------------------------------------------------------------------------------------------------------------
# LlamaGen


def llamagen(checkout: str) -> None:
    sys.path.insert(0, checkout)
    tokenizer = importlib.import_module("tokenizer.tokenizer_image.vq_model")
    discriminator = importlib.import_module("tokenizer.tokenizer_image.discriminator")
    for coder in ("Encoder", "Decoder"):  # options that are always the defaults
        setattr(tokenizer, coder, functools.partial(getattr(tokenizer, coder), ch=32, num_res_blocks=1))
    folder = HERE / "llamagen"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sizes = {"encoder_ch_mult": [1, 1], "decoder_ch_mult": [1, 1], "z_channels": 8}
    args = tokenizer.ModelArgs(codebook_size=24, codebook_embed_dim=4, **sizes)
    model = tokenizer.VQModel(args).eval()
    shake(model)
    x = tensor(images())
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(x))
        spread(model.quantize.embedding.weight, latents)
        quantized, _, (_, _, codes) = model.encode(x)
        reconstructions = model.decode(quantized)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions)
    judge = discriminator.PatchGANDiscriminator(ndf=4, n_layers=1)
    adam = {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    saved = {"model": half(model), "optimizer": adam, "discriminator": judge.state_dict(), "optimizer_disc": adam}
    torch.save(saved | {"steps": 10, "args": argparse.Namespace(lr=1e-4, vq_model="VQ-16")}, folder / "vq.pt")


# ---------------------------------------------------------------------------------------------------------------------
# Latent diffusion


def latent_diffusion(taming_checkout: str, checkout: str) -> None:
    open_taming(taming_checkout)
    sys.path.insert(0, checkout)
    folder = HERE / "ldm"
    folder.mkdir(parents=True, exist_ok=True)
    lossconfig = {"target": "taming.modules.losses.DummyLoss"}
    dd = {"attn_type": "none", "double_z": False, "z_channels": 3, "resolution": SIZE, "in_channels": 3, "out_ch": 3}
    dd |= {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": 3, "n_embed": 24, "monitor": "val/rec_loss", "ddconfig": dd, "lossconfig": lossconfig}
    config = {"base_learning_rate": 4.5e-06, "target": "ldm.models.autoencoder.VQModel", "params": params}
    torch.manual_seed(0)
    model = sys.modules["main"].instantiate_from_config(config).eval()
    shake(model)
    x = tensor(images())
    with torch.no_grad():
        latents = model.encode_to_prequant(x)
        spread(model.quantize.embedding.weight, latents)
        quantized, _, (_, _, codes) = model.encode(x)
        reconstructions = model.decode(quantized)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions)
    save_yaml(folder / "config.yaml", config)
    callback = sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint
    callbacks = {callback: {"monitor": "val/rec_loss", "best_model_score": torch.tensor(0.1)}}
    torch.save({"epoch": 3, "state_dict": half(model), "callbacks": callbacks}, folder / "model.ckpt")


# ---------------------------------------------------------------------------------------------------------------------
# IBQ and Open-MAGVIT2


def seed_voken(checkout: str) -> None:
    sys.path.insert(0, checkout)
    stub("main", instantiate_from_config=lambda config: None)
    stub("lightning", LightningModule=torch.nn.Module)
    stub("pytorch_lightning")
    ibq()
    magvit2()


def lightning_model(target: str, embed_dim: int, n_embed: int, ddconfig: dict, **more) -> tuple[torch.nn.Module, dict]:
    """A model, and the `model` part of its configuration for Lightning's command line."""
    dd = {"double_z": False, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32, "num_res_blocks": 1, **ddconfig}
    options = {"ddconfig": dd, "lossconfig": {"target": "any"}, "n_embed": n_embed, "embed_dim": embed_dim, **more}
    options |= {"sample_minimization_weight": 1.0, "batch_maximization_weight": 1.0}
    module, name = target.rsplit(".", 1)
    torch.manual_seed(0)
    model = getattr(importlib.import_module(module), name)(**options).eval()
    shake(model)
    return model, {"class_path": target, "init_args": options}


def gradients(loss, vectors: torch.Tensor, latents: torch.Tensor, **parameters) -> dict[str, np.ndarray]:
    """A loss that also depends on the quantised vectors, and its gradients."""
    weights = np.random.default_rng(1).standard_normal(vectors.shape).astype(np.float32)
    loss = loss + (vectors * torch.from_numpy(weights)).mean()
    loss.backward()
    found = {"loss": loss.detach().numpy(), "loss_weights": weights.transpose(0, 2, 3, 1)}
    found |= {f"gradient_{name}": p.grad.numpy() for name, p in parameters.items()}
    return found | {"gradient_latents": channels_last(latents.grad)}


def ibq() -> None:
    folder = HERE / "ibq"
    folder.mkdir(parents=True, exist_ok=True)
    dd = {"z_channels": 8, "ch_mult": [1, 1], "attn_resolutions": [16], "dropout": 0.0}
    options = {"use_entropy_loss": True, "entropy_temperature": 0.5, "beta": 0.25, "use_ema": True}
    model, config = lightning_model("src.IBQ.models.ibqgan.IBQ", 4, 24, dd, **options)
    for p in model.model_ema.buffers():
        if p.ndim:
            p.data += 0.02 * torch.randn_like(p)
    model.half().float()
    x, book = tensor(images()), model.model_ema.quantizeembeddingweight
    with torch.no_grad(), model.ema_scope():
        latents = model.quant_conv(model.encoder(x))
        # Norms differ, so that the largest product is not always with the nearest code.
        spread(book, latents - latents.mean((0, 2, 3), keepdim=True))
        book.data *= torch.linspace(0.8, 1.2, 24)[:, None] / book.norm(dim=1, keepdim=True)
    model.half().float()
    with model.ema_scope():
        with torch.no_grad():
            quantized, _, (_, _, codes) = model.encode(x)
            reconstructions = model.decode(quantized)
            nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), book).argmin(1)
            assert (nearest != codes).float().mean() > 0.1
        z = latents.detach().requires_grad_()
        vectors, (loss, _, _, entropy_loss), _ = model.quantize(z)
        more = gradients(loss + 0.05 * entropy_loss, vectors, z, codebook=model.quantize.embedding.weight)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions, **more)
    save_yaml(folder / "config.yaml", config)
    torch.save({"state_dict": half(model), "epoch": 1}, folder / "ibq.ckpt")


def magvit2() -> None:
    folder = HERE / "magvit2"
    folder.mkdir(parents=True, exist_ok=True)
    dd = {"z_channels": 6, "ch_mult": [2, 1]}
    model, config = lightning_model("src.Open_MAGVIT2.models.lfqgan.VQModel", 6, 64, dd, use_ema=False)
    x = tensor(images())
    with torch.no_grad():
        model.encoder.conv_out.bias -= model.encoder(x).mean((0, 2, 3))  # signs of both kinds
        model.half().float()
        latents = model.encoder(x)
        quantized, _, codes, _ = model.encode(x)
        reconstructions = model.decode(quantized)
    z = latents.detach().requires_grad_()
    (vectors, entropy_loss, _), parts = model.quantize.train()(z, return_loss_breakdown=True)
    more = gradients(0.1 * entropy_loss + 0.25 * parts.commitment, vectors, z)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions, **more)
    save_yaml(folder / "config.yaml", config)
    torch.save({"state_dict": half(model), "epoch": 1}, folder / "magvit2.ckpt")


# ---------------------------------------------------------------------------------------------------------------------
# MOVQ


def movq(checkout: str) -> None:
    kandinsky = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
    kandinsky |= {"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "norm_num_groups": 32}
    vq_model(HERE / "kandinsky", "fp16", norm_type="spatial", latent_channels=4, **kandinsky)

    stub("kandinsky2")
    sys.modules["kandinsky2"].__path__ = [str(Path(checkout) / "kandinsky2")]
    stub("pytorch_lightning", LightningModule=torch.nn.Module)
    folder = HERE / "movq"
    folder.mkdir(parents=True, exist_ok=True)
    dd = {"double_z": False, "z_channels": 4, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
    dd |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0}
    params = {"embed_dim": 4, "n_embed": 24, "ddconfig": dd}
    torch.manual_seed(0)
    model = importlib.import_module("kandinsky2.vqgan.autoencoder").MOVQ(**params).eval()
    shake(model)
    x = tensor(images())
    with torch.no_grad():
        latents = model.encode(x)
        spread(model.quantize.embedding.weight, latents)
        quantized, _, (_, _, codes) = model.quantize(latents)
        reconstructions = model.decode(quantized)
    save_outputs(folder, images(), latents, codes.reshape(len(x), -1), reconstructions)
    save_yaml(folder / "movq_final.yaml", {"target": "kandinsky2.vqgan.autoencoder.MOVQ", "params": params})
    torch.save(half(model), folder / "movq_final.ckpt")


# ---------------------------------------------------------------------------------------------------------------------


def make_taming(checkout: str) -> None:
    open_taming(checkout)
    taming()
    gumbel()
    taming_maps()


if __name__ == "__main__":
    makers = {"diffusers": diffusers, "taming": make_taming, "latent-diffusion": latent_diffusion, "llamagen": llamagen}
    makers |= {"seed-voken": seed_voken, "movq": movq}
    kind, *checkouts = sys.argv[1:]
    makers[kind](*checkouts)
