/* How well the page can be read as it stands: its least contrast of text (WCAG 2.2), and how wide it is. */
const readability = () => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ink = (element) => getComputedStyle(element)[element.closest("svg") ? "fill" : "color"];
  let contrast = 21, worst = "";
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest("script, noscript, title, desc, .unseen, [hidden], details:not([open]) > :not(summary)")) continue;
    const [a, b] = [numbers(ink(element)), behind(element)].map(luminance).sort((a, b) => b - a);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < contrast) [contrast, worst] = [ratio, `${element.tagName}.${element.getAttribute("class")}: ${element.textContent}`];
  }
  return {
    contrast, worst, width: innerWidth, scrolled: document.documentElement.scrollWidth,
    headings: [...document.querySelectorAll("h1, h2, h3")].map((heading) => Number(heading.tagName[1])),
    dark: luminance(behind(document.body)) < 0.1,
  };
};
