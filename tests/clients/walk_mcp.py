"""The walk with the official Python SDK."""

import asyncio
import json

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from walk import result_of, task, walk


def server(given):
    if "url" not in given:
        return StdioServerParameters(command=given["command"], args=["mcp"], env=given["environment"])
    http = httpx2.AsyncClient(headers={"authorization": f"Bearer {given['token']}"}, timeout=60)
    return streamable_http_client(given["url"], http_client=http)


async def main():
    given = task()
    async with Client(server(given), mode=given["era"]) as client:

        async def call(tool, arguments):
            return result_of(await client.call_tool(tool, arguments))

        async def read(uri):
            return (await client.read_resource(uri)).contents[0].text

        async def prompt(name, arguments):
            return (await client.get_prompt(name, arguments)).messages[0].content.text

        tools = [tool.name for tool in (await client.list_tools()).tools]
        seen = await walk(call, read, prompt)
        print(json.dumps({**seen, "tools": tools, "protocol": client.protocol_version}))


asyncio.run(main())
