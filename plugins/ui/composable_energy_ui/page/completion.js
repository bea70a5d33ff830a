// Completion of names in a text box: a list below it, with Tab, Enter, arrows and clicks.

const WORD = /[\w=/:-]*$/;
const SHOWN = 8;

// Returns a function that shows the names for the word before the cursor; `changed` is called when one is taken.
export function completion(box, list, names, changed) {
  const word = () => box.value.slice(0, box.selectionStart).match(WORD)[0];
  const rows = () => [...list.children];

  function select(chosen) {
    rows().forEach((row, i) => row.setAttribute("aria-selected", i === chosen));
  }

  function accept(name) {
    box.setRangeText(name, box.selectionStart - word().length, box.selectionStart, "end");
    changed();
    list.hidden = true;
  }

  function option(name) {
    const row = Object.assign(document.createElement("li"), { textContent: name, role: "option" });
    row.onmousedown = (event) => { event.preventDefault(); accept(name); };
    return row;
  }

  box.addEventListener("keydown", (event) => {
    const at = rows().findIndex((row) => row.ariaSelected === "true"), count = rows().length;
    if (list.hidden || event.ctrlKey || event.metaKey) return;
    if (event.key === "Tab" || event.key === "Enter") accept(rows()[at].textContent);
    else if (event.key === "ArrowDown") select((at + 1) % count);
    else if (event.key === "ArrowUp") select((at + count - 1) % count);
    else if (event.key === "Escape") list.hidden = true;
    else return;
    event.preventDefault();
  });
  box.addEventListener("blur", () => { list.hidden = true; });

  return () => {
    const typed = word(), known = names();
    const found = typed && !known.includes(typed) ? known.filter((name) => name.includes(typed)) : [];
    found.sort((a, b) => b.startsWith(typed) - a.startsWith(typed));
    list.replaceChildren(...found.slice(0, SHOWN).map(option));
    select(0);
    list.hidden = !found.length;
  };
}
