// The walk with version 2 of the official TypeScript SDK.

import { http, load, stdio, task, walk } from "./walk.mjs";

const { Client, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

const transport = task.url
  ? new StreamableHTTPClientTransport(new URL(task.url), http)
  : new StdioClientTransport(stdio);
const client = new Client(
  { name: "aegis-walk", version: "1" },
  { versionNegotiation: { mode: task.era } },
);

await walk(client, transport, () => client.getNegotiatedProtocolVersion());
