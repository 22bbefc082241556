// One click from ComfyUI's own loader to ours and back: values, links, place and title stay.

import { app } from "../../../scripts/app.js";

const STOCK = "UNETLoader";
const OURS = "TuttiLoadDiffusionModel";
const LABELS = { [STOCK]: "Run on all GPUs (Tutti)", [OURS]: "Run in ComfyUI (Load Diffusion Model)" };

/** Give `made` the values of `old`'s widgets of the same name. Returns the values that it does not know. */
function copyValues(old, made) {
  const dropped = [];
  for (const widget of made.widgets ?? []) {
    const source = old.widgets?.find((other) => other.name === widget.name);
    if (!source) continue;
    // A file that is not in the list is kept: the list may be out of date, and ComfyUI marks it.
    const choices = widget.name === "unet_name" ? null : widget.options?.values;
    if (Array.isArray(choices) && !choices.includes(source.value)) dropped.push(`${widget.name} ${source.value}`);
    else widget.value = source.value;
  }
  return dropped;
}

/** Move the links of `old` to `made`. Inside a subgraph a link may end at the subgraph's own edge. */
function moveLinks(graph, old, made) {
  for (const [slot, output] of (old.outputs ?? []).entries()) {
    for (const id of [...(output.links ?? [])]) {
      const link = graph.links.get(id);
      const target = graph.getNodeById(link.target_id);
      if (target) made.connect(slot, target, link.target_slot, link.parentId);
      else graph.outputNode?.slots[link.target_slot]?.connect(made.outputs[slot], made);
    }
  }
  for (const input of (old.inputs ?? []).filter((given) => given.link != null)) {
    const slot = made.findInputSlot(input.name);
    if (slot < 0) continue;
    const link = graph.links.get(input.link);
    const origin = graph.getNodeById(link.origin_id);
    if (origin) origin.connect(link.origin_slot, made, slot, link.parentId);
    else graph.inputNode?.slots[link.origin_slot]?.connect(made.inputs[slot], made);
  }
}

/** Put a loader of the type `type` in the place of `old`. Returns the values that were lost. */
function replace(old, type) {
  const { graph } = old;
  const made = window.LiteGraph.createNode(type);
  graph.add(made);
  made.pos = [...old.pos];
  made.setSize([Math.max(old.size[0], made.size[0]), Math.max(old.size[1], made.size[1])]);
  made.mode = old.mode;
  if (old.title !== old.constructor.title) made.title = old.title;
  const dropped = copyValues(old, made);
  moveLinks(graph, old, made);
  graph.remove(old);
  app.canvas.selectItems?.([made]);
  return dropped;
}

/** The same as one step for Undo, with a word about what was lost. */
function swap(old, type) {
  app.canvas.emitBeforeChange();
  try {
    const dropped = replace(old, type);
    if (!dropped.length) return;
    const summary = `Set to default: ${dropped.join(", ")}`;
    app.extensionManager.toast.add({ severity: "info", summary, detail: "The other loader has no such choice.", life: 15_000 });
  } finally {
    app.canvas.emitAfterChange();
  }
}

app.registerExtension({
  name: "Tutti.SwapLoader",
  getNodeMenuItems(node) {
    const type = { [STOCK]: OURS, [OURS]: STOCK }[node.comfyClass];
    return type ? [{ content: LABELS[node.comfyClass], callback: () => swap(node, type) }] : [];
  },
});
