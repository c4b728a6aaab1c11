"""The install tree serves other projects: a consumer, a program of the kernels alone, a plug-in."""

import re

from cmake_helpers import ROOT, build_project, clean_environment, run


def needed(binary):
    """The libraries that a binary names itself."""
    return re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", binary))


def test_tree_holds_headers_libraries_data_and_package(install_tree):
    for path in ("include/regard/base/version.h", "include/regard/algebra/spec.h",
                 "include/regard/ops/attention.h", "lib/libregard.so", "lib/libregard_kernels.so",
                 "lib/cmake/Regard/RegardConfig.cmake", "lib/cmake/Regard/FindTorchWheel.cmake",
                 "share/regard/LICENSE"):
        assert (install_tree / path).exists(), path
    sources = [p for p in (install_tree / "include").rglob("*") if p.is_file() and p.suffix != ".h"]
    assert sources == []


def test_consumer_builds_and_attends(install_tree, tmp_path, torch_options):
    build_project(ROOT / "examples" / "consumer", tmp_path, install_tree, *torch_options)
    assert "largest difference" in run(tmp_path / "consumer", env=clean_environment())


def test_consumer_finds_the_torch_of_the_build_by_itself(install_tree, tmp_path):
    output = run("cmake", "-G", "Ninja", "-S", ROOT / "examples" / "consumer", "-B", tmp_path,
                 f"-DCMAKE_PREFIX_PATH={install_tree}", env=clean_environment())
    assert "Found TorchWheel" in output


def test_consumer_with_another_torch_is_refused(install_tree, tmp_path, fake_torch):
    torch = fake_torch("2.12.0")
    output = build_project(ROOT / "examples" / "consumer", tmp_path / "build", install_tree,
                           f"-DREGARD_TORCH_DIR={torch}", expect=1)
    assert re.search(r"expected\s+torch\s+2\.\d+,\s+with\s+which\s+this\s+Regard\s+was\s+built;\s+found\s+2\.12\.0",
                     output), output


def test_kernels_alone_need_no_torch(install_tree, tmp_path):
    # An interpreter that does not exist: looking for torch would fail.
    build_project(ROOT / "examples" / "kernels_only", tmp_path, install_tree, "-DPython_EXECUTABLE=/nonexistent")
    program = tmp_path / "kernels_only"
    loaded = run("ldd", program)
    assert "libregard_kernels" in loaded
    assert not re.search(r"torch|c10|python|gomp", loaded), loaded
    assert run(program, env=clean_environment()).strip()


def test_kernel_library_is_built_and_installed_alone(build_tree, tmp_path):
    # Beside the tested build tree, so that ccache sees the same relative paths.
    build = build_tree.parent / "kernels-only"
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DREGARD_KERNELS_ONLY=ON",
        "-DREGARD_BUILD_TESTS=OFF", "-DPython_EXECUTABLE=/nonexistent", env=clean_environment())
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", tmp_path / "prefix")
    assert not (tmp_path / "prefix" / "include" / "regard" / "ops").exists()
    build_project(ROOT / "examples" / "kernels_only", tmp_path / "example", tmp_path / "prefix")
    assert run(tmp_path / "example" / "kernels_only", env=clean_environment()).strip()
    output = build_project(ROOT / "examples" / "consumer", tmp_path / "consumer", tmp_path / "prefix", expect=1)
    assert "built with the kernels alone" in " ".join(output.split())


def test_libraries_bring_no_second_openmp_runtime(install_tree):
    for name in ("libregard.so", "libregard_kernels.so"):
        assert not [lib for lib in needed(install_tree / "lib" / name) if re.search("gomp|omp5|iomp", lib)]


def test_third_party_folder_goes_before_the_system(tmp_path):
    third_party = tmp_path / "third_party"
    for header in ("fmt/format.h", "nlohmann/json.hpp", "CLI/CLI.hpp"):
        (third_party / header).parent.mkdir(parents=True)
        (third_party / header).touch()
    build = tmp_path / "build"
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DREGARD_KERNELS_ONLY=ON", "-DREGARD_BUILD_TESTS=OFF",
        f"-DREGARD_THIRD_PARTY={third_party}", env=clean_environment())
    for folder in ("fmt", "nlohmann", "CLI"):
        assert (build / "third_party" / folder).resolve() == third_party / folder
