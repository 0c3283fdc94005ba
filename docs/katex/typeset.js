// Typeset what pymdownx.arithmatex marks, on each page. Beside this file: KaTeX 0.19.1 from its
// npm package (katex.min.js, katex.min.css, fonts; MIT, see LICENSE), so that the site asks no
// other host.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex:not(:has(.katex))")) {
    const displayMode = element.tagName === "DIV";
    katex.render(element.textContent.slice(2, -2), element, { displayMode });
  }
});
