"""What we use of TensorRT is in its versions: the real bindings of 10.3, 10.16 and 11.4, imported and listed.

The bindings need libraries that only NVIDIA's own package index has. Importing creates just the classes, so
libraries of the same names, whose functions do nothing, are enough. Nothing of TensorRT is called.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.rtx, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
STUB = ROOT / "export/stubs/tensorrt/__init__.pyi"
SOURCES = [
    *(ROOT / "export/s3clip_export/tensorrt" / name for name in ("build.py", "engines.py", "watch.py")),
    ROOT / "runtime/s3clip_runtime/inference/backends/tensorrt.py",
]
BINDINGS = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu12-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)
RTX_ONLY = {"ComputeCapability", "ComputeCapability.SM86", "IBuilderConfig.set_compute_capability"}

LIST_NAMES = """
import inspect, sys
import {module} as trt

def walk(scope, prefix):
    for name in dir(scope):
        if name.startswith("_") and name != "__version__":
            continue
        print(prefix + name)
        value = getattr(scope, name)
        if inspect.isclass(value) and value is not type:
            walk(value, prefix + name + ".")

walk(trt, "")
"""


@pytest.fixture(scope="module", params=BINDINGS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name of one version, like `ICudaEngine.num_io_tensors`."""
    try:
        return names_of_wheel(request.param, tmp_path_factory.mktemp("bindings"))
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            raise
        said = getattr(error, "stderr", None) or error
        pytest.skip(f"needs pip's index, gcc and nm, and one of them failed: {said}")


def names_of_wheel(requirement: str, folder: Path) -> set[str]:
    """Download the bindings, stand in for the libraries that they need, import them and list their names."""
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:")
    call(*pip, "-d", str(folder), requirement)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    extension = folder / "tensorrt_bindings/tensorrt.so"
    undefined = call("nm", "-D", "--undefined-only", str(extension))
    functions = re.findall(r" U ((?:create|get|init)[A-Z]\w+)$", undefined, re.MULTILINE)
    assert 5 < len(functions) < 20, undefined
    code = folder / "stand_in.c"
    code.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    needed = call("objdump", "-p", str(extension))
    for library in re.findall(r"NEEDED +(libnv\S+)", needed):
        call("gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(code))
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    return set(
        call(sys.executable, "-c", LIST_NAMES.format(module="tensorrt_bindings"), env=environment).split()
    )


def call(*command: str, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=200, env=env).stdout


def stub_names(scope: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Every public name that the stub declares."""
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name
            yield from stub_names(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            yield prefix + node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id


def module_names(source: Path) -> set[str]:
    """What a source takes from `trt`, like `MemoryPoolType.WORKSPACE`."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if path and isinstance(node, ast.Name) and node.id in ("trt", "tensorrt"):
            names.add(".".join(reversed(path)))
    return names


def test_every_name_of_the_stub_is_in_the_bindings(bindings: set[str]) -> None:
    """Together with mypy this covers methods too: it accepts no name that the stub does not have."""
    declared = set(stub_names(ast.parse(STUB.read_text("utf-8"))))
    assert len(declared) > 90
    assert declared - bindings == set()


def test_what_the_sources_take_from_the_module_is_in_the_bindings(bindings: set[str]) -> None:
    taken = {name for source in SOURCES if source.is_file() for name in module_names(source)}
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in taken
    assert taken - bindings - RTX_ONLY == set()


def test_the_listing_sees_what_a_version_lacks(bindings: set[str], request: pytest.FixtureRequest) -> None:
    """Negative control: 11 dropped the flags of weak typing, and no version's progress monitor logs."""
    old = "bindings==10." in request.node.callspec.params["bindings"]
    assert ("BuilderFlag.FP16" in bindings) == old
    assert ("IInt8EntropyCalibrator2.get_batch" in bindings) == old
    assert "IProgressMonitor.log" not in bindings


def test_tensorrt_rtx_has_them_too() -> None:
    pytest.importorskip("tensorrt_rtx")
    names = set(call(sys.executable, "-c", LIST_NAMES.format(module="tensorrt_rtx")).split())
    declared = set(stub_names(ast.parse(STUB.read_text("utf-8"))))
    assert (declared | RTX_ONLY) - names == set()
