"use strict";
// All names are untrusted text: they are set as text, never as markup.
const at = (id) => document.getElementById(id);
const TITLES = { seen: "what it was shown", parts: "its parts, alike in color", attention: "where it looked" };
let asked = 0;

function element(name, text, ...children) {
  const found = document.createElement(name);
  if (text) found.textContent = text;
  found.append(...children);
  return found;
}

function picture(src, caption) {
  const image = element("img");
  image.src = src;
  image.alt = caption;
  return element("li", "", element("figure", "", image, element("figcaption", caption)));
}

async function about() {
  const model = await (await fetch("/api/model")).json();
  at("name").textContent = model.name;
  document.title = `${model.name} – manyviews`;
  const parts = [`${model.backbone}, pictures of ${model.test_size} pixels`];
  if (model.classes.length) parts.push(`${model.classes.length} classes`);
  if (model.images) parts.push(`${model.images.toLocaleString("en")} known images`);
  at("about").textContent = parts.join(", ") + ".";
}

function show(answer) {
  const classes = answer.classes.map(({ name, probability }) => {
    const bar = element("progress");
    bar.value = probability;
    return element("li", "", bar, element("span", name), element("span", `${(100 * probability).toFixed(1)} %`));
  });
  at("classes").replaceChildren(...(classes.length ? classes : [element("li", "The encoder has no head: adapt it to name classes.")]));
  at("unknown").hidden = answer.known !== false;
  at("pictures").replaceChildren(...Object.entries(answer.pictures).map(([name, src]) => picture(src, TITLES[name] || name)));
  at("neighbors").replaceChildren(...answer.neighbors.map(({ name, similarity, src }) => picture(src, `${similarity.toFixed(2)}  ${name}`)));
  at("near").hidden = !answer.neighbors.length;
  at("answer").hidden = false;
}

async function look(file) {
  if (!file) return;
  const mine = ++asked;
  at("state").textContent = "Looking …";
  try {
    const reply = await fetch("/api/look", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    const found = await reply.json();
    if (mine !== asked) return;  // a later picture is on its way
    if (!reply.ok) throw new Error(typeof found.detail === "string" ? found.detail : "The server refused the picture.");
    show(found);
    at("state").textContent = file.name || "";
  } catch (error) {
    if (mine !== asked) return;
    at("answer").hidden = true;
    at("state").textContent = error.message;
  }
}

at("file").addEventListener("change", (event) => look(event.target.files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") look(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => look([...event.clipboardData.files][0]));
about();
