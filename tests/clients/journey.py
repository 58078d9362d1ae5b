"""The main job with the official Python client: deploys, runs, drains, resumes; prints what it saw as JSON.

The one argument is JSON: command and environment of the server, arguments of the deployments.
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import PromptReference

WAIT_SECONDS = 45
IMAGE = "busybox:testbed"
PEERS = "peers://"


class Journey:
    def __init__(self, session):
        self.session = session
        self.progress = 0
        self.confirmed = 0

    async def heard(self, progress, total, message):
        self.progress += 1

    async def result(self, tool, arguments):
        return await self.session.call_tool(tool, arguments, progress_callback=self.heard)

    async def call(self, tool, **arguments):
        view = await self.once(tool, arguments)
        if view.get("state") == "needs_confirmation":
            # As by an assistant whose user agrees to the plan.
            self.confirmed += 1
            view = await self.once(tool, {**arguments, "confirm_token": view["confirm_token"]})
        return view

    async def once(self, tool, arguments):
        result = await self.result(tool, arguments)
        is_error = getattr(result, "is_error", None) or getattr(result, "isError", None)
        if is_error:
            raise RuntimeError(f"{tool} {arguments}: {text_of(result)}")
        return structured(result)

    async def deploy(self, arguments):
        view = await self.call("deploy_edge_node", **arguments)
        while view["state"] in ("planned", "running"):
            view = await self.call(
                "get_deployment_status", deployment_id=view["deployment_id"], wait_seconds=WAIT_SECONDS
            )
        return view["state"]

    async def run(self, script, tags):
        return await self.call(
            "submit_execution", image=IMAGE, command=["sh", "-c", script], target_tags=tags, wait_seconds=WAIT_SECONDS
        )


async def look(session, node_id):
    """What is read without a tool: resources, a prompt, the completion of an id."""
    resources = [str(resource.uri) for resource in (await session.list_resources()).resources]
    peers = json.loads((await session.read_resource(PEERS)).contents[0].text)
    prompt = await session.get_prompt("diagnose_node", {"node_id": node_id})
    reference = PromptReference(type="ref/prompt", name="diagnose_node")
    completed = await session.complete(reference, {"name": "node_id", "value": node_id[:-1]})
    return {
        "resources": resources,
        "peers": {peer["node_id"]: peer["status"] for peer in peers["peers"]},
        "prompt": prompt.messages[0].content.text,
        "completed": completed.completion.values,
    }


def structured(result):
    content = getattr(result, "structured_content", None)
    return content if content is not None else result.structuredContent


def text_of(result):
    return "\n".join(block.text for block in result.content if block.type == "text")


async def make(session, deployments):
    journey = Journey(session)
    seen = {"tools": [tool.name for tool in (await session.list_tools()).tools]}
    seen["states"] = await asyncio.gather(*(journey.deploy(arguments) for arguments in deployments))
    peers = await journey.call("list_peers", tags=["edge"])
    seen["peers"] = {peer["node_id"]: peer["status"] for peer in peers["peers"]}
    ended = await journey.run('echo "hello on $AEGIS_NODE_ID"; exit 5', ["one"])
    seen["output"] = [ended["output"]["stdout"], ended["exit_code"]]
    first, second = (arguments["identity"] for arguments in deployments)
    await journey.call("drain_node", node_id=first, wait_seconds=WAIT_SECONDS)
    seen["while_drained"] = [(await journey.run("true", ["edge"]))["node_id"] for _ in range(2)]
    await journey.call("resume_node", node_id=first)
    seen["after_resume"] = (await journey.run("true", ["one"]))["node_id"]
    refused = await journey.result("get_execution", {"execution_id": "no-such-execution"})
    is_error = bool(getattr(refused, "is_error", None) or getattr(refused, "isError", None))
    seen["error"] = {"is_error": is_error, "text": text_of(refused)}
    seen["looked"] = await look(session, first)
    seen["progress"] = journey.progress
    return seen


async def main():
    task = json.loads(sys.argv[1])
    server = StdioServerParameters(command=task["command"], args=["mcp"], env={**os.environ, **task["environment"]})
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        print(json.dumps(await make(session, task["deployments"])))


asyncio.run(main())
