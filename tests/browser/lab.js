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
  const undrawn = plot => !plot._fullData?.length || /WebGL is not supported/.test(plot.innerText);
  const kernel = session.session.kernel, frame = () => new Promise(requestAnimationFrame);
  let running = false, resting = false, sent = 0;
  const pending = new Set(), errors = [];
  kernel.anyMessage.connect((_, {msg, direction}) => {
    const parent = msg.parent_header, content = msg.content;
    if (direction === 'send' && msg.channel === 'shell') {
      pending.add(msg.header.msg_id);
      sent += 1;
    }
    if (msg.header.msg_type === 'status' && content.execution_state === 'idle') pending.delete(parent.msg_id);
    if (msg.header.msg_type === 'error') errors.push(
      `${parent.msg_type === 'execute_request' ? 'cell' : 'callback'}: ${content.ename}: ${content.evalue}`);
  });
  // At rest: no answer is awaited, and while a round trip to the kernel and two frames went by, no
  // further message was sent. (The answer to one may be the next: a view asks for its model. Answers
  // are handled in turn, so that the round trip's own comes after all before it.)
  const rest = async () => {
    for (let before = null; before !== sent; ) {
      do { await frame(); } while (running || pending.size > 0);
      before = sent + 1;
      await kernel.requestKernelInfo();
      await frame();
      await frame();
    }
    resting = false;
  };
  window.lab = {
    rest: () => { resting = true; rest(); },
    resting: () => resting,
    runAll: () => { running = true;
      jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { running = false; }); },
    shown: () => all(outputs).filter(e => !e.parentElement.closest(outputs)).map(e => e.innerText).join('\n'),
    height: () => all('.jp-WindowedPanel-outer')[0].scrollHeight,
    problems: () => [...errors,
      ...all(outputs).map(e => e.innerText.trim()).filter(text => broken.test(text)).map(text => 'widget: ' + text),
      ...all('.js-plotly-plot').filter(undrawn).map(plot => 'plotly figure not drawn: ' + plot.innerText)],
  };
}
