"""Makes `tests/golden/vqgan`: tiny random models as diffusers saves them, with what diffusers says of some pictures.

python tests/golden/make_vqgan.py           (with the `peers` extra)

diffusers/   VQModel.save_pretrained; `outputs.npz`: images, codes, reconstructions
taming/      a checkpoint with taming-transformers' names, which diffusers' own converter translates into a VQModel:
             that says what it computes. With it go the discriminator and what Lightning adds.
gumbel/      a second stage by class (minGPT, written down here in PyTorch) together with its Gumbel first stage
"""

import re
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import VQModel
from diffusers.pipelines.stable_diffusion.convert_from_ckpt import convert_ldm_vae_checkpoint

HERE = Path(__file__).resolve().parent / "vqgan"
SIZE = 32


def images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (2, SIZE, 2 * SIZE, 3), np.uint8)  # not square


def outputs(model: VQModel, path: Path) -> None:
    pixels = images()
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        h = model.encode(x).latents
        quantized, _, (_, _, codes) = model.quantize(h)
        found = model.decode(h).sample
    latents = h.numpy().transpose(0, 2, 3, 1)
    codes = codes.numpy().reshape(latents.shape[:3]).astype(np.int32)
    found = found.numpy().transpose(0, 2, 3, 1)
    assert len(np.unique(codes)) > 8, "too few codes for a test"
    np.savez_compressed(path / "outputs.npz", images=pixels, latents=latents, codes=codes, reconstructions=found)


def spread(model: VQModel) -> None:
    """A codebook that the latents of a random model reach."""
    x = torch.from_numpy(images().transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        h = model.encode(x).latents.permute(0, 2, 3, 1).reshape(-1, model.quantize.vq_embed_dim)
        chosen = torch.from_numpy(np.random.default_rng(0).choice(len(h), model.quantize.n_e, replace=False))
        model.quantize.embedding.weight.copy_(h[chosen] + 0.05 * torch.randn(model.quantize.n_e, h.shape[1]))


def make(**changes) -> VQModel:
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
    for name, p in model.named_parameters():  # norms and biases that are not the defaults
        if "norm" in name or name.endswith("bias"):
            p.data += 0.2 * torch.randn_like(p)
    spread(model)
    return model


def taming_names(model: VQModel) -> dict[str, torch.Tensor]:
    """The model's weights under taming's names, as written in taming's source."""
    last = len(model.config.block_out_channels) - 1
    found = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.attentions\.(\d)", r"down.\1.attn.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"up.{last - int(m[1])}.attn.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        name = name.replace("conv_shortcut", "nin_shortcut")
        if "attn" in name:
            for theirs, ours in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                name = name.replace(f".{theirs}.", f".{ours}.")
            if value.ndim == 2:
                value = value[:, :, None, None]
        found[name] = value.clone()
    return found


def main() -> None:
    folder = HERE / "diffusers"
    folder.mkdir(parents=True, exist_ok=True)
    model = make()
    model.save_pretrained(folder)
    outputs(model, folder)

    folder = HERE / "taming"
    folder.mkdir(parents=True, exist_ok=True)
    options = {"norm_num_groups": 32, "block_out_channels": (32, 32), "num_vq_embeddings": 24}
    options["down_block_types"] = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    options["up_block_types"] = ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
    model = make(**options).half().float()  # half the size in the file
    weights = taming_names(model)
    # diffusers' converter checks the names: it must bring back the model that they came from. It knows no attention but
    # the middle's.
    again = make(**options)
    known = {n: value for n, value in weights.items() if not n.startswith("quantize") and not re.search(r"\d\.attn", n)}
    converted = convert_ldm_vae_checkpoint(known, {"down_block_types": (1, 1), "up_block_types": (1, 1)})
    theirs = model.state_dict()
    rest = {n: value for n, value in theirs.items() if "quantize" in n or re.search(r"blocks.\d.attentions", n)}
    again.load_state_dict(converted | rest)
    outputs(again, folder)
    weights = {name: value.half() for name, value in weights.items()}
    extras = {f"loss.discriminator.main.{i}.weight": torch.zeros(4) for i in (0, 2)} | {"loss.logvar": torch.zeros(())}
    saved = {"state_dict": weights | extras, "epoch": 3, "global_step": 10, "pytorch-lightning_version": "1.0.8"}
    saved["optimizer_states"] = [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}]
    torch.save(saved, folder / "last.ckpt")
    dd = {"double_z": False, "z_channels": 8, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
    dd |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0}
    params = {"embed_dim": 4, "n_embed": 24, "ddconfig": dd, "lossconfig": {"target": "taming.modules.losses.VQLPIPS"}}
    config = {"model": {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": params}}
    (folder / "last.yaml").write_text(yaml.safe_dump(config))
    gumbel(dd)


def gumbel(dd: dict) -> None:
    folder = HERE / "gumbel"
    folder.mkdir(parents=True, exist_ok=True)
    options = {"norm_num_groups": 32, "block_out_channels": (32, 32), "num_vq_embeddings": 20, "vq_embed_dim": 8}
    options["down_block_types"] = ("DownEncoderBlock2D",) * 2
    options["up_block_types"] = ("UpDecoderBlock2D",) * 2
    model = make(**options).half().float()
    weights = {n: x for n, x in taming_names(model).items() if not n.startswith("quantize.")}
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(20, 8, generator=generator).half().float()
    pixels = images()[:, :, :SIZE]
    with torch.no_grad():
        h = model.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)).latents
        kernel = torch.randn(20, 8, 1, 1, generator=generator)
        # As many codes as can be: logits are centred for each code.
        bias = -torch.nn.functional.conv2d(h, kernel).mean((0, 2, 3))
        kernel, bias = kernel.half().float(), bias.half().float()
        codes = torch.nn.functional.conv2d(h, kernel, bias).argmax(1)
        found = model.decode(table[codes].permute(0, 3, 1, 2), force_not_quantize=True).sample
    assert len(codes.unique()) > 8, "too few codes for a test"
    weights |= {"quantize.proj.weight": kernel, "quantize.proj.bias": bias, "quantize.embed.weight": table}

    side, width, heads, depth, vocab = SIZE // 2, 16, 2, 2, 24
    shapes = {"tok_emb.weight": (vocab, width), "pos_emb": (1, side * side, width), "head.weight": (vocab, width)}
    shapes |= block_shapes(width, depth)
    gpt = {n: (0.3 * torch.randn(s, generator=generator)).half().float() for n, s in shapes.items()}
    labels = torch.tensor([3, 11])
    logits = mingpt(gpt, torch.cat([labels[:, None], codes.reshape(2, -1)[:, :-1]], 1), depth, heads)
    arrays = {
        "images": pixels, "latents": h.numpy().transpose(0, 2, 3, 1), "codes": codes.numpy().astype(np.int32),
        "reconstructions": found.numpy().transpose(0, 2, 3, 1), "labels": labels.numpy(),
        "logits": logits.numpy()[:, ::16],
    }  # fmt: skip
    np.savez_compressed(folder / "outputs.npz", **arrays)
    state = {f"first_stage_model.{n}": x.half() for n, x in weights.items()}
    state |= {f"transformer.{n}": x.half() for n, x in gpt.items()}
    state |= {f"transformer.blocks.{i}.attn.mask": torch.ones(1, 1, 4, 4) for i in range(depth)}
    torch.save({"state_dict": state, "epoch": 1}, folder / "stage2.ckpt")
    torch.save({"state_dict": {n: x.half() for n, x in weights.items()}}, folder / "stage1.ckpt")
    first = {"target": "taming.models.vqgan.GumbelVQ", "params": {"embed_dim": 8, "n_embed": 20}}
    first["params"]["ddconfig"] = dd | {"attn_resolutions": []}
    size = {"vocab_size": vocab, "block_size": side * side, "n_layer": depth, "n_head": heads, "n_embd": width}
    params = {"first_stage_config": first, "transformer_config": {"target": "taming.mingpt.GPT", "params": size}}
    params["cond_stage_config"] = {"target": "taming.models.dummy_cond_stage.DummyCondStage"}
    second = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}
    (folder / "stage1.yaml").write_text(yaml.safe_dump({"model": first}))
    (folder / "stage2.yaml").write_text(yaml.safe_dump({"model": second}))


def mingpt(w: dict[str, torch.Tensor], tokens: torch.Tensor, depth: int, heads: int) -> torch.Tensor:
    """Logits of minGPT."""
    x = w["tok_emb.weight"][tokens] + w["pos_emb"][:, : tokens.shape[1]]
    return blocks(w, x, depth, heads) @ w["head.weight"].T


def blocks(w: dict[str, torch.Tensor], x: torch.Tensor, depth: int, heads: int) -> torch.Tensor:
    """minGPT's stream, written down from its description: pre-norm blocks, exact GELU, causal attention."""
    functional = torch.nn.functional
    b, t, c = x.shape

    def linear(name, y):
        return functional.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, y):
        return functional.layer_norm(y, (c,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def split(y):
        return y.reshape(b, t, heads, c // heads).transpose(1, 2)

    for i in range(depth):
        p = f"blocks.{i}"
        y = norm(f"{p}.ln1", x)
        q, k, v = (split(linear(f"{p}.attn.{name}", y)) for name in ("query", "key", "value"))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(f"{p}.attn.proj", y.transpose(1, 2).reshape(b, t, c))
        x = x + linear(f"{p}.mlp.2", functional.gelu(linear(f"{p}.mlp.0", norm(f"{p}.ln2", x))))
    return norm("ln_f", x)


def block_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """The shapes of minGPT's blocks, by name."""
    shapes = {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for i in range(depth):
        b = f"blocks.{i}."
        shapes |= {f"{b}ln{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
        for name, (o, n) in {
            **{f"attn.{x}": (width, width) for x in ("key", "query", "value", "proj")},
            "mlp.0": (4 * width, width), "mlp.2": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"{b}{name}.weight": (o, n), f"{b}{name}.bias": (o,)}
    return shapes


if __name__ == "__main__":
    main()
