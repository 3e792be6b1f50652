# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Controls that the paper lacks
# > More poses, more steps, more smoothing, more colours: which of them is it?

# %% [markdown]
# **The question.** An augmented row differs from a baseline in several things at once: more steps, softer labels, other colours, other poses, and whatever a generator gets wrong. The rows here change one or two of them, all at equal steps: the real pictures alone; with labels smoothed as much as the augmented set's are on average; with jittered colours, under hard labels and under soft ones; with generated pictures in the *own* pose of each (a reconstruction: the generator's style without a new pose); in poses *shuffled* among the target's own pictures (new combinations, no pose of the source); from a generator that was trained on pairs across cameras, where the default pairs pictures of one camera; and true renderings in own and new poses, with hard and with smoothed labels.
#
# Seed $i$ is world $i$ and first weights $i$ of the preset `default`: 120 people with 10 pictures each to train on, nets and pictures (64×32) that two cores can train, poses lent by 60 people of the pose-rich source. Test: 200 queries, 800 gallery pictures of 100 other people, 240 distractors, 120 junk pictures removed; single query, same camera removed. Intervals are 95 % t-intervals over seeds; differences are paired by seed. Both mAPs are given; differences are in the trapezoid, which the evaluation code of the paper's time computes. Nothing was chosen on these worlds. Generators start from the [weights of the package](generator.ipynb), trained on eight *other* worlds of the same renderer, a start that controls do not have ([Market-1501](market.ipynb) does without). Seeds 1 to 3 are three of the five of [Tables 1](tbl1_pose_transfer.ipynb) and [4](tbl4_guider.ipynb): where a pair stands there too, its interval is narrower.

# %%
#| hide
import pandas as pd
from fastcore.test import *
from IPython.display import Markdown
from posereid.docs import captioned
from posereid.evaluate.results import by_interval, by_seed, finding, interval_text, plot_gains, scores_table, verdicts
from posereid.metrics.stats import mean_interval, paired_interval
from posereid.stages.tables import read_lines
df = read_lines('controls.csv')
titles = df.groupby('name', sort=False).row.first().to_dict()
assert df.command.str.startswith('posereid_reproduce').all()

# %% [markdown]
# Each line was made by the command in its last column, with one thread, the command's default; another number of threads gives other digits:
#
# ```sh
# posereid_reproduce controls
# ```

# %%
#| label: tbl-controls
#| tbl-cap: "Mean and 95 % interval over seeds, percent."
#| echo: false
order = ['equal_steps','smoothed','jitter','jitter_smoothed','reconstructed','shuffled','any_camera','guided','own_0','new_0','own','new']
captioned(scores_table(df, 'equal_steps', names=[o for o in order if o in titles]), f"{finding(df, 'new', ['own','smoothed'])} {finding(df, 'guided', ['reconstructed','shuffled','smoothed'])} Mean and 95 % interval over seeds, percent.")

# %%
#| label: fig-controls
#| fig-cap: "Differences in mAP to the smoothed control: what is left when steps and smoothing are equal."
#| fig-alt: "Eleven horizontal intervals around zero."
#| echo: false
fig = plot_gains(df, 'smoothed', [o for o in order if o in titles])
fig.set_dpi(80)
captioned(fig, f"{finding(df, 'guided', ['smoothed'])} {finding(df, 'new', ['smoothed'])} Differences in mAP to the smoothed control, 95 % intervals; equal steps throughout, and softer labels in all rows but “equal steps”, “colours jittered” and those with ε=0.")

# %% [markdown]
# ## What each factor does
# @tbl-factors takes the rows of @tbl-controls in pairs that differ in one thing. More steps is the pair of [Table 1](tbl1_pose_transfer.ipynb), over its five worlds; all others are over the worlds of this page.

# %%
#| label: tbl-factors
#| tbl-cap: ""
#| echo: false
five = read_lines('tbl1.csv')
FACTORS = [('more steps', five, 'equal_steps', 'control'), ('softer labels', df, 'smoothed', 'equal_steps'), ('more colours', df, 'jitter', 'equal_steps'), ('more colours, labels soft in both', df, 'jitter_smoothed', 'smoothed'),
           ('every picture rendered again', df, 'own_0', 'equal_steps'), ('softer labels, renderings', df, 'own', 'own_0'), ('new poses, renderings, hard labels', df, 'new_0', 'own_0'), ('new poses, renderings, soft labels', df, 'new', 'own'),
           ('new poses, generated', df, 'shuffled', 'reconstructed'), ("the source's poses instead of the target's", df, 'guided', 'shuffled'), ('pairs across cameras', df, 'any_camera', 'guided'), ("the generator's errors", df, 'guided', 'new')]
def pair(d, a, b, value): return paired_interval(*by_seed(d, value)[[a,b]].dropna().to_numpy().T)
def factor(what, d, a, b):
    name,i,r = d.groupby('name').row.first(),pair(d, a, b, 'map_trap'),pair(d, a, b, 'rank1')
    return {'factor':what, 'rows':f'{name[a]} − {name[b]}', 'seeds':i.n, 'Δ mAP':interval_text(i, sign='+'), 'it':by_interval(i, 'adds', 'costs', 'is not decided'), 'Δ rank-1':interval_text(r, sign='+')}
factors = pd.DataFrame([factor(*o) for o in FACTORS]).set_index('factor').rename_axis(None).rename_axis(columns='factor')
def those(word): return ', '.join(factors.index[factors['it']==word]).lower() or 'none'
captioned(factors, f"Adding: {those('adds')}. Costing: {those('costs')}. Not decided: {those('is not decided')}. Paired differences with 95 % intervals; mAP by the trapezoid.")

# %% [markdown]
# **Reading it.** Soft labels do much by themselves, on pictures that are the same: a small net can learn 120 people by heart in so many steps, and a soft label keeps it from being sure of what it has only memorised. Generated pictures carry soft labels, so a comparison with a hard-labelled control credits the pictures with the labels; that is why the front page names both controls. What poses add is what the rendered rows in new and in own poses differ by, at the same ε; what a generator makes of new poses is shuffled against own. Shuffled poses are none that the target lacks, only none that *this person* has: where they do as much as the source's, it is variety within a person that counts here, and not a richer set of poses. And the last line is the price of a generator that is not a renderer.
#
# Two things are not as clean as the table looks. The two pictures that a row in *own* poses adds for each real one are alike (a generator has no chance in it, and a rendering repeats its noise), so that rows in new poses also have twice as many *different* pictures. And renderings have nothing in front of a person, which 6 in 100 real pictures have. Shuffled poses may also be drawn better than the source's, since the generator was trained on these people in these poses. Where an interval holds 0, this page does not know.
#
# In sentences:

# %%
#| echo: false
pairs = [('smoothed', 'equal_steps'), ('jitter', 'equal_steps'), ('jitter_smoothed', 'smoothed'), ('new_0', 'own_0'), ('new', 'own'), ('own', 'own_0'), ('guided', 'reconstructed'), ('guided', 'shuffled'), ('shuffled', 'reconstructed'), ('any_camera', 'guided'), ('guided', 'new'), ('guided', 'jitter_smoothed'), ('guided', 'smoothed')]
Markdown(verdicts(df, pairs))

# %% [markdown]
# ## Without colour
#
# @tbl-controls-grey has the same models on pictures whose colour was taken out, which shows what they know besides the colours of clothes, and once more with BatchNorm statistics from real pictures alone ([more on that](beyond.ipynb)).

# %%
#| label: tbl-controls-grey
#| tbl-cap: "mAP (trapezoid) of the same models, and on grey pictures; mean over seeds, percent."
#| echo: false
cols = {'mAP':'map_trap', 'mAP, grey pictures':'map_trap_grey', 'rank-1, grey pictures':'rank1_grey', 'mAP, BatchNorm re-estimated':'map_trap_bn'}
here = [o for o in order if o in titles]
g = pd.DataFrame({k: {titles[n]: interval_text(mean_interval(df[c][df.name==n]), within=(0,100)) for n in here} for k,c in cols.items()})
g.insert(0, 'seeds', [df[df.name==n].seed.nunique() for n in here])
grey = df.groupby('name').map_trap_grey.mean()/df.groupby('name').map_trap.mean()
captioned(g, f"Without colour between {100*grey.min():.0f} and {100*grey.max():.0f} % of a row's mAP is left: all of them live on colours. mAP by the trapezoid; mean and 95 % interval over seeds, percent.")
