// What lab.py asks of the page: window.lab, about the notebook that is open.
// A cell or a callback has ended when the kernel says idle to *its* message; JupyterLab's own kernel status is idle
// too early, because callbacks run in a subshell.
async () => {
  await jupyterapp.restored;
  const panel = jupyterapp.shell.currentWidget, session = panel.context.sessionContext;
  await Promise.all([panel.revealed, session.ready]);
  jupyterapp.shell.collapseLeft();
  const all = selector => [...panel.node.querySelectorAll(selector)];
  const outputs = '.jp-OutputArea-output, .jupyter-widgets';
  const broken = /^(Error (displaying|creating) widget|Failed to load model|Loading widget)/;
  const undrawn = plot => !plot.querySelector('.main-svg') || /WebGL is not supported/.test(plot.innerText);
  let running = false;
  const pending = new Set(), errors = [];
  session.session.kernel.anyMessage.connect((_, {msg, direction}) => {
    const parent = msg.parent_header, content = msg.content;
    if (direction === 'send' && msg.channel === 'shell') pending.add(msg.header.msg_id);
    if (msg.header.msg_type === 'status' && content.execution_state === 'idle') pending.delete(parent.msg_id);
    if (msg.header.msg_type === 'error') errors.push(
      `${parent.msg_type === 'execute_request' ? 'cell' : 'callback'}: ${content.ename}: ${content.evalue}`);
  });
  window.lab = {
    busy: () => running || pending.size > 0,
    runAll: () => { running = true;
      jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { running = false; }); },
    shown: () => all(outputs).filter(e => !e.parentElement.closest(outputs)).map(e => e.innerText).join('\n'),
    height: () => all('.jp-WindowedPanel-outer')[0].scrollHeight,
    problems: () => [...errors,
      ...all(outputs).map(e => e.innerText.trim()).filter(text => broken.test(text)).map(text => 'widget: ' + text),
      ...all('.js-plotly-plot').filter(undrawn).map(plot => 'plotly figure not drawn: ' + plot.innerText)],
  };
}
