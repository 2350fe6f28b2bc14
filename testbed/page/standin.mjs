// A stand-in for the daemon, for what a lab cannot be brought into at will: it serves the built page and the first message of
// a house in a state of one's choice. The real daemon is driven by the other scripts here.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const dist = new URL("../../webui/dist/", import.meta.url).pathname;
const types = { html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
const csp =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

// serve answers for one house until it is closed: { page, event } and, for a test that changes it, tell(event).
export async function serve({ page, event }) {
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
  const server = createServer((req, res) => {
    const { pathname } = new URL(req.url, "http://router");
    if (pathname === "/v1/page") return json(res, page);
    if (pathname === "/v1/events") {
      res.writeHead(200, { "Content-Type": "text/event-stream" });
      res.write(say("whole", event));
      streams.add(res);
      return res.on("close", () => streams.delete(res));
    }
    if (pathname === "/v1/home/invite") return json(res, invite);
    if (pathname === "/v1/settings") return json(res, settings);
    if (pathname === "/v1/home/keys") return json(res, keys);
    if (pathname === "/v1/devices/log") return json(res, { reached: [] });
    if (pathname === "/v1/qr") {
      res.writeHead(200, { "Content-Type": "image/svg+xml" });
      return res.end('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1h3v3h-3zM5 5h3v3h-3z"/></svg>');
    }
    if (pathname.startsWith("/v1/")) return json(res, {});
    return file(res, pathname.includes(".") ? pathname.slice(1) : "index.html");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    tell: (change) => streams.forEach((s) => s.write(say("change", change))),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

const invite = {
  url: "https://home.example", key: "hskey-auth-0123456789-abcdefghijklmnop", id: "k1", expires: new Date(Date.now() + 864e5).toISOString(),
  line: "tailscale up --login-server=https://home.example --auth-key=hskey-auth-0123456789-abcdefghijklmnop", outside: true,
};
const settings = { control: "home", hostname: "", interfaces: [], found: ["br-lan"], expose: "chosen", snat: true, offer: false, rows: [], url: "", listen: ":8411" };
const keys = [{ id: "k1", user: "me", created: new Date().toISOString(), expires: new Date().toISOString(), uses: 0, state: "good" }];
