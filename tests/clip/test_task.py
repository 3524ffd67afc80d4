"""CLIP's task: examples, tokenizers, and options with their errors. Its loss: `test_task_loss.py`."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_jax import task as clip_task
from train_jax.data.images import BrokenSample
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError

SIZE, LENGTH = 16, 10


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_an_example_is_an_image_and_one_of_its_captions(make_task, record, pairs):
    task = make_task()
    tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
    texts = set()
    for seed in range(30):
        example = task.example(record(), rng(seed))
        assert {name: (x.shape, x.dtype) for name, x in example.items()} == {
            "image": ((SIZE, SIZE, 3), np.uint8),
            "text": ((LENGTH,), np.int32),
            "truncated": ((), bool),
        }
        text = tokenizer.decode(example["text"])
        texts.add(text)
        assert example["truncated"] == text.startswith("a long story")
    assert len(texts) == 3
    with Image.open(pairs / "0.png") as image:
        centre = image.convert("RGB").resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16))
    np.testing.assert_array_equal(example["image"], np.asarray(centre))


def test_leading_captions_are_chosen_with_a_probability(make_task, record):
    first, any_of_them = make_task(data__leading_prob=1.0), make_task()
    rows = {first.example(record(), rng(seed))["text"].tobytes() for seed in range(20)}
    assert rows == {any_of_them.example({**record(), "captions": record()["captions"][:1]}, rng())["text"].tobytes()}
    assert rows < {any_of_them.example(record(), rng(seed))["text"].tobytes() for seed in range(20)}


def test_examples_are_deterministic_given_the_generator(make_task, record):
    task = make_task(augment__scale=(0.3, 1.0), augment__flip=True)
    first, second = (task.example(record(), rng(3)) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_flips_mirror_half_of_the_images(make_task, record):
    plain, flipping = make_task(), make_task(augment__flip=True)
    original = plain.example(record(), rng())["image"]
    mirrored = np.asarray(ImageOps.mirror(Image.fromarray(original)))
    images = [flipping.example(record(), rng(seed))["image"] for seed in range(40)]
    num_mirrored = sum(np.array_equal(image, mirrored) for image in images)
    assert num_mirrored + sum(np.array_equal(image, original) for image in images) == 40
    assert 10 < num_mirrored < 30


def test_random_crops_differ_and_have_one_shape(make_task, record):
    task = make_task(augment__scale=(0.2, 0.9))
    images = [task.example(record(), rng(seed))["image"] for seed in range(8)]
    assert len({image.tobytes() for image in images}) > 1
    assert {image.shape for image in images} == {(SIZE, SIZE, 3)}


def test_an_unreadable_image_raises_broken_sample(make_task, record):
    with pytest.raises(BrokenSample):
        make_task().example(record() | {"image": b"no picture"}, rng())


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def test_the_tokenizer_of_a_run_directory_is_reused(resolve, pairs, tmp_path):
    first = clip_task.make(resolve(), None).artifacts["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text(first)
    for captions in pairs.glob("captions.jsonl"):
        captions.write_text("\n".join(json.dumps({"file": f"{n}.png", "caption": "zebra zebra"}) for n in range(5)))
    again = clip_task.make(resolve(), tmp_path).artifacts["tokenizer.json"]
    assert Tokenizer.from_json(again).fingerprint == Tokenizer.from_json(first).fingerprint
    assert clip_task.make(resolve(), None).artifacts["tokenizer.json"] != first


def test_a_tokenizer_is_loaded_from_its_path(make_task, tmp_path):
    tokenizer = Tokenizer.train(["something else"], 560, LENGTH)
    tokenizer.save(tmp_path / "mine.json")
    task = make_task(tokenizer__path=str(tmp_path / "mine.json"))
    assert Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH).fingerprint == tokenizer.fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__activation": "relu"}, "activation = 'relu'"),
        ({"model__image__heads": 5}, "heads = 5"),
        ({"augment__scale": (0.0, 1.0)}, "augment.scale"),
        ({"augment__scale": (0.9, 0.5)}, "augment.scale"),
        ({"model__imgae__size": 5}, "did you mean config.model.image"),
        ({"accumulate": 2}, "accumulate = 2: a contrastive loss .* Set config.compute.micro_batch instead"),
        ({"patch_dropout": 1.0}, "patch_dropout = 1.0"),
        ({"model__image__proj": False}, "embed_dim = 8 must be image.width = 16"),
        ({"model__text__pool": "last"}, "pool = 'last' reads the padding"),
        ({"model__text__pool": "first"}, "pool = 'first' reads the first token"),
        ({"model__text__vocab_size": 5}, "vocab_size = 5 is less than"),
        ({"model__image__tower": "resnet"}, "size = 16 must be a multiple of 32"),
        ({"model__image__tower": "resnet", "model__image__size": 32, "compute__micro_batch": 4}, "batch norm takes"),
        (
            {"model__image__stem": "hmlp", "model__image__patch": 16, "compute__micro_batch": 4},
            "micro_batch = 4; it must be 0 with the stem hmlp",
        ),
        ({"model__text__causal": False, "compute__text_lengths": (4,)}, "text_lengths = .4,.; it must be empty"),
        ({"compute__dtype": "float16"}, "compute.dtype = 'float16'.*bfloat16"),
        ({"compute__remat": "some"}, "compute.remat = 'some'"),
        ({"contrastive__duplicates": "maybe"}, "duplicates = 'maybe'"),
        ({"augment__flip": True, "contrastive__negatives": 1.0}, "augment.flip = True; it must be False with"),
        ({"augment__flip": 1}, "augment.flip = 1 is of type int"),
    ],
)
def test_invalid_options_are_named(make_task, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_task(**changes)
