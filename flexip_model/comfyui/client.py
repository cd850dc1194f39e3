"""A client of ComfyUI's own interface: queue a workflow in API form, follow it, fetch its pictures."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import FlexIPError

Prompt = dict[str, dict[str, Any]]
"""A workflow in API form: node id → {"class_type", "inputs", "_meta"}."""

Message = dict[str, Any]
TEXT = 3
"""The kind of the server's binary messages that are a text on a node."""


@dataclass
class RunResult:
    """What happened to one queued workflow.

    Attributes:
        status: "success", "error" or "interrupted".
        outputs: what each node showed, by node id; pictures are under "images".
        executed: ids of the nodes that ran, in order.
        cached: ids of the nodes whose earlier result was used.
        progress: (node id, value, maximum) as they arrived.
        error: the server's message where status is "error".
        texts: (node id, text) of what the server wrote on nodes while they ran.
        refused: the server's reasons against some of the outputs, where it ran the others.
    """

    status: str = "success"
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, float, float]] = field(default_factory=list)
    error: str = ""
    texts: list[tuple[str, str]] = field(default_factory=list)
    refused: str = ""


class ComfyClient:
    """Speaks to one server; every call opens and closes its own connection.

    Args:
        url: "http://127.0.0.1:PORT".
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, prompt: Prompt, on_message: Callable[[Message], None] | None = None) -> RunResult:
        """Queue a workflow and wait for its end.

        Args:
            prompt: the workflow in API form.
            on_message: called with each message of the websocket that belongs to this run.

        Raises:
            FlexIPError: the server refuses the workflow, with its reasons; or it ended meanwhile.
        """
        return asyncio.run(self._run(prompt, on_message or (lambda message: None)))

    async def _run(self, prompt: Prompt, on_message: Callable[[Message], None]) -> RunResult:
        import aiohttp

        client = uuid.uuid4().hex
        result = RunResult()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket,
            ):
                async with session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}) as reply:
                    answer = await reply.json()
                    if reply.status != 200:
                        raise FlexIPError(_refusal(prompt, answer))
                run = answer["prompt_id"]
                result.refused = _reasons(prompt, answer)
                async for frame in socket:
                    if frame.type is aiohttp.WSMsgType.BINARY:
                        result.texts += _texts(frame.data)
                    if frame.type is not aiohttp.WSMsgType.TEXT:
                        continue
                    message = json.loads(frame.data)
                    if message.get("data", {}).get("prompt_id") != run:
                        continue
                    on_message(message)
                    if _follow(result, message):
                        return result
        except aiohttp.ClientConnectionError as error:
            raise FlexIPError(f"the ComfyUI at {self.url} cannot be reached ({error})") from error
        raise FlexIPError(f"the ComfyUI at {self.url} ended while the workflow ran; see its log")

    def interrupt(self) -> None:
        """Stop what the server runs now."""
        asyncio.run(self._post("/interrupt"))

    async def _post(self, path: str) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session, session.post(self.url + path) as reply:
            reply.raise_for_status()

    def pictures(self, result: RunResult, node: str) -> list[bytes]:
        """The files of the pictures that a node showed or saved, in order."""
        return asyncio.run(self._pictures(result.outputs.get(node, {}).get("images", [])))

    async def _pictures(self, places: list[dict[str, str]]) -> list[bytes]:
        import aiohttp

        files = []
        async with aiohttp.ClientSession() as session:
            for place in places:
                async with session.get(f"{self.url}/view", params=place) as reply:
                    reply.raise_for_status()
                    files.append(await reply.read())
        return files


def _texts(data: bytes) -> list[tuple[str, str]]:
    """A binary message that is a text on a node: kind, length of the node's id, id, text; previews are other kinds."""
    kind, length = struct.unpack(">II", data[:8])
    if kind != TEXT:
        return []
    return [(data[8 : 8 + length].decode(), data[8 + length :].decode())]


def _follow(result: RunResult, message: Message) -> bool:
    """Write one message into the result; whether the run is over."""
    data = message["data"]
    match message["type"]:
        case "execution_cached":
            result.cached += data["nodes"]
        case "executing" if data.get("node") is not None:
            result.executed.append(data["node"])
        case "progress":
            result.progress.append((data["node"], data["value"], data["max"]))
        case "executed":
            result.outputs[data["node"]] = data["output"] or {}
        case "execution_success":
            return True
        case "execution_interrupted":
            result.status = "interrupted"
            return True
        case "execution_error":
            result.status, result.error = "error", f"{data['node_type']}: {data['exception_message'].strip()}"
            return True
    return False


def _reasons(prompt: Prompt, answer: dict[str, Any]) -> str:
    """What the server says against single nodes; empty where it says nothing."""
    return "; ".join(
        f"{prompt.get(node, {}).get('class_type', node)}: {error['message']} ({error['details']})"
        for node, problem in (answer.get("node_errors") or {}).items()
        for error in problem["errors"]
    )


def _refusal(prompt: Prompt, answer: dict[str, Any]) -> str:
    summary = answer.get("error", {})
    return "ComfyUI refused the workflow: " + (_reasons(prompt, answer) or str(summary.get("message", answer)))
