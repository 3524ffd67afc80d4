"""Published configs start on one device and on a pod, look at held-out data, and are installed with the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from train_jax import config as config_lib
from train_jax import config_file

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("trace_published.py")
PUBLISHED = ("vit_b32", "vit_b16", "vit_l14", "rn50", "siglip_b16", "f16_1024", "f16_16384", "f8_gumbel", "mindalle_1b3",
             "dalle1_12b", "karlo_prior", "karlo_decoder", "karlo_upsampler")  # fmt: skip


@pytest.mark.slow
def test_published_configs_are_traced_on_1_to_256_devices(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=256", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(DRIVER), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert {name.split("/")[1] for name in answers} == set(PUBLISHED)
    assert {(name, count): said for name, counts in answers.items() for count, said in counts.items() if said} == {}
    assert all(list(counts) == ["1", "8", "32", "128", "256"] for counts in answers.values())


@pytest.mark.parametrize("name", [name for name in config_file.names() if name.split("/")[1] in PUBLISHED])
def test_published_configs_evaluate_on_data_they_do_not_train_on(name):
    config = config_lib.resolve(config_file.load(name))
    assert config.data.split == "train[1%:]"
    assert config.evals and all(options.split == "train[:1%]" for options in config.evals.values())


def pip(command: list[str], **options) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_installed_wheel_holds_every_config_by_name(tmp_path):
    """Made of a copy's archive of sources, installed without network; no package has a name that others could have."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    for name in ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "multimodal_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('.')"]
    pip(build, cwd=source)
    (archive,) = source.glob("*.tar.gz")
    # Of the archive of sources, not of the clone: so that lacks nothing either.
    offline = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pip([*offline, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(archive)])
    (wheel,) = wheels.glob("*.whl")
    pip([*offline, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(tmp_path / "site"), str(wheel)])
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").glob("*/*.py")}
    installed = {file.relative_to(tmp_path / "site") for file in (tmp_path / "site").glob("train_jax/configs/*/*.py")}
    assert {file.relative_to("train_jax").as_posix() for file in installed} == files
    tops = {path.name for path in (tmp_path / "site").iterdir() if path.suffix != ".dist-info"} - {"bin"}
    assert tops == {"nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "multimodal_jax"}
    commands = {path.name for path in (tmp_path / "site" / "bin").iterdir()}
    assert commands == {"train-jax", "clip-jax", "vqgan-jax", "dalle-jax", "multimodal-jax"}
    assert all((tmp_path / "site" / top / "py.typed").exists() for top in tops)
    code = "from train_jax import config_file as f; print(f.__file__); print({n: f.load(n).steps for n in f.names()})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    where, steps = run.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    experiments = {name for name in files if not name.startswith("configs/machines/")}
    assert {f"configs/{name}.py" for name in eval(steps)} == experiments != files
