"""DALL-E on emoji: names, keywords and styles in words, and the codes of `configs/vqgan/emoji.py`.

    train-jax prepare emoji/64/held_out=none
    train-jax --config=configs/dalle/emoji.py --workdir=runs/dalle-emoji --config.vqgan.path=runs/vqgan-emoji

On one of two CPU cores, beside other work and with one interruption: 85 minutes; 50 at its best rate. Of the 144 held-out
pairs of thing and artist, one drawing each: the reader finds the thing in 20.1 % and the artist's style in 18.1 %, of 256
pairs of the training 20.7 % and 25.8 %; of drawings that it does not know, it is right about 52.5 % of the things and
88.6 % of the artists. Good drawings are those of the training, eyes and all: it knows them by heart (0.98 bits a code, and
12.6 on held-out pairs, where unigrams have 9.5). After 1,811 updates it was 11.1 and 24.3 % of held-out pairs. With
guidance 3 and temperature 1 drawings fall apart: 6.9 and 22.9 %.

On all emoji, with the codes of an earlier VQGAN out of 512 and guidance 3, 4,000 updates: 3.1 and 32.0 % of held-out pairs.
"""

from ml_collections import ConfigDict

DRAWINGS = "emoji/64/held_out=none"
SOURCE = f"{DRAWINGS} where group=Animals & Nature | {DRAWINGS} where group=Food & Drink"


def get_config(source: str = SOURCE) -> ConfigDict:
    c = ConfigDict()
    c.task = "dalle_jax.task"
    c.steps = 3000
    c.log_every = 100
    c.data = ConfigDict({"source": source, "batch_size": 32})
    c.codes = ConfigDict({"flip": True})
    c.vqgan = ConfigDict({"path": "runs/emoji/vqgan"})
    c.tokenizer = ConfigDict({"vocab_size": 2048})
    c.model = ConfigDict({"text_length": 24, "width": 192, "depth": 4, "heads": 6})
    c.compute = ConfigDict({"scan": False})
    c.dropout = 0.1
    c.model.activation = "gelu_tanh"
    c.optim = ConfigDict({"name": "contrib.muon", "lr": 3e-3, "warmup_steps": 100, "weight_decay": 0.05})
    c.optim.args = ConfigDict({"consistent_rms": 0.2, "adam_b2": 0.98, "eps": 1e-7})
    c.ema = ConfigDict({"decay": 0.99})
    c.checkpoint = ConfigDict({"every": 2000, "keep_last": 1})

    # Pairs of thing and artist that were held out: the thing is known by other artists, the style by other things.
    draw = {"type": "drawing", "source": source, "about": "fields", "template": "{concept}, {style}"}
    draw.update({"top_p": 0.9, "temperature": 0.7, "guidance": 1.0})
    c.evals = ConfigDict()
    c.evals.pairs = ConfigDict({"type": "likelihood", "source": source, "split": "pairs", "every": 2000})
    c.evals.drawn = ConfigDict({**draw, "split": "pairs", "where": ("tone=",), "every": 2000})
    c.evals.known = ConfigDict({**draw, "split": "train", "where": ("tone=",)})
    return c
