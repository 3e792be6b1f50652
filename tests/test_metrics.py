"Metrics against slow loops that follow the definitions word by word, and against scikit-learn"
import numpy as np, pandas as pd, pytest, torch
from posereid.core import InputError
from posereid.metrics import retrieval as counting
from posereid.metrics.images import DIALECT, l1_error, psnr, score_pictures, ssim, unit_pictures
from posereid.metrics.retrieval import (_sort_rows, sought_columns, ap_mean, ap_trapezoid,
                                        cosine_distance,
                                        euclidean_distance, gallery_masks, positive_ranks,
                                        retrieval, score_features, top_matches)
from posereid.metrics.protocols import multi_query, pool_features, single_shot_cmc, tpr_at_far
from posereid.metrics.stats import (bootstrap_interval, compare_runs, mean_interval,
    paired_interval, paired_table, per_query, permutation_p, write_per_query)


def loop_query(dist, pid, cam, g_pids, g_cams):
    "The filtered list of one query as True (the person) and False, nearest first"
    order = sorted(range(len(dist)), key=lambda j: dist[j])  # Python's sort is stable
    hits = []
    for j in order:
        if g_pids[j]==-1: continue
        if g_pids[j]==pid and g_cams[j]==cam and cam!=0: continue
        hits.append(bool(g_pids[j]==pid))
    return hits


def loop_trapezoid(hits):
    "The MATLAB loop: area under precision over recall, one gallery picture at a time"
    n, found, seen, ap, old_recall, old_precision = sum(hits), 0, 0, 0., 0., 1.
    for h in hits:
        found, seen = found+h, seen+1
        recall, precision = found/n, found/seen
        ap += (recall-old_recall)*(old_precision+precision)/2
        old_recall, old_precision = recall, precision
    return ap


def loop_mean(hits):
    n, found, ap = sum(hits), 0, 0.
    for i,h in enumerate(hits, 1):
        if h:
            found += 1
            ap += found/i
    return ap/n


def loop_scores(dist, q_pids, g_pids, q_cams, g_cams, max_rank, empty):
    cmc, trap, mean, inp = [], [], [], []
    for i in range(len(q_pids)):
        hits = loop_query(dist[i], q_pids[i], q_cams[i], g_pids, g_cams)
        if not any(hits):
            if empty=='skip': continue
            cmc.append([0.]*max_rank); trap.append(0.); mean.append(0.); inp.append(0.)
            continue
        cmc.append([float(any(hits[:k])) for k in range(1, max_rank+1)])
        trap.append(loop_trapezoid(hits)); mean.append(loop_mean(hits))
        inp.append(sum(hits)/max(i for i,h in enumerate(hits, 1) if h))
    return np.mean(cmc, 0), np.mean(trap), np.mean(mean), np.mean(inp), len(cmc)


def random_case(seed, ties):
    "Small random test sets with junk, distractors, unknown cameras, and people whom nobody else has seen"
    rng = np.random.default_rng(seed)
    nq, ng, n_ids, n_cams = (rng.integers(1, 12), rng.integers(1, 60), rng.integers(1, 9),
                             rng.integers(1, 5))
    g_pids = rng.choice(np.r_[-1, 0, 1:n_ids+1], ng)
    q_pids = np.r_[rng.integers(1, n_ids+2, nq), g_pids[g_pids>0][:1]]
    # in every third case some are 0, unknown
    cams = lambda n: rng.integers(seed%3==0 and -1 or 0, n_cams, n)+1
    dist = rng.random((len(q_pids), ng))
    if ties: dist = (dist*4).round()/4
    return dist, q_pids, g_pids, cams(len(q_pids)), cams(ng)


@pytest.mark.parametrize('empty', ['zero','skip'])
@pytest.mark.parametrize('ties', [False,True])
def test_retrieval_equals_loop(ties, empty):
    tried = 0
    for seed in range(60):
        case = random_case(seed, ties)
        masks = [gallery_masks(p, c, case[2], case[4])[0].any() for p,c in zip(case[1], case[3])]
        if not any(masks): continue
        res, tried = retrieval(*case, max_rank=20, empty=empty), tried+1
        cmc, trap, mean, inp, n = loop_scores(*case, 20, empty)
        np.testing.assert_allclose(res.cmc, cmc, atol=1e-12)
        np.testing.assert_allclose([res.map_trap, res.map_mean, res.minp], [trap, mean, inp],
                                   atol=1e-12)
        assert ((res.n_valid, res.counted.sum(), res.n_gallery)
                == (sum(masks), n, (case[2]!=-1).sum()))
        assert [res.rank(k) for k in (1,5,20)] == pytest.approx([cmc[0], cmc[4], cmc[19]])
    assert tried>40


def test_second_witness_sklearn():
    from sklearn.metrics import average_precision_score
    for seed in range(0, 60, 3):
        dist, q_pids, g_pids, q_cams, g_cams = random_case(seed, ties=False)
        for i in range(len(q_pids)):
            good, removed = gallery_masks(q_pids[i], q_cams[i], g_pids, g_cams)
            if not good.any(): continue
            res = retrieval(dist[i:i+1], q_pids[i:i+1], g_pids, q_cams[i:i+1], g_cams)
            assert res.map_mean == pytest.approx(
                average_precision_score(good[~removed], -dist[i][~removed]), abs=1e-9)


def test_worked_aps():
    assert (ap_trapezoid([1,3]) == pytest.approx(.791667, abs=1e-6)
            and ap_mean([1,3]) == pytest.approx(.833333, abs=1e-6))
    assert ap_trapezoid([2]) == .25 and ap_mean([2]) == .5
    assert ap_trapezoid([3,1]) == ap_trapezoid([1,3])  # in any order
    assert ap_mean([1], n=2) == .5 and ap_trapezoid([], n=3) == 0


def test_trapezoid_is_never_larger():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ranks = np.sort(rng.choice(50, rng.integers(1, 10), replace=False))+1
        assert ap_trapezoid(ranks) <= ap_mean(ranks)+1e-12


@pytest.mark.parametrize('kind', [np.float32, np.float64, torch.float32, torch.float16,
                                  torch.bfloat16, list])
def test_kinds_of_input(kind):
    dist = [[.5,.25,.75]]
    d = (dist if kind is list else torch.tensor(dist, dtype=kind) if isinstance(kind, torch.dtype)
         else np.array(dist, kind))
    ids = pd.Series([7]), torch.tensor([8,7,7]), [1], np.array([2,2,3], dtype=np.int32)
    a = retrieval(d, *ids)
    assert a.map_mean == pytest.approx((1+2/3)/2) and a.first_rank.tolist()==[1]


def test_ties_go_by_gallery_order():
    late, early = (retrieval(np.zeros((1,4)), [1], g, [1], [2]*4) for g in ([2,3,0,1], [1,2,3,0]))
    assert (late.first_rank[0], early.first_rank[0]) == (4, 1)


def test_junk_leaves_no_trace_and_distractors_do():
    rng = np.random.default_rng(0)
    base = random_case(1, ties=False)
    def with_extra(pid):
        dist = np.c_[base[0], np.zeros((len(base[0]), 5))]
        return retrieval(dist, base[1], np.r_[base[2], [pid]*5], base[3],
                         np.r_[base[4], rng.integers(1, 5, 5)])
    plain = retrieval(*base)
    assert with_extra(-1).to_dict() == plain.to_dict()
    assert with_extra(0).map_mean < plain.map_mean


def test_short_gallery_continues_flat():
    res = retrieval([[.1,.2]], [1], [2,1], [1], [2,2], max_rank=10)
    assert res.cmc.tolist() == [0]+[1]*9 and res.rank(500)==1


def test_order_of_inputs_does_not_matter():
    dist, q_pids, g_pids, q_cams, g_cams = random_case(5, ties=False)
    rng = np.random.default_rng(0)
    q, g = rng.permutation(len(q_pids)), rng.permutation(len(g_pids))
    a = retrieval(dist, q_pids, g_pids, q_cams, g_cams)
    b = retrieval(dist[q][:,g], q_pids[q], g_pids[g], q_cams[q], g_cams[g])
    np.testing.assert_allclose(a.ap_trap[q], b.ap_trap)
    assert b.map_mean == pytest.approx(a.map_mean)


@pytest.mark.parametrize('change,says', [
    (dict(dist=np.zeros(3)), 'pass `x[None]`'), (dict(dist=np.zeros((0,3))), 'nothing to rank'),
    (dict(dist=np.full((1,3), np.nan)), 'NaN'), (dict(q_pids=[-1]), 'belong in the gallery'),
    (dict(g_pids=[1,2]), '`g_pids` must be 3 integers'),
    (dict(g_camids=[1.,2.,3.]), '`g_camids` must be'), (dict(empty='drop'), "'zero' or 'skip'"),
    (dict(g_pids=[2,2,3], empty='skip'), 'nothing to average')])
def test_bad_rankings(change, says):
    args = dict(dist=np.zeros((1,3)), q_pids=[1], g_pids=[1,2,3], q_camids=[1],
                g_camids=[2,2,2]) | change
    with pytest.raises(InputError) as e: retrieval(**args)
    assert says in str(e.value)


def test_nothing_to_find_counts_zero():
    res = retrieval(np.zeros((1,2)), [1], [2,3], [1], [2,2])
    assert (res.map_trap, res.map_mean, res.rank(1), res.minp, res.n_valid) == (0,0,0,0,0)


def test_top_matches_equal_loop():
    for seed in range(40):
        case = random_case(seed, ties=True)
        idxs, right = top_matches(*case, k=15)
        for i in range(len(idxs)):
            hits = loop_query(case[0][i], case[1][i], case[3][i], case[2], case[4])[:15]
            n = len(hits)
            assert right[i,:n].tolist()==hits and (idxs[i,n:]==-1).all() and not right[i,n:].any()
            assert (np.diff(case[0][i][idxs[i,:n]])>=0).all()


def test_many_positives_and_the_device_path_rank_alike():
    "A person with hundreds of pictures is ranked by a sort; tensors elsewhere by another; ties in all of them"
    rng = np.random.default_rng(0)
    for n,levels in ((300,10**9), (300,7), (3000,40)):
        d = rng.integers(0, levels, (4,n))/levels
        g_pids, g_cams = rng.choice([-1,0,1,2], n), rng.integers(1, 4, n)
        q_pids, q_cams = np.array([1,2,1,5]), np.array([1,2,0,1])
        masks = [gallery_masks(p, c, g_pids, g_cams) for p,c in zip(q_pids, q_cams)]
        words = [[1+k for k,h in enumerate(loop_query(d[i], q_pids[i], q_cams[i], g_pids, g_cams))
                  if h] for i in range(4)]
        assert [positive_ranks(d[i], *masks[i]).tolist() for i in range(4)]==words
        assert [o.tolist()
                for o in _sort_rows(torch.from_numpy(d),
                                    sought_columns(q_pids, g_pids, q_cams, g_cams))]==words


def test_layout_in_memory_does_not_matter_and_input_is_left_alone():
    case = random_case(1, ties=True)
    ref, kept = retrieval(*case), case[0].copy()
    for d in (np.asfortranarray(case[0]), np.repeat(case[0], 2, axis=1)[:,::2],
              case[0][:,::-1].copy()[:,::-1], torch.from_numpy(case[0]).T.contiguous().T):
        assert retrieval(d, *case[1:]).to_dict()==ref.to_dict()
    assert (case[0]==kept).all()
    d = torch.from_numpy(case[0])
    _sort_rows(d, sought_columns(*case[1:])); assert (d.numpy()==kept).all()


def many_layouts(order, ties, seed=0, n=(23,400), ids=6):
    "Queries and a gallery, sorted or mixed, with junk, distractors, and a person of many pictures"
    rng = np.random.default_rng(seed)
    share = np.r_[.05, .05, .35, np.full(ids-1, .55/(ids-1))]  # junk, distractors, persons
    g_pids = rng.choice(np.arange(-1, ids+1), n[1], p=share)
    if order=='sorted': g_pids.sort()
    q_pids = rng.integers(1, ids+3, n[0])  # the last are not in the gallery
    dist = rng.integers(-9, 9, n).astype(float) if ties else rng.normal(size=n)
    return dist, q_pids, g_pids, rng.integers(0, 4, n[0]), rng.integers(0, 4, n[1])


def slow_ranks(dist, q_pids, g_pids, q_cams, g_cams):
    return [[i for i,h in enumerate(loop_query(*o, g_pids, g_cams), 1) if h]
            for o in zip(dist.tolist(), q_pids, q_cams)]


@pytest.mark.parametrize('order', ['sorted','mixed'])
@pytest.mark.parametrize('ties', [False,True])
@pytest.mark.parametrize('kind', ['float16','float32','float64','int32','fortran','strided'])
def test_ranks_equal_a_loop_however_they_are_counted(order, ties, kind, monkeypatch):
    dist, *ids = many_layouts(order, ties)
    d = {'fortran': np.asfortranarray, 'strided': lambda o: np.repeat(o, 2, axis=1)[:,::2]}.get(
        kind, lambda o: (o*100*(kind=='int32') + o*(kind!='int32')).astype(kind))(dist)
    d.flags.writeable = False
    want, sought = slow_ranks(d, *ids), sought_columns(*ids)
    assert max(map(len, want))>64 and min(map(len, want))==0
    # all at once; columns in steps of seven; a few comparisons at once; a row at a time
    for wide, size in ((2**15,2**21), (7,2**21), (2**15,2**9), (64,1)):
        monkeypatch.setattr(counting, '_WIDE', wide); monkeypatch.setattr(counting, '_BYTES', size)
        for threads in (1,2,5):
            got = counting._block_ranks(d, sought, threads)
            assert [o.tolist() for o in got]==want, (wide, size, threads)
    for i in range(len(d)):
        for threads in (1,3):
            assert counting._block_ranks(d[i:i+1], sought[i:i+1], threads)[0].tolist()==want[i]


@pytest.mark.parametrize('layout', ['C','F'])
@pytest.mark.parametrize('kind', ['float64','int64'])
def test_distances_that_single_precision_takes_for_equal(layout, kind):
    dist, *ids = many_layouts('sorted', True)
    d = 2**40+dist.astype(kind) if kind=='int64' else 1+1e-9*dist
    got = counting._block_ranks(d.astype(kind, order=layout), sought_columns(*ids))
    assert [o.tolist() for o in got]==slow_ranks(d, *ids)


@pytest.mark.parametrize('order', ['sorted','mixed'])
def test_long_galleries_are_counted_in_bytes_that_do_not_run_over(order):
    "Every word of eight comparisons is added up to 255 times; here all of them are hits"
    for n in (2039, 2040, 2041, 4081, 32767, 32768, 32769, 70000):
        g = np.zeros(n, dtype=int); g[[n//2, n//2+1] if order=='sorted' else [0, n-1]] = 1
        d = np.zeros((1,n), dtype=np.float32); d[0,g==1] = 1, 2
        ids = np.ones(1, dtype=int), g, np.ones(1, dtype=int), np.full(n, 2)
        assert counting._block_ranks(d, sought_columns(*ids))[0].tolist()==[n-1, n]


def test_sought_columns_are_the_masks():
    for seed, order in enumerate(('sorted','mixed')*3):
        _, q_pids, g_pids, q_cams, g_cams = many_layouts(order, True, seed)
        s = sought_columns(q_pids, g_pids, q_cams, g_cams)
        assert s.junk.tolist()==np.flatnonzero(g_pids==-1).tolist()
        for i in range(len(q_pids)):
            good, removed = gallery_masks(q_pids[i], q_cams[i], g_pids, g_cams)
            assert s.good[i].tolist()==np.flatnonzero(good).tolist()
            assert s.gone[i].tolist()==np.flatnonzero(removed & (g_pids!=-1)).tolist()


def test_threads_do_not_change_scores_and_must_be_positive():
    rng = np.random.default_rng(0)
    d = rng.integers(0, 500, (90,25000)).astype(np.float32)
    ids = (np.arange(90)+1, rng.integers(-1, 91, 25000),
           rng.integers(1, 7, 90), rng.integers(1, 7, 25000))
    assert counting._n_threads(3, d.size)==3 and counting._n_threads(3, 1000)==1
    assert counting._n_threads(None, 2**30)==torch.get_num_threads()
    one, *more = (retrieval(d, *ids, threads=o) for o in (1,2,5,None))
    assert all((o.ranks==one.ranks).all() and o.to_dict()==one.to_dict() for o in more)
    with pytest.raises(InputError, match='`threads` must be 1'): retrieval(d, *ids, threads=0)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', [np.float16,np.float32,np.float64,torch.float32,torch.float64])
@pytest.mark.parametrize('bad', [np.nan,np.inf,-np.inf])
def test_one_bad_distance_anywhere_is_refused(kind, bad):
    ids = [1,1,1], [1,2,3,1,2], [1]*3, [2]*5
    for i,j in ((0,0), (1,2), (2,4)):
        d = np.zeros((3,5)); d[i,j] = bad
        d = torch.tensor(d).to(kind) if isinstance(kind, torch.dtype) else d.astype(kind)
        for o in (d, d[:,::1], d.T.copy().T if isinstance(d, np.ndarray) else d.T.contiguous().T):
            with pytest.raises(InputError, match='NaN or infinite'): retrieval(o, *ids)


@pytest.mark.filterwarnings('error')
def test_large_finite_distances_are_ranked():
    for kind in (np.float16,np.float32,np.float64):
        big = np.finfo(kind).max
        d = np.array([[big, -big, 0, big]], dtype=kind)
        assert retrieval(d, [1], [1,2,3,2], [1], [2]*4).ranks.tolist()==[3]
        assert retrieval(torch.tensor(d), [1], [2,1,3,2], [1], [2]*4).ranks.tolist()==[1]


def features(seed=0, n=(15,60), d=8, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    pids = [rng.integers(1, 6, n[0]), rng.choice([-1,0,1,2,3,4,5], n[1])]
    return ([torch.as_tensor(rng.normal(size=(k,d))).to(dtype) for k in n],
            [*pids, rng.integers(1, 4, n[0]), rng.integers(1, 4, n[1])])


@pytest.mark.parametrize('chunk', [None,1,7,1000])
def test_scores_from_features_equal_those_from_the_matrix(chunk):
    (q,g), ids = features()
    unit = [torch.nn.functional.normalize(o) for o in (q,g)]
    for kwargs,d in ((dict(), euclidean_distance(q, g)),
                     (dict(distance='squared'), euclidean_distance(q, g, squared=True)),
                     (dict(distance='cosine'), cosine_distance(q, g)),
                     (dict(normalise=True), euclidean_distance(*unit))):
        a, b = score_features(q, g, *ids, chunk=chunk, **kwargs), retrieval(d, *ids)
        assert (a.ranks==b.ranks).all() and a.map_trap==b.map_trap
        assert ((kwargs.get('distance') or 'euclidean') in a.protocol
                and ('L2-normalised' in a.protocol)==('normalise' in kwargs))


@pytest.mark.parametrize('kind', [torch.float16,torch.bfloat16,np.float16,np.float64,'strided'])
def test_kinds_of_features(kind):
    (q,g), ids = features()
    if kind=='strided': x = [torch.stack([o,o*9], 2)[...,0] for o in (q,g)]
    else:
        x = [o.to(kind) if isinstance(kind, torch.dtype) else o.numpy().astype(kind) for o in (q,g)]
    full = [torch.as_tensor(np.asarray(o.float() if isinstance(o, torch.Tensor) else o)) for o in x]
    full = [o.float() if o.dtype==torch.float16 else o for o in full]
    assert (score_features(*x, *ids).ranks==retrieval(euclidean_distance(*full), *ids).ranks).all()


@pytest.mark.parametrize('change,says', [
    (dict(q=torch.zeros(15,7)), 'one length'), (dict(q=torch.zeros(15)), 'features of the queries'),
    (dict(g=torch.zeros(0,8)), 'nothing to rank'),
    (dict(q=torch.zeros(0,8), q_pids=[], q_camids=[]), 'nothing to rank'),
    (dict(g=torch.full((60,8), float('nan'))), 'NaN'),
    (dict(q=torch.full((15,8), 1e30)), 'not finite'),
    (dict(distance='manhattan'), 'euclidean, squared, cosine'),
    (dict(g_pids=['7']*60), 'astype(int)'), (dict(g_camids=[1]*59), '60 integers'),
    (dict(g_camids=[1]*60, q_camids=[1]*15), 'pass camera 0'), (dict(empty='drop'), 'zero')])
def test_bad_features(change, says):
    (q,g), ids = features()
    args = dict(q=q, g=g) | dict(zip(('q_pids','g_pids','q_camids','g_camids'), ids)) | change
    with pytest.raises(InputError) as e: score_features(**args)
    assert says in str(e.value)


def test_one_camera_is_refused_unless_unknown():
    args = np.array([[.1,.2]]), [1], [1,2]
    for empty in ('zero','skip'):
        with pytest.raises(InputError, match='pass camera 0'):
            retrieval(*args, [1], [1,1], empty=empty)
    assert retrieval(*args, [0], [0,0]).rank(1)==1


def test_both_conventions_from_one_ranking():
    for seed in range(20):
        case = random_case(seed, ties=True)
        if not any(gallery_masks(p, c, case[2], case[4])[0].any() for p,c in zip(case[1], case[3])):
            continue
        zero, skip = (retrieval(*case, empty=o) for o in ('zero','skip'))
        for a,b in ((zero.under('skip'),skip), (skip.under('zero'),zero)):
            assert a.to_dict()==b.to_dict() and (a.cmc==b.cmc).all() and a.empty==b.empty
        assert zero.map_mean*zero.n_query == pytest.approx(skip.map_mean*skip.n_valid)


def test_result_shows_and_writes_itself(tmp_path):
    import json
    res = retrieval([[.1,.2],[.1,.2]], [1,3], [2,1], [1,1], [2,2])
    res.write_json(tmp_path/'r.json')
    d = json.loads((tmp_path/'r.json').read_text())
    assert (d['rank5'], d['both']['skip']['rank5'], d['cmc'][1], d['n_valid']) == (.5, 1, .5, 1)
    assert 'ties in gallery order' in d['protocol'] and d['empty']=='zero'
    assert ('| are skipped | 0.0 | 100.0' in res._repr_markdown_()
            and '1 of 2 queries' in res._repr_markdown_())
    assert 'skipped |' not in res.under('skip')._repr_markdown_().split('without')[0]


def test_all_shots_cmc():
    "Three expected curves that another project tests with, and the definition"
    line = lambda n: np.tile(np.arange(float(n)), (n,1))
    assert (retrieval(line(4), [1,1,2,2], [1,1,2,2], [1]*4, [2]*4).cmc_all_shots(4)
            .tolist()==[.5,.5,1,1])
    ids = [1,1,1,2,2]
    np.testing.assert_allclose(retrieval(line(5), ids, ids, [1]*5, [1,2,2,2,2]).cmc_all_shots(5),
                               [.6,.6,.6,1,1])
    d = np.array([[0,1,2,3,4],[1,0,2,3,4],[0,1,2,3,4],[0,1,2,3,4],[1,2,3,4,0.]])
    np.testing.assert_allclose(retrieval(d, range(1, 6), range(1, 6), [1]*5, [2]*5)
                               .cmc_all_shots(5), [.6,.6,.8,1,1])
    for seed in range(10):
        case = random_case(seed, ties=True)
        res, curve = retrieval(*case), np.zeros(8)
        for i in range(len(case[1])):
            hits = loop_query(case[0][i], case[1][i], case[3][i], case[2], case[4])
            before = [hits[:k].count(False) for k,h in enumerate(hits) if h]
            if before: curve += [np.mean([b<k for b in before]) for k in range(1, 9)]
        np.testing.assert_allclose(res.cmc_all_shots(8), curve/len(case[1]))


def test_single_shot_tends_to_its_expectation():
    "Rank-1 of a query: for each of her pictures, the chance that everybody else's drawn picture is farther"
    rng = np.random.default_rng(3)
    d, g_pids = rng.random((12,40)), np.r_[rng.integers(1, 7, 38), -1, 0]
    q_pids, cams = np.arange(12)%6+1, np.full(40, 2)
    exact = []
    for row,p in zip(d, q_pids):
        others = [row[g_pids==o] for o in {*g_pids.tolist()}-{p,-1}]
        exact.append(np.mean([np.prod([(o>x).mean() for o in others]) for x in row[g_pids==p]]))
    got = single_shot_cmc(d, q_pids, g_pids, [1]*12, cams, repeats=400)
    assert got[0]==pytest.approx(np.mean(exact), abs=.03) and got[6]==1 and (np.diff(got)>=0).all()
    assert (got==single_shot_cmc(d, q_pids, g_pids, [1]*12, cams, repeats=400)).all()
    assert (got!=single_shot_cmc(d, q_pids, g_pids, [1]*12, cams, repeats=400, seed=1)).any()


def test_tpr_at_far_equals_the_definition():
    for seed in range(30):
        dist, q_pids, g_pids, q_cams, g_cams = random_case(seed, ties=seed%2)
        masks = [gallery_masks(p, c, g_pids, g_cams) for p,c in zip(q_pids, q_cams)]
        right = np.concatenate([d[g] for d,(g,_) in zip(dist, masks)])
        wrong = np.sort(np.concatenate([d[~g & ~r] for d,(g,r) in zip(dist, masks)]))
        if not len(right) or not len(wrong): continue
        for o in tpr_at_far(dist, q_pids, g_pids, q_cams, g_cams, fars=(0,.01,.1,.5,1)):
            allowed = [t for t in [*wrong,np.inf] if (wrong<t).mean()<=o.far]
            assert o.threshold==max(allowed) and o.tpr==(right<max(allowed)).mean()
    with pytest.raises(InputError): tpr_at_far(*random_case(1, False), fars=(2,))


def test_pooling_equals_a_loop():
    rng = np.random.default_rng(0)
    f, t = rng.normal(size=(50,4)).astype(np.float32), rng.integers(0, 9, 50)
    for how,fn in (('mean',np.mean), ('max',np.max)):
        pooled, first = pool_features(f, t, how)
        seen = list(dict.fromkeys(t.tolist()))
        np.testing.assert_allclose(pooled, [fn(f[t==o], 0) for o in seen], atol=1e-6)
        assert t[first].tolist()==seen and first.tolist()==[t.tolist().index(o) for o in seen]
    pids, cams = rng.integers(1, 4, 50), rng.integers(1, 3, 50)
    got = multi_query(torch.as_tensor(f), pd.Series(pids), cams, [2,3], pd.Series([1,2]))
    np.testing.assert_allclose(got, [f[(pids==p)&(cams==c)].mean(0) for p,c in ((2,1),(3,2))],
                               atol=1e-6)
    with pytest.raises(InputError, match='one group'): pool_features(f, t[:3])
    with pytest.raises(InputError, match='mean'): pool_features(f, t, 'median')


def test_distances():
    q, g = torch.randn(5,8), torch.randn(7,8)
    np.testing.assert_allclose(euclidean_distance(q, g),
                               torch.cdist(q, g, compute_mode='donot_use_mm_for_euclid_dist'),
                               atol=1e-4)
    np.testing.assert_allclose(euclidean_distance(q, g, squared=True).sqrt(),
                               euclidean_distance(q, g), atol=1e-6)
    np.testing.assert_allclose(cosine_distance(q, g),
                               1-torch.cosine_similarity(q[:,None], g[None], dim=-1), atol=1e-5)
    assert not euclidean_distance(q, q).isnan().any()


# Pictures

def loop_ssim(a, b, radius=5, sigma=1.5):
    "SSIM of two (h, w) arrays on [0,1], window by window"
    g = np.exp(-np.arange(-radius, radius+1)**2/(2*sigma**2))
    w = np.outer(g, g)/np.outer(g, g).sum()
    vals = []
    for y in range(radius, a.shape[0]-radius):
        for x in range(radius, a.shape[1]-radius):
            pa, pb = (o[y-radius:y+radius+1, x-radius:x+radius+1] for o in (a,b))
            ma, mb = (w*pa).sum(), (w*pb).sum()
            va, vb, cov = (w*(pa-ma)**2).sum(), (w*(pb-mb)**2).sum(), (w*(pa-ma)*(pb-mb)).sum()
            vals.append((2*ma*mb+1e-4)*(2*cov+9e-4)/((ma**2+mb**2+1e-4)*(va+vb+9e-4)))
    return np.mean(vals)


def test_image_scores_equal_loops():
    g = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3,3,20,14), dtype=torch.uint8, generator=g)
    b = (a.float()*.7 + 30*torch.rand(a.shape, generator=g)).byte()
    x, y = a.numpy()/255, b.numpy()/255
    loop = [np.mean([loop_ssim(x[i,c], y[i,c]) for c in range(3)]) for i in range(3)]
    np.testing.assert_allclose(ssim(a, b), loop, atol=1e-4)
    np.testing.assert_allclose(psnr(a, b),
                               [-10*np.log10(((x[i]-y[i])**2).mean()) for i in range(3)], rtol=1e-5)
    np.testing.assert_allclose(l1_error(a, b), 2*abs(x-y).mean((1,2,3)), rtol=1e-5)
    floats = score_pictures(a/127.5-1, b/127.5-1)
    assert floats.l1 == pytest.approx(score_pictures(a, b).l1, rel=1e-5) and floats.dialect==DIALECT


def test_l1_is_the_generators_loss():
    a, b = torch.rand(4,3,6,5)*2-1, torch.rand(4,3,6,5)*2-1
    assert l1_error(a, b).mean().item() == pytest.approx(torch.nn.functional.l1_loss(a, b).item(),
        rel=1e-5)
    mask = (torch.rand(4,1,6,5)>.5).float()
    inside = ((a-b).abs().mean(1, keepdim=True)*mask).sum((1,2,3))/mask.sum((1,2,3))
    np.testing.assert_allclose(l1_error(a, b, mask), inside, rtol=1e-4)


def test_bad_pictures():
    a = torch.zeros(1,3,12,12, dtype=torch.uint8)
    small, none = a[...,:8], a[:0]
    for f in (lambda: ssim(small, small), lambda: l1_error(a, a[:,:1]),
              lambda: unit_pictures(a.int()), lambda: score_pictures(none, none)):
        with pytest.raises(InputError): f()


# Statistics

def test_intervals_equal_scipy():
    from scipy import stats
    rng = np.random.default_rng(0)
    for n in (2,3,5,20):
        a, b = rng.normal(.3, 1, n), rng.normal(0, 1, n)
        ci, ref = paired_interval(a, b, level=.9), stats.ttest_rel(a, b)
        np.testing.assert_allclose([ci.lo, ci.hi, ci.p], [*ref.confidence_interval(.9), ref.pvalue])
        assert (ci.n, ci.mean) == (n, pytest.approx((a-b).mean()))
        assert mean_interval(a).sd == pytest.approx(a.std(ddof=1))


def test_degenerate_samples():
    one = mean_interval([3.])
    assert one.mean==3 and np.isnan([one.lo, one.hi, one.sd, one.p]).all()
    same, zero = paired_interval([2.,3.], [1.,2.]), paired_interval([1.,2.], [1.,2.])
    assert (same.lo, same.hi, same.p) == (1,1,0) and (zero.lo, zero.hi, zero.p) == (0,0,1)
    for x in ([], [1.,np.nan], [[1.,2.]]):
        with pytest.raises(InputError): mean_interval(x)
    with pytest.raises(InputError): mean_interval([1.,2.], level=95)
    with pytest.raises(InputError): bootstrap_interval([1.,2.], groups=[1])


def test_bootstrap():
    x = np.random.default_rng(0).normal(.2, 1, 400)
    b, t = bootstrap_interval(x), mean_interval(x)
    np.testing.assert_allclose([b.lo, b.hi], [t.lo, t.hi], atol=.02)
    assert bootstrap_interval(x) == b != bootstrap_interval(x, seed=1)
    assert bootstrap_interval(x, groups=np.arange(400)) == b  # everyone for himself is the default
    assert bootstrap_interval(x-x.mean()+.0).p > .9 and bootstrap_interval(x+1).p < .01


def test_permutation_counts_every_exchange():
    from itertools import product
    d, who = np.array([1.,-.2,.5,.9,.3,-.4]), np.array([1,1,2,3,4,5])
    sums = np.bincount(who, d)[1:]
    exact = np.mean([abs(np.dot(s, sums))>=abs(sums.sum())-1e-9 for s in product((-1,1), repeat=5)])
    assert permutation_p(d, who, n_perm=20000)==pytest.approx(exact, abs=.01)
    assert permutation_p(d, who)==permutation_p(d, who)!=permutation_p(d, who, seed=1)
    assert permutation_p(np.zeros(5))==1


def test_permutation_keeps_its_level():
    rng = np.random.default_rng(0)
    who = np.arange(60)//3
    ps = [permutation_p(rng.normal(size=20)[who]+rng.normal(size=60), who, n_perm=199, seed=i)
          for i in range(400)]
    assert .02 < np.mean(np.array(ps)<=.05) < .08


def write_run(folder, shift, seed=0, pids=np.arange(90)//3+1):
    rng = np.random.default_rng(seed)
    dist = np.random.default_rng(9).normal(size=(len(pids),30))
    dist[np.arange(len(pids)),(pids-1)%30] -= 2+shift+.1*rng.normal(size=len(pids))
    ones = np.ones(len(pids), dtype=int)
    res = retrieval(dist, pids, np.arange(30)+1, ones, np.full(30, 2), protocol='made up')
    write_per_query(res, [f'a/b/{i:03d}.jpg' for i in range(len(pids))], pids, ones,
                    folder/'per_query.csv')
    return res


def test_runs_are_compared_from_their_files(tmp_path):
    a, b = write_run(tmp_path/'a', 0), write_run(tmp_path/'b', 1, seed=1)
    c = compare_runs(tmp_path/'a', tmp_path/'b'/'per_query.csv')
    assert (c.a, c.b, c.n_query, c.n_people, c.protocol) == ('a','b',90,30,'made up')
    for k in ('map_trap','map_mean','minp'):
        assert c.table.loc[k,'delta']==pytest.approx(100*(getattr(b,k)-getattr(a,k)), abs=1e-3)
    assert c.table.loc['rank1','delta']==pytest.approx(100*(b.rank(1)-a.rank(1)))
    assert (c.table.distinguishable.all() and 'distinguishable' in repr(c)
            and '| yes |' in c._repr_markdown_())
    back, same = compare_runs(tmp_path/'b', tmp_path/'a'), compare_runs(tmp_path/'a', tmp_path/'a')
    assert back.table.delta.tolist()==pytest.approx((-c.table.delta).tolist())
    assert (same.table.delta==0).all() and not same.table.distinguishable.any()


def test_files_of_equal_runs_are_equal(tmp_path):
    for o in 'ab': write_run(tmp_path/o, 0)
    for f in ('per_query.csv','per_query.json'):
        assert (tmp_path/'a'/f).read_bytes()==(tmp_path/'b'/f).read_bytes()
    df = pd.read_csv(tmp_path/'a'/'per_query.csv')
    assert (df['query'][0]=='000.jpg' and list(df)=='query pid camid n_good first_rank ap_trap '
            'ap_mean inp'.split())


def test_runs_that_cannot_be_compared(tmp_path):
    res = write_run(tmp_path/'a', 0)
    write_run(tmp_path/'other', 0, pids=np.arange(60)//2+1)
    write_run(tmp_path/'people', 0, pids=np.arange(90)//3+1+30*(np.arange(90)==5))
    (tmp_path/'none').mkdir()
    for o,says in (('none','score it again'), ('other','they share 60'), ('people','one test set')):
        with pytest.raises(InputError, match=says): compare_runs(tmp_path/'a', tmp_path/o)
    (tmp_path/'none'/'per_query.csv').write_text('query,pid\n')
    with pytest.raises(InputError, match='lacks'): compare_runs(tmp_path/'a', tmp_path/'none')
    with pytest.raises(InputError, match='name of its own'):
        per_query(res, ['x']*90, range(90), range(90))


def test_few_people_get_wider_intervals():
    "With few people the interval is that of Student, not of the normal distribution"
    x = np.random.default_rng(0).normal(size=6)
    b, t = bootstrap_interval(x, n_boot=20000), mean_interval(x)
    assert (b.hi-b.lo)/(t.hi-t.lo)==pytest.approx(1, abs=.12)
    assert np.isnan(bootstrap_interval([1.,2.], groups=[1,1]).lo)


def test_paired_table_uses_shared_seeds():
    df = pd.DataFrame(dict(row=list('ccco')+['o','x'], seed=[1,2,3,1,2,3],
                           map_mean=[.5,.4,.9,.6,.6,.7]))
    t = paired_table(df, control='c')
    assert t.index.tolist()==['c','o','x'] and t.n_seeds.tolist()==[3,2,1]
    assert t.delta.tolist() == pytest.approx([0,.15,-.2]) and np.isnan(t.loc['x','lo'])
    ci = paired_interval([.6,.6], [.5,.4])
    assert t.loc['o', ['lo','hi','p']].tolist() == pytest.approx([ci.lo, ci.hi, ci.p])
    lone = paired_table(df.assign(seed=range(6)), control='c')
    assert lone.loc['c','delta']==0 and lone.loc['o'].n_seeds==2 and np.isnan(lone.loc['o','delta'])


# --- from features: the order alone ---

@pytest.mark.parametrize('distance,normalise', [('euclidean',False),('squared',False),
                                                ('cosine',False),('euclidean',True)])
def test_features_rank_as_their_distances(distance, normalise):
    g = torch.Generator().manual_seed(0)
    q,gal = torch.randn(50, 16, generator=g), 3*torch.randn(400, 16, generator=g)
    gal[200:210] = gal[:10]  # twins in the gallery tie
    rng = np.random.default_rng(0)
    ids = (rng.integers(1, 9, 50), rng.integers(-1, 9, 400), rng.integers(1, 4, 50),
           rng.integers(1, 4, 400))
    r = score_features(q, gal, *ids, distance, normalise=normalise, chunk=7)
    a,b = (torch.nn.functional.normalize(o.double(), dim=1) if normalise or distance=='cosine'
           else o.double() for o in (q,gal))
    want = retrieval(torch.cdist(a, b) if distance!='cosine' else 1-a@b.T, *ids)
    assert np.array_equal(r.ranks, want.ranks) or abs(r.map_mean-want.map_mean)<1e-6


def test_features_that_overflow():
    q,g = torch.full((2,4), 1e30), torch.ones(3,4)
    with pytest.raises(InputError, match='not finite'):
        score_features(q, g, [1,2], [1,2,1], [1,1], [2,2,2])


def test_scoring_leaves_what_it_is_given():
    d = np.random.default_rng(0).random((6,30), dtype=np.float32)
    q,g = torch.randn(6,4), torch.randn(30,4)
    kept = d.copy(), q.clone(), g.clone()
    ids = [1,2,3]*2, [1,2,3,0,-1]*6, [1]*6, [1,2,3]*10
    retrieval(d, *ids); score_features(q, g, *ids)
    assert np.array_equal(d, kept[0]) and torch.equal(q, kept[1]) and torch.equal(g, kept[2])
