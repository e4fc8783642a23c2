"""Build recipe of sam2_mem.

``configs/`` and ``checkpoints/`` live at the top of the checkout and travel inside the package, as
``sam2_mem/configs`` and ``sam2_mem/checkpoints``, when a wheel is built. An editable install reads them in place.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

INSTALL_REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "hydra-core>=1.3.2",
    "omegaconf>=2.3",
    "iopath>=0.1.10",
    "numpy>=1.24",
    "pillow>=10.1",
    "tqdm>=4.66",
    "pycocotools>=2.0.7",
    "opencv-python-headless>=4.7",
    "av>=14.2",
    "safetensors>=0.4",
    "matplotlib>=3.7",
    "jinja2>=3.1",
    "pyyaml>=6.0",
]
EXTRAS_REQUIRE = {
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6",
        "setuptools",
        "wheel",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=6.29",
        "ruff>=0.17",
        "mypy>=2.4",
        "transformers>=5.24",
        "timm>=1.0.20",
        "submitit>=1.5",
        "fastapi>=0.115",
        "uvicorn>=0.30",
        "httpx>=0.27",
        "nibabel>=5.2",
        "onnx>=1.17",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "supervision>=0.25",
        "playwright>=1.50",
    ],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
    "studio": ["fastapi>=0.115", "uvicorn>=0.30"],
    "hub": ["huggingface_hub>=0.23"],
    "volumes": ["nibabel>=5.2"],
    "cluster": ["submitit>=1.5"],
    "supervision": ["supervision>=0.25"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
}

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""Those that the workflows run the tests on; the first is the oldest that may be used."""


def read_version() -> str:
    text = (ROOT / "sam2_mem" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def read_readme() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="sam2_mem",
    version=read_version(),
    description="SAM 2 video segmentation with an exchangeable memory bank",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=f">={PYTHONS[0]}",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["sam2_mem", "sam2_mem.*"]), "sam2_mem.configs", "sam2_mem.checkpoints"],
    package_dir={"sam2_mem.configs": "configs", "sam2_mem.checkpoints": "checkpoints"},
    package_data={
        "sam2_mem": ["py.typed", "moved_names.json", "published.yaml"],
        "sam2_mem.configs": ["*.yaml", "**/*.yaml"],
        # The models of this project only: official *.pt files lie in the same folder and must never be packed.
        "sam2_mem.checkpoints": ["sam2_mem_*.safetensors", "*.md"],
        "sam2_mem.evaluation": ["datasets.yaml", "templates/*"],
        "sam2_mem.evaluation.benchmark": ["suite.yaml"],
        "sam2_mem.studio": ["static/*"],
    },
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["sam2-mem = sam2_mem.cli.command:main"]},
    zip_safe=False,
)
