// Shows what to do when a run of ours failed: ComfyUI's own notice only says that it did.
//
// Listens to the events that the page gets anyway; asks no server for anything.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const OUR_ERROR = /^tutti\.\w+$/;
const SHOWN_MS = 30_000;
// ComfyUI 0.30 puts its notice, with the way to the details, where toasts appear: ours goes below it, and lets clicks through above it.
const STYLE = `
  .tutti-remedy { margin-top: 9.5rem; }
  .p-toast:has(.tutti-remedy) { pointer-events: none; }
  .p-toast:has(.tutti-remedy) .p-toast-message { pointer-events: auto; }
`;

/** A message as [what to do, why]: our messages begin with the remedy, and the first colon or full stop ends it. */
function split(message) {
  const [, remedy, reason] = message.trim().match(/^(.*?(?:[:.](?=\s)|$))(.*)$/s);
  return [remedy, reason.trim()];
}

app.registerExtension({
  name: "Tutti.Remedy",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    api.addEventListener("execution_error", ({ detail }) => {
      if (!OUR_ERROR.test(detail.exception_type)) return;
      const [summary, reason] = split(detail.exception_message);
      app.extensionManager.toast.add({ severity: "error", summary, detail: reason, life: SHOWN_MS, styleClass: "tutti-remedy" });
    });
  },
});
