"""Start a ComfyUI with this pack on loopback, wait until it answers, stop it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..common import parent
from ..common.errors import FlexIPError

PACK = Path(__file__).absolute().parents[2]
PACK_NAME = "ComfyUI-FlexIP"
"""The folder's name inside ComfyUI's custom_nodes: the editor's template browser shows it."""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


def has_gpu() -> bool:
    """Whether this machine has a GPU that the installed torch can use; ComfyUI without one needs `--cpu`."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if shutil.which("nvidia-smi") is None and not Path("/dev/kfd").exists():
        return False
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], stderr=subprocess.DEVNULL).returncode == 0


def find_comfyui() -> Path:
    """The ComfyUI in `COMFYUI_PATH`, else the one that `run.py` unpacked.

    Raises:
        FlexIPError: there is none.
    """
    wanted = os.environ.get("COMFYUI_PATH")
    found = [Path(wanted)] if wanted else sorted((PACK / ".venv" / "comfyui").glob("*"))
    for folder in found:
        if (folder / "comfy").is_dir():
            return folder.absolute()
    raise FlexIPError("no ComfyUI was found; set COMFYUI_PATH to its folder, or run `python run.py test` once")


class ComfyServer:
    """A ComfyUI in a base folder of its own; a context manager.

    The pack enters as a link in `base/custom_nodes`; models, input, output, user settings and the database lie in
    `base`. The ComfyUI's own folder is only read (its bytecode cache goes to `base` too).

    Args:
        comfyui: ComfyUI's folder, 0.3.75 or later.
        base: a folder for everything it writes; None makes a temporary one that is deleted at the end.
        pack: where the link leads; None makes none, and the pack is the one that lies in `base/custom_nodes` already.
        port: None takes a free one.
        cpu: no GPU.
        models: folders of models to search besides `base/models`, by ComfyUI's name of the kind.
        arguments: more of ComfyUI's command line.
        environment: variables to add.

    Attributes:
        url: "http://127.0.0.1:PORT".
        base: the base folder.
        log: file with everything that the server prints.
        pid: process id.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path | None = None,
        *,
        pack: Path | None = PACK,
        port: int | None = None,
        cpu: bool = True,
        models: Mapping[str, Path] | None = None,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.comfyui = comfyui.absolute()  # the server runs in its base folder
        self._temporary = base is None
        self.base = base or Path(tempfile.mkdtemp(prefix="flexip-comfyui-"))
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.base / "comfyui.log"
        self._pack = pack
        self._cpu, self._models, self._arguments = cpu, models or {}, arguments
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def __enter__(self) -> ComfyServer:
        try:
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        for name in ("custom_nodes", "input", "output", "user", "models"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self._pack is not None:
            _unlink(self.base / "custom_nodes" / PACK_NAME)
            _link(self._pack, self.base / "custom_nodes" / PACK_NAME)
        command = [sys.executable, parent.__file__, str(self.comfyui / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///" + (self.base / "user" / "comfyui.db").as_posix()]
        command += ["--disable-auto-launch", "--disable-api-nodes", *self._arguments]
        if self._cpu:
            # ComfyUI's default on the CPU is sub-quadratic attention, which is several times slower.
            command += ["--cpu", "--use-pytorch-cross-attention"]
        if self._models:
            paths = self.base / "extra_model_paths.yaml"  # JSON is YAML
            paths.write_text(json.dumps({"more": {kind: str(path) for kind, path in self._models.items()}}))
            command += ["--extra-model-paths-config", str(paths)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(_bytecode_cache())}
        environment.pop("PYTHONPATH", None)
        environment.update(self._environment)
        self._log_file = self.log.open("wb")
        self._process = subprocess.Popen(
            command,
            cwd=self.comfyui,
            env=environment,
            stdin=subprocess.PIPE,  # never written: see common/parent.py
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server
        )

    def _wait(self, seconds: float = 300) -> None:
        assert self._process is not None
        end = time.monotonic() + seconds
        while True:
            if self._process.poll() is not None:
                raise FlexIPError(f"ComfyUI in {self.comfyui} did not start; the end of its log:\n{self.log_tail()}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                nodes = self.get("/object_info/FlexIPGammaSweep")
                break
            if time.monotonic() > end:
                raise FlexIPError(f"ComfyUI did not answer within {seconds:.0f} s; see {self.log}")
            time.sleep(0.1)
        if not nodes:
            raise FlexIPError(f"ComfyUI runs, but this pack did not load in it; its log:\n{self.log_tail(60)}")

    def get(self, path: str) -> Any:
        """The JSON at a path of the server's HTTP interface."""
        with _OPENER.open(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the server printed."""
        if not self.log.is_file():
            return "(nothing)"
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the server and take the pack's link away; a temporary base folder is deleted."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if self._log_file is not None:
            self._log_file.close()
            self._log_file = None
        if self._pack is not None:
            _unlink(self.base / "custom_nodes" / PACK_NAME)
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bytecode_cache() -> Path:
    return Path(sys.prefix) / "bytecode"


def _link(target: Path, link: Path) -> None:
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))  # needs no rights, unlike a symbolic link
    else:
        link.symlink_to(target, target_is_directory=True)


def _unlink(link: Path) -> None:
    if os.path.lexists(link):
        link.rmdir() if sys.platform == "win32" else link.unlink()
