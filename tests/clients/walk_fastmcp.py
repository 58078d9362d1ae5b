"""The walk with FastMCP."""

import asyncio
import json

from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

from walk import result_of, task, walk


def transport(given):
    if "url" not in given:
        return StdioTransport(given["command"], ["mcp"], env=given["environment"], keep_alive=False)
    return StreamableHttpTransport(given["url"], auth=given["token"])


async def main():
    given = task()
    async with Client(transport(given), mode=given["era"]) as client:

        async def call(tool, arguments):
            return result_of(await client.call_tool(tool, arguments, raise_on_error=False))

        async def read(uri):
            return (await client.read_resource(uri))[0].text

        async def prompt(name, arguments):
            return (await client.get_prompt(name, arguments)).messages[0].content.text

        tools = [tool.name for tool in await client.list_tools()]
        seen = await walk(call, read, prompt)
        print(json.dumps({**seen, "tools": tools, "protocol": client.protocol_version}))


asyncio.run(main())
