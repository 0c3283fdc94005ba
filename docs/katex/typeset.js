// Typeset what pymdownx.arithmatex marks, on each page.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex:not(:has(.katex))")) {
    const displayMode = element.tagName === "DIV";
    katex.render(element.textContent.slice(2, -2), element, { displayMode });
  }
});
