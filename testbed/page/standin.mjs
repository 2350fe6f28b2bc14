// A stand-in for the daemon, for what a lab cannot be brought into at will: it serves the built page and the messages of a house in
// states of one's choice. The real daemon is driven by the other scripts here.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const dist = new URL("../../webui/dist/", import.meta.url).pathname;
const types = { html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
const csp =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

// serve answers for one house until it is closed. What it is asked to do is noted in sent, by path, and answered by the deed of that
// path, if there is one.
export async function serve({ page, event, deeds = {} }) {
  const now = { page, event };
  const sent = {};
  const streams = new Set();
  const say = (name, value) => `event: ${name}\ndata: ${JSON.stringify(value)}\n\n`;
  const json = (res, value, code = 200) => {
    res.writeHead(code, { "Content-Type": "application/json" });
    res.end(JSON.stringify(value));
  };
  const file = (res, name) => {
    const body = readFileSync(`${dist}${name}.gz`);
    res.writeHead(200, { "Content-Type": types[name.split(".").pop()], "Content-Encoding": "gzip", "Content-Security-Policy": csp });
    res.end(body);
  };
  const stream = (res, name, first) => {
    res.writeHead(200, { "Content-Type": "text/event-stream" });
    for (const value of first) res.write(say(name, value));
    return res;
  };
  const deed = async (req, res, path) => {
    let body = "";
    for await (const part of req) body += part;
    sent[path] = req.method === "PUT" ? body : JSON.parse(body);
    return json(res, deeds[path]?.(sent[path]) ?? answers[path] ?? {});
  };
  const server = createServer((req, res) => {
    const { pathname } = new URL(req.url, "http://router");
    if (pathname === "/v1/page") return json(res, now.page);
    if (req.method === "POST" || req.method === "PUT") return void deed(req, res, pathname);
    if (pathname === "/v1/events") {
      streams.add(stream(res, "whole", [now.event]));
      return res.on("close", () => streams.delete(res));
    }
    if (pathname === "/v1/logs") return stream(res, "log", lines);
    if (pathname === "/v1/qr") {
      res.writeHead(200, { "Content-Type": "image/svg+xml" });
      return res.end('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1h3v3h-3zM5 5h3v3h-3z"/></svg>');
    }
    if (pathname.startsWith("/v1/")) return json(res, answers[pathname] ?? {});
    return file(res, pathname.includes(".") ? pathname.slice(1) : "index.html");
  });
  const listen = (port) => new Promise((done) => server.listen(port, "127.0.0.1", done));
  await listen(0);
  const { port } = server.address();
  const cut = () => new Promise((done) => {
    server.close(done);
    server.closeAllConnections();
  });
  return {
    url: `http://127.0.0.1:${port}`,
    sent,
    become: (page) => (now.page = page),
    // tell says that the house is another now.
    tell: (event) => {
      now.event = event;
      for (const s of streams) s.write(say("whole", event));
    },
    cut, // nobody reaches it
    back: () => listen(port),
    close: cut,
  };
}

const soon = new Date(Date.now() + 864e5).toISOString();

// answers are those of a router that is well.
const answers = {
  "/v1/home/invite": {
    url: "https://home.example", key: "hskey-auth-0123456789-abcdefghijklmnop", id: "k1", expires: soon,
    line: "tailscale up --login-server=https://home.example --auth-key=hskey-auth-0123456789-abcdefghijklmnop", outside: false, missing: ["No port is open to the internet."],
  },
  "/v1/settings": { control: "home", hostname: "", interfaces: [], found: ["br-lan"], expose: "chosen", snat: true, offer: false, rows: [], url: "", listen: ":8411" },
  "/v1/home/keys": [{ id: "k1", user: "me", created: soon, expires: soon, uses: 0, state: "good" }],
  "/v1/devices/log": { reached: [{ device: "printer", to: "192.168.77.50", who: "phone.mesh.internal", user: "me", from: "100.64.0.2", flows: 7, last: new Date().toISOString() }] },
  "/v1/netcheck": { udp: true, ipv4: "203.0.113.20:40312", nat: "easy", relays: { home: "8 ms" } },
  "/v1/ping": { name: "laptop.mesh.internal", addr: "100.64.0.3", path: { kind: "relay", rtt: 41e6 }, relay: "home" },
  "/v1/exit/test": { what: "router" },
  "/v1/cert": {
    name: "home.mesh.internal root", domain: "mesh.internal", fingerprint: Array(32).fill("A7").join(":"), until: soon, url: "http://ca.home.mesh.internal/",
    directory: "https://ca.home.mesh.internal/acme/directory",
    issued: [{ names: ["nas.mesh.internal"], acme: true, since: soon, until: soon }, { names: ["phone.mesh.internal"], since: soon, until: soon, revoked: soon }],
  },
  "/v1/drop": {
    quota: 256e6, used: 3e6, free: 9e9, keepFree: 64e6, targets: ["phone.mesh.internal"], from: ["lan"], address: "http://drop.home.mesh.internal",
    files: [{ name: "a photo of the garden in spring.jpg", size: 3e6, from: "phone.mesh.internal", at: new Date().toISOString() }],
    transfers: [{ id: 1, name: "film.mkv", peer: "laptop.mesh.internal", size: 2e9, done: 7e8, since: soon }, { id: 2, name: "notes.txt", sending: true, peer: "phone.mesh.internal", size: -1, done: 0, since: soon, waits: true }],
  },
};
const lines = ["DEBUG", "INFO", "WARN", "ERROR"].map((level) => ({ time: soon, level, part: "engine", text: "something that the daemon says" }));
