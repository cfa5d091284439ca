// Draws a text in the browser, so that hovering over it needs no answer from the kernel.
function render({ model, el }) {
    let keys = [], queries = [], told;
    const name = word => word === '\n' ? '↵' : word === ' ' ? '␣' : word;
    const line = (words, soft, title) => {
        const box = document.createElement('div');
        box.className = 'attended';
        box.style.cssText = 'font:16px/1.9 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere';
        if (title) box.append(title);
        const spans = words.map((word, i) => {
            const span = document.createElement('span');
            span.textContent = word === '\n' ? '↵\n' : word;
            span.style.cssText = 'border-radius:3px;padding:2px 0;' +
                (soft[i] ? 'border-bottom:2px dotted #0072B2;' : '');
            return span;
        });
        box.append(...spans);
        el.append(box);
        return spans;
    };
    const paint = t => {
        const { weights, queries: words, keys: others } = model.get('shown'), row = weights[t] ?? [];
        const cross = others.length > 0, seen = cross ? others : words;
        keys.forEach((span, s) => {
            const weight = row[s] ?? 0;
            span.style.background = `rgba(8,64,126,${0.9 * Math.sqrt(weight)})`;
            span.style.color = weight > 0.25 ? 'white' : !cross && s > t ? '#8a8f98' : 'inherit';
            span.title = `${(100 * weight).toFixed(1)} %`;
        });
        queries.forEach((span, s) => { span.style.outline = s === t ? '2px solid #D55E00' : ''; });
        const best = row.map((weight, s) => [weight, s]).sort((a, b) => b[0] - a[0]).slice(0, 5);
        const parts = best.filter(([weight]) => weight >= 0.005)
            .map(([weight, s]) => `${name(seen[s])} (${s}) ${(100 * weight).toFixed(0)} %`);
        told.textContent = words.length ? `${name(words[t])} (${t}) looks at  ${parts.join('  ·  ')}` : '';
    };
    const build = () => {
        const { queries: words, keys: others, soft } = model.get('shown'), cross = others.length > 0;
        el.replaceChildren();
        queries = line(words, soft, cross ? 'looks:         ' : '');
        keys = cross ? line(others, [], 'is looked at:  ') : queries;
        told = document.createElement('div');
        told.style.cssText = 'font:13px/1.6 ui-monospace,monospace;color:#5a606e;min-height:22px';
        el.append(told);
        queries.forEach((span, t) => {
            span.style.cursor = 'pointer';
            span.onmouseenter = () => paint(t);
            span.onmouseleave = () => paint(model.get('chosen'));
            span.onclick = () => { model.set('chosen', t); model.save_changes(); };
        });
        paint(model.get('chosen'));
    };
    model.on('change:shown', build);
    model.on('change:chosen', () => paint(model.get('chosen')));
    build();
}
export default { render };
