"""How good a DALL·E is: bits a token on held-out pictures, samples to look at, and whether they show what was asked for."""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dalle_jax import rerank
from dalle_jax.captions import AnyCaptions, Captions
from dalle_jax.dalle import Dalle
from dalle_jax.model import Dalle as Model
from train_jax.data.sources import DataError, Source
from train_jax.errors import ConfigError, in_float32
from vqgan_jax.pictures import grid
from vqgan_jax.vqgan import Vqgan

NATS = float(np.log(2))  # in a bit


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    sampling = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "batch_size": 64}
    c = ConfigDict()
    c.likelihood = ConfigDict({"source": "", "split": "test", "batch_size": 64})  # of a record's first caption
    # Pictures of some prompts, a row each; (): the first captions of the split.
    c.samples = ConfigDict({"source": "", "split": "test", "prompts": (), "rows": 6, "n": 8, **sampling})
    # Whether the source's own reader finds in a picture what its prompt says. about: "labels", by `template`; "captions",
    # each record's first; "pairs", the first of records without a label. clip: ranks `n` pictures of each prompt.
    c.drawing = ConfigDict(
        {"source": "", "split": "test", "about": "labels", "template": "a {}", "prompts": 256, "n": 1}
    )
    c.drawing.update({"clip": "", **sampling})
    return c


def factories(
    module: Model, model: ConfigDict, captions: Captions, vq: Vqgan, records: Callable
) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`.

    Args:
      model: the options that `module` was built of.
      records: `(source) -> records with codes`.
    """

    def first_caption(record, rng):
        return {"text": captions.encode(record["captions"][:1])[0], "codes": record["codes"][0]}

    def losses(params, extra, batch):
        text, codes = batch["text"], batch["codes"]
        logits = module.apply({"params": params["dalle"]}, text, codes.reshape(len(codes), -1))
        text_nats, image_nats = nats(module, logits, text, codes)
        told = captions.counted(text[:, 1:])
        return jnp.sum(text_nats * told, axis=1), jnp.sum(told, axis=1), jnp.mean(image_nats, axis=1)

    def likelihood(options: ConfigDict, context):
        coded = records(context.source(options.source, options.split))

        def evaluate(params, extra):
            program = context.jit(losses)
            sums = np.zeros(3)
            for batch, real in context.batches(coded, first_caption, options.batch_size):
                found = jax.device_get(program(params, extra, batch))
                sums += [np.sum(x[:real], dtype=np.float64) for x in found]
            return {
                "bits_per_text_token": sums[0] / sums[1] / NATS,
                "bits_per_code": sums[2] / len(coded) / NATS,
                "unigram_bits_per_code": unigram_bits(coded.codes[:, 0]),
                "images": len(coded),
            }, {}

        return evaluate

    def loaded(context, params) -> Dalle:
        """The model as its users have it: the weights, wherever they lie, whole on each of this host's devices."""
        whole = jax.device_get(jax.tree.map(context.whole, params["dalle"]))
        return Dalle.assemble(model, whole, captions, vq, module.grid[0] * vq.factor, "this run")

    def samples(options: ConfigDict, context):
        check_sampling(options, module, captions)
        prompts = list(options.prompts)
        if not prompts:
            source = context.source(options.source, options.split)
            prompts = [source[place]["captions"][0] for place in range(min(options.rows, len(source)))]

        def evaluate(params, extra):
            pictures = loaded(context, params).generate(prompts, options.n, progress=False, **drawn_by(options))
            return {}, {"samples": grid([list(row) for row in pictures])}

        return evaluate

    def drawing(options: ConfigDict, context):
        check_sampling(options, module, captions)
        source = context.source(options.source, options.split)
        if source.shows is None:
            raise DataError(f"{source.name} has no reader of pictures: the evaluator 'drawing' needs one")
        prompts = asked(source, options)
        judge = rerank.open_judge(options.clip) if options.clip else None

        def evaluate(params, extra):
            drawn = loaded(context, params).draw(prompts, options.n, progress=False, **drawn_by(options)).images
            right = np.array(
                [[source.shows(x, prompt) for x in row] for prompt, row in zip(prompts, drawn, strict=True)]
            )
            metrics = {"right": float(np.mean(right[:, 0])), "prompts": len(prompts)}
            if judge is not None:
                best = np.argmax(rerank.fit(judge, prompts, drawn), axis=1)
                metrics[f"right_best_of_{options.n}"] = float(np.mean(right[np.arange(len(prompts)), best]))
            shown = [list(drawn[i : i + 16, 0]) for i in range(0, min(len(drawn), 64), 16)]
            return metrics, {"drawings": grid(shown)}

        return evaluate

    return {"likelihood": likelihood, "samples": samples, "drawing": drawing}


def nats(module: Model, logits, text, codes):
    """Negative log-likelihoods: of each text token but the first [B, N - 1], and of each code [B, L]."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    codes = codes.reshape(len(codes), -1) + module.first_code
    return cross_entropy(logits[0], text[:, 1:]), cross_entropy(logits[1], codes)


def unigram_bits(codes: np.ndarray) -> float:
    """Entropy of the codes' frequencies, in bits: what a model reaches that knows neither text nor neighbours.

    Places below 0, of pictures that cannot be read, do not count.
    """
    counts = np.bincount(codes[codes >= 0])
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))


def asked(source: Source, options: ConfigDict) -> list[str]:
    """What to draw: so many prompts about the source's records, in their order, which is random."""
    found = []
    for place in range(len(source)):
        record = source[place]
        label = record.get("label", -1)
        if options.about == "labels" and label >= 0:
            found.append(worded(options.template, source.label_names[label]))
        elif options.about == "captions" or (options.about == "pairs" and label < 0):
            found.append(record["captions"][0])
        if len(found) == options.prompts:
            return found
    if not found:
        raise DataError(f"{source.name} has no records about which to ask: about = {options.about!r}")
    return found


def worded(template: str, name: str) -> str:
    """The template about a label; "a {}" becomes "an {}" before a vowel, as captions have it."""
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.format(name)


def drawn_by(options: ConfigDict) -> dict:
    """The arguments of `Dalle.draw`."""
    return {
        "seed": options.seed,
        "temperature": options.temperature,
        "top_k": options.top_k or None,
        "top_p": options.top_p,
        "guidance": options.guidance,
        "batch_size": options.batch_size,
    }


def check_sampling(options: ConfigDict, module: Model, captions: AnyCaptions) -> None:
    """ConfigError for options that `Dalle.draw` would refuse, before the run begins."""

    def require(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.evals.….{key} = {options[key]!r}; it must be {allowed}")

    require(options.n >= 1, "n", "at least 1")
    require(0 <= options.seed < 2**32, "seed", "in [0, 2^32)")
    require(in_float32(options.guidance), "guidance", "a number that float32 has; 1 is none")
    require(options.guidance == 1 or captions.guides, "guidance", "1 where config.caption_dropout is 0")
    require(options.temperature >= 0 and in_float32(options.temperature), "temperature", "0 or more, as float32 has it")
    require(0 <= options.top_k <= module.size, "top_k", f"in [0, {module.size}], 0 for all codes")
    require(0 < options.top_p <= 1, "top_p", "in (0, 1]")
    require(options.batch_size >= 1, "batch_size", "at least 1")
    if "rows" in options:
        require(options.rows >= 1, "rows", "at least 1")
    if "about" in options:
        require(options.prompts >= 1, "prompts", "at least 1")
        require(options.n == 1 or bool(options.clip), "n", "1 where no clip ranks the pictures")
        require(options.about in ("labels", "captions", "pairs"), "about", "labels, captions or pairs")
