"Figures of rankings, distances, poses, cameras and embeddings: what they draw is what was measured"
import io, sys
import numpy as np, pandas as pd, pytest, torch
from posereid.core import InputError
from posereid.evaluate.plots import (camera_matrix, plot_ap_by_pose, plot_cameras, plot_distances,
    plot_embedding, plot_intervals, plot_ranking, pose_differences,
    project_features, ranked_pictures)
from posereid.evaluate.results import by_seed, difference, differences, plot_gains, plot_sweep, sweep
from posereid.metrics.retrieval import retrieval
from posereid.metrics.stats import bootstrap_interval, interval_ends, mean_interval
from posereid.pose.bank import pose_distance
from posereid.pose.joints import walking_pose


@pytest.fixture
def task():
    "12 queries, 40 gallery pictures with junk and distractors, 3 cameras"
    rng = np.random.default_rng(0)
    gp = np.r_[rng.integers(1, 6, 34), [-1,-1,-1,0,0,0]]
    return (rng.random((12,40)), np.r_[np.arange(1,6), np.arange(1,6), 1, 2], gp,
            rng.integers(1, 4, 12), rng.integers(1, 4, 40))


def saved(fig):
    f = io.BytesIO(); fig.savefig(f, format='png')
    assert 1000 < len(f.getvalue()) < 60000
    import matplotlib.pyplot as plt
    assert not plt.get_fignums()


class Store:
    "A store whose pictures have the number in their path as brightness"
    def get(self, paths):
        return (torch.stack([torch.full((3,8,4), int(p), dtype=torch.uint8) for p in paths])
                if len(paths) else torch.zeros(0,3,8,4, dtype=torch.uint8))


def frames(task):
    d,qp,gp,qc,gc = task
    return (pd.DataFrame(dict(path=[str(i+100) for i in range(len(qp))], pid=qp, camid=qc)),
            pd.DataFrame(dict(path=[str(i) for i in range(len(gp))], pid=gp, camid=gc)))


def test_ranked_pictures_are_the_filtered_list(task):
    d,qp,gp,qc,gc = task
    res = ranked_pictures(torch.tensor(d), *frames(task), Store(), rows=[3,5], k=40)
    for n,i in enumerate((3,5)):
        keep = [j for j in np.argsort(d[i], kind='stable')
                if gp[j]!=-1 and not (gp[j]==qp[i] and gc[j]==qc[i])]
        assert ([int(o[0,0,0]) for o in res['ranked'][n] if o is not None]==keep
                and len(res['ranked'][n])==40)
        np.testing.assert_array_equal(res['dist'][n][:len(keep)], d[i][keep])
        np.testing.assert_array_equal(res['correct'][n][:len(keep)], gp[keep]==qp[i])
        assert int(res['queries'][n][0,0,0])==100+i


def test_distances_stand_below_their_pictures(task):
    d,qp,gp,qc,gc = task
    q,g = frames((d[:,:5], qp, gp[:5], qc, gc[:5]))
    res = ranked_pictures(d[:,:5], q, g, Store(), rows=[3], k=6)
    fig = plot_ranking(**res)
    texts = [ax.get_xlabel() for ax in fig.axes]
    assert texts[0]=='' and texts[1]==f'{res["dist"][0][0]:.2f}' and texts[-1]==''
    assert all((t!='')==(len(ax.images)==1) for t,ax in zip(texts[1:], fig.axes[1:]))


def test_ranking_of_bad_input(task):
    q,g = frames(task)
    with pytest.raises(InputError, match='positions from 0 to 11'):
        ranked_pictures(task[0], q, g, Store(), rows=[12])
    with pytest.raises(InputError, match='positions'):
        ranked_pictures(task[0], q, g, Store(), rows=[])
    with pytest.raises(InputError, match='their shape is'):
        ranked_pictures(task[0].T, q, g, Store())
    pic = torch.zeros(3,8,4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r'\(1, 2\)'):
        plot_ranking([pic], [[pic,pic]], [[True,False]], dist=[[.1]])


def test_histograms_count_every_pair_once(task):
    d,qp,gp,qc,gc = task
    same = qp[:,None]==gp
    pos,neg = same & (qc[:,None]!=gc), ~same & (gp!=-1)
    fig = plot_distances(*task, bins=7)
    # seaborn draws the last kind first
    for outline,mask in zip(fig.axes[0].collections[::-1], (pos,neg)):
        want,edges = np.histogram(d[mask], 7, (d.min(), d.max()), density=True)
        v = outline.get_paths()[0].vertices
        def height(x):
            return max((a[1] for a,b in zip(v, v[1:])
                        if a[1]==b[1] and min(a[0],b[0])<x<max(a[0],b[0])), default=0)
        np.testing.assert_allclose([height(x) for x in (edges[:-1]+edges[1:])/2], want)
    assert [t.get_text() for t in fig.axes[0].get_legend()
            .get_texts()]==[f'same person ({pos.sum()})', f'others ({neg.sum()})']
    saved(fig)


def test_histograms_of_constant_and_bad_distances(task):
    saved(plot_distances(task[0]*0, *task[1:]))
    with pytest.raises(InputError, match='NaN'): plot_distances(task[0]*np.nan, *task[1:])
    with pytest.raises(InputError, match='integers'):
        plot_distances(task[0], task[1][1:], *task[2:])


def test_pose_differences_are_means_over_what_is_to_be_found(task):
    d,qp,gp,qc,gc = task
    kq,kg = (walking_pose(torch.arange(12.), turn=torch.arange(12.)),
             walking_pose(torch.arange(40.)/3, turn=torch.arange(40.)/5))
    kg[0] = 0                                      # a picture without joints has no part in it
    full,res = pose_distance(kq, kg).numpy(), pose_differences(kq, kg, *task[1:])
    for i in range(12):
        ok = (gp==qp[i]) & (gc!=qc[i]) & np.isfinite(full[i])
        np.testing.assert_allclose(res[i], full[i][ok].mean() if ok.any() else np.nan, rtol=1e-5)
    assert np.isnan(pose_differences(kq*0, kg, *task[1:])).all()
    with pytest.raises(InputError, match='as many persons'): pose_differences(kq, kg[1:], *task[1:])


def test_ap_by_pose_has_every_query_in_one_bin(task):
    r = retrieval(*task)
    diff = np.linspace(1, 2, 12); diff[3] = np.nan
    fig = plot_ap_by_pose({'a':r,'b':r}, diff, task[1], bins=3)
    y = fig.axes[0].lines[0].get_ydata()
    keep = np.flatnonzero(np.isfinite(diff) & (r.n_good>0))
    parts = [keep[np.arange(len(keep))*3//len(keep)==b] for b in range(3)]
    np.testing.assert_allclose(y, [100*r.ap_trap[o].mean() for o in parts])
    assert f'{len(keep)} of 12' in fig.axes[0].get_xlabel()
    pids = task[1]
    # people are drawn, not queries
    want = [[100*o for o in bootstrap_interval(r.ap_trap[o], pids[o])[1:3]] for o in parts]
    for bars in fig.axes[0].containers:
        np.testing.assert_allclose([o[:,1] for o in bars[2][0].get_segments()], want, rtol=1e-6)
    saved(fig)


@pytest.mark.parametrize('change,match', [(dict(results={}), 'one result'),
    (dict(ap='map'), 'ap_trap'), (dict(differences=np.ones(3)), 'one number a query'),
    (dict(bins=0), 'from 1 to'), (dict(bins=99), 'from 1 to'),
    (dict(differences=np.full(12, np.nan)), 'from 1 to the 0')])
def test_ap_by_pose_of_bad_input(task, change, match):
    with pytest.raises(InputError, match=match):
        plot_ap_by_pose(**(dict(results={'a':retrieval(*task)}, differences=np.ones(12)) | change))


@pytest.mark.parametrize('score', ['map_trap','map_mean','minp','rank1'])
def test_the_camera_matrix_is_a_ranking_in_each_cell(task, score):
    d,qp,gp,qc,gc = task
    rows,cols,v,n = camera_matrix(*task, score=score)
    for i,a in enumerate(rows):
        for j,b in enumerate(cols):
            q,g = [k for k in range(12) if qc[k]==a and a!=b and (gp[gc==b]==qp[k]).any()], gc==b
            assert n[i,j]==len(q)
            if not q: assert np.isnan(v[i,j]); continue
            r = retrieval(d[q][:,g], qp[q], gp[g], qc[q], gc[g])
            assert v[i,j]==pytest.approx(r.rank(1) if score=='rank1' else getattr(r, score))
    ax = plot_cameras(*task, score=score).axes[0]
    drawn = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(v.shape)
    np.testing.assert_allclose(drawn, 100*v)
    texts = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert len(ax.texts)==len(texts)==v.size and all((texts[i,j]=='–')==np.isnan(o)
                                                     for (i,j),o in np.ndenumerate(v))
    assert all(texts[i,j].split('\n')[0]==f'{100*o:.0f}' for (i,j),o in np.ndenumerate(v)
               if np.isfinite(o))


def test_cameras_must_be_known(task):
    with pytest.raises(InputError, match='camera 0'): camera_matrix(*task[:3], task[3]*0, task[4])
    with pytest.raises(InputError, match='rank1'): camera_matrix(*task, score='cmc')


def test_pca_is_the_plane_of_largest_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60,8))*np.array([9,4,1,.5,.5,.4,.3,.2])
    x = x-x.mean(0)
    u,s,_ = np.linalg.svd(x, full_matrices=False)
    y = project_features(x, 'pca')
    np.testing.assert_allclose(np.abs(y), np.abs(u[:,:2]*s[:2]), rtol=.02, atol=.05)
    assert np.array_equal(y, project_features(x, 'pca'))


def test_embedding_colours_those_with_most_pictures():
    x,pids = (torch.randn(12,4, generator=torch.Generator().manual_seed(0)),
              [7,7,7,2,2,5,5,9,0,0,0,0])
    fig = plot_embedding(x, pids, 'pca', people=2)
    parts = {c.get_label(): len(c.get_offsets()) for c in fig.axes[0].collections}
    assert parts=={'others (7)':7, '2':2, '7':3}
    saved(fig)


@pytest.mark.parametrize('x,method,match', [(np.ones((3,4)), 'pca', 'at least four'),
    (np.ones((9,1)), 'pca', 'at least four'),
    (np.full((9,4), np.nan), 'tsne', 'finite'), (np.ones((9,4)), 'umap', 'tsne')])
def test_projection_of_bad_input(x, method, match):
    with pytest.raises(InputError, match=match): project_features(x, method)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.manifold', None)
    with pytest.raises(InputError, match='pip install scikit-learn'):
        project_features(np.eye(9), 'tsne')


def test_embedding_needs_a_person_for_each():
    with pytest.raises(InputError, match='needs a person'): plot_embedding(np.eye(9), [1]*8, 'pca')


# --- seaborn's error bars are our t-intervals ---

@pytest.fixture
def lines():
    "Four rows over five seeds, of which one row lacks a seed"
    noise = iter(np.random.default_rng(1).normal(size=20))
    df = pd.DataFrame([dict(part='', seed=s, row=r, title=f'the {r}', map_trap=30+5*s+g+next(noise),
                            rank1=1.) for s in range(1,6)
                       for r,g in (('control',0),('up',4),('none',0),('down',-6))])
    return df[(df.row!='up') | (df.seed!=3)]


def bars(ax):
    "Height → ends of the horizontal bars"
    data = [np.array([o.get_xdata(), o.get_ydata()], dtype=float) for o in ax.lines]
    return {float(y[0]): tuple(x)
            for x,y in data if len(x)==2 and y[0]==y[1] and np.isfinite(x).all()}


def test_bars_of_differences_are_the_intervals(lines):
    fig = plot_gains(lines, 'control', ['up','none','down'])
    ax = fig.axes[0]
    want = [difference(lines, o, 'control') for o in ('up','none','down')]
    assert {y: pytest.approx(o) for y,o in bars(ax).items()}=={float(y): (i.lo, i.hi)
        for y,i in enumerate(want)}
    dots = {float(y): (float(x), o.get_markerfacecolor()) for o in ax.lines if o.get_marker()=='o'
            for x,y in zip(o.get_xdata(), o.get_ydata()) if np.isfinite(float(x))}
    assert [dots[y][0] for y in (0.,1.,2.)]==pytest.approx([i.mean for i in want])
    assert [dots[y][1]=='white'
            for y in (0.,1.,2.)]==[not (i.lo>0 or i.hi<0) for i in want]==[False,True,False]
    assert ([t.get_text() for t in ax.get_yticklabels()]==['the up','the none','the down']
            and ax.get_ylim()[0]>ax.get_ylim()[1])
    saved(fig)


def test_one_seed_has_a_hollow_dot_and_no_bar(lines):
    fig = plot_gains(lines[lines.seed==1], 'control')
    assert all(o.get_markerfacecolor()=='white' for o in fig.axes[0].lines if o.get_marker()=='o')
    assert not bars(fig.axes[0])
    saved(fig)


def test_differences_are_tidy_and_paired(lines):
    df = differences(lines, [('up','control'), ('down','up')])
    assert (list(df)==['row','ref','title','seed','value']
            and df.title.unique().tolist()==['the up − the control','the down − the up'])
    assert df.seed.tolist()==[1,2,4,5]*2 # a seed counts where both are
    for a,b in (('up','control'), ('down','up')):
        assert interval_ends(df.value[df.row==a])==pytest.approx(difference(lines, a, b)[1:3])
    with pytest.raises(InputError, match="no row 'over'"): differences(lines, [('over','control')])


def test_a_table_without_titles_is_refused():
    with pytest.raises(InputError, match='`title` and `value`.*differences'):
        plot_intervals({'a':mean_interval([1.,2.])})
    with pytest.raises(InputError, match='`title` and `value`'):
        plot_intervals(pd.DataFrame(dict(title=['a'])))


def test_bars_of_a_sweep_are_the_intervals():
    df = pd.DataFrame([dict(part='', seed=s, row=f'{k}_eps_{e:g}', title='t', map_trap=30+s*(1+e)+b)
                       for s in (1,2,4) for e in (0,.5,1) for k,b in (('a',0),('b',3))])
    kinds = {k: sweep(df, f'{k}_eps_') for k in 'ab'}
    assert kinds['a'].x.tolist()==[0.]*3+[.5]*3+[1.]*3 and kinds['a'].seed.tolist()==[1,2,4]*3
    ax = plot_sweep(kinds, 'ε', levels={'level':31.}).axes[0]
    want = {(k,x): tuple(mean_interval(o.value[o.x==x])[1:3]) for k,o in kinds.items()
            for x in (0.,.5,1.)}
    bars = sorted((round(float(np.nanmean(x)), 2), np.nanmin(y), np.nanmax(y))
                  for x,y in ((np.asarray(o.get_xdata(), dtype=float),
                               np.asarray(o.get_ydata(), dtype=float)) for o in ax.lines)
                  if len(x)>3 and np.nanmax(x)-np.nanmin(x)<.2)
    # side by side, none upon another
    assert [o[1:] for o in bars]==[pytest.approx(want[k,x]) for x in (0.,.5,1.) for k in 'ab']
    assert ([t.get_text() for t in ax.get_xticklabels()]==['0','0.5','1']
            and [t.get_text() for t in ax.get_legend().get_texts()]==['a','b','level'])
    relative = sweep(df, 'b_eps_', ref='b_eps_0')
    assert (relative.value[relative.x==0].eq(0).all()
            and relative.value[relative.x==1].tolist()==pytest.approx([1,2,4]))


def test_lines_of_different_runs_are_not_averaged():
    "One seed of one row has one score; which lines clash is said"
    lines = pd.DataFrame([dict(row=r, seed=s, part='', run=run, map_trap=v)
                          for r,s,run,v in (('a',1,'x',1.), ('a',2,'x',2.), ('b',1,'x',3.), ('b',2,'x',5.))])
    assert by_seed(lines).b.tolist()==[3., 5.]
    more = pd.concat([lines, lines[lines.row=='a'].assign(run='y', map_trap=9.)], ignore_index=True)
    with pytest.raises(InputError, match="Row 'a' has 2 lines of seed 1 \\(run 'x', 'y'\\)"): by_seed(more)
    assert by_seed(more[more.run=='x']).equals(by_seed(lines))
