import { loadRuntime } from "./litert.js";

await loadRuntime();
document.title = "Plumbline: ready";
