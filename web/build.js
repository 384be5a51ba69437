// `make web`: src/ and LiteRT.js's wasm become dist/, which Python serves from loopback.
//
// Every page is NAME.html with NAME.js and perhaps NAME.css. Beside each file stands the same
// one gzip-ed: a browser takes 2.8 MB of wasm instead of 9.4, and nobody compresses at run time.

import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import * as esbuild from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const source = path.join(here, "src");
const target = path.join(here, "dist");

// Two of LiteRT.js's four builds: one for browsers with relaxed SIMD, one for those without;
// a browser takes one. Threads would need a page that is isolated from other origins, the server
// among them, and JSPI serves accelerators that this page does not use.
const RUNTIMES = ["litert_wasm_internal", "litert_wasm_compat_internal"];

const pages = (await readdir(source)).filter((name) => name.endsWith(".html"));
await rm(target, { recursive: true, force: true });
await mkdir(path.join(target, "wasm"), { recursive: true });

await esbuild.build({
  entryPoints: pages.map((name) => path.join(source, name.replace(/\.html$/, ".js"))),
  bundle: true,
  format: "esm",
  minify: true,
  legalComments: "inline",
  target: "es2022",
  outdir: target,
  logLevel: "warning",
});
for (const name of await readdir(source)) {
  if (/\.(html|css|svg)$/.test(name)) {
    await writeFile(path.join(target, name), await readFile(path.join(source, name)));
  }
}

const wasm = path.join(path.dirname(createRequire(import.meta.url).resolve("@litertjs/core")), "..", "wasm");
for (const name of RUNTIMES) {
  const loader = await readFile(path.join(wasm, `${name}.js`), "utf8");
  const small = await esbuild.transform(loader, { minify: true, legalComments: "inline" });
  await writeFile(path.join(target, "wasm", `${name}.js`), small.code);
  await writeFile(path.join(target, "wasm", `${name}.wasm`), await readFile(path.join(wasm, `${name}.wasm`)));
}

for (const folder of [target, path.join(target, "wasm")]) {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const file = path.join(folder, entry.name);
    await writeFile(`${file}.gz`, await promisify(gzip)(await readFile(file), { level: 9 }));
  }
}
