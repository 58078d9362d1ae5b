// The walk with version 1 of the official TypeScript SDK, which knows the older era alone.

import { http, load, stdio, task, walk } from "./walk.mjs";

const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = await load("@modelcontextprotocol/sdk/client/streamableHttp.js");

const transport = task.url
  ? new StreamableHTTPClientTransport(new URL(task.url), http)
  : new StdioClientTransport(stdio);
let agreed;
// The client tells its transport, and nobody else.
transport.setProtocolVersion = ((inner) => (version) => {
  agreed = version;
  inner?.call(transport, version);
})(transport.setProtocolVersion);

await walk(new Client({ name: "aegis-walk", version: "1" }), transport, () => agreed);
