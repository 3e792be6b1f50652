"A rendered site, read in a browser as its readers do: POSEREID_SITE names its folder"
import functools, http.server, os, threading, urllib.parse
from pathlib import Path

import pytest

SITE = os.environ.get('POSEREID_SITE')
WIDTHS,MODES = (390,1280),('light','dark')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not SITE, reason='POSEREID_SITE names no rendered site (nbdev_docs)')]

# What a page looks like, seen from within
LOOK = r"""() => {
const clipped = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
  if (getComputedStyle(p).overflowX !== 'visible') return true; return false }
const shown = e => { const r = e.getBoundingClientRect(), s = getComputedStyle(e)
  return r.width && r.height && s.visibility !== 'hidden' && s.opacity > .3 }
const told = e => `${e.tagName.toLowerCase()} '${(e.textContent || '').trim().slice(0, 40)}'`
const rgba = s => { const m = s.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1] }
const over = (a, b) => [0,1,2].map(i => a[i]*a[3] + b[i]*(1-a[3])).concat(1)
const back = e => { const all = []; for (; e; e = e.parentElement) all.push(rgba(getComputedStyle(e).backgroundColor))
  return all.reverse().reduce((b, a) => a[3] ? over(a, b) : b, [255,255,255,1]) }
const lum = c => { const f = c.slice(0,3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4)
  return .2126*f[0] + .7152*f[1] + .0722*f[2] }
const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q-p); return (x+.05)/(y+.05) }
const faint = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
for (let t; t = walk.nextNode();) {
  const e = t.parentElement
  if (!t.textContent.trim() || !e || e.closest('script,style,svg,.visually-hidden') || !shown(e)) continue
  const b = back(e), s = getComputedStyle(e), r = ratio(over(rgba(s.color), b), b), px = parseFloat(s.fontSize)
  if (r < (px >= 24 || px >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5)) faint.add(`${told(e)} ${r.toFixed(1)}`)
}
return {
  wide: document.documentElement.scrollWidth,
  offenders: [...document.querySelectorAll('body *')].filter(e => shown(e)
    && e.getBoundingClientRect().right > innerWidth+1 && !clipped(e)).slice(0, 3).map(told),
  cut: [...document.querySelectorAll('main pre')].filter(e => shown(e) && e.scrollWidth > e.clientWidth+1).map(told),
  nameless: [...document.querySelectorAll('main img')].filter(e => !e.alt).map(e => e.src.slice(0, 80)),
  brackets: [...document.querySelectorAll('main p, main li, main td')].flatMap(e => { const o = e.cloneNode(true)
    o.querySelectorAll('code, pre').forEach(c => c.remove()); return o.textContent.match(/\]\(https?:[^)]*\)/g) || [] }),
  faint: [...faint].slice(0, 5),
  links: [...document.querySelectorAll('a[href]')].map(e => e.href),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id)}
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def looks():
    "What each page looks like at each width in each mode, and what it fetched"
    play = pytest.importorskip('playwright.sync_api', reason='the crawler needs playwright')
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f'http://127.0.0.1:{server.server_address[1]}'
    pages = sorted(o.relative_to(SITE).as_posix() for o in Path(SITE).rglob('*.html')
                   if 'site_libs' not in o.parts)
    pages = [o for o in pages if os.environ.get('POSEREID_PAGES', '') in o]
    with play.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=os.environ.get('CHROMIUM'),
                                    args=['--no-sandbox','--disable-gpu'])
        res = {(w,m,o): r for w in WIDTHS for m in MODES
               for o,r in _read(browser, base, pages, w, m).items()}
        browser.close()
    server.shutdown()
    return base,res


def _read(browser, base, pages, width, mode):
    context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=mode,
                                  reduced_motion='reduce')
    theme = 'alternate' if mode=='dark' else 'default'
    context.add_init_script(f"localStorage.setItem('quarto-color-scheme', '{theme}')")
    page,res,asked,weight = context.new_page(),{},[],[]
    page.on('request', lambda o: asked.append(o.url))
    page.on('response', lambda o: weight.append(int(o.headers.get('content-length', 0))))
    context.route(lambda url: not url.startswith((base,'data:','blob:')), lambda o: o.abort())
    for o in pages:
        asked.clear(), weight.clear()
        page.goto(f'{base}/{o}', wait_until='load')
        page.wait_for_timeout(150)
        res[o] = {**page.evaluate(LOOK), 'bytes':sum(weight),
                  'elsewhere':[u for u in asked if not u.startswith((base,'data:','blob:'))]}
    context.close()
    return res


def faults(looks, what, **only):
    "Pages with faults of a kind, as `page (width, mode): fault`"
    ok = lambda w, m: only.get('width', w)==w and only.get('mode', m)==m
    return [f'{o} ({w}, {m}): {r[what]}' for (w,m,o),r in looks[1].items() if ok(w, m) and r[what]]


def test_no_page_is_wider_than_its_window(looks):
    wide = [f"{o} ({w}, {m}): {r['wide']} px, {r['offenders']}" for (w,m,o),r in looks[1].items()
            if r['wide']>w]
    assert not wide, '\n'.join([f'{len(wide)} of {len(looks[1])}', *wide])


@pytest.mark.parametrize('what', ['cut','nameless','brackets','elsewhere'])
def test_no_fault_of_a_kind(looks, what):
    found = faults(looks, what, mode='light')
    assert not found, '\n'.join([f'{len(found)} pages', *found])


def test_every_text_can_be_read(looks):
    found = faults(looks, 'faint')
    assert not found, '\n'.join([f'{len(found)} of {len(looks[1])}', *found])


def test_pages_are_light(looks):
    heavy = [f"{o}: {r['bytes']//1024} KB" for (w,m,o),r in looks[1].items()
             if (w,m)==(1280,'light') and r['bytes']>3*2**20]
    assert not heavy, '\n'.join(heavy)


def test_links_within_the_site_lead_somewhere(looks):
    base,res = looks
    ids = {o: set(r['ids']) for (w,m,o),r in res.items()}
    dead = set()
    for (w,m,o),r in res.items():
        for url in r['links']:
            # a 404 page is shown at any address, so that its links name the site's whole path
            if not url.startswith(base) or o=='404.html': continue
            path,_,anchor = urllib.parse.unquote(url.removeprefix(base+'/')).partition('#')
            path = path.partition('?')[0]
            path = path+'index.html' if path=='' or path.endswith('/') else path
            if not (Path(SITE)/path).exists(): dead.add(f'{o}: {path}')
            elif anchor and path in ids and anchor not in ids[path]: dead.add(f'{o}: {path}#{anchor}')
    assert not dead, '\n'.join([f'{len(dead)} dead links', *sorted(dead)])
