"""The walk that each Python client makes over one hybrid node: what it did and saw, as JSON."""

import json
import os
import sys

WAIT_SECONDS = 45
IMAGE = "busybox:testbed"
PEERS = "peers://"


def task():
    """Which server, and how it is spoken to: the one argument, as JSON."""
    given = json.loads(sys.argv[1])
    given["environment"] = {**os.environ, **given["environment"]}
    return given


def result_of(result):
    """Of a call of a tool: whether it failed, its structure, and its text."""
    text = "\n".join(block.text for block in result.content if block.type == "text")
    return bool(result.is_error), result.structured_content, text


async def walk(call, read, prompt):
    """`call` gives what `result_of` does; `read` and `prompt` give a text."""

    async def must(tool, **arguments):
        is_error, structured, text = await call(tool, arguments)
        if is_error:
            raise RuntimeError(f"{tool} {arguments}: {text}")
        return structured

    peers = (await must("list_peers"))["peers"]
    node = peers[0]["node_id"]
    submitted = await must("submit_execution", image=IMAGE, command=["cat"], input="hello")
    ended = await must("get_execution", execution_id=submitted["execution_id"], wait_seconds=WAIT_SECONDS)
    asked = await must("drain_node", node_id=node, wait_seconds=WAIT_SECONDS)
    token = asked.get("confirm_token")
    drained = await must("drain_node", node_id=node, wait_seconds=WAIT_SECONDS, confirm_token=token)
    while_drained = json.loads(await read(PEERS))["peers"]
    await must("resume_node", node_id=node)
    resumed = (await must("list_peers"))["peers"]
    is_error, structured, text = await call("get_execution", {"execution_id": "no-such-execution"})
    return {
        "peers": statuses(peers),
        "execution": [ended["state"], ended["exit_code"], ended["output"]["stdout"]],
        "drain": [asked["state"], drained["state"]],
        "while_drained": statuses(while_drained),
        "resumed": statuses(resumed),
        "refused": [is_error, structured is None, "no-such-execution" in text],
        "prompt": f"Node {node}: status active" in await prompt("diagnose_node", {"node_id": node}),
    }


def statuses(peers):
    return {peer["node_id"]: peer["status"] for peer in peers}
