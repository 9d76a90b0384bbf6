// A trace as a tree: the same rules as in src/traces/trace.rs, and the critical path. What is wrong with it the store says.

export function isError(span) {
  const tags = span.tags ?? {};
  return tags.error !== undefined || String(tags['otel.status_code'] ?? '').toLowerCase() === 'error';
}

export const service = (span) => span.localEndpoint?.serviceName ?? '';

/** The index of each span's parent: a number, null for a root, or {missing: id}. */
function parents(spans) {
  const clients = new Map(), own = new Map(), shared = new Map(), sharedByAny = new Map();
  const first = (map, key, at) => { if (!map.has(key)) map.set(key, at); };
  spans.forEach((s, i) => { if (s.kind === 'CLIENT') first(clients, s.id, i); });
  const shares = (s) => s.shared === true || (s.kind === 'SERVER' && clients.has(s.id));
  spans.forEach((s, i) => {
    if (shares(s)) {
      first(shared, `${s.id} ${service(s)}`, i);
      first(sharedByAny, s.id, i);
    } else first(own, s.id, i);
  });
  const found = spans.map((s, i) => {
    if (shares(s)) {
      const client = clients.get(s.id) ?? own.get(s.id);
      if (client !== undefined && client !== i) return client;
    }
    if (!s.parentId) return null;
    return shared.get(`${s.parentId} ${service(s)}`) ?? own.get(s.parentId) ?? sharedByAny.get(s.parentId) ?? { missing: s.parentId };
  });
  // Spans that name each other must not be walked for ever.
  const seen = new Array(spans.length).fill(-1);
  for (let start = 0; start < spans.length; start++) {
    for (let at = start; typeof at === 'number'; at = found[at]) {
      if (seen[at] === start) { found[at] = { missing: spans[found[at]].id }; break; }
      if (seen[at] !== -1) break;
      seen[at] = start;
    }
  }
  return found;
}

/** Spans in order, depth first. Each row: span, service, depth, parent (row), missing, start, duration, children, size, error. */
export function model(spans) {
  const up = parents(spans);
  const below = spans.map(() => []);
  const tops = [];
  up.forEach((p, i) => (typeof p === 'number' ? below[p] : tops).push(i));
  const clock = (a, b) => (spans[a].timestamp ?? Infinity) - (spans[b].timestamp ?? Infinity)
    || (spans[a].id < spans[b].id ? -1 : spans[a].id > spans[b].id ? 1 : (spans[a].kind === 'SERVER') - (spans[b].kind === 'SERVER'));
  const sort = (list) => list.sort((a, b) => clock(a, b) || 0);
  sort(tops);
  below.forEach(sort);
  let start = Infinity, end = -Infinity;
  for (const s of spans) {
    if (s.timestamp == null) continue;
    start = Math.min(start, s.timestamp);
    end = Math.max(end, s.timestamp + (s.duration ?? 0));
  }
  if (start > end) start = end = 0;
  const rows = [];
  const stack = tops.map((i) => [i, -1]).reverse();
  while (stack.length) {
    const [i, parent] = stack.pop();
    const s = spans[i];
    const row = {
      at: rows.length, span: s, service: service(s), depth: parent < 0 ? 0 : rows[parent].depth + 1, parent,
      missing: up[i]?.missing ?? null, start: s.timestamp == null ? null : s.timestamp - start, duration: s.duration ?? 0,
      children: [], size: 1, error: isError(s), critical: [],
    };
    if (parent >= 0) rows[parent].children.push(row.at);
    rows.push(row);
    for (let n = below[i].length - 1; n >= 0; n--) stack.push([below[i][n], row.at]);
  }
  for (let i = rows.length - 1; i >= 0; i--) if (rows[i].parent >= 0) rows[rows[i].parent].size += rows[i].size;
  criticalPath(rows);
  const orphans = rows.filter((r) => r.missing).length, roots = rows.filter((r) => r.parent < 0 && !r.missing).length;
  return {
    id: spans[0].traceId, rows, start, duration: end - start, orphans, roots,
    services: [...new Set(rows.map((r) => r.service).filter(Boolean))],
    errors: rows.filter((r) => r.error).length,
    /** The one span without its parent is the first: the caller sent that id along and reports nothing here. */
    begunOutside: orphans === 1 && roots === 0,
  };
}

/** Marks the times in which a span, and nothing below it, was what everybody waited for: from the end of the longest top span
 *  backwards, always into the child that ended last. */
function criticalPath(rows) {
  const end = (r) => r.start + r.duration;
  const tops = rows.filter((r) => r.parent < 0 && r.start != null).sort((a, b) => b.duration - a.duration);
  if (!tops.length) return;
  const stack = [[tops[0], end(tops[0])]];
  while (stack.length) {
    const [row, until] = stack.pop();
    let at = Math.min(end(row), until);
    const children = row.children.map((c) => rows[c]).filter((c) => c.start != null).sort((a, b) => end(b) - end(a));
    for (const child of children) {
      const ends = Math.min(end(child), at);
      // One that runs on beside a later one was not waited for; one that ends outside its parent is not asked.
      if (end(child) > at + 1 || child.start >= at || ends <= row.start) continue;
      if (at > ends) row.critical.push([ends, at]);
      stack.push([child, ends]);
      at = Math.max(child.start, row.start);
    }
    if (at > row.start) row.critical.push([row.start, at]);
  }
}
