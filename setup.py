from pathlib import Path

from setuptools import find_packages, setup

_PACKAGES = ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "multimodal_jax")
# Installed inside train_jax: `configs` alone is a name that any project may have.
_CONFIGS = ("configs", "configs.clip", "configs.vqgan", "configs.dalle", "configs.unclip", "configs.machines")
_README = Path(__file__).parent / "README.md"

setup(
    name="multimodal-jax",
    version="0.1.0",
    description="CLIP, VQGAN and DALL-E in JAX, trained by one sharded step: from one CPU core to a TPU pod.",
    long_description=_README.read_text(encoding="utf-8") if _README.exists() else "",
    long_description_content_type="text/markdown",
    keywords=["CLIP", "VQGAN", "DALL-E", "unCLIP", "JAX", "Flax", "text-to-image", "contrastive learning"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for name in _PACKAGES for pattern in (name, f"{name}.*")])
    + [f"train_jax.{name}" for name in _CONFIGS],
    package_dir={"train_jax.configs": "configs"},
    # TFDS reads these beside a builder; without them `builder.info` has no description. py.typed: annotations are for type
    # checkers, too (PEP 561).
    package_data={"": ["README.md", "TAGS.txt", "CITATIONS.bib", "*.json", "py.typed"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.13",
        "flax>=0.12.8,<0.13",
        "fsspec>=2024.6",  # object storage; gcsfs and s3fs open gs:// and s3://
        "ftfy>=6.2",
        "grain>=0.2.15,<0.3",
        # 0.3x is what the peers' transformers 4 agrees with, 1.x and later what everyone else has.
        "huggingface_hub>=0.34,<3",
        "imageio-ffmpeg>=0.6",  # videos; brings its own ffmpeg
        # TFDS imports it on Python 3.11 and does not declare it.
        "importlib_resources>=6.4",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3.2",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",  # JAX brings it; bfloat16 in weight files
        "numpy>=2.0,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",  # its v1 interface may still change between minor versions
        "pandas>=2.2",  # tables of runs
        "Pillow>=11.3",  # reads AVIF
        "PyYAML>=6",  # configurations of taming-transformers
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.15",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9,<5",
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.66",
    ],
    extras_require={
        "app": ["gradio>=6.31,<7"],  # multimodal-jax serve
        "cuda": ["jax[cuda]"],
        "tpu": ["jax[tpu]"],
        "dalle-mini": ["emoji>=2", "text-unidecode>=1.3"],  # captions beyond ASCII for dalle-mini
        "emoji": ["resvg-py>=0.5,<0.6"],  # renders the drawings of `emoji/SIZE`: train-jax prepare
        "export": ["flatbuffers>=24"],  # clip-jax export
        "faiss": ["faiss-cpu>=1.9"],  # approximate search among millions of pictures
        "optuna": ["optuna>=4.4,<6"],  # train-jax sweep --search=optuna
        "trackio": ["trackio>=0.20"],  # config.mirrors
        "wandb": ["wandb>=0.20"],  # config.mirrors
        "slurm": ["submitit>=1.5"],  # train-jax sweep --launcher=slurm
        "docs": ["mkdocstrings-python>=2", "zensical>=0.0.73"],  # make docs
        "notebooks": ["ipykernel>=6.29", "ipywidgets>=8.1,<9", "nbclient>=0.10", "nbformat>=5.10"],
        # The systems this one is compared with, at versions that agree with each other; never needed to train
        # or to use a model.
        "peers": [
            "diffusers==0.35.2",
            "huggingface_hub<1.0",
            "protobuf>=4",  # with it and sentencepiece, transformers reads SigLIP's tokenizer
            "sentencepiece>=0.2",
            "torch==2.13.0",
            "transformers==4.57.1",
        ],
        "dev": [
            "beartype>=0.21",
            "emoji>=2",
            "faiss-cpu>=1.9",
            "filelock>=3.16",  # lets parallel test workers share JAX's compilation cache
            "flatbuffers>=24",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "resvg-py>=0.5,<0.6",
            "ruff>=0.9",
            "submitit>=1.5",
            "text-unidecode>=1.3",
            # For `pip install --no-build-isolation -e .`: environments of Python 3.12 come without it.
            "setuptools>=77",
        ],
    },
    entry_points={
        "console_scripts": [
            "train-jax = train_jax.__main__:cli",
            "clip-jax = clip_jax.cli:main",
            "vqgan-jax = vqgan_jax.cli:main",
            "dalle-jax = dalle_jax.cli:main",
            "multimodal-jax = multimodal_jax.__main__:main",
        ]
    },
)
