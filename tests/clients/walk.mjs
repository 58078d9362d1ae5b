// The walk that each TypeScript client makes over one hybrid node: what it did and saw, as JSON.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const WAIT_SECONDS = 45;
const IMAGE = "busybox:testbed";
const PEERS = "peers://";

const installed = createRequire(`${process.env.AEGIS_TEST_NPM}/`);

/** A package of the lockfile beside us, which is installed elsewhere. */
export const load = (name) => import(pathToFileURL(installed.resolve(name)));

/** Which server, and how it is spoken to: the one argument, as JSON. */
export const task = JSON.parse(process.argv[2]);

/** What both clients' transports take. */
export const stdio = { command: task.command, args: ["mcp"], env: { ...process.env, ...task.environment } };
export const http = { requestInit: { headers: { authorization: `Bearer ${task.token}` } } };

/** `protocol` gives the version that was agreed upon. */
export async function walk(client, transport, protocol) {
  await client.connect(transport);
  const must = async (name, given) => {
    const result = await client.callTool({ name, arguments: given });
    if (result.isError) throw new Error(`${name} ${JSON.stringify(given)}: ${textOf(result)}`);
    return result.structuredContent;
  };
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const { peers } = await must("list_peers", {});
  const node_id = peers[0].node_id;
  const { execution_id } = await must("submit_execution", { image: IMAGE, command: ["cat"], input: "hello" });
  const ended = await must("get_execution", { execution_id, wait_seconds: WAIT_SECONDS });
  const drain = { node_id, wait_seconds: WAIT_SECONDS };
  const asked = await must("drain_node", drain);
  const drained = await must("drain_node", { ...drain, confirm_token: asked.confirm_token });
  const [read] = (await client.readResource({ uri: PEERS })).contents;
  await must("resume_node", { node_id });
  const resumed = await must("list_peers", {});
  const refused = await client.callTool({ name: "get_execution", arguments: { execution_id: "no-such-execution" } });
  const prompt = await client.getPrompt({ name: "diagnose_node", arguments: { node_id } });
  const seen = {
    peers: statuses(peers),
    execution: [ended.state, ended.exit_code, ended.output.stdout],
    drain: [asked.state, drained.state],
    while_drained: statuses(JSON.parse(read.text).peers),
    resumed: statuses(resumed.peers),
    refused: [
      refused.isError,
      refused.structuredContent === undefined,
      textOf(refused).includes("no-such-execution"),
    ],
    prompt: prompt.messages[0].content.text.includes(`Node ${node_id}: status active`),
    tools,
    protocol: protocol(),
  };
  await client.close();
  console.log(JSON.stringify(seen));
}

const textOf = (result) => result.content.map((block) => block.text ?? "").join("\n");

const statuses = (peers) => Object.fromEntries(peers.map((peer) => [peer.node_id, peer.status]));
