// Fetches this page again and swaps what changed, so that scrolling and loaded pictures stay.
"use strict";

const EVERY_MS = 2000;
const ANSWER_WITHIN_MS = 5000;
const silent = document.getElementById("silent");
let answered = new Date();

function pictures(root) {
  return new Map([...root.querySelectorAll("img[data-key]")].map((image) => [image.dataset.key, image]));
}

// The old picture stays until the new one has been loaded: no flicker.
function replaceWhenLoaded(shown, fresh) {
  const next = new Image();
  for (const attribute of fresh.attributes) {
    if (attribute.name !== "src") next.setAttribute(attribute.name, attribute.value);
  }
  next.onload = () => shown.replaceWith(next);
  next.src = fresh.getAttribute("src");
}

function swap(old, fresh) {
  const kept = pictures(old);
  for (const [key, image] of pictures(fresh)) {
    const shown = kept.get(key);
    if (!shown) continue;
    const changed = shown.getAttribute("src") !== image.getAttribute("src");
    image.replaceWith(shown);
    if (changed) replaceWhenLoaded(shown, image);
  }
  old.replaceChildren(...fresh.childNodes);
}

async function refresh() {
  const signal = AbortSignal.timeout(ANSWER_WITHIN_MS);
  const response = await fetch(location.href, { cache: "no-store", signal });
  if (!response.ok) throw new Error(`answer ${response.status}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh && fresh.innerHTML !== old.innerHTML) swap(old, fresh);
  }
}

async function again() {
  if (!document.hidden) {
    try {
      await refresh();
      answered = new Date();
      silent.hidden = true;
    } catch (error) {
      silent.textContent = `No news since ${answered.toLocaleTimeString()} (${error.message}). Still trying.`;
      silent.hidden = false;
    }
  }
  setTimeout(again, EVERY_MS);
}

setTimeout(again, EVERY_MS);
