"use strict";

const one = (id) => document.getElementById(id);

/* Everything is set as text: nothing in the document can become markup. */
function made(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children.filter(Boolean));
  return element;
}

function styled(name, element) {
  element.className = name;
  return element;
}

const json = (value) => made("pre", JSON.stringify(value, null, 2));

function folded(title, ...children) {
  return made("details", "", made("summary", "", ...[title].flat()), ...children);
}

/* The same, whose content is made when it is first opened: most of the document never is. */
function later(title, make) {
  const element = folded(title);
  element.addEventListener("toggle", () => element.append(...make().filter(Boolean)), { once: true });
  return element;
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
  return rows.length ? styled("table", made("div", "", made("table", "", ...rows))) : null;
}

/* The example of a body, or else that of its schema. */
function example(root, body) {
  if (body.example) return body.example;
  const schema = body.schema && resolved(root, (body.schema.allOf || [body.schema])[0]);
  return schema && schema.examples ? schema.examples[0] : undefined;
}

function content(root, bodies) {
  return Object.entries(bodies || {}).flatMap(([media, body]) => {
    const shown = body.examples || media.startsWith("multipart/") ? undefined : example(root, body);
    return [
      made("p", "", made("code", media), " ", ...(body.schema ? kind(body.schema) : [])),
      shown === undefined ? null : json(shown),
      ...Object.entries(body.examples || {}).map(([name, each]) => folded(name, json(each.value))),
    ];
  });
}

function answer(root, status, reference) {
  const response = resolved(root, reference);
  const headers = () => Object.entries(response.headers || {}).map(([name, header]) =>
    row(name, { type: "string" }, resolved(root, header).description));
  return later([made("code", status), styled("told", made("span", response.description))],
    () => [...content(root, response.content), later("Headers", () => [table(headers())])]);
}

/* What a person may type into a shell. */
function command(root, path, method, told) {
  const address = location.origin + path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase());
  const [[media, body] = []] = Object.entries(told.requestBody ? told.requestBody.content : {});
  const value = body && example(root, body);
  const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
  const parts = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${address}`];
  if (media === "application/json") parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(value))}`);
  if (media === "multipart/form-data") {
    const files = Object.entries(resolved(root, body.schema).properties).filter(([, each]) => JSON.stringify(each).includes("binary"));
    const needed = files.filter(([name]) => name in value).map(([name]) => name);
    parts.push(...Object.entries(value).map(([name, each]) => `-F ${quoted(`${name}=${needed.includes(name) ? "@picture.png" : each}`)}`));
  }
  if (/image\//.test(Object.keys((told.responses["200"] || {}).content || {}))) parts.push("-o painted.png");
  return made("pre", parts.join(" \\\n  "));
}

function operation(root, path, method, told) {
  const parameters = told.parameters.map((each) => resolved(root, each));
  const rows = parameters.map((each) => row(each.name, each.schema, `${each.in}. ${each.description}`));
  const title = [styled(`method ${method}`, made("span", method.toUpperCase())), made("code", path), styled("told", made("span", told.summary))];
  const answers = Object.entries(told.responses).map(([status, each]) => [Number(status), answer(root, status, each)]);
  const errors = answers.filter(([status]) => status >= 400).map(([, each]) => each);
  const element = folded(
    title,
    told.description ? made("p", told.description) : null,
    command(root, path, method, told),
    made("h3", "Parameters"), table(rows),
    ...(told.requestBody ? [made("h3", "Body"), ...content(root, told.requestBody.content)] : []),
    made("h3", "Answers"),
    ...answers.filter(([status]) => status < 400).map(([, each]) => each),
    folded(`Errors (${errors.length})`, ...errors),
  );
  element.id = told.operationId;
  element.dataset.text = `${method} ${path} ${told.summary}`.toLowerCase();
  return element;
}

function schema(name, told) {
  const fields = Object.entries(told.properties || {}).map(([field, each]) =>
    row(field + ((told.required || []).includes(field) ? " *" : ""), each, said(each)));
  const element = folded([made("code", name), styled("told", made("span", told.description || ""))], table(fields),
    ...(told.examples || []).map(json));
  element.id = `schema-${name}`;
  element.dataset.text = `${name} ${told.description}`.toLowerCase();
  return element;
}

function socket(path, told) {
  const frames = made("p", "", told.send ? "sends " : "", ...(told.send ? [...kind(told.send), ", "] : []), "receives ", ...kind(told.receive));
  const element = folded([made("code", path), styled("told", made("span", told.summary))], frames);
  element.dataset.text = `${path} ${told.summary}`.toLowerCase();
  return element;
}

/* Paths that mean the same as another are kept together, out of the way. */
function section(root, name) {
  const told = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).filter(([, each]) => each.tags.includes(name)).map(([method, each]) => [path, method, each]));
  const shown = (isAlias) => told.filter(([, , each]) => Boolean(each.description) === isAlias).map((each) => operation(root, ...each));
  const aliases = shown(true);
  const element = made("section", "", made("h2", name), ...shown(false),
    aliases.length ? styled("aliases", folded(`${aliases.length} more that mean the same`, ...aliases)) : null);
  element.id = `tag-${name.toLowerCase().replace(/\W+/g, "-")}`;
  return element;
}

function show(root) {
  one("version").textContent = root.info.version;
  one("about").textContent = root.info.description.replaceAll("`", "");
  one("routes").append(...root.tags.map(({ name }) => section(root, name)));
  one("sockets").append(...Object.entries(root["x-websockets"]).map((each) => socket(...each)));
  one("schemas").append(...Object.entries(root.components.schemas).map((each) => schema(...each)));
  one("body").value = JSON.stringify(root.paths["/generate"].post.requestBody.content["application/json"].example, null, 2);
  for (const element of document.querySelectorAll("main section")) {
    const link = made("a", element.querySelector("h2").textContent);
    link.href = `#${element.id}`;
    one("sections").append(made("li", "", link));
  }
  arrive();
}

/* What does not have the wanted words is hidden, and so are the headings above nothing. */
function filter() {
  const words = one("find").value.toLowerCase().split(/\s+/);
  let found = 0;
  for (const element of document.querySelectorAll("details[data-text]")) {
    element.hidden = !words.every((word) => element.dataset.text.includes(word));
    found += !element.hidden;
  }
  const isWanted = words.some(Boolean);
  for (const element of document.querySelectorAll("main section, .aliases")) {
    element.hidden = isWanted && !element.querySelector("details[data-text]:not([hidden])");
  }
  for (const element of document.querySelectorAll(".aliases")) element.open = isWanted && !element.hidden;
  one("found").textContent = isWanted ? `${found} found` : "";
}

/* Opens what the address names, and all around it. */
function arrive() {
  const wanted = one(decodeURIComponent(location.hash.slice(1)));
  for (let at = wanted; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (wanted) wanted.scrollIntoView();
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
    one("picture").alt = JSON.parse(one("body").value).prompt;
    one("picture").hidden = false;
    one("said").textContent = `${response.status}, seed ${response.headers.get("x-seed")}`;
  } else {
    one("said").textContent = `${response.status}: ${await response.text()}`;
  }
}

one("find").addEventListener("input", filter);
one("painting").addEventListener("submit", (event) => paint(event).catch((error) => { one("said").textContent = String(error); }));
addEventListener("hashchange", arrive);
fetch("/openapi.json").then((response) => response.json()).then(show).catch((error) => {
  one("about").textContent = String(error);
});
