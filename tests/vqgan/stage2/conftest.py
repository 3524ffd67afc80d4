"""Two small second stages with random weights, of a class and of a text, over the codes of one VQGAN."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vqgan_jax
from dalle_jax.captions import Captions
from dalle_jax.options import DALLEOptions
from nn_jax.code_transformer import shapes
from train_jax import config as config_lib
from train_jax.data.text import Tokenizer
from train_jax.datasets.digits import LABEL_NAMES
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import model, task
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.generator import CodeGenerator

KINDS = ("class", "text")
TASKS = {"class": "vqgan_jax.prior.task", "text": "dalle_jax.task"}
SMALL = {"width": 16, "depth": 2, "heads": 2}
OPTIONS = {"class": PriorOptions, "text": DALLEOptions}
CONDITION = {"class": {"classes": 10}, "text": {"text_length": 12, "positions": "axial"}}


@pytest.fixture(scope="session")
def conditions():
    """The condition of each kind."""
    captions = [f"{words} {name}" for words in ("the digit", "a handwritten") for name in LABEL_NAMES]
    return {"class": ClassCondition(10), "text": Captions(Tokenizer.train(captions * 5, 560, 12))}


@pytest.fixture(scope="session")
def assemble(conditions, untrained_vqgan):
    """`assemble(kind, **options) -> CodeGenerator`: weights so large that conditions and codes matter."""

    def make(kind: str, **options) -> CodeGenerator:
        config = OPTIONS[kind].parse(SMALL | CONDITION[kind] | options, "model")
        condition, side = conditions[kind], 16 // untrained_vqgan.factor
        module = model.build(config, condition, untrained_vqgan.num_codes, (side, side))
        rng = np.random.default_rng(0)

        def draw(path, shape):
            return float(path[-1].key == "scale") + 0.3 * rng.standard_normal(shape, np.float32)

        params = jax.tree.map_with_path(draw, shapes(module), is_leaf=lambda x: isinstance(x, tuple))
        return CodeGenerator.assemble(config, params, condition, untrained_vqgan, 16, f"of a {kind}")

    return make


@pytest.fixture(scope="session")
def by_class(assemble) -> CodeGenerator:
    return assemble("class")


@pytest.fixture(scope="session")
def by_text(assemble) -> CodeGenerator:
    return assemble("text")


@pytest.fixture(scope="session")
def by_encoded_text(assemble) -> CodeGenerator:
    return assemble("text", encoder_depth=1, branch_norms="normformer", gated=True, bias=False, embedding_norm=True)


@pytest.fixture(scope="session", params=KINDS)
def generator(request, by_class, by_text) -> CodeGenerator:
    """Each of the two generators in turn."""
    return {"class": by_class, "text": by_text}[request.param]


@pytest.fixture(scope="session")
def vqgan_file(untrained_vqgan, tmp_path_factory):
    file = tmp_path_factory.mktemp("vqgan") / "vqgan.safetensors"
    vqgan_jax.save(untrained_vqgan, file)
    return file


@pytest.fixture(scope="session")
def make_task(conditions, vqgan_file):
    """`make_task(kind, **changes) -> (task, config)`: changes of the config, those of a dict one by one."""

    def make(kind: str, **changes):
        config = ConfigDict({"task": TASKS[kind], "steps": 4, "data": {"source": "digits", "batch_size": 8}})
        config.vqgan = {"path": str(vqgan_file)}
        config.model, config.dropout = SMALL | CONDITION[kind], 0.0
        for key, value in changes.items():
            if isinstance(value, dict):
                config[key] = config.get(key, ConfigDict()).to_dict() | value
            else:
                config[key] = value
        config = config_lib.resolve(config)
        options = OPTIONS[kind].parse(config.model, "model")
        return task.make(config, None, task.open_vqgan(config, None), options, conditions[kind]), config

    return make
