'use strict';

// Tables: a click on a head sorts by that column; missing values come last.
const isNumber = value => value !== '' && !isNaN(value);

function sortBy(th) {
  const table = th.closest('table'), column = [...th.parentNode.children].indexOf(th), body = table.tBodies[0];
  const sorted = th.getAttribute('aria-sort');
  const descending = sorted ? sorted === 'ascending' : th.classList.contains('n');
  for (const other of th.parentNode.children) other.removeAttribute('aria-sort');
  th.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  const key = row => row.cells[column].dataset.v;
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    const order = isNumber(x) && isNumber(y) ? x - y : x.localeCompare(y, undefined, {numeric: true});
    return descending ? -order : order;
  });
  body.append(...rows);
  fold(table);
}
for (const th of document.querySelectorAll('th')) th.addEventListener('click', () => sortBy(th));

// Long tables show their first data-rows rows until the button below is pressed.
function fold(table) {
  const shown = +table.dataset.rows;
  [...table.tBodies[0].rows].forEach((row, i) => row.classList.toggle('more', shown > 0 && i >= shown));
}
for (const table of document.querySelectorAll('table[data-rows]')) {
  fold(table);
  const button = Object.assign(document.createElement('button'), {
    type: 'button', className: 'unfold', textContent: `all ${table.tBodies[0].rows.length} rows`,
  });
  button.addEventListener('click', () => { delete table.dataset.rows; fold(table); button.remove(); });
  table.parentNode.append(button);
}

// Wide tables say that they scroll, and show on which side there is more.
function showScroll(box) {
  const rest = box.scrollWidth - box.clientWidth;
  box.classList.toggle('wide', rest > 2);
  box.classList.toggle('more-left', rest > 2 && box.scrollLeft > 2);
  box.classList.toggle('more-right', rest > 2 && box.scrollLeft < rest - 2);
  if (rest > 2) box.tabIndex = 0; else box.removeAttribute('tabindex');
}
for (const box of document.querySelectorAll('.scroll')) {
  box.addEventListener('scroll', () => showScroll(box), {passive: true});
  new ResizeObserver(() => showScroll(box)).observe(box);
  showScroll(box);
}

// Players: a press on the picture plays the sound and stops the others.
for (const player of document.querySelectorAll('.player')) {
  const audio = player.querySelector('audio'), cursor = player.querySelector('.cursor');
  const step = () => {
    cursor.style.left = 100 * audio.currentTime / (audio.duration || 1) + '%';
    if (!audio.paused) requestAnimationFrame(step);
  };
  player.querySelector('button').addEventListener('click', () => {
    if (!audio.paused) return audio.pause();
    for (const other of document.querySelectorAll('audio')) if (other !== audio) other.pause();
    audio.play();
  });
  audio.addEventListener('play', () => { player.classList.add('playing'); step(); });
  for (const event of ['pause', 'ended']) audio.addEventListener(event, () => player.classList.remove('playing'));
}
