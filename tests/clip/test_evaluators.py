"""The evaluators against loops in NumPy, with chosen embeddings, on one and on eight devices."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from clip_jax import evaluators, probes, sheets, templates
from train_jax import sharding
from train_jax.data.images import Preprocess
from train_jax.data.sources import DataError, Source
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError
from train_jax.evaluation.evaluators import Context

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
TEMPLATES = ("a {}", "the {}")
WORDS = [*NAMES, "a", "the", "photo", "of", "two", "thing"]
DIM = 8
TOKENIZER = Tokenizer.train(WORDS, 700, 8)


TRACED = []  # each time an image encoder is traced, and so compiled


class Planted(nn.Module):
    """A stand-in for CLIP: an image's embedding is indexed by its first pixel, a text's is a weighted sum over tokens."""

    def setup(self):
        self.images = self.param("images", nn.initializers.zeros_init(), (256, DIM))
        self.tokens = self.param("tokens", nn.initializers.zeros_init(), (TOKENIZER.vocab_size, DIM))

    def encode_image(self, pixels):
        TRACED.append(pixels.shape)
        return unit(self.images[jnp.round((pixels[:, 0, 0, 0] * 0.5 + 0.5) * 255).astype(jnp.int32)])

    def encode_text(self, ids):
        weights = (ids != 0) * jnp.arange(1.0, ids.shape[1] + 1)[None]
        return unit(jnp.einsum("bl,bld->bd", weights, self.tokens[ids]))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def params(seed=0):
    draw = np.random.default_rng(seed)
    tokens = draw.standard_normal((TOKENIZER.vocab_size, DIM)).astype(np.float32)
    return {"clip": {"images": draw.standard_normal((256, DIM)).astype(np.float32), "tokens": tokens}}


def image(index):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (index, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def records(count=37, seed=1):
    """Makes records, some without a label, with one to four captions, many of which belong to several images."""
    draw = np.random.default_rng(seed)
    return [
        {
            "image": image(index),
            "captions": [" ".join(draw.choice(WORDS, 2)) for _ in range(draw.integers(1, 5))],
            "id": str(index),
            "label": int(draw.integers(-1, len(NAMES))),
        }
        for index in range(count)
    ]


def context(source, devices=8):
    mesh = sharding.make_mesh({"data": -1, "fsdp": 2 if devices == 8 else 1, "tensor": 1}, jax.devices()[:devices])

    class Fake(Context):
        def source(self, name, split, where=()):
            assert (name, split, where) == ("", "test", ())
            return source

    config = ConfigDict({"data": {"threads": 2, "workers": 0}})
    return Fake(mesh, config)


def evaluate(kind, source, weights, devices=8, **options):
    full = evaluators.EVALUATORS[kind].defaults()
    full.update({"batch_size": 10} | options)
    preprocess = Preprocess(4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    factory = evaluators.make_factories(Planted(), TOKENIZER, preprocess)[kind]
    with jax.set_mesh(context(source, devices).mesh):
        metrics, images = factory(full, context(source, devices))(weights, {})
    assert images == {}
    return metrics


def evaluate_on(monkeypatch, splits, kind, weights, **options):
    """Evaluates with a source of several splits."""
    made = {split: Source(split, rows, NAMES) for split, rows in splits.items()}
    monkeypatch.setattr(Context, "source", lambda self, name, split, where=(): made[split])
    full = evaluators.EVALUATORS[kind].defaults()
    full.update({"batch_size": 10} | options)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    where = Context(mesh, ConfigDict({"data": {"threads": 2, "workers": 0}}))
    preprocess = Preprocess(4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with jax.set_mesh(mesh):
        return evaluators.make_factories(Planted(), TOKENIZER, preprocess)[kind](full, where)(weights, {})[0]


def embed_texts(weights, texts):
    tokens = weights["clip"]["tokens"].astype(np.float64)
    rows = TOKENIZER.encode(texts)
    sums = np.stack([sum((position + 1) * tokens[i] for position, i in enumerate(row) if i != 0) for row in rows])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def embed_images(weights, rows):
    embeddings = weights["clip"]["images"][[int(r["id"]) for r in rows]].astype(np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.mark.parametrize("devices", [1, 8])
def test_zero_shot_accuracy_is_that_of_a_loop(devices):
    rows, weights = records(), params()
    metrics = evaluate("zero_shot", Source("s", rows, NAMES), weights, devices, templates=TEMPLATES, per_class=True)
    labelled = [r for r in rows if r["label"] >= 0]
    assert 20 < len(labelled) < len(rows)
    top1, top5, by_class, predicted = 0, 0, {name: [] for name in NAMES}, []
    for row, vector in zip(labelled, embed_images(weights, labelled), strict=True):
        scores = []
        for name in NAMES:
            mean = embed_texts(weights, [t.format(name) for t in TEMPLATES]).mean(0)
            scores.append(vector @ mean / np.linalg.norm(mean))
        order = list(np.argsort(scores)[::-1])
        top1 += order[0] == row["label"]
        top5 += row["label"] in order[:5]
        by_class[NAMES[row["label"]]].append(order[0] == row["label"])
        predicted.append(order[0])
    expected = {"top1": top1 / len(labelled), "top5": top5 / len(labelled), "images": len(labelled)}
    expected |= {f"top1/{name}": np.mean(hits) for name, hits in by_class.items()}
    expected["mean_per_class"] = balanced_accuracy_score([row["label"] for row in labelled], predicted)
    assert metrics == pytest.approx(expected)


def test_ensembling_averages_unit_vectors_of_sentences():
    """A template whose sentences have long embeddings must not outweigh the others."""
    rows = [{"image": image(n), "captions": ["a ant"], "id": str(n), "label": n % 2} for n in range(8)]
    weights = params()
    plain = evaluate("zero_shot", Source("s", rows, NAMES), weights, templates=TEMPLATES)
    for scale in (1e-3, 1e3):
        scaled = {"clip": jax.tree.map(lambda x, s=scale: x * s, weights["clip"])}
        assert evaluate("zero_shot", Source("s", rows, NAMES), scaled, templates=TEMPLATES) == plain


def test_few_classes_have_no_top5():
    rows = [{"image": image(n), "captions": ["a ant"], "id": str(n), "label": n % 2} for n in range(3)]
    assert set(evaluate("zero_shot", Source("s", rows, NAMES[:2]), params())) == {"top1", "mean_per_class", "images"}


@pytest.mark.parametrize(
    "source, options, error, words",
    [
        (Source("s", records()), {}, DataError, "s has no classes"),
        (Source("s", [r | {"label": -1} for r in records(3)], NAMES), {}, DataError, "no record has a label"),
        (Source("s", records(3), NAMES), {"templates": ("a thing",)}, ConfigError, "'a thing' has no {}"),
        (Source("s", records(3), NAMES), {"templates": ()}, ConfigError, "there are no templates"),
    ],
)
def test_zero_shot_errors_are_raised_at_construction(source, options, error, words):
    with pytest.raises(error, match=words):
        evaluate("zero_shot", source, params(), **options)


def test_templates_from_a_file_are_those_written_out(tmp_path):
    (tmp_path / "templates.txt").write_text("".join(f"{template}\n\n" for template in TEMPLATES))
    rows, weights = records(), params()
    written = evaluate("zero_shot", Source("s", rows, NAMES), weights, templates=TEMPLATES)
    assert (
        evaluate("zero_shot", Source("s", rows, NAMES), weights, templates=(f"@{tmp_path}/templates.txt",)) == written
    )


def test_named_templates_are_the_published_ones():
    """As published: 80 of which none is twice, and seven of them."""
    every = templates.read_templates(["openai-imagenet"])
    assert len(set(every)) == 80 and every[0] == "a bad photo of a {}." and every[-1] == "a tattoo of the {}."
    assert len(set(every) & set(templates.read_templates(["openai-imagenet-7"]))) == 7
    assert len(templates.LISTS["openai-cifar"]) == 18
    assert templates.read_templates(["the {}", "openai-simple"]) == ["the {}", "a photo of a {}."]
    for name, published in templates.LISTS.items():
        assert len(set(published)) == len(published) and all(text.count("{}") == 1 for text in published), name
    with pytest.raises(ValueError, match="'openai-imagnet' has no {}.* name a list: openai-imagenet,"):
        templates.read_templates(["openai-imagnet"])


def test_intervals_are_wilsons():
    rows, weights = records(), params()
    metrics = evaluate("zero_shot", Source("s", rows, NAMES), weights, intervals=True)
    for name in ("top1", "top5"):
        trials = stats.binomtest(round(metrics[name] * metrics["images"]), metrics["images"])
        limits = trials.proportion_ci(method="wilson")
        assert (metrics[f"{name}/low"], metrics[f"{name}/high"]) == pytest.approx((limits.low, limits.high))
    assert metrics["mean_per_class/low"] < metrics["mean_per_class"] < metrics["mean_per_class/high"]
    assert "text_to_image/r1/low" in evaluate("retrieval", Source("s", rows), weights, intervals=True)


def split_rows(rows):
    """Features, labels and a split by parity of the labelled records."""
    labelled = [r for r in rows if r["label"] >= 0]
    return labelled[::2], labelled[1::2]


def test_neighbours_vote_as_in_scikit_learn(monkeypatch):
    """Weights of cosines are weights of distances between unit vectors: cosine = 1 - distance^2 / 2."""
    train, test = split_rows(records(90))
    weights = params()
    metrics = evaluate_on(monkeypatch, {"train": train, "test": test}, "knn", weights, k=7, temperature=0.2, intervals=True)
    peer = KNeighborsClassifier(7, weights=lambda d: np.exp((1 - d**2 / 2) / 0.2))
    labels = [[r["label"] for r in rows] for rows in (train, test)]
    peer.fit(embed_images(weights, train), labels[0])
    predicted = peer.predict(embed_images(weights, test))
    assert metrics["top1"] == np.mean(predicted == labels[1])
    assert metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels[1], predicted))
    ranked = np.argsort(-peer.predict_proba(embed_images(weights, test)), kind="stable")[:, :5]
    assert metrics["top5"] == np.mean([label in row for label, row in zip(labels[1], ranked, strict=True)])
    assert metrics["images"] == len(test) and metrics["train"] == len(train)
    assert metrics["top1/low"] < metrics["top1"] < metrics["top1/high"]


def test_few_shots_are_nested_samples_of_each_class(monkeypatch):
    """As many images of a class as there are: every sample is the full split, so the accuracy is that of one probe."""
    rows = [r for r in records(120) if r["label"] >= 0]
    counts = np.bincount([r["label"] for r in rows])
    train, seen = [], np.zeros(len(NAMES), int)
    for r in rows:
        seen[r["label"]] += 1
        train += [r] if seen[r["label"]] <= 4 else []
    test, weights = [r for r in rows if r not in train], params()
    assert counts.min() > 4
    metrics = evaluate_on(
        monkeypatch, {"train": train, "test": test}, "few_shot", weights, shots=(1, 4), samples=3, intervals=True
    )
    probe = LogisticRegression(C=1 / 0.316).fit(embed_images(weights, train), [r["label"] for r in train])
    expected = np.mean(probe.predict(embed_images(weights, test)) == [r["label"] for r in test])
    assert metrics["shots4/top1"] == metrics["shots4/top1/low"] == pytest.approx(expected)
    assert metrics["shots1/top1/low"] < metrics["shots1/top1"] < metrics["shots1/top1/high"]
    assert metrics["samples"] == 3 and metrics["images"] == len(test)
    with pytest.raises(DataError, match="class 'ant' has 4 image.s., fewer than 5 shots"):
        evaluate_on(monkeypatch, {"train": train, "test": test}, "few_shot", weights, shots=(5,))


def test_a_swept_probe_chooses_its_strength_on_a_part_of_the_training_images(monkeypatch):
    train, test = split_rows(records(120))
    weights, asked = params(), []
    monkeypatch.setattr(probes, "choose_strength", lambda validate: asked.append(validate(0.1)) or 0.01)
    metrics = evaluate_on(monkeypatch, {"train": train, "test": test}, "linear_probe", weights, strength=0.0)
    labels = np.array([r["label"] for r in train])
    held = probes.split_validation(labels)
    assert 0.1 < held.mean() <= 0.2 and set(labels[held]) == set(range(len(NAMES)))
    features = embed_images(weights, train)
    probe = LogisticRegression(C=10).fit(features[~held], labels[~held])
    assert asked == [pytest.approx(np.mean(probe.predict(features[held]) == labels[held]))]
    probe = LogisticRegression(C=100, max_iter=1000).fit(features, labels)
    assert metrics["top1"] == np.mean(probe.predict(embed_images(weights, test)) == [r["label"] for r in test])
    assert metrics["strength"] == 0.01
    with pytest.raises(DataError, match="a linear probe needs 5 or more images of a class"):
        evaluate_on(monkeypatch, {"train": train[:2], "test": test}, "linear_probe", weights, strength=0.0)


def test_a_linear_probe_learns_from_features_what_is_in_them():
    """Classes that a direction of the feature space tells apart; against ridge-penalised Newton steps by hand."""
    rows, weights = records(), params()
    labelled = [r for r in rows if r["label"] >= 0]
    features = embed_images(weights, labelled)
    side = (features @ features[0] > np.median(features @ features[0])).astype(int)
    rows = [r | {"label": int(s)} for r, s in zip(labelled, side, strict=True)]
    source = Source("s", rows, NAMES[:2])
    metrics = evaluate("linear_probe", source, weights, strength=0.01, train_split="test")
    x, w = np.c_[features, np.ones(len(rows))], np.zeros(features.shape[1] + 1)
    penalty = 0.01 * np.diag([1.0] * features.shape[1] + [0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + penalty
        w -= np.linalg.solve(hessian, x.T @ (p - side) + penalty @ w)
    assert metrics.pop("mean_per_class") == pytest.approx(balanced_accuracy_score(side, x @ w > 0))
    assert metrics == {"top1": np.mean((x @ w > 0) == side), "images": len(rows), "train": len(rows)}
    assert metrics["top1"] > 0.9
    few = evaluate("linear_probe", source, weights, most=10, train_split="test")
    assert few["train"] == 10
    with pytest.raises(DataError, match="at least two classes"):
        evaluate("linear_probe", Source("s", [r | {"label": 0} for r in rows], NAMES), weights, train_split="test")


def recalls_by_hand(rows, weights, is_true):
    captions = list(dict.fromkeys(c for r in rows for c in r["captions"]))
    similar = embed_texts(weights, captions) @ embed_images(weights, rows).T
    relevant = np.array([[is_true(c, r) for r in rows] for c in captions])
    expected = {"images": len(rows), "captions": len(captions)}
    for name, scores, truth in (("text_to_image", similar, relevant), ("image_to_text", similar.T, relevant.T)):
        # Rank of the best relevant item: how many are nearer than it.
        ranks = [(s > s[t].max()).sum() if t.any() else np.inf for s, t in zip(scores, truth, strict=True)]
        expected |= {f"{name}/r{k}": np.mean(np.array(ranks) < k) for k in (1, 5, 10)}
    return expected


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("gallery", [0, 20])
def test_retrieval_ranks_as_a_loop_does(devices, gallery):
    rows, weights = records(), params()
    metrics = evaluate("retrieval", Source("s", rows), weights, devices, gallery=gallery)
    rows_used = rows[: gallery or None]
    assert metrics == pytest.approx(recalls_by_hand(rows_used, weights, lambda c, r: c in r["captions"]))
    assert metrics["captions"] < sum(len(r["captions"]) for r in rows_used), "equal captions are one"


def test_relevance_is_defined_by_the_source():
    """A caption of another record may be true of an image."""

    def is_true(caption, record):
        return len(caption) % 3 == int(record["id"]) % 3

    rows, weights = records(), params()
    metrics = evaluate("retrieval", Source("s", rows, is_true=is_true), weights)
    assert metrics == pytest.approx(recalls_by_hand(rows[:1000], weights, is_true))
    own = evaluate("retrieval", Source("s", rows), weights)
    assert own["text_to_image/r1"] < metrics["text_to_image/r1"] < 1


def test_retrieval_may_ask_for_another_field():
    rows = [row | {"name": row["captions"][0] if index % 5 else ""} for index, row in enumerate(records(20, 7))]
    named = [row | {"captions": [row["name"]] * bool(row["name"])} for row in rows]
    expected = evaluate("retrieval", Source("some", named), params())
    assert evaluate("retrieval", Source("all", rows), params(), field="name") == expected
    # What is true of captions says nothing of names: a leopard may have the keyword "cat" and is not called so.
    told = Source("told", rows, is_true=lambda text, record: True)
    assert evaluate("retrieval", told, params(), field="name") == expected
    assert expected["captions"] < evaluate("retrieval", Source("all", rows), params())["captions"]
    with pytest.raises(DataError, match="there is no field 'names' for retrieval; there are captions, id, label, name"):
        evaluate("retrieval", Source("all", rows), params(), field="names")


def test_attributes_are_those_of_the_nearest_caption(monkeypatch):
    draw = np.random.default_rng(3)

    def people(split, count):
        return [
            row
            | {
                "role": str(draw.choice(["", "ant", "bee", "cat"])),
                "tone": str(draw.choice(["dark", "light"])),
                "split": split,
            }
            for row in records(count, len(split))
        ]

    splits = {"train": people("train", 30), "compositions": people("compositions", 25)}
    weights, fields = params(), ("role", "tone")
    found = evaluate_on(monkeypatch, splits, "attributes", weights, split="compositions", fields=fields, intervals=True)
    captions = {}
    for row in (*splits["train"], *splits["compositions"]):
        if row["role"]:
            captions.setdefault((row["role"], row["tone"]), row["captions"][0])
    asked = [row for row in splits["compositions"] if row["role"]]
    scores = embed_images(weights, asked) @ embed_texts(weights, list(captions.values())).T
    truth = np.array([[row[name] for name in fields] for row in asked])
    right = np.array(list(captions))[scores.argmax(axis=1)] == truth
    assert found["images"] == len(asked) and found["candidates"] == len(captions) == 6
    assert found["all"] == np.all(right, axis=1).mean()
    assert [found["role"], found["tone"]] == np.mean(right, axis=0).tolist()
    assert found["all/low"] < found["all"] < found["all/high"]
    # Equal pictures have two names, and either is right.
    twins = {name: [*rows, *(row | {"tone": "grey"} for row in rows)] for name, rows in splits.items()}
    both = evaluate_on(monkeypatch, twins, "attributes", weights, split="compositions", fields=fields)
    assert both["images"] == 2 * len(asked) and both["tone"] >= found["tone"] and both["candidates"] == 9
    with pytest.raises(DataError, match="combination.* are not in among = train: add the split compositions"):
        some = {"train": splits["train"][:2], "compositions": splits["compositions"]}
        evaluate_on(monkeypatch, some, "attributes", weights, split="compositions", fields=fields, among=("train",))
    with pytest.raises(DataError, match="there is no field 'age' for attributes; there are captions"):
        evaluate_on(monkeypatch, splits, "attributes", weights, split="compositions", fields=("age",))
    with pytest.raises(DataError, match="no record has all of split, role"):
        nobody = {"train": splits["train"], "test": [row for row in splits["train"] if not row["role"]]}
        evaluate_on(monkeypatch, nobody, "attributes", weights, fields=("split", "role"), among=("train",))


def test_captions_are_told_from_their_negatives():
    draw, weights = np.random.default_rng(4), params()
    words = sorted({c for row in records() for c in row["captions"]})
    rows = [
        row | {"negatives": [str(draw.choice(words)) if draw.random() < 0.8 else "" for _ in row["captions"]]}
        for row in records(40)
    ]
    for count in (1, 0):
        found = evaluate("negatives", Source("some", rows), weights, captions=count, intervals=True)
        nearer = []
        for row in rows:
            image = embed_images(weights, [row])[0]
            for caption, negative in list(zip(row["captions"], row["negatives"], strict=True))[: count or None]:
                if negative and negative != caption:
                    true, false = embed_texts(weights, [caption, negative])
                    nearer.append(image @ true > image @ false)
        assert found["captions"] == len(nearer) and found["accuracy"] == np.mean(nearer)
        assert found["accuracy/low"] < found["accuracy"] < found["accuracy/high"]
    with pytest.raises(DataError, match="no caption has a negative"):
        evaluate("negatives", Source("none", [rows[0] | {"negatives": [""] * len(rows[0]["captions"])}]), weights)
    same = rows[0] | {"negatives": [f" {caption}" for caption in rows[0]["captions"]]}  # the same tokens
    with pytest.raises(DataError, match="no caption has a negative"):
        evaluate("negatives", Source("same", [same]), weights)
    with pytest.raises(DataError, match="record 0 has .* and no list of negatives: name a source"):
        evaluate("negatives", Source("bare", records(3)), weights)
    with pytest.raises(DataError, match="captions and 9 negatives: name a source"):
        evaluate("negatives", Source("odd", [rows[0] | {"negatives": ["a"] * 9}]), weights)


def test_a_small_gallery_leaves_out_ranks_that_mean_nothing():
    rows = records(4)
    metrics = evaluate("retrieval", Source("s", rows), params())
    assert "text_to_image/r1" in metrics and "text_to_image/r5" not in metrics


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_model_scores_at_chance(value):
    """All embeddings equal, or NaN: ties must not count as hits."""
    rows = [{"image": image(n), "captions": [f"thing {n}"], "id": str(n), "label": n % 6} for n in range(60)]
    weights = jax.tree.map(lambda x: np.full_like(x, value), params())
    metrics = evaluate("retrieval", Source("s", rows), weights)
    assert metrics["text_to_image/r10"] == pytest.approx(10 / 60)
    assert metrics["image_to_text/r1"] == pytest.approx(1 / 60)
    assert evaluate("zero_shot", Source("s", rows, NAMES), weights)["top1"] == pytest.approx(1 / 6)


def test_a_second_evaluation_compiles_nothing(compilations):
    source, weights = Source("s", records(12), NAMES), params()
    where = context(source)
    factory = evaluators.make_factories(Planted(), TOKENIZER, Preprocess(4))
    probe = evaluators.EVALUATORS["linear_probe"].defaults()
    probe.train_split = "test"
    made = [factory[kind](evaluators.EVALUATORS[kind].defaults(), where) for kind in ("zero_shot", "retrieval")]
    made.append(factory["linear_probe"](probe, where))
    with jax.set_mesh(where.mesh):
        first = [one(weights, {})[0] for one in made]
        traced, compiled = len(TRACED), len(compilations)
        assert compiled > 0
        assert [one(weights, {})[0] for one in made] == first
    assert len(TRACED) == traced and len(compilations) == compiled


def test_labels_and_captions_are_read_without_pictures():
    """A probe of few images reads few records of a large collection."""
    rows, looked = records(), []

    class Apart(list):
        def __getitem__(self, index):
            raise AssertionError("a picture is read before it is needed")

        def metadata(self, index):
            looked.append(index)
            return {"captions": rows[index]["captions"], "label": rows[index]["label"]}

    source = Source("s", Apart(rows), NAMES, is_true=lambda caption, record: caption in record["captions"])
    where = context(source)
    factory = evaluators.make_factories(Planted(), TOKENIZER, Preprocess(4))
    for kind in ("zero_shot", "retrieval", "linear_probe"):
        options = evaluators.EVALUATORS[kind].defaults()
        if kind == "linear_probe":
            options.update({"train_split": "test", "most": 4})
        looked.clear()
        factory[kind](options, where)
        assert len(looked) <= len(rows) + (10 if kind == "linear_probe" else 0)


# ---------------------------------------------------------------------------------------------------------------------
# Drawn hits


def test_the_drawn_hits_are_the_nearest_images_and_marked_by_the_truth(monkeypatch):
    rows, weights, queries = records(), params(), ("an ant", "the bee")
    sections = []
    render = sheets.render_contact_sheet
    monkeypatch.setattr(sheets, "render_contact_sheet", lambda x, **options: sections.append(x) or render(x, **options))

    def draw(source, **options):
        full = evaluators.EVALUATORS["hits"].defaults()
        full.update({"batch_size": 10, "queries": queries, "gallery": 30, "hits": 3} | options)
        factory = evaluators.make_factories(Planted(), TOKENIZER, Preprocess(4, mean=(0.5,) * 3, std=(0.5,) * 3))["hits"]
        where = context(source, 1)
        with jax.set_mesh(where.mesh):
            return factory(full, where)(weights, {})

    def is_true(text, record):
        return text[-3:] in " ".join(record["captions"])

    metrics, pictures = draw(Source("s", rows, NAMES, is_true=is_true))
    scores = embed_texts(weights, queries) @ embed_images(weights, rows[:30]).T
    expected = [[rows[i] for i in np.argsort(-row, kind="stable")[:3]] for row in scores]
    true = [[is_true(text, row) for row in hits] for text, hits in zip(queries, expected, strict=True)]
    assert [[cell.name for cell in section.cells] for section in sections[0]] == [[r["id"] for r in x] for x in expected]
    assert [[cell.correct for cell in section.cells] for section in sections[0]] == true
    assert metrics == {"images": 30, "precision": np.mean(true)} and 0 < np.mean(true) < 1
    assert pictures["hits"].dtype == np.uint8 and pictures["hits"].shape[1] > 3 * 96
    # Without a truth there is nothing to mark.
    assert draw(Source("s", rows, NAMES))[0] == {"images": 30}
    assert {cell.correct for section in sections[1] for cell in section.cells} == {None}

    def refuse(text, record):
        raise ValueError("no such caption")

    with pytest.raises(DataError, match="s cannot tell whether a query is true of an image: no such caption"):
        draw(Source("s", rows, NAMES, is_true=refuse))
    with pytest.raises(ConfigError, match=r"queries = \(\); it must be at least one text"):
        evaluators.EVALUATORS["hits"].parse({}, "evals.look")
