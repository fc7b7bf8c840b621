// What a reader of the page has before them, as the browser computes it: how wide the page is, for
// every text its size and its contrast to what lies behind it, for every cell and bar the contrast of
// its fill or outline, and texts of a drawing that are cut off or lie on each other.
function look(frame) {
  const page = frame.contentDocument, style = (of) => frame.contentWindow.getComputedStyle(of);
  const numbers = (color) => (color.match(/[\d.]+/g) || []).map(Number);
  const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (of) => {
    for (; of; of = of.parentElement) {
      const color = numbers(style(of).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const all = (selector) => [...page.body.querySelectorAll(selector)];
  const own = (of) => [...of.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = all("*:not(title)").filter(own).map((of) => {
    const drawing = of.closest("svg");
    const scale = drawing ? of.getScreenCTM().a : 1;
    const color = numbers(drawing ? style(of).fill : style(of).color);
    const size = parseFloat(style(of).fontSize) * scale;
    return { text: of.textContent, size, contrast: contrast(color, behind(of)) };
  });
  const shapes = all("svg rect").map((of) => {
    const colors = [style(of).fill, style(of).stroke].filter((color) => color !== "none");
    const best = Math.max(...colors.map((color) => contrast(numbers(color), behind(of.closest("svg")))));
    return { text: of.getAttribute("class"), contrast: best };
  });
  const cut = [], crossed = [];
  for (const drawing of all("svg")) {
    const edge = drawing.getBoundingClientRect();
    const boxes = [...drawing.querySelectorAll("text")].map((of) => [of.textContent, of.getBoundingClientRect()]);
    const inside = (box) =>
      box.left >= edge.left - 1 && box.right <= edge.right + 1 && box.top >= edge.top - 1 && box.bottom <= edge.bottom + 1;
    cut.push(...boxes.filter(([, box]) => !inside(box)).map(([text]) => text));
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    boxes.forEach(([text, box], at) =>
      crossed.push(...boxes.slice(at + 1).filter(([, other]) => !apart(box, other)).map(([other]) => [text, other])));
  }
  const root = page.documentElement;
  return { wide: root.scrollWidth, high: root.scrollHeight, paper: light(behind(page.body)), texts, shapes, cut, crossed };
}
