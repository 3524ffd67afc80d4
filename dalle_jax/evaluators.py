"""How good a DALL·E is: bits a token on held-out pictures, samples to look at, and whether they show what was asked for."""

import functools
import logging
import re
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dalle_jax import rerank, sampling
from dalle_jax.captions import AnyCaptions, Captions
from dalle_jax.model import Dalle as Model
from nn_jax.decode import Sampling
from train_jax import inference
from train_jax.data.sources import DataError, Source
from vqgan_jax.pictures import grid
from vqgan_jax.prior.evaluators import check_drawing, requirement
from vqgan_jax.vqgan import Vqgan

log = logging.getLogger(__name__)

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


def factories(module: Model, captions: Captions, vq: Vqgan, records: Callable) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`; `records`: `(source, asked_to_stop) -> records with codes`."""

    def first_caption(record, rng):
        return {"text": captions.encode(record["captions"][:1])[0], "codes": record["codes"][0]}

    def losses(params, extra, batch):
        text, codes = batch["text"], batch["codes"]
        logits = module.apply({"params": params["dalle"]}, text, codes.reshape(len(codes), -1))
        text_nats, image_nats = nats(module, logits, text, codes)
        told = captions.counted(text[:, 1:])
        return jnp.sum(text_nats * told, axis=1), jnp.sum(told, axis=1), jnp.mean(image_nats, axis=1)

    def likelihood(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        # Not before the first evaluation: they may take hours.
        with_codes = functools.cache(lambda: records(source, context.asked_to_stop))
        program = context.jit(losses)

        def evaluate(params, extra):
            coded = with_codes()
            batches = context.batches(coded, first_caption, options.batch_size)
            outputs = ((program(params, extra, batch), real) for batch, real in batches)
            sums = np.zeros(3)
            for found, real in inference.overlapped(outputs):
                sums += [np.sum(x[:real], dtype=np.float64) for x in found]
            return {
                "bits_per_text_token": sums[0] / sums[1] / NATS,
                "bits_per_code": sums[2] / len(coded) / NATS,
                "unigram_bits_per_code": unigram_bits(coded.histogram),
                "images": len(coded),
            }, {}

        return evaluate

    def drawer(options: ConfigDict, context, prompts: list[str]) -> Callable:
        """`params -> uint8 [prompts, n, H, W, 3]`: what `Dalle.draw` draws, with the weights as they lie on the run's mesh.

        All hosts draw together; one program serves all batches and all evaluations.
        """
        text, cut = captions.encode_flagged(prompts)
        if cut.any():
            log.warning(
                "%d prompt(s) are too long and were cut; the first is %r", cut.sum(), prompts[int(cut.argmax())]
            )
        guided = options.guidance != 1
        # A guided picture has a second row, without its prompt.
        text = np.stack([text, np.repeat(captions.encode([""]), len(text), axis=0)] if guided else [text], axis=1)
        seeds = sampling.seeds(prompts, options.n, options.seed)
        pictures = list(np.ndindex(len(prompts), options.n))
        settings = Sampling(options.temperature, options.top_k, options.top_p, options.guidance)
        most = options.top_k or (module.size if options.top_p < 1 else 0)
        generation = sampling.functions(module)

        def example(place, rng):
            return {"text": text[place[0]], "seeds": seeds[place]}

        def draw(params, extra, batch):
            known = jnp.zeros((len(batch["seeds"]), module.length), jnp.int32)
            rows = sampling.Rows(batch["seeds"], known, known > 0)
            carry = generation.prefill(params["dalle"], batch["text"].reshape(-1, module.text_length))
            codes, _, _ = generation.advance(params["dalle"], settings, carry, rows, 0, module.length, most, guided)
            return codes.reshape(-1, *module.grid)

        program = context.jit(draw)

        def drawn(params):
            batches = context.batches(pictures, example, min(options.batch_size, len(pictures)))
            outputs = ((program(params, {}, batch), real) for batch, real in batches)
            images = [
                inference.split_over_hosts(vq.decode_uint8, codes)[:real]
                for codes, real in inference.overlapped(outputs)
            ]
            return np.concatenate(images).reshape(len(prompts), options.n, *images[0].shape[1:])

        return drawn

    def samples(options: ConfigDict, context):
        check_sampling(options, module, captions)
        prompts = list(options.prompts)
        if not prompts:
            source = context.source(options.source, options.split)
            prompts = [source.described(place)["captions"][0] for place in range(min(options.rows, len(source)))]
        draw = drawer(options, context, prompts)

        def evaluate(params, extra):
            return {}, {"samples": grid([list(row) for row in draw(params)])}

        return evaluate

    def drawing(options: ConfigDict, context):
        check_sampling(options, module, captions)
        source = context.source(options.source, options.split)
        if source.shows is None:
            raise DataError(f"{source.name} has no reader of pictures: the evaluator 'drawing' needs one")
        prompts = asked(source, options)
        draw = drawer(options, context, prompts)
        judge = rerank.open_judge(options.clip) if options.clip else None

        def evaluate(params, extra):
            drawn = draw(params)
            right = np.array(
                [[source.shows(x, prompt) for x in row] for prompt, row in zip(prompts, drawn, strict=True)]
            )
            metrics = {"right": float(np.mean(right[:, 0])), "prompts": len(prompts)}
            if judge is not None:
                scores = inference.split_over_hosts(
                    lambda places: rerank.fit(judge, [prompts[place] for place in places], drawn[places]),
                    np.arange(len(prompts)),
                )
                best = np.argmax(scores, axis=1)
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


def unigram_bits(counts: np.ndarray) -> float:
    """Entropy of codes that occur so often, in bits: what a model reaches that knows neither text nor neighbours."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))


def asked(source: Source, options: ConfigDict) -> list[str]:
    """What to draw: so many prompts about the source's records, in their order, which is random."""
    found = []
    for place in range(len(source)):
        record = source.described(place)
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


def check_sampling(options: ConfigDict, module: Model, captions: AnyCaptions) -> None:
    """ConfigError for options that `Dalle.draw` would refuse, before the run begins."""

    check_drawing(options, module.size, "" if captions.guides else "config.caption_dropout is 0")
    if "about" in options:
        require = requirement(options)
        require(options.prompts >= 1, "prompts", "at least 1")
        require(options.n == 1 or bool(options.clip), "n", "1 where no clip ranks the pictures")
        require(options.about in ("labels", "captions", "pairs"), "about", "labels, captions or pairs")
