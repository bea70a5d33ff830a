// Renders the maths that arithmatex marks; again after each page that is loaded without a reload.
const render = () =>
  document.querySelectorAll(".arithmatex:not([data-done])").forEach((element) => {
    const display = element.tagName === "DIV";
    katex.render(element.textContent.trim().replace(/^\\[([]|\\[)\]]$/g, ""), element, { displayMode: display, throwOnError: false });
    element.dataset.done = "";
  });
typeof document$ === "undefined" ? document.addEventListener("DOMContentLoaded", render) : document$.subscribe(render);
