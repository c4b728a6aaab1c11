"""The snippets of README.md run."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import regard
import torch

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def snippet(language, number=0, of=1):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    assert len(blocks) == of
    return blocks[number]


def test_python():
    names = {}
    exec(compile(snippet("python", 0, of=2), "README.md", "exec"), names)
    assert names["o"].shape == (1, 8, 128, 64) and names["entropy"].shape == (1, 8, 128)
    assert names["pooled"].shape == (2, 64)
    assert len(snippet("python", 0, of=2).splitlines()) == 5


def test_what_a_call_brings():
    names = {}
    exec(compile(snippet("python", 1, of=2), "README.md", "exec"), names)
    layer, x = names["layer"], names["x"]
    torch.testing.assert_close(torch.cat([names["y"], names["z"]], 1), layer(x), atol=1e-5, rtol=1e-4)
    alone = torch.cat([layer(x[:1, :4]), layer(x[:1, 4:])], 1)
    torch.testing.assert_close(names["packed"], alone, atol=1e-5, rtol=1e-4)
    assert set(names["taps"]) == {"0.tap.blocks:5x5"} and names["taps"]["0.tap.blocks:5x5"].shape == (2, 4, 2, 2)
    assert not torch.allclose(names["edited"], layer(x))
    names["edited"].sum().backward()
    assert names["bias"].grad.abs().sum() > 0


def test_cpp(tmp_path):
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "main.cpp").write_text(snippet("cpp"))
    torch_folder, library = pathlib.Path(torch.__file__).parent, regard._library.PATH.parent
    subprocess.run([*compiler.split(), "-std=c++20", "-O0", str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main"),
                    f"-I{ROOT}", f"-isystem{torch_folder / 'include'}", f"-L{library}", "-lregard", "-lregard_kernels",
                    f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10",
                    f"-Wl,-rpath,{library}:{torch_folder / 'lib'},-rpath-link,{torch_folder / 'lib'}"], check=True)
    result = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, check=True)
    assert "slopes[h]" in result.stdout and "[1, 8, 128, 64]" in result.stdout


def test_the_table_names_every_mechanism():
    for id in regard.list_mechanisms():
        assert f"`{id}`" in README, id
        assert f"`{regard.nn.class_of(id).__name__}`" in README, id


def test_files_that_it_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("command", ["scripts/demo", "scripts/test"])
def test_commands_exist(command):
    assert os.access(ROOT / command, os.X_OK)


def test_python_dash_m_is_the_program():
    result = subprocess.run([sys.executable, "-m", "regard", "list"], capture_output=True, text=True)
    assert result.returncode == 0 and "softmax-attention" in result.stdout, result.stderr
    result = subprocess.run([sys.executable, "-m", "regard", "lisst"], capture_output=True, text=True)
    assert result.returncode != 0 and "list" in result.stderr + result.stdout
