"Descriptors by hand: each against loops over windows and pixels that follow the papers' sentences"
from fractions import Fraction

import numpy as np, pytest, torch
import torch.nn.functional as F

from posereid.core import InputError
from posereid.data.manifest import pick
from posereid.data.pictures import PictureStore
from posereid.evaluate.protocol import evaluate_reid, extract_features, to_input
from posereid.models.descriptors import (NAMES, BagOfWords, ColourNames, Descriptor, _lab,
                                         colour_names, greys, hsv_bins, lomo, lomo_dim, retinex,
                                         row_maxima, siltp)
from posereid.synth.world import load_world, tiny_world


def noise(n, h, w, seed=0, cell=1):
    "Random pictures; `cell` pixels of one colour make them coarser"
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (n,3,-(-h//cell),-(-w//cell)), dtype=np.uint8))
    return small.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., :h, :w].contiguous()


@pytest.fixture(scope='module')
def people():
    df = load_world(tiny_world()).target
    return PictureStore((128,48)).get(pick(df, 'query').path[:3])

# --- LOMO ---

def slow_hsv(r, g, b):
    "Bins of one colour, in fractions"
    top,low = max(r, g, b),min(r, g, b)
    if top==low: hue = Fraction(0)
    elif top==r: hue = Fraction(g-b, 6*(top-low))%1
    elif top==g: hue = Fraction(1, 3)+Fraction(b-r, 6*(top-low))
    else: hue = Fraction(2, 3)+Fraction(r-g, 6*(top-low))
    parts = hue, Fraction(top-low, top) if top else Fraction(0), Fraction(top, 255)
    return [min(int(8*o), 7) for o in parts]


def slow_siltp(grey, radius, tau):
    "Codes of one picture of whole numbers, pixel by pixel; τ is a fraction"
    h,w = len(grey),len(grey[0])
    p,d = tau.numerator,tau.denominator
    at = lambda y,x: grey[min(max(y, 0), h-1)][min(max(x, 0), w-1)]
    res = np.zeros((h,w), dtype=int)
    for y in range(h):
        for x in range(w):
            around = at(y,x+radius),at(y-radius,x),at(y,x-radius),at(y+radius,x)
            c = at(y, x)
            for k,n in enumerate(around):
                if n*d<(d-p)*c: res[y,x] += 3**k
                if n*d>(d+p)*c: res[y,x] += 2*3**k
    return res


def slow_rows(codes, bins):
    "For each height of a window, the largest count of each code over the windows there"
    h,w = codes.shape
    return [np.max([np.bincount(codes[y:y+10,x:x+10].ravel(), minlength=bins)
                    for x in range(0, w-9, 5)], axis=0) for y in range(0, h-9, 5)]


def halves(o):
    "Sums of 2×2 numbers; for SILTP four times the mean is as good as the mean"
    h,w = len(o)//2*2,len(o[0])//2*2
    return [[o[y][x]+o[y+1][x]+o[y][x+1]+o[y+1][x+1] for x in range(0, w, 2)]
            for y in range(0, h, 2)]


def slow_lomo(x, light):
    "LOMO of one picture `(3, h, w)`; `light` is the picture that gives the colours"
    h,w = x.shape[1:]
    planes = np.array([[slow_hsv(*light[:,i,j].tolist()) for j in range(w)] for i in range(h)])
    planes = [planes[...,k].tolist() for k in range(3)]
    weights = .298936,.587043,.114021
    grey = [[round(sum(a*b for a,b in zip(weights, x[:,i,j].tolist())))
             for j in range(w)] for i in range(h)]
    blocks = [[],[],[]]
    for k in range(3):
        if k:
            planes = [[[o//4 for o in row] for row in halves(p)] for p in planes]
            grey = halves(grey)
        hue,sat,val = (np.array(p) for p in planes)
        blocks[0] += slow_rows(hue+8*sat+64*val, 512)
        for block,r in zip(blocks[1:], (3,5)):
            block += slow_rows(slow_siltp(grey, r, Fraction(3, 10)), 81)
    blocks = [np.log(np.concatenate(o)+1.) for o in blocks]
    return np.concatenate([o/np.linalg.norm(o) for o in blocks])


@pytest.mark.parametrize('size', [(128,48), (61,51), (44,44)])
def test_lomo_is_what_the_loops_say(size, people):
    x = F.interpolate(people[:1].float(), size).byte()
    if size!=(128,48): x = torch.cat([x, noise(1, *size, cell=7)])
    for light in (True,) if size==(128,48) else (False, True):
        got = lomo(x, retinex=light)
        assert got.shape==(len(x), lomo_dim(*size)) and got.dtype==torch.float32
        for one,colours,f in zip(x, retinex(x) if light else x, got):
            want = slow_lomo(one, colours)
            assert np.abs(f.numpy()-want).max()<1e-6


def test_lomo_is_one_picture_after_the_other(people):
    x = torch.cat([people, noise(4, 128, 48, cell=5)])
    want = torch.cat([lomo(o[None]) for o in x])
    for chunk in (2, 3, 100): assert torch.allclose(lomo(x, chunk=chunk), want, atol=1e-6)
    assert lomo(x).shape[1]==26960==lomo_dim()


def test_tau_is_used(people):
    f = lomo(people, tau=.1)
    assert torch.equal(f[:,:20480], lomo(people)[:,:20480])
    assert not torch.allclose(f[:,20480:], lomo(people)[:,20480:], atol=1e-3)


def test_bins_of_colours_are_exact():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15)]*3), -1).reshape(-1, 3)
    c = np.concatenate([grid, rng.integers(0, 256, (3000,3)), rng.integers(0, 9, (300,3))])
    x = torch.from_numpy(c.astype(np.uint8)).view(-1,3,1,1)
    assert hsv_bins(x).flatten(1).tolist()==[slow_hsv(*o) for o in c.tolist()]


@pytest.mark.parametrize('radius', [1, 3, 5])
def test_codes_are_exact_at_the_limits(radius):
    "Multiples of ten are often exactly 0.7 or 1.3 of one another, where floats round either way"
    rng = np.random.default_rng(radius)
    for o in (rng.integers(0, 27, (2,12,13))*10, rng.integers(0, 256, (2,13,11)),
              rng.integers(0, 3, (2,11,12))):
        got = siltp(torch.from_numpy(o), radius)
        for a,b in zip(got, o):
            assert np.array_equal(a.numpy(), slow_siltp(b.tolist(), radius, Fraction(3, 10)))
    # with τ = 0.25 as well
    want = slow_siltp(o[0].tolist(), radius, Fraction(1, 4))
    assert np.array_equal(siltp(torch.from_numpy(o), radius, .25)[0].numpy(), want)


@pytest.mark.parametrize('h,w', [(10,10), (15,10), (10,17), (32,12), (64,24), (53,29)])
def test_windows_are_where_they_should_be(h, w):
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (3,h,w)))
    got = row_maxima(codes, 6)
    for o,c in zip(got, codes.numpy()): assert np.array_equal(o.numpy(), slow_rows(c, 6))
    full = row_maxima(codes*0+5, 6)
    assert (full[...,5]==100).all() and (full[...,:5]==0).all()


def test_retinex_is_its_formula():
    x = noise(2, 24, 17, cell=3)
    x[0] = x[0]//3
    i = (np.arange(24)[:,None,None,None], np.arange(17)[:,None,None], np.arange(24)[:,None],
         np.arange(17))
    got = retinex(x, clip=.02)
    for pic,out in zip(x.double().numpy()+1, got):
        res = np.log(pic)
        for s in (5,20):
            weight = np.exp(-((i[0]-i[2])**2+(i[1]-i[3])**2)/(2*s*s))
            weight /= weight.sum((2,3), keepdims=True)
            res = res-np.log(np.einsum('yxab,cab->cyx', weight, pic))/2
        res *= np.log(125*pic/pic.sum(0))
        order = np.sort(res.ravel())
        k = int(.02*order.size)
        low,high = order[k],order[-1-k]
        want = np.clip((res-low)/(high-low), 0, 1)*255
        assert np.abs(out.numpy()-want).max()<=.51


def test_retinex_of_one_colour_and_of_one_pixel():
    x = torch.tensor([[0,0,0],[255,255,255],[3,77,200]], dtype=torch.uint8).view(3,3,1,1)
    assert retinex(x[2:]).shape==(1,3,1,1)
    flat = x[:2].expand(2,3,20,10).contiguous()
    assert torch.equal(retinex(flat), flat)
    assert lomo(flat.repeat(1,1,7,5)).isfinite().all()


def test_inputs_are_left_as_they_were(people):
    before = people.clone()
    lomo(people), retinex(people), hsv_bins(people), greys(people), colour_names()(people)
    assert torch.equal(people, before)


def test_greys_are_rounded():
    c = np.random.default_rng(0).integers(0, 256, (500,3))
    x = torch.from_numpy(c.astype(np.uint8)).view(-1,3,1,1)
    want = np.round(c@[.298936021293775,.587043074451121,.114020904255103])
    assert np.abs(greys(x).flatten().numpy()-want).max()==0

# --- names of colours ---

def test_lab_is_the_one_of_tables():
    lab = _lab(torch.tensor([(255,255,255),(0,0,0),(255,0,0),(0,0,255),(119,)*3,(8,)*3]).double())
    want = [(100,0,0),(0,0,0),(53.24,80.09,67.20),(32.30,79.19,-107.86),(50.03,0,0),
            (903.3*8/255/12.92,0,0)] # a dark grey is on the straight part of both curves
    assert np.abs(lab.numpy()-want).max()<.02


def test_the_stand_in_is_that_of_the_middle_of_eight_values():
    table,own = colour_names(softness=15.).table,_lab(torch.tensor([*NAMES.values()]).double())
    for r,g,b in ((0,0,0), (31,0,4), (7,20,31)):
        d = (_lab(torch.tensor([[8*r+3.5,8*g+3.5,8*b+3.5]]).double())-own).norm(dim=1)
        w = (-(d/15)**2/2).exp()
        assert torch.allclose(table[r+32*g+1024*b].double(), w/w.sum(), atol=1e-5)


def test_a_prototype_bears_its_own_name():
    own = torch.tensor([*NAMES.values()], dtype=torch.uint8).view(-1,3,1,1)
    for softness in (5., 20.):
        p = colour_names(softness=softness)(own)[...,0,0]
        assert p.argmax(1).tolist()==list(range(11))
        assert torch.allclose(p.sum(1), torch.ones(11))
    assert (colour_names(softness=5.)(own)[...,0,0].diagonal()>p.diagonal()).all()


def a_table():
    return torch.from_numpy(np.random.default_rng(3).dirichlet(np.ones(11), 32**3)).float()


def test_a_pixel_is_looked_up_in_its_row():
    table,x = a_table(),noise(2, 5, 4)
    got = ColourNames(table)(x)
    assert got.shape==(2,11,5,4)
    for n in range(2):
        for i in range(5):
            for j in range(4):
                r,g,b = (x[n,:,i,j]//8).tolist()
                assert torch.equal(got[n,:,i,j], table[r+32*g+1024*b])


def test_files_of_names(tmp_path):
    from scipy.io import savemat
    table = a_table().numpy()
    savemat(tmp_path/'w2c.mat', dict(w2c=table.astype(float)))
    np.savetxt(tmp_path/'w2c.txt', table, fmt='%.8f')
    for o in ('w2c.mat','w2c.txt'):
        assert np.allclose(colour_names(tmp_path/o).table.numpy(), table, atol=1e-6)
    # with the colour first, in another order
    rgb = np.stack(np.meshgrid(*[np.arange(32)*8]*3, indexing='ij'), -1).reshape(-1, 3)
    rows = table[rgb//8@[1,32,1024]]
    np.savetxt(tmp_path/'rgb.txt', np.c_[rgb, rows], fmt='%.8f')
    assert np.allclose(colour_names(tmp_path/'rgb.txt').table.numpy(), table, atol=1e-6)


def test_files_that_are_no_names(tmp_path):
    from scipy.io import savemat
    savemat(tmp_path/'other.mat', dict(a=np.ones(3)))
    savemat(tmp_path/'cell.mat', dict(w2c='text'))
    np.savetxt(tmp_path/'flat.txt', np.ones((32**3,3)))
    np.savetxt(tmp_path/'minus.txt', -a_table().numpy(), fmt='%.2f')
    (tmp_path/'words.txt').write_text('red green\n')
    for name,said in {'other.mat':'no w2c', 'cell.mat':'must hold w2c', 'flat.txt':r'\(32768, 3\)',
                      'minus.txt':'probabilities', 'words.txt':'rows of numbers',
                      'none.txt':'There is no file'}.items():
        with pytest.raises(InputError, match=said): colour_names(tmp_path/name)

# --- bags of words ---

def plain(n, h, w, seed=0):
    "Pictures of three colours each"
    rng = np.random.default_rng(seed)
    colours = torch.from_numpy(rng.integers(0, 256, (n,3,3), dtype=np.uint8))
    which = torch.from_numpy(rng.integers(0, 3, (n,1,h//4,w//4)))
    x = colours.gather(2, which.flatten(2).expand(-1,3,-1)).view(n, 3, h//4, w//4)
    return F.interpolate(x.float(), (h,w)).byte().roll(2, 3) # patches of one colour and of two


@pytest.fixture(scope='module')
def bag():
    x = plain(12, 64, 32)
    bag = BagOfWords(ColourNames(a_table()), words=20, nearest=3, stripes=4, sigma=(.7,.4))
    return bag.fit(x),x


def slow_counts(bag, x):
    "Histograms of one picture, patch by patch"
    table = bag.names.table.double().numpy()
    words,h,w = bag.words.double().numpy(),x.shape[1]//4,x.shape[2]//4
    res = np.zeros((bag.stripes,len(words)))
    for i in range(h):
        for j in range(w):
            pixels = x[:,4*i:4*i+4,4*j:4*j+4].reshape(3,-1).T.tolist()
            f = np.mean([np.sqrt(table[r//8+32*(g//8)+1024*(b//8)]/
                                 table[r//8+32*(g//8)+1024*(b//8)].sum())
                         for r,g,b in pixels], axis=0)
            y,z = ((i+.5)-h/2)/(h/2),((j+.5)-w/2)/(w/2)
            weight = np.exp(-y*y/(2*bag.sigma[0]**2)-z*z/(2*bag.sigma[1]**2))
            near = np.argsort(((words-f)**2).sum(1))[:bag.nearest]
            res[i*bag.stripes//h, near] += weight
    return res


def test_a_bag_is_what_the_loops_say(bag):
    bag,train = bag
    test = plain(3, 64, 32, seed=5)
    counted = np.array([slow_counts(bag, o) for o in train])
    idf = np.log(len(train)/np.maximum((counted>0).any(1).sum(0), 1))
    assert np.allclose(bag.idf.numpy(), idf, atol=1e-6) and (idf>0).any()
    def weighted(c):
        f = np.sqrt(c).reshape(len(c),-1)*np.tile(idf, bag.stripes) # tf·idf/√tf
        return f/np.linalg.norm(f, axis=1, keepdims=True)
    mean = weighted(counted).mean(0)
    assert np.allclose(bag.mean.numpy(), mean, atol=1e-5)
    want = weighted(np.array([slow_counts(bag, o) for o in test]))-mean
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(bag(test).numpy()-want).max()<1e-5
    assert bag(test).shape==(3,80)


def test_words_are_the_means_of_their_patches():
    "k-means has come to rest: a word is the mean of the patches that are nearest to it"
    x = plain(6, 32, 16)
    bag = BagOfWords(words=8, nearest=1, stripes=2).fit(x)
    f = bag.patches(x).flatten(0, 2)
    own = torch.cdist(f, bag.words).argmin(1)
    for k in range(8): assert torch.allclose(f[own==k].mean(0), bag.words[k], atol=1e-4)


def test_a_bag_is_seeded_and_chunked(bag):
    bag,train = bag
    same = BagOfWords(ColourNames(a_table()), words=20, nearest=3, stripes=4, sigma=(.7,.4),
                      chunk=5).fit(train)
    for k,v in bag.state_dict().items(): assert torch.allclose(same.state_dict()[k], v, atol=1e-5)
    assert torch.allclose(same(train), bag(train), atol=1e-5)
    few = [BagOfWords(words=20, nearest=3, seed=s).fit(plain(12, 64, 32), sample=120).words
           for s in (0, 0, 1)]
    assert torch.equal(few[0], few[1]) and not torch.equal(few[0], few[2])


def test_a_bag_learns_from_training_alone(bag):
    bag,train = bag
    before = {k: v.clone() for k,v in bag.state_dict().items()}
    a = bag(train[:2])
    bag(noise(5, 64, 32, seed=9))
    assert all(torch.equal(v, before[k]) for k,v in bag.state_dict().items())
    assert torch.allclose(bag(torch.cat([train[:2], noise(3, 64, 32)]))[:2], a, atol=1e-6)


def test_a_saved_bag_is_the_same(bag):
    bag,train = bag
    other = BagOfWords(words=20, nearest=3, stripes=4, sigma=(.7,.4))
    other.load_state_dict(bag.state_dict())
    assert torch.equal(other(train), bag(train))
    sizes = [tuple(v.shape) for v in BagOfWords().state_dict().values()]
    assert (350,11) in sizes and (5600,) in sizes and (32768,11) in sizes


def test_stripes_that_do_not_divide_the_rows():
    bag = BagOfWords(words=5, nearest=1, stripes=3, sigma=None).fit(plain(8, 32, 8))
    c = bag.counts(noise(1, 32, 8))   # 8 rows of 2 patches
    assert c.sum(2).tolist()==[[6.,6.,4.]]
    assert bag(noise(2, 34, 11)).shape==(2,15) # a border that fills no patch is left out
    x = noise(1, 35, 11)
    assert torch.equal(bag.patches(x), bag.patches(x[:,:,:32,:8]))

# --- where a net stands ---

def test_bytes_come_back_exactly():
    every = torch.arange(256, dtype=torch.uint8).view(1,1,16,16).expand(2,3,16,16)
    seen = []
    d = Descriptor(lambda o: (seen.append(o), o.flatten(1).float())[1], (16,16))
    assert torch.equal(d.embed(to_input(every)), every.flatten(1).float())
    assert seen[0].dtype==torch.uint8 and seen[0].is_contiguous()


def test_other_sizes_are_resized_with_care():
    "A chessboard of single pixels becomes grey when halved, and not all black or all white"
    board = ((torch.arange(32)[:,None]+torch.arange(32))%2*255).byte().expand(1,3,32,32)
    o = Descriptor(lambda o: o, (16,16)).embed(to_input(board)).float()
    assert (o[...,2:-2,2:-2]-127.5).abs().max()<8
    assert Descriptor(lomo).embed(to_input(noise(2, 64, 32))).shape==(2,26960)
    white = torch.full((1,3,70,30), 255, dtype=torch.uint8)
    assert (Descriptor(lambda o: o).embed(to_input(white))==255).all()


def test_the_evaluation_takes_descriptors(people):
    d = Descriptor(lomo)
    f = extract_features(d, people, device='cpu')
    assert torch.allclose(f, F.normalize(lomo(people), dim=1), atol=1e-6)
    assert d.training # as it was
    both = extract_features(d, people, flip=True, device='cpu')
    assert torch.allclose(both, F.normalize(lomo(people)+lomo(people.flip(-1)), dim=1), atol=1e-6)
    grey = extract_features(d, people, grey=True, device='cpu')
    assert not torch.allclose(grey, f, atol=1e-3)
    df = load_world(tiny_world()).target
    bag = BagOfWords(words=40).fit(PictureStore((128,64)).get(pick(df, 'train').path[:20]))
    bag = Descriptor(bag, (128,64))
    assert len(bag.state_dict())==5
    store = PictureStore((64,32))
    got = {k: evaluate_reid(v, df, store, device='cpu') for k,v in dict(lomo=d, bow=bag).items()}
    assert got['lomo'].map_mean>.6>got['bow'].map_mean>.1

# --- what is refused ---

@pytest.mark.parametrize('call,said', [
    (lambda x: lomo(x.float()), 'uint8 tensor.*float32'),
    (lambda x: lomo(x.numpy()), 'uint8 tensor.*ndarray'),
    (lambda x: lomo(x[:,:1]), r'shape \(n, 3, h, w\)'),
    (lambda x: lomo(x[0]), r'shape \(n, 3, h, w\)'),
    (lambda x: lomo(x[:0]), 'no pictures'),
    (lambda x: lomo(x[:,:,:43]), 'at least 44×44.*43×48'),
    (lambda x: lomo(x[...,:43]), 'at least 44×44.*128×43'),
    (lambda x: retinex(x.float()), 'uint8'),
    (lambda x: hsv_bins(x[:0]), 'no pictures'),
    (lambda x: greys(x[:,:2]), 'shape'),
    (lambda x: colour_names()(x.float()), 'uint8'),
    (lambda x: siltp(x[:,0].short(), 30), 'at least 61 pixels'),
    (lambda x: siltp(x[:,0].short(), 0), '`radius` must'),
    (lambda x: siltp(x[:,0].short(), 3, 1.5), '`tau` between'),
    (lambda x: BagOfWords()(x), 'before `fit`'),
    (lambda x: BagOfWords().fit(x[:1]*0), 'needs as many different patches, but there are 1'),
    (lambda x: BagOfWords().fit(x[:,:,:60]), 'at least 64×4'),
    (lambda x: BagOfWords().fit(x[:0]), 'no pictures'),
    (lambda x: BagOfWords(words=3, nearest=3).fit(x), 'No word tells'),
    (lambda x: BagOfWords(words=5), '`nearest` must'),
    (lambda x: BagOfWords(nearest=0), '`nearest` must'),
    (lambda x: BagOfWords(stripes=0), '`stripes` must'),
    (lambda x: BagOfWords(sigma=1.), '`sigma` must'),
    (lambda x: BagOfWords(sigma=(1.,0.)), '`sigma` must'),
    (lambda x: ColourNames(torch.ones(5, 11)), '32768 rows'),
    (lambda x: Descriptor(lomo).embed(x), 'float pictures'),
])
def test_refused(call, said):
    with pytest.raises(InputError, match=said) as e: call(noise(2, 128, 48))
    assert str(e.value).count('. ')==0 and str(e.value).endswith('.')


def test_limits_that_are_allowed():
    assert lomo(noise(1, 44, 44)).shape==(1, lomo_dim(44, 44))
    assert siltp(torch.ones(1, 7, 7, dtype=torch.int16), 3).shape==(1,7,7)
    assert BagOfWords(words=10).nearest==10
