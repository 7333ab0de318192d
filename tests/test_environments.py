"""The container and the conda environment name what is there."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_container_copies_all_that_the_wheel_is_built_of():
    copied = {name for line in re.findall(r"^COPY (.+) /src/?\S*$", DOCKERFILE, re.M) for name in line.split()}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        project["readme"],
        *project["license-files"],
        "pyproject.toml",
    }
    assert copied == needed
    assert all((ROOT / name).exists() for name in copied)
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert allowed == copied


def test_both_bases_are_arguments():
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    assert arguments.keys() == {"BASE", "TORCH_INDEX"}
    for name in set(re.findall(r"--build-arg (\w+)=", DOCKERFILE)):
        assert name in arguments
    assert re.search(r"^FROM \${BASE}$", DOCKERFILE, re.M)


def test_both_install_extras_that_exist_on_a_python_that_is_supported():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *_, pip = environment["dependencies"]
    installed = [*pip["pip"], *re.findall(r'"(/src\S+)"', DOCKERFILE)]
    assert len(installed) == 2
    for spec in installed:
        extras = set(re.search(r"\[(.+)\]", spec)[1].split(","))
        assert extras <= PROJECT["project"]["optional-dependencies"].keys()
    versions = [*re.findall(r"python[:=](3\.\d+)", f"{environment['dependencies'][0]} {DOCKERFILE}")]
    supported = {c.rsplit(" ", 1)[1] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c}
    assert set(versions) <= supported
