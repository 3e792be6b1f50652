"All settings live in settings.ini; edit there, not here."
from configparser import ConfigParser
from pathlib import Path

import setuptools

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

licenses = {'apache2': 'Apache-2.0'}
statuses = ['0 - Unknown', '1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta',
            '5 - Production/Stable', '6 - Mature', '7 - Inactive']

def words(key): return cfg.get(key, '').split()

extras = {k[6:]: words(k) for k in cfg if k.startswith('extra_')}

readme = Path(__file__).parent/'README.md'
setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], license=licenses[cfg['license']],
    description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data={cfg['lib_path']: ['py.typed', 'weights/*.safetensors', 'weights/*.json',
                                     'weights/limbs/*']},
    zip_safe=False,
    python_requires='>='+cfg['min_python'],
    install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements'), **extras,
                    'all': sorted({o for some in extras.values() for o in some})},
    classifiers=['Development Status :: '+statuses[int(cfg['status'])],
                 'Intended Audience :: '+cfg['audience'].title(),
                 'Natural Language :: '+cfg['language'].title(),
                 'Programming Language :: Python :: 3'],
    # The `nbdev` entry point lets show_doc and doclinks find this library's index of symbols.
    entry_points={'console_scripts': words('console_scripts'),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
)
