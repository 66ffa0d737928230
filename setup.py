"""Installation of sever; `environment.yml` holds the same ranges for conda."""

from pathlib import Path

from setuptools import find_packages, setup

# Each range was tested at its upper end, and starts where the features in use are there.
REQUIREMENTS = [
    "albumentations>=2.0.8,<2.1",
    "click>=8.2,<9",
    "numpy>=1.26,<3",
    "opencv-python-headless>=4.9,<6",
    "pandas>=2.2,<4",
    "pillow>=10,<14",
    "pydantic>=2.9,<3",
    "pyyaml>=6.0,<7",
    "safetensors>=0.4,<1",
    "segmentation-models-pytorch>=0.5,<0.7",
    "simplejpeg>=1.8,<2",
    "tensorboard>=2.16,<3",
    "timm>=1.0.11,<2",
    "torch>=2.6,<3",
    "torchvision>=0.21,<1",
    "tqdm>=4.66,<5",
    "typing-extensions>=4.12,<5",
]
DEVELOPMENT = [
    "hypothesis>=6.100,<7",
    "mypy>=1.13,<3",
    "pandas-stubs>=2.2,<4",
    "pycocotools>=2.0.8,<3",
    "pytest>=8,<10",
    "pytest-xdist>=3.7,<4",
    "ruff>=0.8,<1",
    "scikit-learn>=1.5,<2",
    "types-PyYAML>=6.0,<7",
    "types-tqdm>=4.66,<5",
]

setup(
    name="sever",
    version="0.1.0",
    description="From steel images and a YAML file to the best possible submission",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["sever", "sever.*"]),
    package_data={"sever": ["py.typed"]},
    install_requires=REQUIREMENTS,
    extras_require={"dev": DEVELOPMENT},
    entry_points={"console_scripts": ["sever=sever.cli:cli"]},
)
