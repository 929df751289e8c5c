"""A WebSocket server that echoes, on a free port that it prints; it demands the credential it is given."""

import asyncio
import sys

from websockets.asyncio.server import serve

wanted = f"Bearer {sys.argv[1]}"


async def echo(socket):
    if socket.request.headers.get("Authorization") != wanted:
        await socket.close(4001, "no credential")
        return
    async for message in socket:
        await socket.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
