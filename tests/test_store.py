"The store of pictures: plain JPEG files beside Pillow, sets beyond the memory limit, and what may happen to their files"
import errno, io, os, random, re, subprocess, sys, threading, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
import posereid.data.pictures as P
import posereid.imagefiles as I
from posereid.core import InputError
from posereid.data.pictures import PictureStore

SIZE = (16,8)
ROW = 3*SIZE[0]*SIZE[1]

def painted(folder, n=12, size=(8,16), seed=0, end='png'):
    "Pictures of noise, each another"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    out = [str(folder/f'{i:03d}.{end}') for i in range(n)]
    for p in out: Image.fromarray(rng.integers(0, 256, (*size[::-1],3), dtype=np.uint8)).save(p)
    return out

def by_pillow(paths, size=SIZE):
    one = lambda p: Image.open(p).convert('RGB').resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.stack([np.asarray(one(p)) for p in paths]).transpose(0,3,1,2))

@pytest.fixture
def shelves(tmp_path, monkeypatch):
    "The folder of the shelves, which is not there yet"
    monkeypatch.setenv('POSEREID_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'pictures'

@pytest.fixture
def decoded(monkeypatch):
    "Paths that were decoded since it was asked last"
    seen,was = [],P.open_picture
    monkeypatch.setattr(P, 'open_picture', lambda p,c=False: (seen.append(p), was(p, c))[1])
    def _f():
        out = sorted(seen); seen.clear()
        return out
    return _f

def files(folder): return sorted(o for o in folder.iterdir() if not o.name.endswith('.lock'))
def beyond(**kw): return PictureStore(SIZE, max_bytes=0, **kw)

# plain JPEG files

def jpegs():
    rng,out = np.random.default_rng(0),{}
    soft = Image.fromarray(rng.integers(0, 256, (9,5,3), dtype=np.uint8)).resize((37,61))
    exif = Image.Exif(); exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    ways = dict(plain={}, progressive=dict(progressive=True), rough=dict(quality=5),
                full=dict(subsampling=0), half=dict(subsampling=1), restart=dict(restart_marker_rows=1),
                rgb=dict(keep_rgb=True), comment=dict(comment=b'hello'), dpi=dict(dpi=(72,72)),
                icc=dict(icc_profile=b'x'*200), exif=dict(exif=exif), xmp=dict(xmp=xmp))
    for k,kw in ways.items():
        for mode in ('RGB','L','CMYK'):
            if k=='rgb' and mode!='RGB': continue
            o = io.BytesIO(); soft.convert(mode).save(o, 'JPEG', **kw); out[k,mode] = o.getvalue()
    return out

def with_pillow(p):
    "Picture and size as Pillow alone has them; None for a file that it refuses"
    def size():
        with Image.open(p) as im: return im.size if im.getexif().get(0x0112, 1)>4 else im.size[::-1]
    def whole():
        with Image.open(p) as im: return I.upright(im)
    def ask(f):
        try: return f()
        except Exception: return None
    return ask(whole),ask(size)

def agrees(p):
    (im,size),got,got_size = with_pillow(p),None,None
    try: got_size = I.picture_size(p)
    except InputError: pass
    try: got = I.open_upright(p)
    except InputError: pass
    assert got_size==size, p
    assert (got is None)==(im is None), p
    assert im is None or (got.mode,got.size,got.tobytes())==(im.mode,im.size,im.tobytes()), p

def test_plain_jpegs_are_those_of_pillow(tmp_path):
    kinds = {}
    for k,data in jpegs().items():
        (tmp_path/'x.jpg').write_bytes(data)
        agrees(tmp_path/'x.jpg')
        kinds[k] = I._plain_jpeg(tmp_path/'x.jpg') is not None
    quick = {k for k,_ in kinds} - {'icc','exif','xmp'}
    assert {k for k,o in kinds.items() if o}=={(k,'RGB') for k in quick}

def test_large_jpegs_are_those_of_pillow(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300,300,3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path/'x.jpg', quality=95)
    assert os.path.getsize(tmp_path/'x.jpg')>I._SMALL and I._plain_jpeg(tmp_path/'x.jpg') is None
    agrees(tmp_path/'x.jpg')

def test_damaged_jpegs_are_those_of_pillow(tmp_path):
    "Cut off, overwritten and shortened at random: the same pixels and sizes, or no picture"
    rng,p = random.Random(0),tmp_path/'x.jpg'
    base = [*jpegs().values()]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(1500):
            b = bytearray(rng.choice(base))
            how = rng.randrange(4)
            if how==0: b = b[:rng.randrange(len(b))]
            elif how==1: b[rng.randrange(min(len(b), 700))] = rng.randrange(256)
            elif how==2:
                for _ in range(5): b[rng.randrange(len(b))] = rng.randrange(256)
            else: del b[(i := rng.randrange(len(b))):i+rng.randrange(9)]
            p.write_bytes(b)
            agrees(p)

# sizes

def test_a_damaged_book_of_sizes_is_written_anew(tmp_path, shelves):
    ps = painted(tmp_path/'s')
    want = I.picture_sizes(ps, keep_from=1)
    book, = (shelves.parent/'sizes').iterdir()
    whole = book.read_bytes()
    odd = whole[:16], whole[:-1], b'', whole.replace(b'\x10\0\0\0', b'\x11\0\0\0'), whole+b'\0'
    for data in odd:
        book.write_bytes(data)
        assert I.picture_sizes(ps, keep_from=1)==want and book.read_bytes()==whole

def test_sizes_without_a_place_for_them(tmp_path, shelves, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, 'No space left on device')
    ps = painted(tmp_path/'s')
    monkeypatch.setattr(I, 'write_beside', full)
    with pytest.warns(UserWarning, match='cannot be written .No space left'):
        assert set(I.picture_sizes(ps, keep_from=1).values())=={(16,8)}

# beyond the limit

def test_get_is_the_same_from_everywhere(tmp_path, shelves, decoded):
    "Memory, two shelves and files in one batch, in any order and with pictures twice"
    ps = painted(tmp_path/'s', 40)
    want,rng = by_pillow(ps),np.random.default_rng(0)
    store = PictureStore(SIZE, max_bytes=8*ROW).preload(ps[:5])
    store.preload(ps[5:20]).preload(ps[15:32])
    assert len(files(shelves))==2 and len(store)==32 and len(store._rows)==5
    store.get(ps[32:35]); assert len(store._rows)==8 # room for three more
    assert sorted(decoded())==ps[:35]
    for _ in range(30):
        i = rng.integers(0, 40, 16)
        assert torch.equal(store.get([ps[k] for k in i]), want[i])
        assert set(decoded())==set(ps[35:]) & {ps[k] for k in i}
    assert store.get([]).shape==(0,3,*SIZE)
    assert (ps[3] in store, ps[30] in store, ps[39] in store)==(True, True, False)
    assert store.sizes(ps).tolist()==[[16,8]]*40

def test_what_fits_is_not_written(tmp_path, shelves):
    ps = painted(tmp_path/'s')
    PictureStore(SIZE, max_bytes=12*ROW).preload(ps)
    PictureStore(SIZE, max_bytes=11*ROW, disk=False).preload(ps)
    beyond().get(ps) # a batch is no set
    assert not shelves.exists()
    PictureStore(SIZE, max_bytes=11*ROW).preload(ps)
    assert len(files(shelves))==1

def test_a_shelf_is_found_again(tmp_path, shelves, decoded):
    ps = painted(tmp_path/'s')
    want = by_pillow(ps)
    beyond().preload(ps)
    assert decoded()==ps
    again = beyond().preload(ps[::-1]) # in another order
    assert torch.equal(again.get(ps), want) and len(files(shelves))==1 and decoded()==[]
    assert torch.equal(beyond(disk=shelves).preload(ps).get(ps[3]), want[3:4]) and decoded()==[]
    # of what is in memory already, too
    store = PictureStore(SIZE, max_bytes=6*ROW); store.get(ps[:6]); decoded()
    assert torch.equal(store.preload(ps).get(ps), want) and decoded()==[]
    assert again.sizes(ps[:1]).tolist()==[[16,8]]

@pytest.mark.parametrize('change', ['date','length','name'])
def test_a_picture_written_anew_is_seen_by_the_next_run(tmp_path, shelves, change):
    ps = painted(tmp_path/'s', end='bmp')
    old = beyond().preload(ps)
    was,st = by_pillow(ps),os.stat(ps[4])
    Image.new('RGB', (8,17) if change=='length' else (8,16), (9,8,7)).save(ps[4])
    date = st.st_mtime_ns + (change=='date')*10**9
    os.utime(ps[4], ns=(date, date))
    if change=='name':
        new = str(tmp_path/'s'/'new.bmp'); os.rename(ps[4], new); ps[4] = new
    assert torch.equal(beyond().preload(ps).get(ps), by_pillow(ps)) and len(files(shelves))==2
    if change!='name':
        assert torch.equal(old.get(ps), was) # this run goes on with what it has
        old.forget(ps[4:5])
        assert torch.equal(old.get(ps), by_pillow(ps)) and ps[4] not in old

def test_forget_all(tmp_path, shelves, decoded):
    ps = painted(tmp_path/'s')
    store = beyond().preload(ps); decoded()
    store.forget()
    assert len(store)==0 and store.get(ps[:2]).shape[0]==2 and decoded()==ps[:2]

def test_what_rows_depend_on_is_in_the_name(tmp_path, shelves, monkeypatch):
    ps = painted(tmp_path/'s')
    beyond().preload(ps)
    PictureStore((8,16), max_bytes=0).preload(ps) # as many bytes
    beyond(convert=True).preload(ps)
    beyond().preload(ps[1:])
    assert len(files(shelves))==4
    monkeypatch.setattr(P.features, 'version', lambda o: 'another')
    assert torch.equal(beyond().preload(ps).get(ps), by_pillow(ps)) and len(files(shelves))==5
    monkeypatch.setattr(P, '_DECODER', 99)
    beyond().preload(ps)
    assert len(files(shelves))==6

@pytest.mark.parametrize('how', ['cut','longer','empty','head','sizes','another'])
def test_a_damaged_shelf_is_written_anew(tmp_path, shelves, how, decoded):
    ps = painted(tmp_path/'s', 6)
    beyond().preload(ps)
    file, = files(shelves)
    whole = file.read_bytes(); n = len(whole)
    beyond().preload(painted(tmp_path/'other', 6, seed=1))
    other, = (o.read_bytes() for o in files(shelves) if o!=file)
    file.write_bytes(dict(cut=whole[:-ROW], longer=whole+b'\0'*8, empty=b'',
        head=whole[:9]+b'7'+whole[10:], sizes=whole[:-1]+b'\1', another=other)[how])
    decoded()
    assert torch.equal(beyond().preload(ps).get(ps), by_pillow(ps))
    assert decoded()==ps and file.read_bytes()==whole and len(whole)==n

def test_a_shelf_cut_off_or_removed_during_a_run(tmp_path, shelves, decoded):
    ps = painted(tmp_path/'s')
    want,a,b = by_pillow(ps),beyond().preload(ps),beyond().preload(ps)
    b._shelves[0][0].MOST = 1 # lets go after every batch
    file, = files(shelves); decoded()
    for _ in range(3): assert torch.equal(b.get(ps), want)
    file.rename(tmp_path/'away')
    for _ in range(3): assert torch.equal(a.get(ps), want) and torch.equal(b.get(ps), want)
    assert decoded()==[]
    (tmp_path/'away').rename(file)
    os.truncate(file, 5000)
    assert torch.equal(a.get(ps), want) and decoded()==ps

def test_a_broken_picture_leaves_nothing(tmp_path, shelves):
    ps = painted(tmp_path/'s')
    Path(ps[7]).write_text('no picture')
    store = beyond()
    with pytest.raises(InputError, match='007.png is truncated or no picture'): store.preload(ps)
    assert len(store)==0 and files(shelves)==[]
    os.unlink(ps[7])
    with pytest.raises(InputError, match='007.png does not exist'): store.preload(ps)

def test_leftovers_of_a_killed_process_go(tmp_path, shelves):
    ps = painted(tmp_path/'s')
    beyond().preload(ps)
    file, = files(shelves)
    os.rename(file, left := file.with_name(f'.0123abcd-{file.name}'))
    beyond().preload(ps)
    assert files(shelves)==[file] and not left.exists()

def test_a_cache_that_cannot_be_written(tmp_path, shelves, monkeypatch):
    ps = painted(tmp_path/'s')
    beyond().preload(ps)
    def no(path, *_): raise OSError(errno.EROFS, 'Read-only file system', str(path))
    monkeypatch.setattr(P, 'holding', no)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        beyond().preload(ps) # what is there can be read
    store = PictureStore(SIZE, max_bytes=4*ROW)
    with pytest.warns(UserWarning, match='Read-only.*decoded each time; set POSEREID_CACHE'):
        store.preload(ps[1:])
    assert len(store)==4 and torch.equal(store.get(ps[1:]), by_pillow(ps[1:]))
    monkeypatch.setattr(P, 'cache_dir', lambda: no('cache'))
    with pytest.warns(UserWarning, match='cache cannot be written'): beyond().preload(ps)

def test_a_full_disk_is_a_sentence(tmp_path, shelves, monkeypatch):
    ps = painted(tmp_path/'s')
    usage = type('U', (), dict(free=12*ROW))
    monkeypatch.setattr(P.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(InputError, match='needs 0.0 GiB for 12 pictures at 16×8.*POSEREID_STORE_GB'):
        beyond().preload(ps)
    monkeypatch.undo(); monkeypatch.setenv('POSEREID_CACHE', str(shelves.parent))
    def full(_): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(P.os, 'fsync', full)
    with pytest.raises(OSError) as e: beyond().preload(ps)
    assert e.value.errno==errno.ENOSPC and str(shelves) in str(e.value.filename)
    assert files(shelves)==[]

def test_the_limit_is_a_setting(monkeypatch):
    monkeypatch.delenv('POSEREID_STORE_GB', raising=False)
    assert PictureStore().max_bytes==2<<30
    for said,n in (('0',0), ('0.5',1<<29), ('',2<<30)):
        monkeypatch.setenv('POSEREID_STORE_GB', said)
        assert PictureStore().max_bytes==n and PictureStore(max_bytes=7).max_bytes==7
    for said in ('-1','much','nan','inf'):
        monkeypatch.setenv('POSEREID_STORE_GB', said)
        with pytest.raises(InputError, match=f"POSEREID_STORE_GB.*{re.escape(said)}"): PictureStore()

def test_threads_share_a_small_batch(tmp_path, monkeypatch):
    ps = painted(tmp_path/'s', 16)
    meet,who,was = threading.Barrier(4, timeout=20),[],P.open_picture
    def f(p, c=False):
        if threading.get_ident() not in who: who.append(threading.get_ident()); meet.wait()
        return was(p, c)
    monkeypatch.setattr(P, 'open_picture', f)
    assert torch.equal(beyond(threads=4).get(ps), by_pillow(ps)) and len(who)==4

RACER = '''
import sys, time
from posereid.data import pictures as P
n,was = [],P.open_picture
P.open_picture = lambda p,c=False: (n.append(p), time.sleep(.05), was(p, c))[2]
store = P.PictureStore((16,8), max_bytes=0)
print('ready', flush=True)
sys.stdin.readline()
store.preload(sys.argv[1:])
print(len(n), int(store.get(sys.argv[1:]).long().sum()), flush=True)
'''

def test_of_two_processes_one_writes(tmp_path, shelves):
    ps = painted(tmp_path/'s', 30)
    run = lambda: subprocess.Popen([sys.executable, '-c', RACER, *ps], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [run() for _ in range(2)]
    for o in both: assert o.stdout.readline()=='ready\n'
    for o in both: o.stdin.write('\n'); o.stdin.flush()
    said = [o.communicate(timeout=100) for o in both]
    assert all(o.returncode==0 for o in both), said
    n,total = zip(*[map(int, out.split()) for out,_ in said])
    assert sorted(n)==[0,30] and set(total)=={int(by_pillow(ps).long().sum())}
    assert len(files(shelves))==1

FAT = '''
import sys
from pathlib import Path
from posereid.data.pictures import PictureStore
def now(what):
    return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith(what))/2**10
ps = sorted(map(str, Path(sys.argv[1]).iterdir()))
store = PictureStore((256,256), max_bytes=0)
store.get(ps[:64])
before = now('VmHWM')
store.preload(ps)
for _ in range(2):
    for i in range(0, len(ps), 64): store.get(ps[i:i+64])
print(before, now('VmHWM'), len(store)*store.n_bytes/2**20)
'''

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='memory is read from /proc')
def test_memory_stays_small_beyond_the_limit(tmp_path, shelves):
    "1.1 GB of rows are written and read twice with less than 0.5 GB more than before"
    one, = painted(tmp_path/'one', 1, (32,64), end='jpg')
    (tmp_path/'s').mkdir()
    for i in range(6000): os.link(one, tmp_path/'s'/f'{i}.jpg')
    out = subprocess.run([sys.executable, '-c', FAT, tmp_path/'s'], check=True, text=True,
                         capture_output=True).stdout
    before,after,rows = map(float, out.split())
    assert rows>1100 and after-before<500, out
