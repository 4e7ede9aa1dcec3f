"""A TCP proxy between an application and its database that can be told to misbehave.

    with NetProxy(database.port) as proxy:
        connect(port=proxy.port)
        proxy.freeze()

It runs in a process of its own, so that neither gevent's patches nor a busy test slow it down or
are slowed down by it. That process is this same file; it reads orders from its standard input, one
line of JSON each, and ends when that is closed.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
CLIENT_SSL = 0x800  # of the capability flags at the start of MySQL's login packet
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Traffic:
    """What went through the proxy so far. Subtract two `commands` to see what went in between."""

    accepted: int
    open: int
    turns: int  # how often a client spoke after it was answered: its round trips
    commands: Counter[int]  # command byte (3 is a query, 14 a ping, 31 a reset) -> how often


class NetProxy:
    """Each method returns when the proxy has done what it says."""

    def __init__(self, port: int, host: str = HOST) -> None:
        from support.ports import free_port  # which the proxy's own process does not find

        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(free_port()), host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._one_at_a_time = threading.Lock()
        self.port: int = self._order("accept")

    def __enter__(self) -> NetProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        with self._process:  # closes its input and waits for it
            pass

    def freeze(self) -> None:
        """Forward nothing any more, not even that a side has closed, as when a cable is cut."""
        self._order("freeze")

    def thaw(self) -> None:
        """Forward again, first what was held back."""
        self._order("thaw")

    def lose(self) -> None:
        """Freeze for good the connections that are open now, as when a firewall forgets them. New
        ones go on."""
        self._order("lose")

    def cut(self) -> None:
        """Reset all connections that are open now, on both sides."""
        self._order("cut")

    def cut_after(self, count: int) -> None:
        """Reset the connection on which the server's next `count` bytes, over all connections, are
        complete; these bytes still get through. Once. With 0, the next answer is lost whole."""
        self._order("cut_after", count)

    def refuse(self) -> None:
        """Close the listening side: "connection refused" for new ones. Open ones go on."""
        self._order("refuse")

    def black_hole(self) -> None:
        """Accept new connections and never say anything on them. Open ones go on."""
        self._order("black_hole")

    def accept(self) -> None:
        """Undo refuse(), on the same port, and black_hole(), for connections made from now on."""
        self._order("accept")

    def delay(self, command_seconds: float = 0, connect_seconds: float = 0) -> None:
        """Hold back each command, or several sent in one piece, and the greeting of each new
        connection."""
        self._order("delay", command_seconds, connect_seconds)

    def switch(self, port: int, host: str = HOST) -> None:
        """New connections go there. Open ones stay where they are."""
        self._order("switch", host, port)

    def traffic(self) -> Traffic:
        """Of connections that turn to TLS, the commands are not seen."""
        answer = self._order("traffic")
        commands = Counter({int(byte): n for byte, n in answer["commands"].items()})
        return Traffic(answer["accepted"], answer["open"], answer["turns"], commands)

    def _order(self, *order: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


class CommandCounter:
    """Finds the commands in what a MySQL client sends.

    Both sides speak in packets: three bytes of length, one of numbering, the content. The numbering
    starts over at 0 with each command, of which the first byte says what it is, and only there:
    logging in answers the server's packet 0, and a command too long for one packet goes on with 1.
    """

    def __init__(self, commands: Counter[int]) -> None:
        self._commands = commands
        self._head = bytearray()  # as much of the current packet as its kind shows in
        self._rest = 0  # how many bytes of it are to be skipped
        self._encrypted = False

    def feed(self, data: bytes) -> bool:
        """Whether a command starts in `data`."""
        found = False
        position = 0
        while position < len(data) and not self._encrypted:
            if self._rest:
                skipped = min(self._rest, len(data) - position)
                self._rest -= skipped
                position += skipped
                continue
            self._head.append(data[position])
            position += 1
            length, number = int.from_bytes(self._head[:3], "little"), self._head[3:4]
            if not number or len(self._head) - 4 < min(length, 2):
                continue
            content = self._head[4:]
            if number == b"\0" and content:
                self._commands[content[0]] += 1
                found = True
            # Before it turns to TLS, a client sends the start of its login packet.
            if number == b"\1" and length == 32:
                self._encrypted = bool(int.from_bytes(content, "little") & CLIENT_SSL)
            self._rest = length - len(content)
            self._head.clear()
        return found


class Proxy:
    """The proxy itself. Its public methods are the orders."""

    def __init__(self, own_port: int, host: str, port: int) -> None:
        self._port = own_port
        self._target = (host, port)
        self._listening: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._black_hole = False
        self._command_delay = self._connect_delay = 0.0
        self._cut_after: int | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.StreamWriter | None] = {}
        self._asking: set[asyncio.StreamWriter] = set()  # the clients that spoke last
        self._accepted = self._turns = 0
        self._commands: Counter[int] = Counter()

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def lose(self) -> None:
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def cut(self) -> None:
        for client in list(self._connections):
            self._reset(client)
        await asyncio.sleep(0)  # abort() has only asked the loop to close them

    def cut_after(self, count: int) -> None:
        self._cut_after = count

    def refuse(self) -> None:
        if self._listening:
            self._listening.close()
            self._listening = None

    def black_hole(self) -> None:
        self._black_hole = True

    async def accept(self) -> int:
        self._black_hole = False
        if not self._listening:
            self._listening = await asyncio.start_server(
                self._serve, HOST, self._port, backlog=1024
            )
        return self._port

    def delay(self, command_seconds: float, connect_seconds: float) -> None:
        self._command_delay, self._connect_delay = command_seconds, connect_seconds

    def switch(self, host: str, port: int) -> None:
        self._target = (host, port)

    def traffic(self) -> dict[str, object]:
        return {
            "accepted": self._accepted,
            "open": len(self._connections),
            "turns": self._turns,
            "commands": self._commands,
        }

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._accepted += 1
        self._connections[client] = None
        try:
            if self._black_hole:
                while await reader.read(65536):
                    pass
                return
            await asyncio.sleep(self._connect_delay)
            answers, server = await asyncio.open_connection(*self._target)
            if client not in self._connections:  # cut meanwhile
                server.close()
                return
            self._connections[client] = server
            # Whichever side closes first, the connection is over.
            flowing = self._flowing
            pumps = {
                asyncio.create_task(self._pump_commands(reader, client, server, flowing)),
                asyncio.create_task(self._pump_answers(answers, client, flowing)),
            }
            _, unfinished = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in unfinished:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server.close()
        except OSError:
            pass  # a side was reset, or there is no server: whoever is left sees a close
        finally:
            self._connections.pop(client, None)
            self._asking.discard(client)
            client.close()

    async def _pump_commands(
        self,
        source: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        target: asyncio.StreamWriter,
        flowing: asyncio.Event,
    ) -> None:
        counter = CommandCounter(self._commands)
        while data := await self._read(source, flowing):
            self._turns += client not in self._asking
            self._asking.add(client)
            if counter.feed(data):
                await asyncio.sleep(self._command_delay)
            target.write(data)
            await target.drain()

    async def _pump_answers(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        target.transport.set_write_buffer_limits(0)  # drain() until nothing is left for a reset
        while data := await self._read(source, flowing):
            self._asking.discard(target)
            left = self._cut_after
            cut = left is not None and left <= len(data)
            if left is not None:
                self._cut_after = None if cut else left - len(data)
            target.write(data[:left])
            await target.drain()
            if cut:
                self._reset(target)

    async def _read(self, source: asyncio.StreamReader, flowing: asyncio.Event) -> bytes:
        try:
            data = await source.read(65536)
        except ConnectionError:
            data = b""  # for the other side a close like any other
        await flowing.wait()
        return data

    def _reset(self, client: asyncio.StreamWriter) -> None:
        for side in (client, self._connections.pop(client, None)):
            if side:
                with suppress(OSError):
                    side.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
                    )
                side.transport.abort()


async def main(own_port: int, host: str, port: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each connection
    proxy = Proxy(own_port, host, port)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        name, *args = json.loads(line)
        answer = getattr(proxy, name)(*args)
        if asyncio.iscoroutine(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)
    await proxy.cut()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
