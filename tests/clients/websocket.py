"""A WebSocket caller: an echo, then a line on standard input, then how the socket was closed.

Usage: websocket.py URL TOKEN
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main():
    url, token = sys.argv[1:]
    async with connect(url, compression=None, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        await socket.send("x" * 70_000)
        assert await socket.recv() == "x" * 70_000
        print("begun", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as closed:
            print(closed.rcvd.code, closed.rcvd.reason)


asyncio.run(main())
