"""Packaging: the folders engine/, kernels/ and bench/ are installed as speedyresnet.engine and so on.

The mapping keeps generic names such as `kernels` (a public package of that name exists) out of site-packages.
"""

from pathlib import Path

from setuptools import setup

PACKAGES = {
    "speedyresnet.kernels": "kernels",
    "speedyresnet.engine": "engine",
    "speedyresnet.engine.recipes": "engine/recipes",
    "speedyresnet.bench": "bench",
}
BENCH = ["scipy", "matplotlib", "jinja2", "setuptools>=77"]  # setuptools: `bench regress` installs revisions
DOCS = ["pdoc>=15"]
TEST = [*BENCH, "pytest>=8", "pytest-benchmark>=5", "pytest-xdist", "hypothesis"]

setup(
    name="speedyresnet",
    version="0.1.0",
    description="Train an image classifier in seconds: fused kernels, one-graph training steps, honest clocks",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={name: ["py.typed", "resources.json", "report.html.jinja"] for name in PACKAGES},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "triton>=3.6; sys_platform == 'linux'",
        "numpy",
        "safetensors>=0.5",
        "pillow>=10.1",
        "rich>=13",
        "typer>=0.15",
    ],
    extras_require={"bench": BENCH, "docs": DOCS, "test": TEST},
    entry_points={"console_scripts": ["speedyresnet = speedyresnet.bench.__main__:main"]},
)
