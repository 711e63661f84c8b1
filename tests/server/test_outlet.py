"""What a connection sends: gathered by turns of the loop, paced in the middle of a stream, not held at its end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from llavakit.server.lifecycle import make_config
from llavakit.server.outlet import PACE_S, Outlet
from llavakit.server.parsing import BoundedHttp


class _Sent:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.is_closed = True

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return self.is_closed


async def _turn() -> None:
    await asyncio.sleep(0)


def test_writes_of_one_turn_leave_together() -> None:
    async def run() -> None:
        sent = _Sent()
        outlet = Outlet(sent, asyncio.get_running_loop())
        outlet.write(b"head ")
        outlet.write(b"body")
        assert sent.pieces == []
        await _turn()
        assert sent.pieces == [b"head body"]

    asyncio.run(run())


def test_a_stream_is_paced_but_for_its_beginning_and_its_end() -> None:
    async def run() -> None:
        sent, loop = _Sent(), asyncio.get_running_loop()
        outlet = Outlet(sent, loop)
        for response in range(2):  # the second one begins like the first
            before, began_s = len(sent.pieces), loop.time()
            for piece in (b"head", b"one"):
                outlet.write(piece)
                await _turn()
            assert sent.pieces[before:] == [b"head", b"one"], response
            outlet.write(b"two ")
            await _turn()
            outlet.write(b"three")
            if loop.time() - began_s < PACE_S / 2:  # unless this machine was elsewhere meanwhile
                assert len(sent.pieces) == before + 2
            await asyncio.sleep(2 * PACE_S)
            assert b"".join(sent.pieces[before + 2 :]) == b"two three"
            outlet.write(b"four ")
            outlet.write(b"end")
            outlet.end_response()
            assert sent.pieces[-1].endswith(b"end")
            assert b"".join(sent.pieces[before:]) == b"headonetwo threefour end"

    asyncio.run(run())


def test_what_is_large_or_last_waits_for_nothing() -> None:
    async def run() -> None:
        sent = _Sent()
        outlet = Outlet(sent, asyncio.get_running_loop())
        for _ in range(8):
            outlet.write(b"x" * 4096)
        assert [len(piece) for piece in sent.pieces] == [16384, 16384]
        outlet.write(b"rest")
        outlet.close()
        assert sent.pieces[2:] == [b"rest"]
        assert sent.is_closed
        await asyncio.sleep(2 * PACE_S)
        assert len(sent.pieces) == 3  # no timer sends it again

    asyncio.run(run())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_first_word_waits_for_no_acknowledgement(address: str) -> None:
    """A listener's socket has no protocol number, and asyncio leaves such ones with Nagle's algorithm."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    found: list[int] = []

    class Looking(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            outlet = Outlet(transport, asyncio.get_running_loop())
            found.append(outlet.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            outlet.close()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Looking, sock=listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await reader.read() == b""
        writer.close()
        server.close()

    asyncio.run(run())
    assert found
    assert all(found)


def test_the_server_sends_through_it() -> None:
    async def run() -> None:
        protocol = BoundedHttp(make_config(FastAPI()), server_state=ServerState(), app_state={})
        sent = _Sent()
        protocol.connection_made(sent)  # type: ignore[arg-type]
        assert isinstance(protocol.transport, Outlet)
        for piece in (b"head", b"one", b"two"):
            protocol.transport.write(piece)
            await _turn()
        protocol.on_response_complete()  # whose last piece waits for nothing
        assert b"".join(sent.pieces) == b"headonetwo"
        for piece in (b"head", b"one", b"next"):
            protocol.transport.write(piece)
            await _turn()
        protocol.connection_lost(None)
        await asyncio.sleep(2 * PACE_S)
        assert b"next" not in b"".join(sent.pieces[3:])

    asyncio.run(run())
