"""What pip calls to build this folder (PEP 517). The sources of the wheel lie in several folders of the checkout, which `build` beside this
file brings together; so both give the same wheel."""

import os
import pathlib
import shutil
import subprocess

BUILD = pathlib.Path(__file__).with_name("build")


def built(folder, *options):
    """Builds something, copies it into a folder, and gives its name."""
    # pip has installed what pyproject.toml requires, and put it into PATH.
    environment = {**os.environ, "WHEEL_MATURIN": shutil.which("maturin")}
    printed = subprocess.run([BUILD, *options], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return pathlib.Path(shutil.copy(printed.strip(), folder)).name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return built(wheel_directory)


def build_sdist(sdist_directory, config_settings=None):
    return built(sdist_directory, "--sdist")
