"use strict";
// Every series lies in #data, worst first. Points are found by where they are drawn; the table grows on demand.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const column = Object.fromEntries(data.columns.map((name, at) => [name, at]));
  const get = (row, name) => row[column[name]];
  const byName = new Map(data.rows.map((row) => [get(row, "series"), row]));
  const words = { encoded: "encoded", quality_failed: "below the gate", ingested: "not encoded", stale: "stale" };
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  };
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };

  const detail = document.getElementById("detail");
  let opener = null;
  const close = () => {
    detail.hidden = true;
    if (opener && document.contains(opener)) opener.focus();
  };
  const show = (name, from) => {
    const row = byName.get(name);
    if (!row) return;
    opener = from;
    const button = element("button", "Close", { type: "button" });
    button.addEventListener("click", close);
    const facts = element("dl");
    const fact = (label, value) => {
      const pair = element("div");
      pair.append(element("dt", label), element("dd", value));
      facts.append(pair);
    };
    fact("group", get(row, "group"));
    fact("state", words[get(row, "state")] || get(row, "state"));
    fact("shape", get(row, "shape"));
    fact("PSNR", `${number(get(row, "psnr"))} dB`);
    fact("JPEG 2000 at the same bytes", `${number(get(row, "jpeg2000_psnr"))} dB`);
    fact("SSIM", number(get(row, "ssim")));
    fact("bits per voxel on disk", number(get(row, "bits_per_voxel_disk")));
    fact("largest error", `${number(get(row, "max_error"))} ${get(row, "units")}`);
    fact("rung", get(row, "rung") || "–");
    fact("unlike the training data", number(get(row, "unlike")));
    if (get(row, "reasons").length) fact("reasons", get(row, "reasons").join(", "));
    const title = element("b", name, { class: "id" });
    detail.replaceChildren(button, title, facts);
    if (document.getElementById(`w-${name}`)) {
      detail.append(element("a", "its pictures", { href: `#w-${name}` }));
    }
    detail.hidden = false;
  };

  const body = document.querySelector("#table tbody");
  const find = document.getElementById("find");
  const more = document.getElementById("more");
  const line = (row) => {
    const made = element("tr", undefined, { id: `s-${get(row, "series")}` });
    const cell = (text, kind) => made.append(element("td", text, kind ? { class: kind } : {}));
    const first = element("td");
    first.append(element("span", get(row, "series").slice(0, 8), { class: "id", title: get(row, "series") }));
    made.append(first);
    cell(get(row, "group"));
    cell(get(row, "shape"), "n");
    cell(words[get(row, "state")] || get(row, "state"), get(row, "state") === "quality_failed" ? "fail" : "");
    for (const name of ["psnr", "jpeg2000_psnr", "ssim", "bits_per_voxel_disk"]) cell(number(get(row, name)), "n");
    cell(get(row, "max_error") === null ? "–" : `${number(get(row, "max_error"))} ${get(row, "units")}`, "n");
    cell(number(get(row, "unlike")), "n");
    cell(get(row, "reasons").join(", "));
    return made;
  };
  let chosen = data.rows;
  let shown = body ? body.rows.length : 0;
  const tell = () => {
    document.getElementById("found").textContent =
      `${Math.min(shown, chosen.length).toLocaleString("en")} of ${chosen.length.toLocaleString("en")}`;
    more.hidden = shown >= chosen.length;
  };
  const grow = (count) => {
    const part = document.createDocumentFragment();
    chosen.slice(shown, shown + count).forEach((row) => part.append(line(row)));
    body.append(part);
    shown = Math.min(shown + count, chosen.length);
    tell();
  };
  if (body) {
    tell();
    more.addEventListener("click", () => grow(500));
    find.addEventListener("input", () => {
      const asked = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      const text = (row) =>
        [get(row, "series"), get(row, "group"), words[get(row, "state")], ...get(row, "reasons")].join(" ").toLowerCase();
      chosen = asked.length ? data.rows.filter((row) => asked.every((word) => text(row).includes(word))) : data.rows;
      body.replaceChildren();
      shown = 0;
      grow(200);
    });
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row) show(row.id.slice(2), null);
    });
  }

  const spread = (index, row) => (((index * 0.618) % 1) - 0.5) * row * 0.56;
  for (const svg of document.querySelectorAll("svg[data-key]")) {
    const [low, high, start, end] = svg.dataset.scale.split(" ").map(Number);
    const key = svg.dataset.key;
    svg.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let best = null;
      let nearest = 8 * 8;
      for (const label of svg.querySelectorAll("[data-group]")) {
        if (Math.abs(place.y - Number(label.dataset.y)) > 23) continue;
        let index = 0;
        for (const row of data.rows) {
          if (get(row, "group") !== label.dataset.group || get(row, key) === null) continue;
          const x = start + ((get(row, key) - low) / (high - low)) * (end - start);
          const y = Number(label.dataset.y) + spread(index, 46);
          index += 1;
          const far = (x - place.x) ** 2 + (y - place.y) ** 2;
          if (far < nearest) [nearest, best] = [far, get(row, "series")];
        }
      }
      if (best) show(best, null);
    });
  }
  for (const svg of document.querySelectorAll("svg[data-rate]")) {
    const ends = svg.dataset.rate.split(" ").map(Number);
    const at = (value, [low, high, start, end]) => start + ((value - low) / (high - low)) * (end - start);
    svg.addEventListener("click", (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let best = null;
      let nearest = 8 * 8;
      for (const row of data.rows) {
        const bits = get(row, "bits_per_voxel_disk");
        if (bits === null) continue;
        for (const psnr of [get(row, "psnr"), get(row, "jpeg2000_psnr")]) {
          if (psnr === null) continue;
          const far = (at(bits, ends.slice(0, 4)) - place.x) ** 2 + (at(psnr, ends.slice(4)) - place.y) ** 2;
          if (far < nearest) [nearest, best] = [far, get(row, "series")];
        }
      }
      if (best) show(best, null);
    });
  }
  // Paper opens nothing: what is folded would be lost on it.
  const folded = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = folded();
    opened.forEach((each) => (each.open = true));
  });
  window.addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-series]");
    if (!link) return;
    event.preventDefault();
    show(link.dataset.series, link);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !detail.hidden) close();
  });
})();
