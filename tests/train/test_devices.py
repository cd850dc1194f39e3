"""Several processes and machines train as one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..support.paths import ROOT


def _gradients(data: Path, output: Path, batch: int, *launches: list[str]) -> dict[str, torch.Tensor]:
    """The gradients of one step, after launchers that are started beside each other, as on several machines."""
    output.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    script = [str(Path(__file__).parent / "gradients.py"), str(data), str(output), str(batch)]
    started = [
        subprocess.Popen([sys.executable, "-m", *launch, *script], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for launch in launches
    ]
    for process in started:
        complaint = process.communicate(timeout=300)[1]
        assert process.returncode == 0, complaint[-3000:]
    return load_file(output / "gradients.safetensors")


def test_two_processes_and_two_machines_have_the_gradients_of_one_with_the_same_global_batch(
    data: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = _gradients(data, tmp_path / "one", 8, ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"])
    processes = _gradients(
        data, tmp_path / "processes", 4, ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    )
    machines = _gradients(
        data,
        tmp_path / "machines",
        4,
        *(
            [
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--node_rank",
                rank,
                "--nproc_per_node",
                "1",
                "--master_addr",
                "127.0.0.1",
                "--master_port",
                str(port),
            ]
            for rank in "01"
        ),
    )
    largest = max(float(value.abs().max()) for value in one.values())
    for several in (processes, machines):
        assert one.keys() == several.keys()
        worst = max(float((one[key] - several[key]).abs().max()) for key in one)
        assert worst <= 1e-6 * max(1.0, largest) and largest > 1e-4


def _machines(data: Path, output: Path, steps: int, stop: int = 0) -> list[dict]:
    """How two processes with an output folder each ended; the second gets SIGTERM after the step `stop`."""
    output.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).parent / "machine.py"),
        str(data),
        str(output),
        str(steps),
        str(stop),
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("stage 1: groups") == 1, done.stdout  # the first process alone speaks
    return [json.loads((output / f"end-{rank}.json").read_text()) for rank in range(2)]


def test_a_signal_to_one_machine_stops_all_and_all_go_on_from_the_firsts_checkpoint(data: Path, tmp_path: Path) -> None:
    whole = _machines(data, tmp_path / "whole", 6)
    stopped = _machines(data, tmp_path / "parts", 6, stop=2)
    assert [(end["step"], end["code"]) for end in stopped] == [(3, 128 + signal.SIGTERM)] * 2
    assert not (tmp_path / "parts" / "1").exists()
    assert _machines(data, tmp_path / "parts", 6) == whole
    assert [end["step"] for end in whole] == [6, 6] and whole[0]["weights"] == whole[1]["weights"]
