"What the changelog says of old and new places is so"
import re
from importlib import import_module
from pathlib import Path

import pytest

CHANGELOG = (Path(__file__).parent.parent/'CHANGELOG.md').read_text(encoding='utf-8')
MOVED = re.findall(r'^\| `([a-z.]+)` \| `([a-z.]+)` \| (`.*`) \|$', CHANGELOG, re.M)


def test_there_are_moves(): assert len(MOVED)>15


@pytest.mark.parametrize('old,new,names', MOVED, ids=lambda o: o if len(o)<40 else None)
def test_moved_names_are_where_the_table_says(old, new, names):
    module = import_module(f'posereid.{new}')
    assert not [o for o in re.findall(r'`(\w+)`', names) if not hasattr(module, o)]


def test_pages_that_moved_redirect():
    nbs = {o.name: o.read_text(encoding='utf-8')
           for o in (Path(__file__).parent.parent/'nbs').glob('*.ipynb')}
    gone = {old for old,_,_ in MOVED
            if not any(re.fullmatch(rf'\d\d_{re.escape(old)}\.ipynb', o) for o in nbs)}
    assert gone and not [o for o in gone
                         if not any(f'aliases: [/{o}.html]' in t for t in nbs.values())]
