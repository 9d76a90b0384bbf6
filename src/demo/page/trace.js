// A trace as the store has placed its spans, and its critical path.

/** Spans in order, depth first. Each row: span, service, depth, parent (row), missing, start, duration, children, size, error. */
export function model(found) {
  const rows = found.rows.map(({ span, label, depth, parent, missing, orphan, error }, at) => ({
    at, span, label: label ?? 'no name', service: span.localEndpoint?.serviceName ?? '', depth, parent: parent ?? -1, missing: missing ?? null, orphan,
    start: span.timestamp == null ? null : span.timestamp - found.start_us, duration: span.duration ?? 0,
    children: [], size: 1, error, critical: [],
  }));
  for (const row of rows) if (row.parent >= 0) rows[row.parent].children.push(row.at);
  for (let i = rows.length - 1; i >= 0; i--) if (rows[i].parent >= 0) rows[rows[i].parent].size += rows[i].size;
  criticalPath(rows);
  return { id: found.traces[0], rows, start: found.start_us, duration: found.duration_us, services: found.services, errors: found.errors, usedBy: found.used_by };
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
