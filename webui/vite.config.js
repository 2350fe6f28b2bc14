import { defineConfig } from "vite";

// The page's strict policy for content allows no inline script and no inline style, so nothing is inlined.
export default defineConfig({
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "none" },
  build: {
    target: "es2021",
    emptyOutDir: false,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: { output: { entryFileNames: "assets/[name]-[hash].js" } },
  },
  // Development: the daemon's page listener, or another stand-in, answers what the page asks.
  server: { proxy: { "/v1": process.env.SUBNETD_PAGE ?? "http://127.0.0.1:8411" } },
});
