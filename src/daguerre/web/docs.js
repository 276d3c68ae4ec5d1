"use strict";

const one = (id) => document.getElementById(id);

/* Everything is set as text: nothing in the document can become markup. */
function made(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children.filter(Boolean));
  return element;
}

const json = (value) => made("pre", JSON.stringify(value, null, 2));

function folded(title, ...children) {
  return made("details", "", made("summary", "", ...[title].flat()), ...children);
}

function resolved(root, value) {
  if (!value || !value.$ref) return value;
  return value.$ref.slice(2).split("/").reduce((at, part) => at[part], root);
}

function kind(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = made("a", name);
    link.href = `#schema-${name}`;
    return [link];
  }
  const several = schema.anyOf || schema.allOf;
  if (several) return several.flatMap((each, at) => [at ? (schema.anyOf ? " or " : " with ") : "", ...kind(each)]);
  if (schema.enum) return [schema.enum.map((each) => JSON.stringify(each)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array" && schema.items) return ["list of ", ...kind(schema.items)];
  const told = Object.entries(schema).filter(([name]) => /^(m|exclusiveM)(in|ax)|^pattern$|^required$/.test(name));
  return [[schema.type || "anything", ...told.map(([name, bound]) => `${name} ${bound}`)].join(", ")];
}

const said = (schema) => schema.description || (schema.anyOf || []).map((each) => each.description).find(Boolean) || "";

function row(name, schema, description) {
  return made("tr", "", made("td", "", made("code", name)), made("td", "", ...kind(schema)), made("td", description));
}

function table(rows) {
  return rows.length ? made("table", "", ...rows) : null;
}

function content(bodies) {
  return Object.entries(bodies || {}).flatMap(([media, body]) => [
    made("p", "", made("code", media), " ", ...(body.schema ? kind(body.schema) : [])),
    body.example ? json(body.example) : null,
    ...Object.entries(body.examples || {}).map(([name, each]) => folded(name, json(each.value))),
  ]);
}

function answer(root, status, reference) {
  const response = resolved(root, reference);
  const headers = Object.entries(response.headers || {}).map(([name, header]) =>
    row(name, { type: "string" }, resolved(root, header).description));
  return folded(`${status}: ${response.description}`, ...content(response.content), folded("headers", table(headers)));
}

function operation(root, path, method, told) {
  const parameters = told.parameters.map((each) => resolved(root, each));
  const rows = parameters.map((each) => row(each.name, each.schema, `${each.in}. ${each.description}`));
  const title = [made("span", method.toUpperCase()), made("code", path), ` ${told.summary}`];
  title[0].className = "method";
  const element = folded(
    title,
    told.description ? made("p", told.description) : null,
    made("h3", "Parameters"), table(rows),
    ...(told.requestBody ? [made("h3", "Body"), ...content(told.requestBody.content)] : []),
    made("h3", "Answers"),
    ...Object.entries(told.responses).map(([status, each]) => answer(root, status, each)),
  );
  element.dataset.text = `${method} ${path} ${told.summary}`.toLowerCase();
  return element;
}

function schema(name, told) {
  const fields = Object.entries(told.properties || {}).map(([field, each]) =>
    row(field + ((told.required || []).includes(field) ? " *" : ""), each, said(each)));
  const element = folded([made("code", name)], made("p", told.description || ""), table(fields),
    ...(told.examples || []).map(json));
  element.id = `schema-${name}`;
  return element;
}

function show(root) {
  one("about").textContent = `${root.info.version}. ${root.info.description.replaceAll("`", "")}`;
  for (const { name } of root.tags) {
    const section = made("section", "", made("h2", name));
    for (const [path, methods] of Object.entries(root.paths)) {
      for (const [method, told] of Object.entries(methods)) {
        if (told.tags.includes(name)) section.append(operation(root, path, method, told));
      }
    }
    one("routes").append(section);
  }
  for (const [path, told] of Object.entries(root["x-websockets"])) {
    const frames = made("p", "", told.send ? "sends " : "", ...(told.send ? kind(told.send) : []), " receives ",
      ...kind(told.receive));
    one("sockets").append(folded([made("code", path), ` ${told.summary}`], frames));
  }
  for (const [name, told] of Object.entries(root.components.schemas)) one("schemas").append(schema(name, told));
  one("body").value = JSON.stringify(root.paths["/generate"].post.requestBody.content["application/json"].example, null, 2);
}

function filter() {
  const wanted = one("find").value.toLowerCase();
  for (const element of one("routes").querySelectorAll("details[data-text]")) {
    element.hidden = !element.dataset.text.includes(wanted);
  }
}

async function paint(event) {
  event.preventDefault();
  const headers = { "Content-Type": "application/json", Accept: "image/*" };
  if (one("key").value) headers.Authorization = `Bearer ${one("key").value}`;
  one("said").textContent = "painting …";
  const response = await fetch("/generate", { method: "POST", headers, body: one("body").value });
  if (response.ok && response.headers.get("content-type").startsWith("image/")) {
    URL.revokeObjectURL(one("picture").src);
    one("picture").src = URL.createObjectURL(await response.blob());
    one("picture").hidden = false;
    one("said").textContent = `${response.status}, seed ${response.headers.get("x-seed")}`;
  } else {
    one("said").textContent = `${response.status}: ${await response.text()}`;
  }
}

one("find").addEventListener("input", filter);
one("try").addEventListener("submit", (event) => paint(event).catch((error) => { one("said").textContent = String(error); }));
addEventListener("hashchange", () => { const at = one(location.hash.slice(1)); if (at) at.open = true; });
fetch("/openapi.json").then((response) => response.json()).then(show).catch((error) => {
  one("about").textContent = String(error);
});
