"Everything that setuptools needs stands in settings.ini, which nbdev reads too."

import configparser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(name):
    "The requirements listed under `name`, one a line."
    return [line.strip() for line in cfg.get(name, "").splitlines() if line.strip() and not line.startswith("#")]


extras = {
    name: lines(f"{name}_requirements")
    for name in ("dev", "int8", "kaggle", "gpus", "cluster", "tensorboard", "wandb", "remote", "docs")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    packages=find_packages(include=["audiotag", "audiotag.*"]),
    package_data={"audiotag.review": ["templates/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts")},
    zip_safe=False,
)
