"use strict";
// Images stand in the page once, by hash; every place that shows one names the hash.
const images = JSON.parse(document.getElementById("images").textContent);
for (const place of document.querySelectorAll("img[data-image]")) {
  const url = images[place.dataset.image];
  if (url && url.startsWith("data:image/")) place.src = url;
  else place.alt = "picture not available";
}

const form = document.getElementById("filters");
if (form) {
  const cards = [...document.querySelectorAll(".card")];
  const words = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const count = document.getElementById("count");
  const apply = () => {
    const wanted = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    const text = form.elements.text.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      const fits = wanted.every((select) => card.dataset[select.name] === select.value) && words.get(card).includes(text);
      card.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${cards.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
