"Sizes from headers: nothing is decoded, and which way is up is known wherever it is written"
import numpy as np, pytest
from PIL import Image, PngImagePlugin
from posereid import imagefiles as I


def paint(path, size=(8,16), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3),
                        dtype=np.uint8)).save(path)
    return path


def test_sizes_of_png_come_from_the_header(tmp_path, monkeypatch):
    p = paint(tmp_path/'x.png', (8,16))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', lambda self: pytest.fail('decoded'))
    assert I.picture_size(p) == (16,8)
    monkeypatch.undo()
    side = Image.Exif(); side[0x0112] = 6
    with Image.open(p) as im: im.save(tmp_path/'y.png', exif=side)
    assert I.picture_size(tmp_path/'y.png') == (8,16)
    raw = (tmp_path/'y.png').read_bytes()  # the same chunk behind the pixels
    at = raw.index(b'eXIf')-4
    end = at+12+int.from_bytes(raw[at:at+4], 'big')
    iend = raw.index(b'IEND')-4
    (tmp_path/'z.png').write_bytes(raw[:at]+raw[end:iend]+raw[at:end]+raw[iend:])
    assert I.picture_size(tmp_path/'z.png') == (8,16) == I.open_upright(tmp_path/'z.png').size[::-1]
