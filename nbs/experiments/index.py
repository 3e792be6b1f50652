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
# # Experiments
# > The paper's tables and figures, and the controls that it lacks, each on a page with its command, its seeds and its intervals.
#
# - listing: {contents: "*.ipynb", type: grid, fields: [image, title, description], sort: title, image-height: 140px}

# %% [markdown]
# Every page reads a CSV that lies beside it, a line a row and a seed, made by `posereid_reproduce`. A line names the command that makes it again; for one seed more, add its number to `--seeds`. [The paper's claims, one by one](claims.ipynb) put all of them into a sentence each. What was run so far is in @tbl-runs:

# %%
#| hide
import re
import pandas as pd
from fastcore.test import *
from IPython.display import Markdown
from pathlib import Path
from posereid.docs import captioned, markdown_table
from posereid.stages.tables import TABLES, part_name, part_names, read_lines

# %%
#| label: tbl-runs
#| tbl-cap: Tables of the engine, the seeds that each wants and those that its CSV holds for all of its rows.
#| echo: false
pages = dict(tbl1='tbl1_pose_transfer', tbl2='tbl2_recipes', tbl3='tbl3_triplets', tbl4='tbl4_guider', cross='cross_guider', fig3='fig3_pictures', fig4='fig4_two_guiders', fig5='fig5_how_many', fig6='fig6_trust', controls='controls', beside='beside_other_methods', beyond='beyond', coverage='coverage')
def seeds(part, df):
    "Seeds that have every row of a part, and a mark where a row lacks some"
    wanted = set(df.name[df.part==part_name(part)]) if callable(part['rows']) or TABLES_OF[id(part)].get('pictures') else set(part_names(part))
    have = df[df.part==part_name(part)].groupby('seed').name.agg(lambda o: wanted<=set(o))
    return f"{part_name(part)+': ' if part_name(part) else ''}{int(have.sum())}"
TABLES_OF = {id(p): t for t in TABLES.values() for p in t['parts']}
def there(name):
    df = read_lines(f'{name}.csv')
    return ', '.join(seeds(p, df) for p in TABLES[name]['parts']) if len(df) else 'not measured'
rows = [dict(table=f'`{k}`', what=f"[{v['title']}]({pages[k]}.ipynb)" if k in pages else v['title'], **{'seeds wanted':v['seeds'], 'seeds there':there(k)}) for k,v in TABLES.items() if k!='main']
short = [o['table'].strip('`') for o in rows if any(int(n)<o['seeds wanted'] for n in re.findall(r'(?:^|: |, )(\d+)(?=,|$)', o['seeds there']) )]
captioned(Markdown(markdown_table(pd.DataFrame(rows))), 'Every table has the seeds that it wants, for all of its rows.' if not [o for o in short if o!='fig5'] else f"{', '.join(short)} want more seeds; all others have what they want, for all of their rows.")

# %% [markdown]
# [The main comparison](main.ipynb) has five worlds and a CSV of its own, and so have [the generator's trials](generator.ipynb) and [Market-1501](market.ipynb). [The paper's tables](paper.ipynb) are there whole.
#
# A table more is an entry of [`TABLES`](../89_stages.tables.ipynb), a row more a dict of [the engine](../84_stages.experiments.ipynb): that is all that a further method needs.
