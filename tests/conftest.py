"""Strict settings for every test: fake devices, checked annotations, no network, no files in the home folder.

What JAX reads from the environment is set here, before anything imports JAX, and is inherited by the
processes that tests start. Warnings are errors (`filterwarnings` in pyproject.toml).
"""

import collections
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

_ROOT = Path(__file__).resolve().parent.parent
_CACHE = _ROOT / ".cache"
_DEVICES = 8  # enough for a mesh with all three axes
_CHECKED = ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax")
_PEERS = ("torch", "transformers", "diffusers")
_LONGEST_FILES = ("train/test_hosts.py", "train/test_resilience.py")  # of few tests; else those with most tests are long


def _set(name: str, value: str | Path) -> None:
    """Sets an environment variable unless the caller of pytest has chosen a value."""
    os.environ.setdefault(name, str(value))


_set("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_DEVICES}"
        # Most of a test's time is compiling programs that run once: machine code may be slow here.
        " --xla_backend_optimization_level=0"
        # The older of XLA's two generators of fused loops compiles a quarter faster; jaxlib 0.12 has the newer one alone.
        + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10.")
        # Fake devices share few cores: one that is waited for is slow, not lost.
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=60"
        " --xla_cpu_collective_call_terminate_timeout_seconds=240"
    ).strip()
_set("JAX_NUMPY_RANK_PROMOTION", "raise")
# Programs compiled by an earlier run are read back. A size limit makes JAX lock the directory, so that test
# workers and the processes they start can share it.
_set("JAX_COMPILATION_CACHE_DIR", _CACHE / "jax")
_set("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 2**30))
_set("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
_set("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Test workers, Grain's workers and XLA already use every core; other libraries should not start threads.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    _set(_threads, "1")
_set("TOKENIZERS_PARALLELISM", "false")
_set("HF_HUB_OFFLINE", "1")
_set("TRANSFORMERS_OFFLINE", "1")
_set("MPLCONFIGDIR", _CACHE / "matplotlib")  # building the font list takes seconds
_set("JUPYTER_PLATFORM_DIRS", "1")

import flax.struct  # noqa: E402  (it imports JAX, which reads the settings above)

# One folder a session, also when several workers run it: they inherit the first process's choice.
_own_folder = None
if "TFDS_DATA_DIR" not in os.environ:
    _own_folder = tempfile.mkdtemp(prefix="multimodal-jax-tests-")
    os.environ["TFDS_DATA_DIR"] = f"{_own_folder}/tensorflow_datasets"
    os.environ["XDG_CACHE_HOME"] = f"{_own_folder}/cache"
    os.environ["IPYTHONDIR"] = f"{_own_folder}/ipython"
    os.environ["JUPYTER_CONFIG_DIR"] = f"{_own_folder}/jupyter"


def _pytree_dataclass(cls: type | None = None, /, **options):
    """flax.struct.dataclass with unchecked fields: JAX rebuilds pytrees with shardings, shapes, … in them."""
    if cls is None:
        return functools.partial(_pytree_dataclass, **options)
    made = _flax_dataclass(cls, **options)
    made.__no_type_check__ = True  # what jaxtyping looks for
    return made


# Annotated shapes and types of our own packages are checked at every call and wherever a dataclass is made.
_flax_dataclass, flax.struct.dataclass = flax.struct.dataclass, _pytree_dataclass
install_import_hook(list(_CHECKED), "beartype.beartype")


def pytest_unconfigure(config: pytest.Config) -> None:
    del config
    if _own_folder is not None:
        shutil.rmtree(_own_folder, ignore_errors=True)


def _long_files_first(items: list[pytest.Item]) -> None:
    """Starts long files first, so that workers (`--dist loadfile --no-loadscope-reorder`) end at about the same time."""
    sizes = collections.Counter(item.path for item in items)
    longest = [_ROOT / "tests" / name for name in _LONGEST_FILES]
    items.sort(key=lambda item: (item.path not in longest, -sizes[item.path]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _long_files_first(items)
    missing = [name for name in _PEERS if importlib.util.find_spec(name) is None]
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"no {', '.join(missing)}: pip install -e '.[peers]'")
    for item in items:
        if item.get_closest_marker("peers"):
            item.add_marker(skip)


def _is_local(family: int, address: object) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a socket file, or the kernel
    host = str(address[0])
    return host in ("localhost", "::1", "") or host.startswith("127.")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses connections that leave this machine: tests need no download, and must not come to need one."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address: object) -> None:
        raise RuntimeError(f"a test tried to reach {address!r}: tests use no network, make the data here")

    def guarded_connect(self, address):
        return connect(self, address) if _is_local(self.family, address) else refuse(address)

    def guarded_connect_ex(self, address):
        return connect_ex(self, address) if _is_local(self.family, address) else refuse(address)

    def guarded_lookup(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host or ""
        if not _is_local(socket.AF_INET, (name,)) and name != socket.gethostname():
            refuse(host)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture(scope="module", autouse=True)
def _free_programs() -> Iterator[None]:
    """Frees the compiled programs of a test file at its end.

    Each takes some dozens of mappings of memory, of which Linux allows a process 65,530: two thousand tests fill them.
    """
    import jax

    yield
    jax.clear_caches()


@pytest.fixture
def compilations():
    """A list that grows by one with every program that is compiled, or read from the cache of compiled ones."""
    import jax.monitoring

    events = []

    def listen(event: str, duration: float, **kwargs) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def learn():
    """`learn(task, config, batch, updates) -> (state, metrics of each)`: a run's first updates, on one batch and device."""
    import jax

    from train_jax import optim, sharding
    from train_jax.step import make_train_step, plan_state

    def run(task, config, batch, updates: int):
        mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
        history = []

        def make_optimizer(params, axes):
            return optim.make(config.optim, params, config.steps, axes)

        with jax.set_mesh(mesh):
            plan = plan_state(task, make_optimizer, mesh, batch, seed=config.seed)
            step = make_train_step(task, plan.optimizer, mesh, plan.abstract, seed=config.seed)
            state, batch = plan.create(), jax.device_put(batch, sharding.batch_sharding(mesh))
            for _ in range(updates):
                state, metrics = step(state, batch)
                history.append(metrics)
            return jax.device_get((state, history))

    return run


@pytest.fixture(scope="session")
def untrained_vqgan():
    """A VQGAN of random weights: 16 x 16 pixels to 4 x 4 codes out of 12."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    import vqgan_jax
    from vqgan_jax import model

    options = model.VQGANOptions.defaults()
    options.update(
        {"channels": 8, "multipliers": (1, 1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    )
    options.quantizer.update({"type": "fsq", "levels": (4, 3)})
    options.z_channels = 8
    module = model.build(options)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(module.init)(keys, jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda x: 3 * np.asarray(x), nn.unbox(variables))  # so that pictures differ in their codes
    return vqgan_jax.Vqgan.assemble(options, variables, "untrained")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Folder of the runs of a notebook, which it makes."""
    return tmp_path_factory.mktemp("notebook") / "runs"


@pytest.fixture(scope="session")
def run_notebook():
    """`run_notebook(name, **variables) -> outputs`: a notebook runs from top to bottom, in the folder where it lies.

    `outputs(word)`: what the cell whose code holds `word` printed to standard output, and its pictures.
    """
    import base64
    import io

    import nbformat
    from nbclient import NotebookClient
    from PIL import Image

    def run(name: str, **variables: str):
        notebook = nbformat.read(_ROOT / "notebooks" / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        env = os.environ | variables | {"PYTHONPATH": str(_ROOT)}
        env.pop("MPLBACKEND", None)  # the notebook's own: figures become outputs
        where = {"metadata": {"path": _ROOT / "notebooks"}}
        NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute(env=env)

        def outputs(word: str) -> tuple[str, list]:
            cell = next(c for c in notebook.cells if c.cell_type == "code" and word in c.source)
            text = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
            pictures = [
                Image.open(io.BytesIO(base64.b64decode(o.data[kind]))).convert("RGB")
                for o in cell.outputs
                for kind in ("image/png", "image/jpeg")
                if o.output_type == "display_data" and kind in o.data
            ]
            return text, pictures

        return outputs

    return run


@pytest.fixture(scope="session")
def shown():
    """`shown(outputs, word, count, width, contrast)`: a cell shows so many pictures, wide and not blank."""
    import numpy as np

    def check(outputs, word: str, count: int, width: int = 100, contrast: float = 3) -> None:
        _, pictures = outputs(word)
        assert len(pictures) == count
        for picture in pictures:
            assert picture.width > width and np.asarray(picture).std() > contrast, "not blank"

    return check
