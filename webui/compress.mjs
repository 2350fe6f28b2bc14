// Compresses what Vite has built: the daemon carries name.gz only. Prints the size, and fails above the budget.
import { readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const budget = 60 * 1024;
const dist = new URL("./dist", import.meta.url).pathname;

function files(folder) {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });
}

let total = 0;
for (const path of files(dist)) {
  if (path.endsWith(".gz") || path.endsWith(".gitignore")) continue;
  const packed = gzipSync(readFileSync(path), { level: 9 });
  packed[9] = 255; // no operating system named: the same bytes everywhere
  writeFileSync(path + ".gz", packed);
  rmSync(path);
  total += packed.length;
}
console.log(`page: ${total} bytes gzipped of at most ${budget}`);
if (total > budget) {
  console.error("page: larger than its budget");
  process.exit(1);
}
