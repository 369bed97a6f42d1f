// The decisions of a label review: kept in the browser's local storage and saved as corrections.csv; on the page of
// `audiotag review` each one goes to the server, which writes the file.
(() => {
  const data = document.getElementById('reviewdata');
  if (!data) return;
  const review = JSON.parse(data.textContent), key = 'audiotag:' + review.name;
  const who = document.getElementById('who');
  let decisions = {};  // clip_id: {action, labels, why, when}

  // Local storage may be switched off; the page works without it. The server knows its decisions itself.
  try {
    if (!review.token) decisions = JSON.parse(localStorage.getItem(key)) || {};
    who.value = localStorage.getItem('audiotag:who') || '';
  } catch (e) {}
  function store() {
    try {
      localStorage.setItem(key, JSON.stringify(decisions));
      localStorage.setItem('audiotag:who', who.value);
    } catch (e) {}
  }

  // One request at a time: two on their way at once may arrive in the other order, and the older decision would win.
  // What could not be saved is sent again with the next decision.
  const unsaved = new Set();
  let isSending = false;
  async function post(clip) {
    const decision = decisions[clip];
    const body = JSON.stringify({clip, who: who.value, decision: isComplete(decision) ? decision : null});
    try {
      const reply = await fetch('decisions', {method: 'POST', headers: {'X-Review': review.token}, body});
      return reply.ok ? '' : await reply.text();
    } catch (e) {
      return 'audiotag review has ended';
    }
  }
  async function send(clip) {
    const status = document.getElementById('status'), failed = new Map();  // clip: why
    unsaved.add(clip);
    status.textContent = 'saving';
    if (isSending) return;
    isSending = true;
    while (unsaved.size) {
      const [next] = unsaved;
      unsaved.delete(next);
      const why = await post(next);
      if (why) failed.set(next, why); else failed.delete(next);
    }
    isSending = false;
    for (const one of failed.keys()) unsaved.add(one);
    const [why] = failed.values();
    status.textContent = why ? `NOT SAVED (${failed.size} of your decisions): ${why}` : 'saved';
  }
  window.addEventListener('beforeunload', e => { if (isSending || unsaved.size) e.preventDefault(); });

  const isComplete = decision => decision && (decision.action !== 'relabel' || decision.labels.length);
  const decided = () => review.clips.filter(clip => isComplete(decisions[clip]));

  function show(card) {
    const decision = decisions[review.clips[card.dataset.i]];
    for (const button of card.querySelectorAll('[data-action]')) {
      button.classList.toggle('on', !!decision && decision.action === button.dataset.action);
    }
    card.querySelector('.new').hidden = !decision || decision.action !== 'relabel';
    const labels = decision && decision.labels || [];
    card.querySelector('.chosen').replaceChildren(
      ...labels.map(label => Object.assign(document.createElement('span'), {textContent: label})));
    card.querySelector('.note').value = decision && decision.why || '';
    card.classList.toggle('done', !!isComplete(decision));
    document.getElementById('count').textContent = `${decided().length} of ${review.clips.length} decided`;
  }

  function change(card, edit) {
    const clip = review.clips[card.dataset.i], decision = decisions[clip] || {action: '', labels: [], why: ''};
    edit(decision);
    decision.when = new Date().toISOString().slice(0, 19) + '+00:00';
    if (decision.action) decisions[clip] = decision; else delete decisions[clip];
    store();
    show(card);
    if (review.token) send(clip);
  }

  const classes = new Set([...document.querySelectorAll('#classes option')].map(option => option.value));
  function addLabel(card, label) {
    if (!classes.has(label)) return;
    change(card, d => {
      d.action = 'relabel';
      if (!d.labels.includes(label)) d.labels.push(label);
    });
  }

  for (const card of document.querySelectorAll('.card')) {
    for (const button of card.querySelectorAll('[data-action]')) {
      const action = button.dataset.action;
      button.addEventListener('click', () => change(card, d => { d.action = d.action === action ? '' : action; }));
    }
    for (const button of card.querySelectorAll('.tip')) {
      button.addEventListener('click', () => addLabel(card, button.textContent));
    }
    const input = card.querySelector('[list]');
    input.addEventListener('change', () => { addLabel(card, input.value); input.value = ''; });
    card.querySelector('.chosen').addEventListener('click', e => {
      if (e.target.tagName !== 'SPAN') return;
      change(card, d => { d.labels = d.labels.filter(label => label !== e.target.textContent); });
    });
    card.querySelector('.note').addEventListener('change', e => change(card, d => { d.why = e.target.value; }));
    show(card);
  }

  // Keys: k keep, r relabel, d drop, 1 to 9 a suggested label, space to play, arrows or n and p to move, u to undo.
  const cards = [...document.querySelectorAll('.card')];
  let at = 0;
  function go(i) {
    at = Math.max(0, Math.min(cards.length - 1, i));
    for (const card of cards) card.classList.toggle('at', card === cards[at]);
    cards[at].scrollIntoView({block: 'center'});
  }
  function press(e) {
    if (!cards.length || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.target.tagName === 'INPUT') {
      if (e.key === 'Escape') e.target.blur();
      return;
    }
    const card = cards[at], action = {k: 'keep', r: 'relabel', d: 'drop'}[e.key];
    if (action) {
      change(card, d => { d.action = action; });
      if (action !== 'relabel') go(at + 1);
    } else if (e.key === 'u') {
      change(card, d => { d.action = ''; d.labels = []; });
    } else if (/^[1-9]$/.test(e.key)) {
      const tip = card.querySelectorAll('.tip')[e.key - 1];
      if (!tip) return;
      addLabel(card, tip.textContent);
    } else if (e.key === ' ') {
      const button = card.querySelector('.player button');
      if (button) button.click();
    } else if (e.key === 'ArrowDown' || e.key === 'n') {
      go(at + 1);
    } else if (e.key === 'ArrowUp' || e.key === 'p') {
      go(at - 1);
    } else {
      return;
    }
    e.preventDefault();
  }
  // Only where the review is the whole page: in a report, the arrows scroll.
  if (review.token) {
    document.addEventListener('keydown', press);
    for (const card of cards) card.addEventListener('focusin', () => { at = cards.indexOf(card); });
    fetch('decisions').then(reply => reply.json()).then(saved => {
      decisions = {...saved, ...decisions};  // a decision may have been made already
      cards.forEach(show);
      const open = cards.findIndex(card => !isComplete(decisions[review.clips[card.dataset.i]]));
      if (cards.length) go(Math.max(0, open));
    });
  }

  // A comma, a quote or a line end in a name or a reason must not break the CSV.
  function csvField(text) {
    if (!/[",\n\r]/.test(text)) return text;
    return '"' + text.replace(/"/g, '""').replace(/[\r\n]+/g, ' ') + '"';
  }

  // Several labels in one field are a CSV of their own: a name with a comma, a quote or outer spaces stands in quotes.
  function labelField(label) {
    return /[",\n\r]|^\s|\s$/.test(label) ? '"' + label.replace(/"/g, '""') + '"' : label;
  }

  who.addEventListener('change', store);
  document.getElementById('save').addEventListener('click', () => {
    const rows = [['clip_id', 'action', 'labels', 'who', 'when', 'why']];
    for (const clip of decided()) {
      const d = decisions[clip];
      rows.push([clip, d.action, d.action === 'relabel' ? d.labels.map(labelField).join(',') : '', who.value, d.when, d.why]);
    }
    const text = rows.map(row => row.map(csvField).join(',') + '\n').join('');
    const url = URL.createObjectURL(new Blob([text], {type: 'text/csv'}));
    const link = Object.assign(document.createElement('a'), {href: url, download: 'corrections.csv'});
    document.body.append(link);
    link.click();
    link.remove();
  });
})();
