// Shows what to do when a run of ours failed: ComfyUI's own notice only says that it did.
//
// Reads what the page is told anyway; asks no server for anything.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const OUR_ERROR = /^tutti\.\w+$/;
const OUR_NODE = /^Tutti/;
const SHOWN_MS = 30_000;
const QUEUEING_MS = 10_000;
const LOOK_EVERY_MS = 100;
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

function show(message) {
  const [summary, detail] = split(message);
  app.extensionManager.toast.add({ severity: "error", summary, detail, life: SHOWN_MS, styleClass: "tutti-remedy" });
}

/** The message with which a node of ours refused its inputs before anything ran. ComfyUI repeats it for every input of the node. */
function refusal(nodeErrors) {
  const errors = Object.values(nodeErrors ?? {}).filter((node) => OUR_NODE.test(node.class_type)).flatMap((node) => node.errors);
  const refused = errors.find((error) => error.type === "custom_validation_failed");
  return refused?.details.slice(refused.details.indexOf(" - ") + 3);
}

/** No event tells of a refusal: look for one until the prompt is queued. */
function watchQueueing() {
  let looking;
  api.addEventListener("promptQueued", () => clearInterval(looking));
  api.addEventListener("promptQueueing", () => {
    const end = Date.now() + QUEUEING_MS;
    clearInterval(looking);
    looking = setInterval(() => {
      const message = refusal(app.lastNodeErrors);
      if (message) show(message);
      if (app.lastNodeErrors || Date.now() > end) clearInterval(looking);
    }, LOOK_EVERY_MS);
  });
}

app.registerExtension({
  name: "Tutti.Remedy",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    api.addEventListener("execution_error", ({ detail }) => {
      if (OUR_ERROR.test(detail.exception_type)) show(detail.exception_message);
    });
    watchQueueing();
  },
});
