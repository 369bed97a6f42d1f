// The decisions of a label review: kept in the browser's local storage, saved as corrections.csv.
(() => {
  const data = document.getElementById('reviewdata');
  if (!data) return;
  const review = JSON.parse(data.textContent), key = 'audiotag:' + review.name;
  const who = document.getElementById('who');
  let decisions = {};  // clip_id: {action, labels, why, when}

  // Local storage may be switched off; the page works without it.
  try {
    decisions = JSON.parse(localStorage.getItem(key)) || {};
    who.value = localStorage.getItem('audiotag:who') || '';
  } catch (e) {}
  function store() {
    try {
      localStorage.setItem(key, JSON.stringify(decisions));
      localStorage.setItem('audiotag:who', who.value);
    } catch (e) {}
  }

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
  }

  const classes = new Set([...document.querySelectorAll('#classes option')].map(option => option.value));
  function addLabel(card, label) {
    if (classes.has(label)) change(card, d => { if (!d.labels.includes(label)) d.labels.push(label); });
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
