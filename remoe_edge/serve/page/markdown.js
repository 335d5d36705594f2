// Markdown to DOM nodes. Only createElement and textContent are used, so that no text becomes HTML.
// Knows headings, lists, quotes, tables, fenced and inline code, bold, italics and links to http(s).

const INLINE =
  /(`+)(.+?)\1(?!`)|\*\*(?=\S)([\s\S]+?\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function inline(text, depth = 0) {
  const made = [];
  while (text) {
    const found = depth < 5 ? INLINE.exec(text) : null;
    if (!found) {
      made.push(text);
      break;
    }
    if (found.index) made.push(text.slice(0, found.index));
    if (found[2] !== undefined) made.push(element("code", found[2].trim() || found[2]));
    else if (found[3] !== undefined) made.push(element("strong", ...inline(found[3], depth + 1)));
    else if (found[4] !== undefined) made.push(element("em", ...inline(found[4], depth + 1)));
    else {
      const link = element("a", ...inline(found[5], depth + 1));
      link.href = found[6];
      link.rel = "noopener noreferrer";
      link.target = "_blank";
      made.push(link);
    }
    text = text.slice(found.index + found[0].length);
  }
  return made;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const ROW = /^\s*\|?(.+\|.*)$/;
const RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((each) => each.trim());

export function render(text) {
  const made = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  const take = (test) => {
    const found = [];
    while (at < lines.length && test(lines[at])) found.push(lines[at++]);
    return found;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (!line.trim()) {
      at++;
    } else if (fence) {
      at++;
      const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      const inside = take((each) => !close.test(each));
      at++;
      const code = element("code", inside.join("\n"));
      if (fence[2].trim()) code.dataset.language = fence[2].trim();
      const pre = element("pre", code);
      pre.tabIndex = 0; // so that the keyboard can scroll it
      made.append(pre);
    } else if (heading) {
      at++;
      // The page's own headings come first.
      made.append(element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2])));
    } else if (/^\s*>/.test(line)) {
      const inside = take((each) => /^\s*>/.test(each)).map((each) => each.replace(/^\s*> ?/, ""));
      made.append(element("blockquote", render(inside.join("\n"))));
    } else if (/^ {0,3}([-*_])\s*(\1\s*){2,}$/.test(line)) {
      at++;
      made.append(element("hr"));
    } else if (ITEM.test(line)) {
      made.append(list(take((each) => ITEM.test(each) || /^\s+\S/.test(each))));
    } else if (ROW.test(line) && RULE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      const head = element("tr", ...cells(line).map((each) => element("th", ...inline(each))));
      at += 2;
      const rows = take((each) => ROW.test(each)).map((each) =>
        element("tr", ...cells(each).map((cell) => element("td", ...inline(cell)))));
      made.append(element("table", element("thead", head), element("tbody", ...rows)));
    } else {
      const first = lines[at++];
      const rest = take((each) =>
        each.trim() && !FENCE.test(each) && !/^#{1,6}\s/.test(each) && !ITEM.test(each) && !/^\s*>/.test(each));
      const paragraph = element("p");
      [first, ...rest].forEach((each, i) => {
        if (i) paragraph.append(element("br"));
        paragraph.append(...inline(each));
      });
      made.append(paragraph);
    }
  }
  return made;
}

function list(lines) {
  const [, indent, number] = ITEM.exec(lines[0]);
  const made = element(number === undefined ? "ul" : "ol");
  if (number !== undefined) made.start = Number(number);
  let at = 0;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at++]);
    const item = element("li", ...inline(found ? found[3] : lines[at - 1].trim()));
    const below = [];
    while (at < lines.length) {
      const next = ITEM.exec(lines[at]);
      if (next && next[1].length <= indent.length) break;
      below.push(lines[at++]);
    }
    if (below.length) item.append(ITEM.test(below[0]) ? list(below) : render(below.map((each) => each.trim()).join("\n")));
    made.append(item);
  }
  return made;
}
